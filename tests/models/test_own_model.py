"""A model of one's own: trained by a teacher of one's own, found again by its name, exported; and what is refused."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TINY, main, one_device, state_of, tool
from PIL import Image
from safetensors.numpy import save_file

import deit_jax
from deit_jax.errors import UserError
from deit_jax.export.exportable import Form, load_exportable
from deit_jax.models.own_model import own_model
from deit_jax.weights import load, load_weights
from deit_jax.weights.metadata import Metadata, to_header
from deit_jax.weights.names import Own, entries
from deit_jax.weights.orbax import best_checkpoint, read_weights
from deit_jax.weights.weight_files import Tensors
from examples.own_model import ConvMixer

NAME = "examples.own_model:ConvMixer"
RUN = (
    "--config=configs/digits.py", f"--config.model.name={NAME}", "--config.steps=4", "--config.log.every=2",
    "--config.teacher.name=examples.own_teacher:linen", "--config.teacher.epochs=0", "--config.train_baseline=False",
    "--config.log.tensorboard=False", "--config.optimizer.freeze=patches",
)  # fmt: skip


@pytest.mark.slow  # half a minute: a whole run, its evaluation, its exports
def test_a_run_of_it_is_found_again_by_its_name(tmp_path):
    run = tmp_path / "run"
    with one_device():
        trained = main(*RUN, f"--workdir={run}")
        assert trained.code == 0, trained.err
        assert "from examples.own_teacher:linen" in trained.out
        report = (run / "report.md").read_text()
        assert NAME in report
        assert "examples.own_teacher:linen" in report
        found = json.loads((run / "results.json").read_text())["student"]["params"]
        assert set(found["heads"]) == {"cls", "dist", "fused_logits", "fused_probabilities"}
        evaluated = main("--mode=evaluate", f"--workdir={run}")
        assert evaluated.code == 0, evaluated.err
        assert f"{found['top1']:.2f}" in evaluated.out

        # the class itself, with the checkpoint's arrays
        tree = read_weights(run)[1]
        itself = ConvMixer(10, nnx.Rngs(0))
        for part in tree.values():
            nnx.update(itself, nnx.State(nnx.restore_int_paths(part)))
        images = np.random.default_rng(0).standard_normal((3, 16, 16, 3), np.float32)
        loaded = deit_jax.load_model(run)
        for ours, theirs in zip(loaded.heads(images), itself(jnp.asarray(images)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(loaded(images), sum(loaded.heads(images)) / 2, rtol=1e-6)

        Image.new("RGB", (20, 20), "white").save(tmp_path / "photo.png")
        assert "distillation head" in tool("predict", run, tmp_path / "photo.png").out
        exported = load_exportable(str(run), Form(layout="nhwc", heads="both"))
        outputs = exported.reference(images)
        np.testing.assert_allclose(outputs["dist_logits"], loaded.heads(images)[1], rtol=1e-5, atol=1e-6)
        for arguments, message in (
            (("convert", run, tmp_path / "model.safetensors"), "whose code is yours alone"),
            (("convert", run, tmp_path / "orbax"), "whose code is yours alone"),
            (("push", run, "me/model", "--dry-run"), "whose code is yours alone"),
        ):
            ended = main(*arguments)
            assert ended.code == 2
            assert message in ended.err
            assert len(ended.err.splitlines()) == 1
        step = best_checkpoint(run)
        np.testing.assert_array_equal(deit_jax.load_model(step)(images), loaded(images))
        shutil.copytree(step, tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"import ConvMixer from the module examples\.own_model"):
            load_weights(tmp_path / "elsewhere")


def test_eleven_layers_of_a_list_come_back_in_their_order(monkeypatch):
    """As text, layer 10 would come before layer 2."""

    class Deep(nnx.Module):
        def __init__(self, num_classes, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
            self.head = nnx.Linear(3, num_classes, rngs=rngs)

        def __call__(self, images, train=False):
            x = images.mean((1, 2))
            for layer in self.layers:
                x = jax.nn.relu(layer(x)) + x
            return self.head(x)

    monkeypatch.setitem(sys.modules, "given", type(sys)("given"))
    sys.modules["given"].Deep = Deep
    model = deit_jax.create_model("given:Deep", num_classes=4, img_size=8)
    _, params, _ = nnx.split(model, nnx.Param, ...)
    tree = jax.tree.map(np.asarray, {"params": nnx.to_pure_dict(params), "batch_stats": {}})
    arrays = {entry.key: entry.view(tree) for entry in entries(tree, Own())}
    metadata = Metadata("given:Deep", arguments={"num_classes": 4, "img_size": 8})
    monkeypatch.setattr(load, "open_source", lambda *_: (Tensors(dict(sorted(arrays.items()))), metadata))
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(deit_jax.load_model("a run")(images), model(images))
    own_model.cache_clear()


def test_a_files_name_imports_nothing(tmp_path):
    save_file(state_of(TINY, num_classes=3), tmp_path / "w.safetensors", to_header(Metadata("antigravity:Net")))
    with pytest.raises(
        UserError, match=r"w\.safetensors is .*: it would import Net from the module antigravity, which"
    ):
        load_weights(tmp_path / "w.safetensors")
    assert "antigravity" not in sys.modules


class Shown(nnx.Module):
    """What the cases below change."""

    def __init__(self, num_classes, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, images, train=False):
        return self.head(self.norm(images.mean((1, 2)), use_running_average=not train))


class Open(Shown):
    def __init__(self, **options):
        super().__init__(options["num_classes"], options["rngs"])


class Bare(Shown):
    def __init__(self):
        super().__init__(4, nnx.Rngs(0))


class Moving(Shown):
    def __call__(self, images, train=False):
        return self.head(self.norm(images.mean((1, 2))))


class Random(Shown):
    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


class Maps(Shown):
    def __call__(self, images, train=False):
        return self.head(images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda num_classes, rngs: None, "is a function: give a class of flax.nnx.Module"),
        (Bare, "does not take num_classes=, rngs=: see"),
        (Moving, r"changes its state with train=False: .*use_running_average=not train"),
        (Random, r"besides nnx.Param and nnx.BatchStat, drop\.rngs\S*: give nnx.Dropout no rngs"),
        (Maps, r"returns shapes \[\(2, 8, 8, 4\)\]: they must be \[\(2, 4\)\]"),
    ],
)
def test_what_is_no_model_is_one_line(monkeypatch, given, message):
    monkeypatch.setitem(sys.modules, "given", type(sys)("given"))
    sys.modules["given"].Net = given
    own_model.cache_clear()
    with pytest.raises(UserError, match=message):
        deit_jax.create_model("given:Net", num_classes=4, img_size=8)(np.zeros((2, 8, 8, 3), np.float32))
    own_model.cache_clear()


def test_a_class_may_take_its_arguments_together(monkeypatch):
    monkeypatch.setitem(sys.modules, "given", type(sys)("given"))
    sys.modules["given"].Net = Open
    own_model.cache_clear()
    images = np.zeros((2, 8, 8, 3), np.float32)
    assert deit_jax.create_model("given:Net", num_classes=4, img_size=8)(images).shape == (2, 4)
    own_model.cache_clear()
