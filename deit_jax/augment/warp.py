"""Rotation, shear and translation as PIL's Image.transform does them, on packed pixels (see pixels.py).

PIL reads each output pixel's colour at a point of the input, found in double precision. Here the point is kept as a
displacement from the pixel itself, in whole 65536ths of a pixel: a float's last bit, which differs between two
compilations of the same line, would decide between neighbouring pixels.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num, UInt32

from deit_jax.arrays import AnyArray
from deit_jax.augment.ops import IDS
from deit_jax.augment.pixels import join, split

ONE = 1 << 16  # a pixel
LOW = 14  # a coefficient is high x 2^LOW + low, so that no product leaves 32 bits


class Affine(NamedTuple):
    """Displacement of a point: dx = xx x + xy y + x, dy = yx x + yy y + y. Factors are in units of 2^-29, shifts in
    65536ths of a pixel. `cubic` is the resampling: bicubic, or bilinear."""

    xx: Int32[AnyArray, "batch"]
    xy: Int32[AnyArray, "batch"]
    yx: Int32[AnyArray, "batch"]
    yy: Int32[AnyArray, "batch"]
    x: Int32[AnyArray, "batch"]
    y: Int32[AnyArray, "batch"]
    cubic: Bool[AnyArray, "batch"]


def affine(
    op: Int[AnyArray, "batch"],
    arg: Float[AnyArray, "batch"],
    cubic: Bool[AnyArray, "batch"],
    height: int,
    width: int,
    xp: ModuleType = jnp,
) -> Affine:
    """The displacements of each image's op: degrees counter-clockwise (Rotate), slope (ShearX, ShearY), share of the
    image's side (TranslateXRel, TranslateYRel). `op` holds numbers of `IDS`; other ops give none.

    With `xp` numpy, in double precision: PIL's half-pixel translations at an image's edge hang on its last bit.
    """
    of = lambda name, value: xp.where(op == IDS[name], value, 0)
    angle = of("Rotate", arg * (xp.pi / 180))
    sin, cos_less_one = xp.sin(angle), -2 * xp.square(xp.sin(angle / 2))
    shear_x, shear_y = of("ShearX", arg), of("ShearY", arg)
    x = (sin * height - cos_less_one * width) / 2 + of("TranslateXRel", arg * width)
    y = (-sin * width - cos_less_one * height) / 2 + of("TranslateYRel", arg * height)
    factor = lambda value: xp.round(value * 2.0**29).astype(xp.int32)
    return Affine(
        factor(cos_less_one),
        factor(shear_x - sin),
        factor(shear_y + sin),
        factor(cos_less_one),
        _fixed(x, xp),
        _fixed(y, xp),
        cubic,
    )


def _fixed(shift, xp):
    """Nearest 65536th; just below n + 1/2 stays below it, where a row at the edge is the fill's."""
    near = xp.round(shift * ONE)
    below = (xp.mod(near, ONE) == ONE // 2) & (shift * ONE < near)
    return (near - below).astype(xp.int32)


def warp(
    pixels: UInt32[Array, "batch height width"], to: Affine, fill: UInt32[Array, ""], *, both_axes: bool
) -> UInt32[Array, "batch height width"]:
    """Read each pixel at its displaced place; `fill` where that is outside the image. Sides up to 8192.

    With `both_axes` false, displacements are along one axis in each image (all ops but Rotate), and four neighbours
    are read instead of sixteen: PIL's result is the same.
    """
    to = jax.lax.optimization_barrier(to)  # one value for all uses
    return jax.vmap(lambda image, to: _warp(image, to, fill, both_axes))(pixels, to)


def _warp(image, to, fill, both_axes):
    height, width = image.shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    dx = to.x + _along(to.xx, to.xy, column, row)
    dy = to.y + _along(to.yx, to.yy, column, row)
    inside = _within(column * ONE + ONE // 2 + dx, width) & _within(row * ONE + ONE // 2 + dy, height)
    column, row = column + (dx >> 16), row + (dy >> 16)
    across, down = ((d & (ONE - 1)).astype(jnp.float32) * (1 / ONE) for d in (dx, dy))
    flat = image.reshape(-1)

    def at(row, column):
        place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return split(flat.at[place].get(mode="promise_in_bounds"))

    if both_axes:
        lines = [_interpolate([at(row + j, column + i) for i in range(-1, 3)], across, to.cubic) for j in range(-1, 3)]
        planes = _interpolate(lines, down, to.cubic)
    else:
        vertical = (to.yx != 0) | (to.y != 0)
        i_x, i_y = jnp.where(vertical, 0, 1), jnp.where(vertical, 1, 0)
        neighbours = [at(row + i * i_y, column + i * i_x) for i in range(-1, 3)]
        planes = _interpolate(neighbours, jnp.where(vertical, down, across), to.cubic)
    planes = tuple(jnp.clip(plane, 0, 255).astype(jnp.int32) for plane in planes)
    return jnp.where(inside, join(planes), fill)


def _along(by_column, by_row, column, row):
    """by_column x (column + 1/2) + by_row x (row + 1/2), in 65536ths of a pixel; the factors in units of 2^-29."""
    column, row = 2 * column + 1, 2 * row + 1
    low = (1 << LOW) - 1
    small = column * (by_column & low) + row * (by_row & low)
    return column * (by_column >> LOW) + row * (by_row >> LOW) + ((small + (1 << (LOW - 1))) >> LOW)


def _within(place, size):
    return (place >= 0) & (place < size * ONE)


def _interpolate(
    neighbours: list[tuple[Num[Array, "..."], ...]], place: Float32[Array, "..."], cubic: Bool[Array, ""]
) -> tuple[Float32[Array, "..."], ...]:
    """Between the second and third of four neighbours. PIL's cubic has a = -1, and Horner's form: flat areas stay
    exactly flat, which matters because the fraction is then cut off, not rounded."""

    def one(a, b, c, d):
        p2 = jnp.where(cubic, c - a, c - b)
        p3 = jnp.where(cubic, 2 * (a - b) + c - d, 0)
        p4 = jnp.where(cubic, b - a + d - c, 0)
        return b + place * (p2 + place * (p3 + place * p4))

    return tuple(one(*channel) for channel in zip(*neighbours, strict=True))


def pack_colour(colour: tuple[int, ...]) -> UInt32[Array, ""]:
    """An RGB colour, 0..255 each, as one word."""
    return join(tuple(jnp.asarray(value, jnp.int32) for value in colour))
