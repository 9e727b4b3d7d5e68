"""The Linen face of the models: init, apply, random numbers, statistics, parts of the parameters; and the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import InvalidRngError, ScopeVariableNotFoundError
from helpers import TINY

import deit_jax
from deit_jax.models.linen import linen_variables
from examples import foreign_linen, foreign_nnx

IMAGES = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn():
    model = deit_jax.to_linen(TINY, num_classes=10, drop_path_rate=0.5)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES)


def test_variables_of_an_nnx_model_give_its_logits(drawn):
    model, variables = drawn
    ours = deit_jax.create_model(TINY, num_classes=10)
    carried = linen_variables(ours)
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(jax.jit(model.apply)(carried, IMAGES), ours(IMAGES), atol=1e-6)
    for theirs, own in zip(model.apply(carried, IMAGES, method="heads"), ours.heads(IMAGES), strict=True):
        np.testing.assert_allclose(theirs, own, atol=1e-6)


def test_training_draws_from_the_dropout_stream(drawn):
    model, variables = drawn
    at = jax.jit(lambda seed: model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(seed)}))
    np.testing.assert_array_equal(at(1), at(1))
    assert np.abs(at(1) - at(2)).max() > 1e-3
    with pytest.raises(InvalidRngError, match="dropout"):
        model.apply(variables, IMAGES, train=True)


@pytest.mark.slow
def test_batch_statistics_are_a_mutable_collection():
    small = {"num_classes": 10, "depth": 2}
    model = deit_jax.to_linen("regnety_digits", **small)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    assert set(variables) == {"params", "batch_stats"}
    train = jax.jit(lambda variables: model.apply(variables, IMAGES, train=True, mutable=["batch_stats"]))
    _, new = train(variables)
    ours = deit_jax.create_model("regnety_digits", **small)
    ours_before = linen_variables(ours)
    nnx.jit(lambda ours: ours(IMAGES, train=True))(ours)
    _, expected = train(ours_before)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        expected["batch_stats"],
        linen_variables(ours)["batch_stats"],
    )
    assert np.abs(new["batch_stats"]["stem"]["bn"]["mean"]).max() > 0


def test_missing_parameters_are_named_or_drawn(drawn):
    model, variables = drawn
    part = {"params": {"blocks": variables["params"]["blocks"]}}
    with pytest.raises(ScopeVariableNotFoundError, match="cls_token"):
        model.apply(part, IMAGES)
    logits, filled = model.apply(part, IMAGES, rngs={"params": jax.random.key(5)}, mutable=["params", "batch_stats"])
    assert jax.tree.map(jnp.shape, filled["params"]) == jax.tree.map(jnp.shape, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, filled["params"]["blocks"], part["params"]["blocks"])
    np.testing.assert_allclose(model.apply(filled, IMAGES), logits, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("example", [foreign_nnx, foreign_linen], ids=["nnx", "linen"])
def test_our_parts_learn_inside_foreign_models(example):
    losses = example.main(steps=12)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
