"""`data.cache=device`: training images that stay on the device, where the crops that the host draws are cut out.

PIL's bicubic resizing is repeated in its own integers, so that the pixels are the host's to the bit: weights of 22
bits, along the rows first, rounded to a byte after each pass. Images are only enlarged here; where they shrink, PIL's
order of the passes depends on its version.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.config import Config
from deit_jax.data import cache
from deit_jax.data.base import Source
from deit_jax.data.images import decode
from deit_jax.errors import UserError
from deit_jax.runtime import hardware

TAPS = 4  # pixels that a bicubic filter looks at where it enlarges
BITS = 22  # of the weights' fractions
LARGEST = 2 * hardware.GIB  # bytes of images that "auto" puts on a device

Cut = Callable[[Int[np.ndarray, "batch"], Int[np.ndarray, "batch 4"]], UInt8[Array, "batch size size 3"]]


def open_crops(config: Config, source: Source, size: int) -> Cut | None:
    """(image indices, boxes) → views of `size` pixels per side, on the first local device; None where the host makes
    them. The boxes are `draw_crop`'s.

    "auto" is the device where that is an accelerator and the images are in memory, small and of one size.
    Raises UserError where `data.cache` is device and they cannot be cut there.
    """
    asked = config.data.cache == "device"
    in_memory = cache.is_decoded(source) or isinstance(source, cache.Cached)
    if not asked and (config.data.cache != "auto" or not in_memory or hardware.target().platform == "cpu"):
        return None
    right = config.augment.crop == "inception" and config.data.resize == "exact"
    images = stack_images(source, size, config.data.exif, math.inf if asked else LARGEST) if right else None
    if images is not None:
        return functools.partial(cut_crops, jax.device_put(images, jax.local_devices()[0]), size=size)
    if asked:
        raise UserError(
            f"data.cache device takes readable images of one size, {size} pixels at most, augment.crop inception and"
            f" data.resize exact, and these of {source.title} are others: use --config.data.cache=ram"
        )
    return None


def stack_images(
    source: Source, largest: int, exif: bool, limit: float
) -> UInt8[np.ndarray, "images height width 3"] | None:
    """All images of a source; None where one cannot be read, is of another size or of a side of over `largest` pixels,
    or all take more than `limit` bytes."""
    images = []
    for index in range(len(source)):
        try:
            images.append(decode(source[index]["image"], exif))
        except OSError:
            return None
        first = images[0]
        if images[-1].shape != first.shape or max(first.shape) > largest or first.nbytes * len(source) > limit:
            return None
    return np.stack(images)


@functools.partial(jax.jit, static_argnames="size")
def cut_crops(
    images: UInt8[AnyArray, "n h w 3"], index: Integer[AnyArray, "b"], boxes: Integer[AnyArray, "b 4"], *, size: int
) -> UInt8[Array, "b size size 3"]:
    """`random_resized_crop` of box i (top, left, height, width) of image `index[i]`, none larger than `size`."""
    starts, weights = map(jnp.asarray, bicubic_filters(size))

    def resize(pixels, first, length):
        taken = pixels[first + starts[length][:, None] + jnp.arange(TAPS)].astype(jnp.int32)
        total = jnp.einsum("st,stpc->spc", weights[length], taken)
        return ((total + (1 << BITS - 1)) >> BITS).clip(0, 255)

    def cut(which, box):
        top, left, height, width = box
        rows = resize(images[which].swapaxes(0, 1), left, width).swapaxes(0, 1)
        return resize(rows, top, height).astype(jnp.uint8)

    return jax.vmap(cut)(index, boxes)


@functools.cache
def bicubic_filters(size: int) -> tuple[Int[np.ndarray, "lengths size"], Int[np.ndarray, "lengths size taps"]]:
    """PIL's filters that enlarge 0 … `size` pixels to `size`: the first pixel that each looks at, and its weights."""
    starts, weights = np.zeros((size + 1, size), np.int32), np.zeros((size + 1, size, TAPS), np.int32)
    for length in range(1, size + 1):
        for place in range(size):
            centre = (place + 0.5) * (length / size)
            first, last = max(0, int(centre - 1.5)), min(length, int(centre + 2.5))
            taps = [keys_cubic(abs(x - centre + 0.5)) for x in range(first, last)]
            scaled = [tap / sum(taps) * (1 << BITS) for tap in taps]
            starts[length, place] = first
            weights[length, place, : len(taps)] = [int(math.copysign(0.5, tap) + tap) for tap in scaled]
    return starts, weights


def keys_cubic(x: float) -> float:
    """Keys' kernel with a = -0.5 at a distance of x >= 0 pixels, in PIL's order of operations."""
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
