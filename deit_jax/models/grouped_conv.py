"""Grouped and depthwise convolutions that are quick on CPU too.

XLA's CPU code runs a grouped convolution's gradient 3 to 35 times slower than that of a dense one of the same channels
(`benchmarks/grouped_conv.py`). So there, groups are gathered into pieces of some 128 channels, each a dense convolution
whose kernel is zero between groups: 36 to 105 times quicker. A depthwise convolution, whose groups are single channels,
would be nearly all zeros that way: it is a sum of shifted images instead, 19 times quicker forward and 6 times in the
gradient. Accelerators have their own and keep it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Features = Float[Array, "batch _height _width _channels"]  # before or after a layer: only the batch stays
Padding = str | Sequence[tuple[int, int]]
PIECE = 128  # channels; the products with zeros cost less than they save


def conv_general_dilated(
    lhs: Features,
    rhs: Float[Array, "h w in_group out"],
    window_strides: Sequence[int],
    padding: Padding,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> Features:
    """`jax.lax.conv_general_dilated` for NHWC images and HWIO kernels, by the fastest way on this platform.

    A depthwise convolution has no dilation.
    """
    native = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        feature_group_count=feature_group_count,
        **options,
    )
    if feature_group_count == 1:
        return native(lhs, rhs)
    if feature_group_count == lhs.shape[-1] == rhs.shape[-1]:
        if any(x != 1 for side in ("lhs", "rhs") for x in options.get(f"{side}_dilation") or ()):
            raise ValueError("a depthwise convolution has no dilation here: use jax.lax.conv_general_dilated")
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        quick = functools.partial(shifted, strides=window_strides, padding=padding)
    else:
        quick = functools.partial(
            in_pieces, window_strides=window_strides, padding=padding, groups=feature_group_count, **options
        )
    # decided by what is compiled for, which in a plan is not the machine at hand
    return jax.lax.platform_dependent(lhs, rhs, cpu=quick, default=native)


def in_pieces(
    lhs: Features,
    rhs: Float[Array, "h w in_group out"],
    window_strides: Sequence[int],
    padding: Padding,
    *,
    groups: int,
    **options: Any,
) -> Features:
    """The same numbers as a grouped convolution, from dense ones."""
    width = lhs.shape[-1] // groups
    joined = max(g for g in range(1, groups + 1) if groups % g == 0 and (g == 1 or g * width <= PIECE))
    pieces = groups // joined
    out = [
        jax.lax.conv_general_dilated(x, block_diagonal(w, joined), window_strides, padding, **options)
        for x, w in zip(jnp.split(lhs, pieces, axis=-1), jnp.split(rhs, pieces, axis=-1), strict=True)
    ]
    return jnp.concatenate(out, axis=-1)


def block_diagonal(kernel: Float[Array, "h w in_group out"], groups: int) -> Float[Array, "h w in_group*{groups} out"]:
    """A grouped kernel as a dense one: zero where input and output are of different groups."""
    h, w, width, out = kernel.shape
    apart = kernel.reshape(h, w, width, groups, out // groups)
    apart = jnp.einsum("hwigo,kg->hwkigo", apart, jnp.eye(groups, dtype=kernel.dtype), precision="highest")
    return apart.reshape(h, w, groups * width, out)


Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "h w 1 channels"]
Outputs = Float[Array, "batch rows columns channels"]


def shifted(images: Images, kernel: Kernel, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> Outputs:
    """The same numbers as a depthwise convolution: each tap of the window is one product with a shifted image."""
    size = kernel.shape[:2]
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], size, strides, strict=True))
    accum_dtype = jnp.promote_types(images.dtype, jnp.float32)  # of the sum: half precision would round at every tap
    taps = (
        x[:, i : i + strides[0] * (rows - 1) + 1 : strides[0], j : j + strides[1] * (columns - 1) + 1 : strides[1]]
        * kernel[i : i + 1, j : j + 1].astype(accum_dtype)
        for i in range(size[0])
        for j in range(size[1])
    )
    return functools.reduce(jnp.add, taps).astype(images.dtype)
