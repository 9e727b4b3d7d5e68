"""The teacher: averaged, with its own normalization, input size and compute type, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import configured, run_jitted, seeded_arrays

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.convert import save_timm
from deit_jax.distill.teacher import load_teacher
from deit_jax.errors import UserError
from deit_jax.weights.architecture import Architecture
from deit_jax.weights.load import Weights

VIT, CONV = "deit_digits_patch4_16", "regnety_digits"
HALF = (0.5, 0.5, 0.5)
DIGITS = [str(digit) for digit in range(10)]


def save(name: str, path, seed: int, num_classes: int = 10, class_names: list[str] | None = None):
    """Random weights of a small model as a file, or as a folder that names its classes; the model itself."""
    build = models.constructor(name, num_classes=num_classes)
    tree = seeded_arrays(build, seed)
    model = nnx.merge(models.abstract(build)[0], *jax.tree.map(jnp.asarray, tuple(tree.values())))
    module, config = models.find(name)
    architecture = Architecture(name, module, {"num_classes": num_classes, **config})
    if class_names:
        path.mkdir()
        id2label = dict(enumerate(class_names))
        (path / "config.json").write_text(json.dumps({"architecture": name, "id2label": id2label}))
        path = path / "model.safetensors"
    save_timm(Weights(name, architecture, tree), path)
    return model


def taught(**changes):
    return configured(**{"distill.kind": "hard", "model.name": "deit_digits_distilled_patch4_16"} | changes)


def make(config, img_size=16, class_names=DIGITS):
    teacher = load_teacher(config, class_names, img_size)
    return jax.jit(teacher.predict), teacher.arrays


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    files = {name: folder / f"{name}.safetensors" for name in (VIT, CONV)}
    return {name: (file, save(name, file, seed)) for seed, (name, file) in enumerate(files.items())}


@pytest.fixture(scope="module")
def pixels():
    return jax.random.randint(jax.random.key(0), (4, 16, 16, 3), 0, 256).astype(jnp.uint8)


def test_one_teacher_is_its_model_in_evaluation(weights, pixels):
    file, model = weights[CONV]
    config = taught(**{"teacher.name": CONV, "teacher.init": str(file)})
    teacher, arrays = make(config)
    images = normalize(pixels, config.augment.mean, config.augment.std)
    got = teacher(arrays, {"image": images})
    np.testing.assert_allclose(got, run_jitted(model, images), rtol=1e-4, atol=1e-4)


def test_several_teachers_are_averaged_as_probabilities(weights, pixels):
    names = [VIT, CONV]
    config = taught(**{"teacher.name": ",".join(names), "teacher.init": ",".join(str(weights[n][0]) for n in names)})
    teacher, arrays = make(config)
    images = normalize(pixels, config.augment.mean, config.augment.std)
    mean = sum(np.asarray(jax.nn.softmax(run_jitted(weights[n][1], images)), np.float64) for n in names) / 2
    np.testing.assert_allclose(jax.nn.softmax(teacher(arrays, {"image": images})), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", ["settings", "config.json"])
def test_a_teacher_sees_the_pixels_it_was_trained_with(weights, pixels, tmp_path, given):
    """By settings, or by a timm folder's config.json, which names mean and deviation."""
    file, model = weights[VIT]
    save(VIT, tmp_path / "model.safetensors", 0)
    about = {"architecture": VIT, "pretrained_cfg": {"mean": HALF, "std": HALF}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    by_settings = {"teacher.init": str(file), "teacher.mean": HALF, "teacher.std": HALF}
    init = by_settings if given == "settings" else {"teacher.init": str(tmp_path)}
    config = taught(**{"teacher.name": VIT} | init)
    teacher, arrays = make(config)
    ours = teacher(arrays, {"image": normalize(pixels, config.augment.mean, config.augment.std)})
    np.testing.assert_allclose(ours, run_jitted(model, normalize(pixels, HALF, HALF)), rtol=1e-3, atol=1e-4)


def test_a_teacher_sees_images_of_its_own_size(weights):
    """16 px for the teacher, 32 for the student; a smooth image looks the same at both."""
    file, model = weights[CONV]
    config = taught(**{"teacher.name": CONV, "teacher.init": str(file), "teacher.img_size": 16})
    teacher, arrays = make(config, img_size=32)
    small = jnp.broadcast_to(jnp.linspace(-1, 1, 16)[:, None, None], (2, 16, 16, 3))
    large = jax.image.resize(small, (2, 32, 32, 3), "bicubic")
    seen = jax.image.resize(large, (2, 16, 16, 3), "bicubic")
    np.testing.assert_allclose(teacher(arrays, {"image": large}), run_jitted(model, seen), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen[:, 3:-3], small[:, 3:-3], atol=0.02)


def test_a_teacher_computes_in_its_own_type(weights, pixels):
    given = {"teacher.name": VIT, "teacher.init": str(weights[VIT][0])}
    config = taught(**given, **{"teacher.dtype": "float32"})
    images = normalize(pixels, config.augment.mean, config.augment.std)
    (exact, arrays), (half, _) = make(config), make(taught(**given, **{"teacher.dtype": "bfloat16"}))
    a, b = exact(arrays, {"image": images}), half(arrays, {"image": images})
    assert a.dtype == b.dtype == jnp.float32, "logits are float32 in any case"
    difference = float(jnp.abs(a - b).max() / jnp.abs(a).max())
    assert 0 < difference < 0.1
    text = str(jax.make_jaxpr(half)(arrays, {"image": images}))
    assert "bf16" in text
    assert "bf16" not in str(jax.make_jaxpr(exact)(arrays, {"image": images}))


def test_no_gradient_reaches_the_images_through_the_teacher(weights, pixels):
    file, _ = weights[VIT]
    config = taught(**{"teacher.name": VIT, "teacher.init": str(file)})
    teacher, arrays = make(config)
    images = normalize(pixels, config.augment.mean, config.augment.std)
    gradient = jax.grad(lambda x: teacher(arrays, {"image": x}).sum())(images)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.name": CONV}, "teacher regnety_digits has no weights: give --config.teacher.init="),
        (
            {"teacher.name": CONV, "teacher.init": "CONV,CONV"},
            "name has 1 models that need weights, teacher.init 2: give one each",
        ),
        ({"teacher.name": CONV, "teacher.init": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"teacher.name": VIT, "teacher.init": "CONV"}, "RegNet"),
    ],
)
def test_what_makes_no_teacher_is_said_in_one_line(weights, changes, message):
    if "teacher.init" in changes:
        changes |= {"teacher.init": changes["teacher.init"].replace("CONV", str(weights[CONV][0]))}
    with pytest.raises(UserError) as error:
        make(taught(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [(7, None, "have 7 and do not name them"), (10, list("abcdefghij"), "'0', '1', '2' and 7 more")],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, count, names, message):
    save(CONV, tmp_path / "other.safetensors" if names is None else tmp_path / "other", 3, count, names)
    init = next(iter(tmp_path.glob("other*")))
    with pytest.raises(UserError, match=message):
        make(taught(**{"teacher.name": CONV, "teacher.init": str(init)}))


ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.mark.parametrize("order", [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [2, 7, 3]])
def test_classes_are_matched_by_name(tmp_path, pixels, order):
    """A teacher whose outputs stand in another order, or are more than the data's classes."""
    model = save(CONV, tmp_path / "animals", 4, class_names=ANIMALS)
    names = [ANIMALS[i] for i in order]
    config = taught(**{"teacher.name": CONV, "teacher.init": str(tmp_path / "animals")})
    teacher, arrays = make(config, class_names=names)
    images = normalize(pixels, config.augment.mean, config.augment.std)
    logits = np.asarray(teacher(arrays, {"image": images}))
    np.testing.assert_allclose(logits, np.asarray(run_jitted(model, images))[:, order], rtol=1e-4, atol=1e-4)


def test_a_teacher_gets_no_new_parameters(weights):
    """Plain weights as a distilled teacher: half of its logits would come from a random head."""
    config = taught(**{"teacher.name": "deit_digits_distilled_patch4_16", "teacher.init": str(weights[VIT][0])})
    with pytest.raises(UserError, match="randomly initialized dist_token, head_dist") as error:
        make(config)
    assert "give the model these weights are of" in str(error.value)


def test_what_is_changed_to_fit_a_teacher_is_noted(weights):
    config = taught(**{"teacher.name": VIT, "teacher.init": str(weights[VIT][0]), "teacher.img_size": 32})
    assert load_teacher(config, DIGITS, 16).models[0].notes == (
        f"teacher {weights[VIT][0]}: pos_embed resized from 4x4 to 8x8 patches",
    )
