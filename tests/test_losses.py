"""Against the official code's values, and by properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AS_USERS
from seeded import GOLDEN

from deit_jax.config import default_config, resolve, validate
from deit_jax.errors import UserError
from deit_jax.losses import (
    OBJECTIVES,
    binary_cross_entropy,
    cross_entropy,
    distillation_loss,
    distillation_terms,
    soft_targets,
    teacher_agreement,
    weighted_sum,
)

TRAINING = np.load(GOLDEN / "training.npz")


@pytest.fixture(scope="module")
def drawn():
    """The logits and labels the golden losses were computed from."""
    rng = np.random.default_rng(7)
    logits = [(3 * rng.standard_normal((8, 1000))).astype(np.float32) for _ in range(3)]
    return [jnp.asarray(x) for x in (*logits, rng.integers(0, 1000, 8))]


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("none_a0.5_t1.0_eps0.1", {"kind": "none"}),
        ("hard_a0.5_t1.0_eps0.1", {"kind": "hard"}),
        ("soft_a0.1_t3.0_eps0.1", {"kind": "soft", "alpha": 0.1, "tau": 3.0, "normalization": "released"}),
        ("paper_a0.1_t3.0_eps0.1", {"kind": "soft", "alpha": 0.1, "tau": 3.0, "normalization": "paper"}),
    ],
)
def test_official_values(drawn, key, options):
    cls, dist, teacher, labels = drawn
    loss_of = functools.partial(distillation_loss, label_smoothing=0.1, **options)
    loss = jax.jit(loss_of, compiler_options=AS_USERS)(cls, dist, labels, teacher)
    np.testing.assert_allclose(loss, TRAINING[f"loss/{key}"], rtol=1e-5)


def test_sigmoid_loss_is_the_binary_cross_entropy_of_every_class_that_was_mixed_in(drawn):
    """engine.py of facebookresearch/deit: `targets.gt(0.0)`, then torch's BCEWithLogitsLoss, a mean over everything."""
    cls, _, _, labels = drawn
    mixed = 0.7 * soft_targets(labels, 1000) + 0.3 * soft_targets(labels[::-1], 1000)
    right, x = np.asarray(mixed) > 0, np.asarray(cls, np.float64)
    expected = np.where(right, np.log1p(np.exp(-x)), np.log1p(np.exp(x))).mean()
    np.testing.assert_allclose(binary_cross_entropy(cls, mixed), expected, rtol=1e-6)
    terms = distillation_terms(cls, None, mixed, kind="none", class_loss="sigmoid")
    np.testing.assert_allclose(terms["class_loss"], expected, rtol=1e-6)
    one_hot = binary_cross_entropy(cls, soft_targets(labels, 1000))
    assert binary_cross_entropy(cls, labels) == one_hot


def test_labels_and_their_smoothed_probabilities_are_the_same(drawn):
    cls, dist, teacher, labels = drawn
    probabilities = soft_targets(labels, 1000, 0.1)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    by_labels = distillation_loss(cls, dist, labels, teacher, label_smoothing=0.1)
    by_probabilities = distillation_loss(cls, dist, probabilities, teacher)
    np.testing.assert_allclose(by_labels, by_probabilities, rtol=1e-6)


def test_hard_labels_are_the_teachers(drawn):
    cls, dist, teacher, labels = drawn
    live = distillation_loss(cls, dist, labels, teacher)
    assert live == distillation_loss(cls, dist, labels, teacher.argmax(-1).astype(jnp.uint16))


def test_a_model_with_one_head_learns_both_terms_with_it(drawn):
    cls, _, teacher, labels = drawn
    both = distillation_loss(cls, None, labels, teacher, alpha=0.3)
    expected = 0.7 * cross_entropy(cls, labels) + 0.3 * cross_entropy(cls, teacher.argmax(-1))
    np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_soft_loss_of_the_teacher_itself_is_zero_and_its_gradient_too(drawn):
    cls, _, teacher, labels = drawn
    soft = lambda dist: distillation_loss(cls, dist, labels, teacher, kind="soft", alpha=1.0, tau=2.0)
    assert abs(float(soft(teacher))) < 1e-5
    np.testing.assert_allclose(jax.grad(soft)(teacher), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hart"}, "did you mean hard"),
        ({"kind": "soft", "normalization": "mean"}, "use paper or released"),
        ({"teacher_logits": None}, "needs the teacher's output: give it"),
        ({"teacher_logits": jnp.zeros((8, 10))}, "teacher has 10 classes, the student 1000"),
        ({"kind": "soft", "teacher_logits": jnp.zeros(8, jnp.int32)}, "not its hard labels"),
    ],
)
def test_bad_input(drawn, options, message):
    cls, dist, teacher, labels = drawn
    with pytest.raises(UserError, match=message):
        distillation_loss(cls, dist, labels, **({"teacher_logits": teacher} | options))


@pytest.mark.parametrize("kind", [kind for kind, one in OBJECTIVES.items() if one.teacher != "features"])
def test_terms_add_up_to_the_loss(drawn, kind):
    cls, dist, teacher, labels = drawn
    terms = distillation_terms(cls, dist, labels, teacher, kind=kind, tau=2.0)
    expected = float(terms["class_loss"])
    np.testing.assert_allclose(expected, cross_entropy(cls, labels), rtol=1e-6)
    if kind != "none":
        expected = 0.7 * expected + 0.3 * float(terms["distillation_loss"])
    np.testing.assert_allclose(weighted_sum(terms, 0.3), expected, rtol=1e-6)
    np.testing.assert_allclose(distillation_loss(cls, dist, labels, teacher, kind, 0.3, 2.0), expected, rtol=1e-6)


def test_agreement_is_the_fraction_of_equal_predictions():
    teacher = jnp.eye(4)
    cls, dist = jnp.eye(4)[jnp.array([0, 1, 0, 0])], jnp.eye(4)[jnp.array([0, 1, 2, 0])]
    assert teacher_agreement(cls, dist, teacher) == {"cls_agreement": 0.5, "dist_agreement": 0.75}
    assert teacher_agreement(cls, None, teacher.argmax(-1)) == {"cls_agreement": 0.5}
    assert teacher_agreement(cls, dist, None) == {}


def test_an_objective_of_ones_own_is_named_by_its_module(drawn):
    cls, _, teacher, labels = drawn
    kind = "examples.own_objective:squared_error"
    config = default_config()
    config.distill.kind = kind
    validate(resolve(config))
    found = distillation_loss(cls, None, labels, teacher, kind, alpha=1.0)
    assert OBJECTIVES.pop(kind).title == "squared error of the logits"
    np.testing.assert_allclose(found, np.square(np.asarray(cls) - teacher).mean(), rtol=1e-6)
    for name, message in (
        ("examples.own_objective:squared", r"has no 'squared' \(did you mean squared_error\?\)"),
        ("examples.own_objective:jnp", "is a module: give a deit_jax.losses.Objective"),
        ("nowhere.at_all:x", "cannot be imported: No module named 'nowhere'"),
    ):
        config.distill.kind = name
        with pytest.raises(UserError, match=message):
            resolve(config)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_teachers_nan_makes_the_loss_nan(kind):
    logits, teacher = jnp.zeros((2, 10)), jnp.zeros((2, 10)).at[1, 3].set(jnp.nan)
    assert np.isnan(distillation_loss(logits, logits, jnp.array([0, 1]), teacher, kind))


def test_a_label_that_is_no_class_makes_the_loss_nan():
    for label in (-1, 10):
        assert np.isnan(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, label])))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_term_of_weight_0_is_not_computed(kind):
    """Labels may be absent or wrong where the teacher alone is learned from, and the teacher where it is not."""
    cls, teacher = jax.random.normal(jax.random.key(0), (2, 4, 7))
    nan = jnp.full((4, 7), jnp.nan)
    terms = distillation_terms(cls, None, None, teacher, kind=kind, alpha=1.0)
    assert set(terms) == {"distillation_loss"}
    whole = distillation_terms(cls, None, teacher, teacher, kind=kind)["distillation_loss"]
    assert distillation_loss(cls, None, None, teacher, kind=kind, alpha=1.0) == whole
    gradient = jax.grad(lambda x: distillation_loss(x, None, nan, teacher, kind=kind, alpha=1.0))(cls)
    assert np.isfinite(gradient).all()
    labels = jnp.arange(4)
    assert set(distillation_terms(cls, None, labels, nan, kind=kind, alpha=0.0)) == {"class_loss"}
    assert np.isfinite(distillation_loss(cls, None, labels, nan, kind=kind, alpha=0.0))
    with pytest.raises(UserError, match="needs targets: give them, or distill with alpha=1"):
        distillation_loss(cls, None, None, teacher, kind=kind, alpha=0.5)
