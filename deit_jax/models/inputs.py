"""What every model requires of its images, checked before anything is compiled; the head of a model without classes."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError

Images = Float[AnyArray, "batch height width 3"]  # normalized
ImgSize = SupportsIndex | Sequence[SupportsIndex]  # pixels: one number for a square, or (height, width)

# ImageNet-normalized pixels lie within -2.2..2.7; values far beyond were not normalized.
LARGEST_PIXEL = 30.0


class NoHead(nnx.Module):
    """In the place of a head: returns what that would see."""

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        return x


def image_size(given: Any) -> int | tuple[int, int]:
    """Pixels per side, or (height, width) where they differ, in Python's own numbers. Raises ValueError for others."""
    try:
        height, width = map(operator.index, given if np.ndim(given) else (given, given))
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"img_size is {given!r:.60}: give pixels per side, or (height, width)")
    return height if height == width else (height, width)


def training_key(train: bool, key: PRNGKeyArray | None, *rates: float) -> PRNGKeyArray | None:
    """The key of dropout and stochastic depth, None in evaluation.

    Raises UserError for training without a key where one of the `rates` is above 0.
    """
    if train and key is None and any(rates):
        raise UserError(
            "train=True with dropout or stochastic depth needs a key: key=jax.random.key(0), a new one per step"
        )
    return key if train else None


def check_images(images: Shaped[AnyArray, "..."], img_size: tuple[int, int] | None = None) -> None:
    """Raise UserError unless `images` is a normalized float batch (B, H, W, 3), of `img_size` where one is fixed.

    The range is checked only outside jit, where the values are known.
    """
    shape = images.shape
    if len(shape) != 4:
        raise UserError(f"images have shape {shape}: a batch (B, H, W, 3) is needed (images[None] makes one of one)")
    if shape[3] != 3:
        nchw = shape[1] == 3
        fix = "they look like (B, 3, H, W): use images.transpose(0, 2, 3, 1)" if nchw else "3 colour channels come last"
        raise UserError(f"images have shape {shape}, not (B, H, W, 3): {fix}")
    if img_size is not None and shape[1:3] != tuple(img_size):
        size = f"{img_size[0]}x{img_size[1]}"
        given = shape[1] if shape[1] == shape[2] else shape[1:3]
        raise UserError(
            f"images are {shape[1]}x{shape[2]} but the model was made for {size}: resize them, "
            f"or load the weights into a model of that size (img_size={given})"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: normalize them first (deit_jax.augment.normalize)")
    if not isinstance(images, Tracer) and images.size:
        with jax.ensure_compile_time_eval():  # a constant inside a caller's jit is not a tracer either
            largest = float(jnp.abs(images).max())
        if not largest <= LARGEST_PIXEL:
            raise UserError(
                f"images reach {largest:g}: normalize them first, (pixels / 255 - mean) / std"
                " (deit_jax.augment.normalize)"
            )
