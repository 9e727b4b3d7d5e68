"""Counted arithmetic against counts by hand and published ones."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from deit_jax import models
from deit_jax.runtime import sharding
from deit_jax.runtime.flops import count_flops

F32 = jnp.float32


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, F32)


def matmul(a, b):
    return a @ b


PRODUCT = (shape(3, 5), shape(5, 7))
BY_HAND = 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (matmul, PRODUCT, BY_HAND),
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (shape(4, 3, 5), shape(4, 7, 5)), 4 * BY_HAND),
        (lambda x: jnp.tanh(x) + x.sum(), (shape(9, 9),), 0),
        (jax.jit(matmul), PRODUCT, BY_HAND),
        (jax.checkpoint(matmul), PRODUCT, BY_HAND),
        (lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, length=6)[0], (shape(5, 5),), 6 * 2 * 125),
        (lambda a: jax.lax.cond(True, lambda a: a @ a, lambda a: a @ a @ a, a), (shape(5, 5),), 2 * 2 * 125),
        (lambda a: jax.vmap(lambda row: a @ row)(a), (shape(5, 5),), 2 * 125),
        (lambda a, b: jax.grad(lambda a, b: (a @ b).sum(), (0, 1))(a, b), PRODUCT, 3 * BY_HAND),
    ],
    ids="product batched elementwise jit remat scan cond vmap gradient".split(),
)
def test_products(fn, args, expected):
    assert count_flops(fn, *args) == expected


def conv(images, kernel, stride, groups):
    options = {"feature_group_count": groups, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), ((1, 1), (1, 1)), **options)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_convolutions_and_their_gradients(stride, groups):
    images, kernel = shape(2, 8, 8, 16), shape(3, 3, 16 // groups, 24)
    by_hand = 2 * (2 * (8 // stride) ** 2 * 24) * 9 * 16 // groups
    assert count_flops(lambda x, k: conv(x, k, stride, groups), images, kernel) == by_hand
    both = jax.grad(lambda x, k: conv(x, k, stride, groups).sum(), (0, 1))
    assert count_flops(both, images, kernel) == 3 * by_hand


def test_a_derivative_of_its_own_counts_as_it_is_computed():
    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T,))  # half of the true one: one product, not two
    assert count_flops(square, shape(5, 5)) == 250
    assert count_flops(jax.grad(lambda x: square(x).sum()), shape(5, 5)) == 2 * 250


def test_a_sharded_function_counts_all_devices():
    mesh = sharding.make_mesh()
    split = jax.shard_map(matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_flops(split, shape(16, 5), shape(5, 7)) == 2 * 16 * 5 * 7


def forward_flops(name: str) -> int:
    graphdef, params, batch_stats = models.abstract(models.constructor(name))
    size = models.find(name)[1].get("img_size", 224)
    return count_flops(lambda p, s, x: nnx.merge(graphdef, p, s)(x), params, batch_stats, shape(1, size, size, 3))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deit_tiny_patch16_224", "1.3"),
        ("deit_small_patch16_224", "4.6"),
        ("deit_base_patch16_224", "17.6"),
        ("regnety_002", "0.2"),  # groups of 8 channels: computed by denser convolutions on CPU, counted as groups
        ("regnety_160", "15.9"),
        ("efficientnet_b0", "0.4"),
    ],
)
def test_models_cost_what_is_published(name, published):
    assert f"{forward_flops(name) / 2e9:.1f}" == published
