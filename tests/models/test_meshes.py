"""Models on other people's meshes: Auto and Explicit axes; eager, jit, nnx.jit; gradients; Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import seeded_arrays
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import deit_jax
from deit_jax import models
from deit_jax.models.linen import linen_variables
from examples import mesh_nnx

VIT = ("deit_digits_distilled_patch4_16", {"embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 8})
REGNET = ("regnety_digits", {"num_classes": 8, "depth": 2})
EFFICIENTNET = ("efficientnet_b0", {"width_coefficient": 0.25, "depth_coefficient": 0.5, "num_classes": 8})
IMAGES = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32)


def make(which):
    build = models.constructor(which[0], **which[1])
    arrays = jax.tree.map(jnp.asarray, seeded_arrays(build))
    return nnx.merge(models.abstract(build)[0], arrays["params"], arrays["batch_stats"])


run = nnx.jit(lambda model, images: model(images))


def mesh_of(kind: str):
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(getattr(AxisType, kind),) * 2)


def placed(mesh):
    return jax.device_put(IMAGES, NamedSharding(mesh, P(("data", "fsdp"))))


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def replicate(model, mesh):
    """As a user does who knows nothing of ours."""
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, P())))
    return model


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("which", [VIT, REGNET, EFFICIENTNET], ids=["vit", "regnet", "efficientnet"])
def test_logits_on_a_foreign_mesh(which, kind):
    expected, mesh = run(make(which), IMAGES), mesh_of(kind)
    logits = run(replicate(make(which), mesh), placed(mesh))
    close(logits, expected)
    assert logits.sharding.shard_shape(logits.shape) == (1, 8)


def test_functional_and_eager_calls_on_an_explicit_mesh():
    expected, mesh = run(make(VIT), IMAGES), mesh_of("Explicit")
    model, images = replicate(make(VIT), mesh), placed(mesh)
    graphdef, state = nnx.split(model)
    close(jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))(state, images), expected)
    close(model(images), expected)
    with jax.set_mesh(mesh):
        close(model(images), expected)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_gradients_lie_where_the_weights_do(kind):
    loss = lambda model, images: (model.heads(images, train=True)[0] ** 2).sum()
    gradient_of = nnx.jit(nnx.grad(loss))
    expected = gradient_of(make(VIT), IMAGES)
    mesh = mesh_of(kind)
    model = deit_jax.shard(make(VIT), mesh)
    with jax.set_mesh(mesh):
        gradient = gradient_of(model, placed(mesh))
    for ours, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4 * np.abs(other).max())
    kernel = gradient["blocks"]["mlp"]["fc2"]["kernel"][...]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 64, 32)


@pytest.mark.parametrize("which", [REGNET, EFFICIENTNET], ids=["regnet", "efficientnet"])
def test_batch_statistics_are_updated_on_an_explicit_mesh(which):
    one, many, mesh = make(which), make(which), mesh_of("Explicit")
    train = nnx.jit(lambda model, images: model(images, train=True, key=jax.random.key(0)))
    train(one, IMAGES)
    train(deit_jax.shard(many, mesh), placed(mesh))
    for a, b in zip(
        jax.tree.leaves(nnx.state(one, nnx.BatchStat)), jax.tree.leaves(nnx.state(many, nnx.BatchStat)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_linen_on_a_mesh():
    name, small = VIT
    model, mesh = deit_jax.to_linen(name, **small), mesh_of("Auto")
    variables = linen_variables(make(VIT))
    expected = run(make(VIT), IMAGES)
    variables = deit_jax.shard(variables, mesh)
    kernel = variables["params"]["blocks"]["attn"]["proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 32)
    close(jax.jit(model.apply)(variables, placed(mesh)), expected)


@pytest.mark.slow
def test_the_example_trains_on_a_mesh_of_explicit_axes():
    losses, model = mesh_nnx.main(steps=4)
    assert losses[-1] < losses[0]
    kernel = model.body.blocks.mlp.fc1.kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 64, 128)  # the largest axis over 2
