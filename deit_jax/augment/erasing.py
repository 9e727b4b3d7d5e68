"""Random erasing (Zhong et al. 2020) as timm does it for DeiT: one box, filled with normal noise a pixel."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from deit_jax.arrays import AnyArray

MIN_AREA, MAX_AREA = 0.02, 1 / 3
MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3
TRIES = 10


class Box(NamedTuple):
    """Rows top..bottom and columns left..right (ends excluded); empty where nothing is erased."""

    top: Int[Array, "*batch"]
    bottom: Int[Array, "*batch"]
    left: Int[Array, "*batch"]
    right: Int[Array, "*batch"]

    def mask(self, height: int, width: int) -> Bool[Array, "*batch {height} {width}"]:
        """True inside."""
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        top, bottom, left, right = (edge[..., None, None] for edge in self)
        return (y >= top) & (y < bottom) & (x >= left) & (x < right)


class Erasing(NamedTuple):
    box: Box
    seed: UInt32[Array, "*batch 2"]


def draw_erasing(key: PRNGKeyArray, prob: float, height: int, width: int) -> Erasing:
    """The box to erase in one image and the seed of its noise.

    Area uniform in 0.02..1/3 of the image's, log-aspect uniform in ±log 0.3. A box not smaller than the image is drawn
    again, ten times at most; then (as with 1 - `prob`) the box is empty.
    """
    draws = jax.random.uniform(key, (1 + 4 * TRIES,))
    area, aspect, y, x = draws[1:].reshape(4, TRIES)
    area = (MIN_AREA + area * (MAX_AREA - MIN_AREA)) * (height * width)
    aspect = jnp.exp(math.log(MIN_ASPECT) + aspect * (math.log(MAX_ASPECT) - math.log(MIN_ASPECT)))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    top = jnp.floor(y * (height - h + 1)).astype(jnp.int32)
    left = jnp.floor(x * (width - w + 1)).astype(jnp.int32)
    first = jnp.argmax(fits)
    erased = fits.any() & (draws[0] < prob)
    h, w, top, left = (jnp.where(erased, v[first], 0) for v in (h, w, top, left))
    return Erasing(Box(top, top + h, left, left + w), jax.random.key_data(key)[:2])


def noise(seed: UInt32[AnyArray, "batch 2"], height: int, width: int) -> Float[Array, "batch {height} {width} 3"]:
    """Standard normal noise, a function of each image's seed and of the pixel alone.

    A hash of the position (murmur3's finalizer, twice) costs a tenth of threefry, which would dominate the whole
    augmentation: most of the values are thrown away.
    """
    position = jnp.arange(height * width * 3, dtype=jnp.uint32).reshape(height, width, 3)
    a, b = (seed[:, i, None, None, None] for i in range(2))
    return normal_of_bits(_mix_bits(_mix_bits(position * jnp.uint32(0x9E3779B9) ^ a) ^ b))


def normal_of_bits(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """A standard normal number of 32 random bits.

    23 of them: with the half they fill float32's 24. One more would round up to 1 once in 2^24 pixels, whose normal
    number is infinite: every other batch of ImageNet.
    """
    centred = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1  # within -1..1, both excluded
    return math.sqrt(2) * jax.lax.erf_inv(centred)


def _mix_bits(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def erase(images: Float[AnyArray, "batch height width 3"], erasing: Erasing) -> Float[Array, "batch height width 3"]:
    """Fill each image's box with its noise; `images` are normalized."""
    height, width = images.shape[1:3]
    return jnp.where(erasing.box.mask(height, width)[..., None], noise(erasing.seed, height, width), images)
