"""A grouped convolution that is quick on CPU too.

XLA's CPU code runs a grouped convolution's gradient 3 to 35 times slower than that of a dense one of the same channels
(`benchmarks/grouped_conv.py`). So there, groups are gathered into pieces of some 128 channels, each a dense convolution
whose kernel is zero between groups: 36 to 105 times quicker. Accelerators have their own and keep it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PIECE = 128  # channels; the products with zeros cost less than what is won


def conv_general_dilated(lhs, rhs, window_strides, padding, *, feature_group_count: int = 1, **options) -> Array:
    """`jax.lax.conv_general_dilated` for NHWC images and HWIO kernels, by the quickest way on this platform."""
    native = functools.partial(
        jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding,
        feature_group_count=feature_group_count, **options,
    )  # fmt: skip
    if feature_group_count == 1:
        return native(lhs, rhs)
    pieces = functools.partial(
        in_pieces, window_strides=window_strides, padding=padding, groups=feature_group_count, **options
    )
    # decided by what is compiled for, which in a plan is not the machine at hand
    return jax.lax.platform_dependent(lhs, rhs, cpu=pieces, default=native)


def in_pieces(lhs, rhs, window_strides, padding, *, groups: int, **options) -> Array:
    """The same numbers as a grouped convolution, from dense ones."""
    width = lhs.shape[-1] // groups
    joined = max(g for g in range(1, groups + 1) if groups % g == 0 and (g == 1 or g * width <= PIECE))
    pieces = groups // joined
    out = [
        jax.lax.conv_general_dilated(x, block_diagonal(w, joined), window_strides, padding, **options)
        for x, w in zip(jnp.split(lhs, pieces, axis=-1), jnp.split(rhs, pieces, axis=-1), strict=True)
    ]
    return jnp.concatenate(out, axis=-1)


def block_diagonal(kernel: Float[Array, "h w in_group out"], groups: int) -> Float[Array, "h w in out"]:
    """A grouped kernel as a dense one: zero where input and output are of different groups."""
    h, w, width, out = kernel.shape
    apart = kernel.reshape(h, w, width, groups, out // groups)
    apart = jnp.einsum("hwigo,kg->hwkigo", apart, jnp.eye(groups, dtype=kernel.dtype), precision="highest")
    return apart.reshape(h, w, groups * width, out)
