"""The train step against the official code, and what must not change it: devices, parts, restarts."""

import collections
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import AS_USERS, TINY_PLAIN, folder_of_images, seeded_arrays, tiny_config, train_steps
from seeded import GOLDEN, images

from deit_jax import models
from deit_jax.config import default_config, resolve
from deit_jax.data import loader
from deit_jax.distill.teacher import stored_teacher
from deit_jax.errors import Interrupted, UserError
from deit_jax.losses import soft_targets
from deit_jax.runtime import sharding
from deit_jax.train.loop import train_run as train
from deit_jax.train.step import ModelSpec, create_state, make_train_step, model_spec
from deit_jax.weights.names import Timm, entries
from deit_jax.weights.orbax import best_checkpoint

GOLD = np.load(GOLDEN / "training.npz")
NAME = "deit_tiny_distilled_patch16_224"


def norms(params: dict) -> np.ndarray:
    """L2 norm of every tensor, in the official order and splitting."""
    tree = {"params": jax.tree.map(np.asarray, params)}
    found = {e.key: np.sqrt((np.asarray(e.view(tree), np.float64) ** 2).sum()) for e in entries(tree, Timm())}
    return np.array([found[name] for name in GOLD["param_names"]])


def given_targets(batch: dict, key, position, cfg, num_classes: int, shards) -> tuple:
    """In place of the augmentation: images that are normalized already, and their targets."""
    return batch["image"], batch["target"]


def test_six_steps_of_hard_distillation_are_the_official_ones():
    config = resolve(default_config())
    config.distill.kind, config.optimizer.ema_decay, config.steps = "hard", 0.99, 6
    config.optimizer.schedule, config.optimizer.warmup_epochs = "constant", 0.0
    config.batch_size = config.optimizer.lr_batch  # the learning rate is not scaled: 5e-4
    build = models.constructor(NAME)
    student = ModelSpec(build, models.abstract(build)[0], 224, 1000)
    step_fn = make_train_step(student, stored_teacher(config, 1000).predict, config, 6, augment=given_targets)
    step_fn = jax.jit(step_fn, compiler_options=AS_USERS)
    state = create_state(student, config, jax.tree.map(jnp.asarray, seeded_arrays(build)))

    losses, first_moment = [], None
    for step in range(6):
        rng = np.random.default_rng(200 + step)
        teacher = (3 * rng.standard_normal((4, 1000))).astype(np.float32)
        labels = rng.integers(0, 1000, 4)
        batch = {
            "image": jnp.asarray(images(4, 224, seed=100 + step)),
            "target": soft_targets(jnp.asarray(labels), 1000, 0.1),
            "teacher": jnp.asarray(teacher),
        }
        state, metrics = step_fn(state, batch, [])
        losses.append(float(metrics["loss"]))
        if step == 0:  # Adam's first moment is then a tenth of the gradient
            adam = next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))
            first_moment = norms(adam.mu) / 0.1

    np.testing.assert_allclose(losses, GOLD["hard/losses"], rtol=1e-4)
    # the key third of qkv.bias has no gradient but rounding, which Adam turns into steps
    biases = np.array([name.endswith("qkv.bias") for name in GOLD["param_names"]])
    for ours, key in (
        (first_moment, "grad_norms"),
        (norms(state.params), "param_norms"),
        (norms(state.ema["params"]), "ema_norms"),
    ):
        np.testing.assert_allclose(ours[~biases], GOLD[f"hard/{key}"][~biases], rtol=1e-4, err_msg=key)
        np.testing.assert_allclose(ours[biases], GOLD[f"hard/{key}"][biases], rtol=1e-3, err_msg=key)


def run_steps(config, mesh):
    return train_steps(model_spec(config, 10), config, mesh)


@pytest.mark.slow
def test_eight_devices_train_a_model_with_batch_statistics_as_one(monkeypatch):
    """Others, on every mesh: runtime/test_fsdp.py."""
    shallow = models.regnet.CONFIGS["regnety_digits"] | {"depth": 2}
    monkeypatch.setitem(models.regnet.CONFIGS, "regnety_digits", shallow)
    config = tiny_config(**{"model.name": "regnety_digits"})
    one = run_steps(config, sharding.make_mesh(jax.devices()[:1]))
    eight = run_steps(config, sharding.make_mesh(fsdp=-1))
    np.testing.assert_allclose(one[1]["loss"], eight[1]["loss"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(one[0].ema), jax.tree.leaves(eight[0].ema), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.fixture(scope="module")
def exact():
    """The metrics of whole float32 batches; without stochastic depth, whose draws differ by part."""
    return run_steps(tiny_config(**{"model.drop_path_rate": 0.0}), sharding.make_mesh(jax.devices()[:1]))[1]


def test_parts_of_a_batch_add_up_to_it(exact):
    config = tiny_config(**{"model.drop_path_rate": 0.0, "accumulate": 4})
    cut = run_steps(config, sharding.make_mesh(jax.devices()[:2]))[1]
    np.testing.assert_allclose(exact["loss"], cut["loss"], rtol=1e-4)
    np.testing.assert_allclose(exact["grad_norm"], cut["grad_norm"], rtol=1e-3)


def test_bfloat16_computes_but_keeps_float32_weights(exact):
    config = tiny_config(**{"model.drop_path_rate": 0.0, "model.dtype": "bfloat16"})
    state, metrics = run_steps(config, sharding.make_mesh(jax.devices()[:1]))
    assert metrics["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert metrics["loss"] != exact["loss"]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_a_step_that_is_not_finite_changes_nothing_and_counts():
    config = tiny_config()
    student = model_spec(config, 10)
    config.optimizer.schedule, config.optimizer.warmup_epochs = "constant", 0.0
    update = jax.jit(make_train_step(student, None, config, 10, augment=given_targets))
    state = create_state(student, config)
    batch = {"image": jnp.zeros((8, 16, 16, 3)), "target": jnp.full((8, 10), 0.1)}
    poisoned = {**batch, "target": batch["target"].at[0, 0].set(jnp.nan)}
    after, metrics = update(state, poisoned, [])
    assert (metrics["nonfinite_in_row"], metrics["nonfinite_total"], after.step) == (1, 1, 1)
    for name in ("params", "opt_state", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(after, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    healed, metrics = update(after, batch, [])
    assert (metrics["nonfinite_in_row"], metrics["nonfinite_total"]) == (0, 1)
    assert not np.array_equal(healed.params["norm"]["scale"], after.params["norm"]["scale"])


def logged(workdir) -> list[dict]:
    """The records of a log, without what depends on the clock."""
    records = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "wait_share")} for r in records]


def test_an_interrupted_run_goes_on_bit_for_bit(single, tmp_path, monkeypatch):
    # 11 steps per epoch: saved between two lines of the log
    config = tiny_config(**{"data.limit": 704, "log.every": 3, "data.cache": "device", "data.device_size": 12})
    whole = train(config, tmp_path / "whole")

    # a signal comes in the first evaluation, which comes after saving: the next start evaluates first
    views = loader.eval_batches

    def signalled(*args, **options):
        for batch in views(*args, **options):
            signal.raise_signal(signal.SIGTERM)
            yield batch

    first = next(record["step"] for record in logged(tmp_path / "whole") if "eval/top1" in record)
    monkeypatch.setattr(loader, "eval_batches", signalled)
    with pytest.raises(Interrupted, match=f"stopped at step {first} of"):
        train(config, tmp_path / "cut")
    monkeypatch.undo()

    # the process dies in the second epoch, some steps past the checkpoint of the first
    take = loader.train_batches

    class Dying:
        def __init__(self, *args, start, **options):
            self.stream, self.step, self.close = take(*args, start=start, **options), start, lambda: None
            self.broken = collections.Counter()

        def __iter__(self):
            return self

        def __next__(self):
            if self.step == 15:
                raise RuntimeError("killed")
            self.step += 1
            return next(self.stream)

    monkeypatch.setattr(loader, "train_batches", Dying)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "cut")
    monkeypatch.undo()

    # then a signal comes in the last evaluation
    monkeypatch.setattr(loader, "eval_batches", signalled)
    with pytest.raises(Interrupted, match=r"stopped at step (\d+) of \1, saved; the same command resumes"):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")[:-1]
    assert train(config, tmp_path / "cut") == whole
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    # complete: nothing is trained, the same is found again
    assert train(config, tmp_path / "cut") == whole
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert best_checkpoint(tmp_path / "cut").name == best_checkpoint(tmp_path / "whole").name


def test_a_workdir_of_another_run_is_left_alone_and_runtime_settings_may_change(single, tmp_path):
    config = tiny_config(steps=1)
    first = train(config, tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())
    other = tiny_config(**{"steps": 1, "optimizer.lr": 1e-3})
    with pytest.raises(UserError, match=r"another config \(optimizer.lr: 0.008 there, 0.001 now\)"):
        train(other, tmp_path)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())
    config.log.every, config.data.prefetch = 1, 2
    assert train(config, tmp_path) == first


def test_unreadable_images_are_named_and_in_training_replaced_and_counted(single, tmp_path, caplog):
    data = folder_of_images(tmp_path / "data" / "train", images=16)
    val = folder_of_images(tmp_path / "data" / "val", images=4)
    for broken in (data / "class0" / "3.png", val / "class1" / "2.png"):
        broken.write_bytes(b"no image")
    config = tiny_config(**{"model.name": TINY_PLAIN, "data.root": str(data.parent), "batch_size": 16, "log.every": 1})
    train(config, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(r.get("broken_images", 0) for r in records) == 2  # once an epoch
    assert "train/class0/3.png" in caplog.text
    assert "val/class1/2.png" in caplog.text
