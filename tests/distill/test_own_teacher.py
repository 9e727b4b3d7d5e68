"""A teacher of one's own: run by another library for a store, and what is refused. A whole run with one:
models/test_own_model.py."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import one_device, tiny_config

from deit_jax.abstract_step import abstract_step
from deit_jax.augment import normalize
from deit_jax.distill.label_reader import weights_digest
from deit_jax.distill.label_store import LabelStore
from deit_jax.distill.own_teacher import OwnTeacher, open_own
from deit_jax.distill.teacher import load_teacher
from deit_jax.errors import UserError
from deit_jax.label import label
from deit_jax.runtime import sharding
from deit_jax.train.log import read_log
from deit_jax.train.loop import train_run
from examples import own_teacher

HALF = (0.5, 0.5, 0.5)
DIGITS = [str(digit) for digit in range(10)]


def own_config(name: str, **changes):
    """Two steps, of what compiles fast."""
    light = {"augment.erasing": 0.0, "augment.cutmix": 0.0, "steps": 2, "epochs": 0, "log.every": 1}
    return tiny_config(**{"distill.kind": "soft", "teacher.name": name} | light | changes)


@pytest.fixture
def given(monkeypatch):
    """Functions that a teacher's name can refer to: given(f) → "given:teacher"."""

    def add(function):
        monkeypatch.setitem(sys.modules, "given", type(sys)("given"))
        sys.modules["given"].teacher = function
        open_own.cache_clear()  # a name stands for one teacher while a process lasts
        return "given:teacher"

    return add


class Small(nnx.Module):
    """A convolution, batch statistics and dropout, whose state holds random keys too."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        return 5 * self.head(self.drop(nnx.relu(self.norm(self.conv(images)))).mean((1, 2)))


def nnx_teacher():
    graphdef, state = nnx.split(Small(nnx.Rngs(3)))
    return OwnTeacher(lambda state, images: nnx.merge(graphdef, state)(images), state, 16, HALF, HALF, DIGITS)


@pytest.mark.parametrize("form", ["linen", "exported", "brightness", "nnx"])
def test_it_is_what_its_function_computes_with_the_batch_split_over_devices(given, form):
    name = given(nnx_teacher) if form == "nnx" else f"examples.own_teacher:{form}"
    own = nnx_teacher() if form == "nnx" else getattr(own_teacher, form)()
    config = own_config(name)
    teacher = load_teacher(config, DIGITS, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
    mesh = sharding.make_mesh()
    batch = sharding.place_batch(
        {"image": np.asarray(normalize(pixels, *[tuple(config.augment[k]) for k in ("mean", "std")]))}, mesh
    )
    arrays = jax.device_put(teacher.arrays, sharding.replicated(mesh))
    compiled = jax.jit(teacher.predict).lower(arrays, batch).compile()
    expected = jax.jit(own.predict)(own.arrays, normalize(pixels, HALF, HALF))
    np.testing.assert_allclose(compiled(arrays, batch), expected, rtol=1e-3, atol=2e-3)
    assert np.ptp(expected) > 0.1
    assert mesh.size == 8
    assert compiled.output_shardings.is_equivalent_to(sharding.batch_sharding(mesh), 2), "each device its rows"


def test_a_plan_needs_no_class_names():
    step = abstract_step(own_config("examples.own_teacher:brightness", **{"model.num_classes": 10}))
    assert jax.eval_shape(step.step, step.state, step.batch, step.teacher_arrays)[1]["loss"].shape == ()


def test_another_librarys_labels_are_its_own_answers_and_training_needs_it_no_more(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs torch: a teacher that another library runs")
    name, seen, answers = "examples.own_teacher:pytorch", [], []
    original = own_teacher.pytorch

    def recorded():
        own = original()

        def predict(arrays, images):
            seen.append(np.asarray(images))
            answers.append(own.predict(arrays, images).numpy())
            return answers[-1]

        return OwnTeacher(predict, own.arrays, own.size, own.mean, own.std, own.class_names, host=True)

    monkeypatch.setattr(own_teacher, "pytorch", recorded)
    open_own.cache_clear()
    stored = {"label.k": 10, "label.dtype": "float32"}
    with one_device():
        config = own_config(name, **stored)
        label(config, tmp_path / "store")
        store = LabelStore(tmp_path / "store")
        views, logits = np.stack(seen[1:]), np.stack(answers[1:])  # the first call is the check of two images
        assert views.shape == (2, 64, 16, 16, 3)
        for step in range(2):
            found = store.read(step)
            np.testing.assert_array_equal(found["index"][:, 0], logits[step].argmax(-1))
            known = np.take_along_axis(logits[step], found["index"].astype(int), 1)
            np.testing.assert_array_equal(known, found["logit"][:, :-1])
        assert label(config, tmp_path / "store", verify=2)["same"] == 128
        open_own.cache_clear()
        monkeypatch.delattr(own_teacher, "pytorch")  # not even its function is asked for
        train_run(own_config(name, **{"distill.labels": str(tmp_path / "store")}), tmp_path / "run")
    assert len([r for r in read_log(tmp_path / "run") if "loss" in r]) > 0
    assert torch.is_tensor(original().predict({}, jnp.zeros((1, 16, 16, 3))))


def test_a_store_knows_its_teacher_by_arrays_name_and_version(given, tmp_path):
    make = lambda version: OwnTeacher(
        lambda a, x: x[:, 0, 0, :1] * jnp.arange(10.0), (), 16, HALF, HALF, DIGITS, version
    )
    version = {number: make(number) for number in "12"}
    with one_device():
        label(own_config(given(lambda: version["1"])), tmp_path)
        assert label(own_config("given:teacher"), tmp_path, verify=1)["same"] == 64
        given(lambda: version["2"])
        with pytest.raises(UserError, match="teacher.weights"):
            label(own_config("given:teacher"), tmp_path)
    assert weights_digest(load_teacher(own_config(given(nnx_teacher)), DIGITS, 16).arrays), "random keys are hashed too"
    arrays = [{"w": np.ones(3)}]
    assert len({weights_digest(arrays, own) for own in ((), ("a:b 1",), ("a:b 2",))}) == 3


def returns(predict, names=DIGITS, version="1", **more):
    return lambda: OwnTeacher(predict, (), 16, HALF, HALF, names, version, **more)


GOOD = lambda a, x: x[:, 0, 0, :1] * jnp.arange(10.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere.at_all:teacher", "teacher nowhere.at_all:teacher cannot be imported: No module named 'nowhere'"),
        ("examples.own_teacher:linnen", "examples.own_teacher has no 'linnen' (did you mean linen?)"),
        (lambda: 3, "returns int: return a deit_jax.OwnTeacher"),
        (returns(GOOD, version=""), "has neither arrays nor a version"),
        (returns(lambda a, x: x @ jnp.ones((4, 2))), "does not take images float32[2, 16, 16, 3]: TypeError"),
        (returns(lambda a, x: x.mean((1, 2))[0]), "returns shape [3] for 2 images: it must be [2, classes]"),
        (returns(lambda a, x: GOOD(a, x) / 0), "teacher given:teacher returns logits that are not finite"),
        (returns(GOOD, host=True), "store its labels first, by --mode=label"),
        (returns(lambda a, x: GOOD(a, x)[:, :7], names=None), "the data has 10 classes"),
        (returns(lambda a, x: GOOD(a, x)[:, :7]), "have 7 classes but names for 10"),
        (returns(GOOD, names=[*DIGITS[:9], "x"]), "'9'"),
    ],
)
def test_what_is_no_teacher_is_one_line_before_anything_is_compiled(given, function, message):
    name = function if isinstance(function, str) else given(function)
    with pytest.raises(UserError) as error:
        load_teacher(own_config(name), DIGITS, 16)
    assert message in str(error.value)


def test_weights_are_for_registered_names_alone(given):
    name = given(returns(GOOD))
    with pytest.raises(UserError, match="teacher.name has 0 models that need weights"):
        load_teacher(own_config(name, **{"teacher.init": "a.safetensors"}), DIGITS, 16)
