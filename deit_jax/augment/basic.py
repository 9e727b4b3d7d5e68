"""Horizontal flip and normalization."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from deit_jax.arrays import AnyArray


def draw_flip(key: PRNGKeyArray, prob: float) -> Bool[Array, ""]:
    """Whether one image is flipped."""
    return jax.random.uniform(key) < prob


def flip(
    images: UInt8[AnyArray, "batch height width 3"], flipped: Bool[AnyArray, "batch"]
) -> UInt8[Array, "batch height width 3"]:
    """Mirror left and right the images whose entry in `flipped` is true."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def normalize(
    images: UInt8[AnyArray, "*batch height width 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch height width 3"]:
    """(image / 255 - mean) / std in float32; `mean` and `std` are of pixels in 0..1."""
    means, stds = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return jnp.asarray(images).astype(jnp.float32) * (1 / (255 * stds)) - means / stds
