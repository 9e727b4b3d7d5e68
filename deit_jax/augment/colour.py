"""The ops that change colours and not places, with PIL's arithmetic, on packed pixels (see pixels.py)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, UInt32

from deit_jax.augment.ops import IDS
from deit_jax.augment.pixels import Planes, join, split


class Table(NamedTuple):
    """What happens to each channel's value, in this order; the defaults change nothing. One entry per image.

    Every pixelwise op is one of these steps, so a batch of different ops is one pass over its pixels.
    """

    keep: Int[Array, "batch"]  # Posterize: the bits kept
    invert_from: Int[Array, "batch"]  # Solarize, Invert: values from here on are inverted
    add: Int[Array, "batch"]  # SolarizeAdd: added to values below 128
    stretch: Int[Array, "batch"]  # AutoContrast: each channel's range becomes 0..255
    factor: Float[Array, "batch"]  # Color, Contrast, Brightness: 1 leaves the image, 0 is what it is blended with:
    grey: Int[Array, "batch"]  # its own grey,
    mean: Int[Array, "batch"]  # else its mean grey, else black


def table(op: Int[Array, "batch"], arg: Float[Array, "batch"]) -> Table:
    """The steps of each image's op. `op` holds numbers of `IDS`; numbers of no pixelwise op change nothing."""
    of = lambda name, value, neutral: jnp.where(op == IDS[name], value, neutral)
    bits = jnp.clip(arg, 0, 8).astype(jnp.int32)
    from_ = of("Invert", 0, of("Solarize", jnp.ceil(arg).astype(jnp.int32), 256))
    blended = (op == IDS["Color"]) | (op == IDS["Contrast"]) | (op == IDS["Brightness"])
    return Table(
        keep=of("Posterize", 256 - (1 << (8 - bits)), 255),
        invert_from=from_,
        add=of("SolarizeAdd", arg.astype(jnp.int32), 0),
        stretch=op == IDS["AutoContrast"],
        factor=jnp.where(blended, arg, 1.0).astype(jnp.float32),
        grey=op == IDS["Color"],
        mean=op == IDS["Contrast"],
    )


def pixelwise(pixels: UInt32[Array, "batch height width"], steps: Table) -> UInt32[Array, "batch height width"]:
    """Apply each image's steps to every pixel."""
    planes = split(pixels)
    steps = Table(*(x[:, None, None] for x in steps))
    grey = luminance(planes)
    count = pixels.shape[1] * pixels.shape[2]
    mean = (2 * grey.sum((1, 2), keepdims=True) + count) // (2 * count)
    degenerate = jnp.where(steps.grey, grey, jnp.where(steps.mean, mean, 0))
    return join(tuple(_one_channel(plane, steps, degenerate) for plane in planes))


def _one_channel(
    x: Int32[Array, "batch height width"], steps: Table, degenerate: Int32[Array, "batch height width"]
) -> Int32[Array, "batch height width"]:
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    stretched = steps.stretch & (low < high)
    low, span = jnp.where(stretched, low, 0), jnp.where(stretched, high - low, 255)
    x = x & steps.keep
    x = jnp.where(x >= steps.invert_from, 255 - x, x)
    x = jnp.where(x < 128, jnp.minimum(x + steps.add, 255), x)
    # A half keeps the quotient away from whole numbers, where rounding would decide.
    x = (((x - low) * 255 + 0.5) * (1.0 / span)).astype(jnp.int32)
    return blend(degenerate, x, steps.factor)


def luminance(planes: Planes) -> Int32[Array, "..."]:
    """PIL's convert("L"): ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = planes
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(degenerate: Int32[Array, "..."], x: Int32[Array, "..."], factor: Float[Array, "..."]) -> Int32[Array, "..."]:
    """PIL's Image.blend: degenerate + factor x (image - degenerate), cut to 0..255, then its fraction cut off."""
    return jnp.clip(degenerate + factor * (x - degenerate), 0, 255).astype(jnp.int32)


def sharpness(
    pixels: UInt32[Array, "batch height width"], factor: Float[Array, "batch"]
) -> UInt32[Array, "batch height width"]:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; PIL leaves the outermost pixels unsmoothed."""
    height, width = pixels.shape[1:]
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    factor = factor[:, None, None]

    def one(plane):
        rows = jnp.pad(plane, ((0, 0), (1, 1), (1, 1)))
        total = sum(rows[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) + 4 * plane
        smooth = ((total + 6.5) * (1 / 13)).astype(jnp.int32)
        return blend(jnp.where(inner, smooth, plane), plane, factor)

    return join(tuple(map(one, split(pixels))))


def equalize(pixels: UInt32[Array, "batch height width"]) -> UInt32[Array, "batch height width"]:
    """PIL's ImageOps.equalize: a 256-entry table per channel from the channel's histogram."""
    return jax.vmap(lambda image: join(tuple(map(_equalize, split(image)))))(pixels)


def _equalize(x: Int32[Array, "height width"]) -> Int32[Array, "height width"]:
    counts = jnp.zeros(256, jnp.int32).at[x].add(1, mode="promise_in_bounds")
    # 255 equal steps over all but the brightest value's pixels; an image with too few values stays as it is.
    step = (x.size - counts[x.max()]) // 255
    before = jnp.cumsum(counts) - counts
    lut = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, lut.at[x].get(mode="promise_in_bounds"), x)
