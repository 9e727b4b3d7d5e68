"""Stored labels: the live teacher's hard labels and loss, and every way a store can be the wrong one."""

import itertools
import resource
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY_PLAIN, one_device, tiny_config
from small_state import label_store

from deit_jax import label as making
from deit_jax.ablate import ablate
from deit_jax.config import SETTINGS, flat
from deit_jax.data import loader, sources
from deit_jax.distill.label_reader import image_identity, open_stored_labels
from deit_jax.distill.label_store import CHUNK, LabelStore
from deit_jax.distill.teacher import stored_logits
from deit_jax.errors import Interrupted, UserError
from deit_jax.label import fill, label, stored_form
from deit_jax.losses import distillation_loss
from deit_jax.train.log import read_log
from deit_jax.train.loop import train_run as train
from deit_jax.train.optimizer import num_steps
from deit_jax.weights.orbax import read_weights

STEPS = 70  # of 22 per epoch: two chunks, the second cut short

pytestmark = [pytest.mark.usefixtures("single"), pytest.mark.long_runs]


def digits(**changes):
    """A small distilled student on digits, all of the augmentation that mixes and erases on; a trained ViT teaches."""
    settings = {"steps": STEPS, "distill.kind": "hard", "augment.repeats": 3, "log.every": 1}
    settings |= {"teacher.name": TINY_PLAIN, "teacher.epochs": 10, "teacher.lr": 1.6e-2, "teacher.augment": "light"}
    settings |= {"optimizer.ema_decay": 0.0, "evaluate.every": 100, "checkpoint.every": 100}
    settings |= {"data.cache": "device", "data.device_size": 12}  # resized, and cut on the device
    return tiny_config(**settings | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The labels of 70 steps, made once for all tests; nothing may change them."""
    folder = tmp_path_factory.mktemp("labels") / "store"
    with one_device():
        label(digits(), folder)
    return folder


def opened(store: Path, **changes):
    """What a training run does with a store before it compiles."""
    config = digits(**{"distill.labels": str(store), **changes})
    source, _ = sources.open_sources(config)
    return open_stored_labels(
        config, source, config.model.img_size or 16, num_steps(config, loader.steps_per_epoch(config, source))
    )


def counted(start: int, rows: int = 8):
    """A stream of batches that hold nothing but their step."""
    return (np.full(rows, step) for step in itertools.count(start))


def predict(batch, step):
    """A teacher whose prediction follows from the step and the row."""
    assert (batch == step).all()
    return {"label": (np.arange(len(batch)) + step) % 10}


@pytest.fixture(scope="module")
def runs_of(store, tmp_path_factory) -> dict[str, Path]:
    """Two trainings of the same student, by the live teacher and by its stored labels."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("live", "stored")}
    with one_device():
        train(digits(**{"teacher.init": str(store / "teacher"), "teacher.epochs": 0}), folders["live"])
        train(digits(**{"distill.labels": str(store)}), folders["stored"])
    return folders


def test_training_from_the_store_is_training_with_the_live_teacher(store, runs_of):
    live, stored = ([r["loss"] for r in read_log(runs_of[name]) if "loss" in r] for name in ("live", "stored"))
    assert len(live) == len(stored) == STEPS
    np.testing.assert_allclose(live, stored, rtol=1e-5)
    predictions = np.concatenate([LabelStore(store).read(s)["label"] for s in range(STEPS)])
    assert len(np.unique(predictions)) >= 5, "a teacher that says one thing would prove nothing"


def test_batches_made_again_agree_and_another_teachers_do_not(store, tmp_path, capsys):
    got = label(digits(), store, verify=3)
    assert (got["batches"], got["views"], got["same"]) == (3, 192, 192)
    assert "192 of 192 predictions agree" in capsys.readouterr().out
    spoilt = label_store(tmp_path / "spoilt", STEPS, 64)
    fill(spoilt, lambda batch, step: {"label": np.full(64, 3)}, counted, STEPS)
    real = LabelStore(store)
    again = lambda batch, step: {"label": real.read(step)["label"]}
    with pytest.raises(UserError, match=r"are not this teacher's: \d+ of 128 predictions agree"):
        making.compare(spoilt, again, counted, 2, STEPS)


def test_the_same_command_makes_only_what_is_missing(store, tmp_path):
    folder = tmp_path / "store"
    first = label_store(folder, 200)
    fill(first, predict, counted, 200)
    (folder / "label/c/1/0").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("label/c/*/0")}
    asked = []

    def again(batch, step):
        asked.append(step)
        return predict(batch, step)

    fill(LabelStore(folder), again, counted, 200)
    assert asked == list(range(CHUNK, 2 * CHUNK))
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    for step in (0, 63, 64, 127, 128, 199):
        assert (LabelStore(folder).read(step)["label"] == (np.arange(8) + step) % 10).all()


def test_a_longer_run_needs_another_store(tmp_path):
    fill(label_store(tmp_path / ".." / tmp_path.name, 70), predict, counted, 70)
    with pytest.raises(UserError, match="is for 70 steps, not 150: make labels in another"):
        label_store(tmp_path, 150)
    assert label_store(tmp_path, 60).steps_done() == 70


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"batch_size": 32}, "batch_size: 64 there, 32 here"),
        ({"data.device_size": 8}, "data.device_size: 12 there, 8 here"),
        ({"augment.mixup": 0.4, "augment.erasing": 0.1}, "augment.erasing: 0.25 there, 0.1 here; augment.mixup: 0.8"),
        ({"model.img_size": 32, "teacher.img_size": 32}, "model.img_size: 16 there, 32 here; teacher.img_size: 16"),
        ({"teacher.name": "regnety_digits"}, f"teacher.name: {TINY_PLAIN} there, regnety_digits here"),
        ({"teacher.epochs": 3}, "teacher.epochs: 10 there, 3 here"),
        ({"teacher.init": "timm/regnety_160.deit_in1k"}, "teacher.init"),
    ],
)
def test_a_store_of_other_images_or_another_teacher_is_refused_by_name(store, changes, named):
    with pytest.raises(UserError) as error:
        opened(store, **changes)
    assert named in str(error.value)
    assert len(str(error.value).split(" there, ")) == 1 + len(changes), "only these"


def test_settings_that_shape_no_image_are_free(store):
    free = {"augment.label_smoothing": 0.0, "optimizer.lr": 1e-3, "model.drop_path_rate": 0.2, "steps": 50}
    assert opened(store, **free)(3, slice(0, 4))["teacher"].shape == (4,)


def test_every_setting_that_may_shape_an_image_is_part_of_a_store():
    """A new setting of `augment` or `data` has to be placed: in the identity, or among those that shape no pixel."""
    config = digits()
    source, _ = sources.open_sources(config)
    known = {name for name in image_identity(config, source, 16) if name.startswith(("augment.", "data."))}
    known -= {"data.fingerprint", "data.images", "data.classes"}
    of_the_fingerprint = "name root layout columns train_split eval_split holdout limit crop check".split()
    free = {"augment.label_smoothing"} | {f"data.{name}" for name in of_the_fingerprint}
    settings = flat({room: SETTINGS[room] for room in ("augment", "data")})
    assert {name for name, setting in settings.items() if not setting.resumable} - free == known


def test_a_store_that_ends_too_early_says_where(store, tmp_path):
    with pytest.raises(UserError, match=r"end at step 70 \(epoch 3.2\), the run has 110: finish them"):
        opened(store, steps=0, epochs=5)


def test_what_is_no_store(store, tmp_path):
    with pytest.raises(UserError, match="holds no labels: make them with --mode=label"):
        opened(tmp_path)
    (tmp_path / "labels.json").write_text((store / "labels.json").read_text()[:100])
    with pytest.raises(UserError, match=r"labels.json cannot be read"):
        opened(tmp_path)


def test_labels_of_other_settings_do_not_go_into_the_same_folder(store):
    with pytest.raises(UserError, match="augment.mixup: 0.8 there, 0.2 here"):
        label(digits(**{"augment.mixup": 0.2}), store)
    with pytest.raises(UserError, match="another form .kind: hard there, topk here"):
        label(digits(**{"label.kind": "topk"}), store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.kind": "none"}, "distill.kind is none: it has no teacher"),
        ({"label.kind": "topk", "label.k": 11}, "label.k is 11, the data has 10 classes"),
        ({"teacher.epochs": 0}, "has no weights: give --config.teacher.init"),
    ],
)
def test_bad_input_of_the_command(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        label(digits(**changes), tmp_path)


def test_bad_folders_of_the_command(store, tmp_path):
    with pytest.raises(UserError, match="holds no labels"):
        label(digits(), tmp_path / "nowhere", verify=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        label(digits(), tmp_path / "file")
    with pytest.raises(UserError, match=r"distill.labels are of one seed"):
        ablate(digits(**{"distill.labels": str(store)}), tmp_path)


def test_a_signal_keeps_what_is_whole_and_the_next_command_goes_on(tmp_path):
    store = label_store(tmp_path, 200)

    def interrupted(start):
        for batch in counted(start):
            if batch[0] == 100:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted, match="stopped with 64 of 200 steps stored"):
        fill(store, predict, interrupted, 200)
    assert store.steps_done() == 64
    fill(store, predict, counted, 200)
    assert store.steps_done() == 200


def test_a_full_disk_ends_in_one_line_and_leaves_the_rest_usable(tmp_path):
    """The limit on a file's size stands for the disk's: the write fails in the same place."""
    store = label_store(tmp_path, 128, 512, classes=1000)
    labels = lambda batch, step: {"label": np.random.default_rng(step).integers(0, 1000 if step > 63 else 2, 512)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written .* the first 64 steps are stored and stay"):
            fill(store, labels, counted, 128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (store.read(63)["label"] == labels(None, 63)["label"]).all()
    fill(LabelStore(tmp_path), labels, counted, 128)
    assert (store.read(127)["label"] == labels(None, 127)["label"]).all()


def test_a_teacher_that_answers_nan_makes_no_labels(tmp_path):
    store = label_store(tmp_path, 64)
    one = lambda batch, step: predict(batch, step) | {"finite": np.asarray(step != 40)}
    with pytest.raises(UserError, match="not finite in steps 0 to 63: check its weights"):
        fill(store, one, counted, 64)
    assert store.steps_done() == 0


def through_store(logits, k: int, tau: float) -> np.ndarray:
    """A teacher's logits as training has them from a store of k classes."""
    made = stored_form(logits, {"kind": "topk", "k": k, "tau": tau})
    return np.asarray(stored_logits(logits.shape[-1])([], {"teacher": made["index"], "teacher_logit": made["logit"]}))


def test_all_classes_make_the_live_teacher_bit_for_bit_at_any_temperature():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 10))
    np.testing.assert_array_equal(through_store(logits, 10, 3.0), logits)


def test_the_rest_of_the_probability_is_spread_over_the_other_classes():
    logits = 2 * jax.random.normal(jax.random.key(1), (4, 10))
    stored, order = through_store(logits, 3, 2.0), np.argsort(-logits, 1)
    known, rest = (np.take_along_axis(stored, columns, 1) for columns in (order[:, :3], order[:, 3:]))
    np.testing.assert_array_equal(known, np.take_along_axis(np.asarray(logits), order[:, :3], 1))
    np.testing.assert_array_equal(rest, rest[:, :1] * np.ones(7))
    ours, theirs = (np.take_along_axis(np.asarray(jax.nn.softmax(x / 2)), order, 1) for x in (stored, logits))
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], rtol=1e-5)
    np.testing.assert_allclose(ours[:, 3], theirs[:, 3:].mean(1), rtol=1e-5)


def test_a_certain_teacher_gives_a_finite_loss_and_gradient():
    teacher = jnp.asarray(through_store(jnp.log(jnp.asarray([[0, 0, 1, 0], [0, 0.75, 0, 0.25]])), 2, 1.0))
    assert (np.asarray(teacher) == -np.inf).sum() == 5

    def loss(student):
        return distillation_loss(student, student, jnp.asarray([0, 1]), teacher, kind="soft", alpha=1.0)

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 4)))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert float(value) == pytest.approx((np.log(4) + np.log(4) - entropy) / 2, rel=1e-5)
    np.testing.assert_allclose(gradient, (0.25 - np.array([[0, 0, 1, 0], [0, 0.75, 0, 0.25]])) / 2, atol=1e-6)


def test_a_top_k_store_serves_soft_and_hard_distillation(store, tmp_path):
    soft = {"distill.kind": "soft", "distill.tau": 3.0, "teacher.init": str(store / "teacher"), "teacher.epochs": 0}
    short = {"steps": 20} | soft
    folder = tmp_path / "topk"
    label(digits(**short, **{"label.k": 10, "label.dtype": "float32"}), folder)
    batch = opened(folder, **short)(7, slice(0, 64))
    assert batch["teacher_logit"].dtype == np.float32
    assert (batch["teacher_logit"][:, -1] == -np.inf).all(), "there is no other class"
    predictions = opened(folder, **short | {"distill.kind": "hard"})(7, slice(0, 64))["teacher"]
    assert (predictions == batch["teacher"][:, 0]).all()
    assert (predictions == opened(store)(7, slice(0, 64))["teacher"]).all()
    assert opened(folder, **short | {"distill.tau": 1.0}), "logits serve any temperature"
    with pytest.raises(UserError, match=r"holds hard labels: make others"):
        opened(store, **{"distill.kind": "soft"})


def test_every_process_and_its_workers_read_their_own_rows(store):
    labels = opened(store)
    whole = labels(5, slice(0, 64))["teacher"]
    assert whole.dtype == np.int32
    config = digits(**{"data.workers": 1})
    source, _ = sources.open_sources(config)
    process = {"process_index": 1, "process_count": 4}
    stream = loader.train_batches(config, source, size=16, start=5, stored_labels=labels, **process)
    assert (next(stream)["teacher"] == whole[16:32]).all()
    stream.close()


VIEWS, EPOCHS = 2, 5  # of 4 steps with 4 mixing groups each: the third and fourth epoch repeat, and the fifth


def replayed(store, **changes):
    """A student of 5 epochs that sees the views of 2."""
    fixed = {"data.limit": 256, "augment.mix_group": 16, "steps": 0, "epochs": EPOCHS, "label.views": VIEWS}
    taught = {"distill.kind": "soft", "teacher.init": str(store / "teacher"), "teacher.epochs": 0}
    exact = {"label.k": 10, "label.dtype": "float32", "distill.normalization": "paper", "model.drop_path_rate": 0.1}
    return digits(**fixed | taught | exact | changes)


@pytest.mark.slow
def test_repeated_views_teach_as_the_live_teacher_does_and_go_on_bit_for_bit(store, tmp_path, monkeypatch):
    label(replayed(store), tmp_path / "labels")
    assert LabelStore(tmp_path / "labels").steps_done() == VIEWS * 4
    labels = {"distill.labels": str(tmp_path / "labels")}
    train(replayed(store), tmp_path / "live")
    train(replayed(store, **labels), tmp_path / "stored")

    views = loader.eval_batches

    def signalled(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return views(*args, **options)

    cut = replayed(store, **labels, **{"evaluate.every": 3, "checkpoint.every": 3})
    monkeypatch.setattr(loader, "eval_batches", signalled)
    with pytest.raises(Interrupted, match="stopped at step 12 of 20"):
        train(cut, tmp_path / "cut")
    monkeypatch.undo()
    train(cut, tmp_path / "cut")

    live, stored, resumed = (read_weights(tmp_path / name / "checkpoints/20")[1] for name in ("live", "stored", "cut"))
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(live), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    with pytest.raises(UserError, match=r"end at step 8 \(epoch 2.0\), the run has 20: finish them"):
        train(replayed(store, **labels, **{"label.views": 0}), tmp_path / "none")
    with pytest.raises(UserError, match=r"end at step 8 \(epoch 2.0\), label.views is 3: finish them"):
        train(replayed(store, **labels, **{"label.views": 3}), tmp_path / "more")
    with pytest.raises(UserError, match="augment.mix_group: 16 there, 32 here"):
        train(replayed(store, **labels, **{"augment.mix_group": 32}), tmp_path / "other")
