"""3-Augment (DeiT III, Touvron et al. 2022, section 3): grey, solarize or blur, then colour jitter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from deit_jax.augment.colour import pixelwise, table
from deit_jax.augment.ops import IDS
from deit_jax.augment.pixels import Chosen, join, on_chosen, split

GREY, SOLARIZE, BLUR = range(3)
MIN_SIGMA, MAX_SIGMA = 0.1, 2.0
SOLARIZE_FROM = 128
JITTERED = ("Brightness", "Contrast", "Color")
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


class ThreeAugment(NamedTuple):
    """`choice` is GREY, SOLARIZE or BLUR (by `sigma` pixels); `jitter` holds the factors of brightness, contrast and
    saturation, `order` the order in which they follow (indices into JITTERED)."""

    choice: Int[Array, "*batch"]
    sigma: Float[Array, "*batch"]
    jitter: Float[Array, "*batch 3"]
    order: Int[Array, "*batch 3"]


def draw_three_augment(key: PRNGKeyArray, cfg: Any) -> ThreeAugment:
    """Draw one image's: each choice and each order alike, factors uniform in 1 ± `cfg.color_jitter`."""
    choice, sigma, order, *jitter = jax.random.uniform(key, (6,))
    low = max(0.0, 1 - cfg.color_jitter)
    return ThreeAugment(
        jnp.floor(choice * 3).astype(jnp.int32),
        MIN_SIGMA + sigma * (MAX_SIGMA - MIN_SIGMA),
        low + jnp.stack(jitter) * (1 + cfg.color_jitter - low),
        jnp.array(ORDERS)[jnp.floor(order * len(ORDERS)).astype(jnp.int32)],
    )


def three_augment(
    pixels: UInt32[Array, "batch height width"], drawn: ThreeAugment, chosen: Chosen
) -> UInt32[Array, "batch height width"]:
    """Apply each image's three augmentations to packed pixels; `choose(drawn.choice == BLUR)` are those to blur."""
    pixels = on_chosen(gaussian_blur, pixels, chosen, drawn.sigma)
    op = jnp.array([IDS["Color"], IDS["Solarize"], -1])[drawn.choice]  # without colour an image is grey
    arg = jnp.array([0.0, SOLARIZE_FROM, 0.0])[drawn.choice]
    jitter_ops = jnp.array([IDS[name] for name in JITTERED])[drawn.order]
    factors = jnp.take_along_axis(drawn.jitter, drawn.order, axis=1)
    ops = jnp.concatenate([op[:, None], jitter_ops], axis=1)
    args = jnp.concatenate([arg[:, None], factors], axis=1)

    def step(pixels, op_arg):
        op, arg = op_arg
        return pixelwise(pixels, table(op, arg)), None

    return jax.lax.scan(step, pixels, (ops.T, args.T))[0]


def gaussian_blur(
    pixels: UInt32[Array, "batch height width"], sigma: Float[Array, "batch"]
) -> UInt32[Array, "batch height width"]:
    """PIL's ImageFilter.GaussianBlur for `sigma` up to 2.4 pixels: three box blurs along rows, then along columns.

    A box of a fractional radius (Gwosdek et al. 2011) weighs its two ends less; weights are in 24-bit fixed point.
    """
    variance = sigma * sigma / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = jnp.floor(2**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    outer = (2**24 - (2 * whole.astype(jnp.uint32) + 1) * inner) // 2
    near = jnp.where(whole > 0, inner, outer)
    far = jnp.where(whole > 0, outer, 0)
    inner, near, far = (weight[:, None, None] for weight in (inner, near, far))

    def box(x, axis):
        size = x.shape[axis]
        edges = jnp.pad(x, [(2, 2) if i == axis else (0, 0) for i in range(3)], mode="edge")
        a, b, c, d, e = (jax.lax.slice_in_dim(edges, i, i + size, axis=axis) for i in range(5))
        return (c * inner + (b + d) * near + (a + e) * far + (1 << 23)) >> 24

    planes = tuple(plane.astype(jnp.uint32) for plane in split(pixels))
    for axis in (2, 2, 2, 1, 1, 1):
        planes = tuple(box(plane, axis) for plane in planes)
    return join(planes)
