"""Feature distillation: what the student learns, that its checkpoint is a plain ViT's, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TINY_PLAIN, one_device, state_of, tiny_config
from safetensors.numpy import save_file

from deit_jax import load_model, models
from deit_jax.config import validate
from deit_jax.distill import own_teacher
from deit_jax.distill.teacher import load_teacher
from deit_jax.errors import UserError
from deit_jax.label import label
from deit_jax.losses import distillation_terms
from deit_jax.train.log import read_log
from deit_jax.train.loop import train_run
from deit_jax.train.step import model_spec

TEACHER = {
    "init_values": 1e-5,
    "reg_tokens": 2,
    "no_embed_class": True,
    "patch_size": 7,
    "img_size": 28,
}  # 4 x 4 patches


@pytest.fixture
def dino(monkeypatch, tmp_path):
    """A file of weights without a head, as DINOv2's are published, of a model with registers."""
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 1}
    monkeypatch.setitem(models.vit.CONFIGS, "vit_test_patch7_dinov2", sizes | TEACHER)
    weights = {k: v for k, v in state_of("vit_test_patch7_dinov2").items() if not k.startswith("head")}
    save_file(weights, tmp_path / "vit_test_patch7_dinov2.safetensors")
    return str(tmp_path / "vit_test_patch7_dinov2.safetensors")


def config_of(teacher: str, **changes):
    names = {"model.name": TINY_PLAIN, "distill.kind": "features", "teacher.name": "vit_test_patch7_dinov2"}
    light = {"augment.erasing": 0.0, "augment.cutmix": 0.0, "steps": 2, "epochs": 0, "log.every": 1}
    return tiny_config(**names | {"teacher.init": teacher, "teacher.img_size": 28} | light | changes)


@pytest.mark.parametrize(("kind", "tokens"), [("features", "both"), ("features", "class"), ("features_l1", "patches")])
def test_the_loss_is_the_distance_of_projected_tokens(dino, kind, tokens):
    config = config_of(dino, **{"distill.kind": kind, "distill.tokens": tokens})
    teacher = load_teacher(config, ["a", "b"], 16)
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    found = jax.jit(teacher.predict)(teacher.arrays, {"image": images})
    view = jax.image.resize(images, (3, 28, 28, 3), "bicubic")
    own = jax.jit(lambda x: nnx.merge(teacher.models[0].graphdef, *teacher.arrays[0]).features(x))(view)
    parts = {"class": own[:, :1], "patches": own[:, 3:]}
    expected = {k: np.asarray(v) for k, v in parts.items() if tokens in (k, "both")}
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)

    model = model_spec(config, 10).build(rngs=nnx.Rngs(1))
    (cls, _), features = model.heads_and_features(images)
    np.testing.assert_allclose(cls, model.heads(images)[0], rtol=1e-4, atol=1e-5)
    student = np.asarray(model.features(images)) @ model.feature_proj.kernel[...] + model.feature_proj.bias[...]
    student = {"class": student[:, :1], "patches": student[:, 1:]}
    distances = []
    for name, t in expected.items():
        s = np.asarray(student[name], np.float64)
        if kind == "features":
            cosine = (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
            distances.append((1 - cosine).mean())
        else:
            d = np.abs(s - t)
            distances.append(np.where(d < 1, d**2 / 2, d - 0.5).mean())
    terms = distillation_terms(cls, None, None, found, kind=kind, alpha=1.0, features=features)
    assert set(terms) == {"distillation_loss"}
    np.testing.assert_allclose(terms["distillation_loss"], np.mean(distances), rtol=1e-4)


@pytest.mark.slow
def test_a_run_learns_and_its_weights_are_a_plain_models(dino, tmp_path):
    with one_device():
        train_run(config_of(dino, **{"distill.alpha": 1.0}), tmp_path / "run")
        log = [row for row in read_log(tmp_path / "run") if "loss" in row]
        assert all(row["loss"] == pytest.approx(row["distillation_loss"]) for row in log)
        model = load_model(str(tmp_path / "run"))
        assert not hasattr(model, "feature_proj")
        run = config_of(dino, init=str(tmp_path / "run"), steps=1)
        train_run(run, tmp_path / "next")  # from these weights: the projection is new


def test_features_of_a_function(monkeypatch):
    def teacher(shape):
        predict = lambda arrays, images: (
            jnp.ones((len(images), *shape)) * images.mean((1, 2, 3)).reshape(-1, *[1] * len(shape))
        )
        own = own_teacher.OwnTeacher(predict, (), 16, (0.5,) * 3, (0.5,) * 3, version="1")
        monkeypatch.setattr(own_teacher, "call_function", lambda name: own)
        own_teacher.open_own.cache_clear()
        return config_of(
            "", **{"teacher.name": "mine:teacher", "distill.tokens": "both" if len(shape) == 2 else "class"}
        )

    config = teacher((17, 24))
    assert model_spec(config, 10).build.keywords["feature_width"] == 24
    predict, arrays, _ = load_teacher(config, ["a", "b"], 16)
    found = predict(arrays, {"image": jnp.ones((2, 16, 16, 3))})
    assert {k: v.shape for k, v in found.items()} == {"class": (2, 1, 24), "patches": (2, 16, 24)}
    assert model_spec(teacher((9,)), 10).build.keywords["feature_width"] == 9
    for shape, message in (
        ((5, 24), "has 4 patches, the student 16"),
        ((2, 2, 2), "or \\[2, 1 \\+ patches, width"),
    ):
        with pytest.raises(UserError, match=message):
            model_spec(teacher(shape), 10)
    own_teacher.open_own.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.img_size": 35}, "has 25 patches, the student 16: give --config.teacher.img_size=28"),
        ({"teacher.name": "regnety_digits"}, "needs one ViT, or function"),
        ({"teacher.name": ""}, "needs one ViT, or function"),
        ({"model.name": "regnety_digits"}, "needs tokens, regnety_digits has none"),
        ({"model.name": "deit_test_distilled_patch4_16"}, "leaves the distillation head"),
        ({"distill.labels": "store"}, "which no store has: unset distill.labels"),
    ],
)
@pytest.mark.usefixtures("dino")
def test_what_cannot_be_learned_is_one_line_before_anything_is_compiled(changes, message):
    def check():
        config = config_of("", **changes)
        validate(config)
        model_spec(config, 10)

    with pytest.raises(UserError, match=re.escape(message)):
        check()


def test_features_are_not_stored(tmp_path):
    with pytest.raises(UserError, match="distill.kind is features: it has no teacher whose labels could be stored"):
        label(config_of(""), tmp_path)
