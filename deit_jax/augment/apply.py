"""timm's ops, one at a time: the public door to colour.py and warp.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.augment.colour import equalize, pixelwise, sharpness, table
from deit_jax.augment.ops import IDS, OPS
from deit_jax.augment.pixels import pack, unpack
from deit_jax.augment.warp import affine, pack_colour, warp
from deit_jax.errors import UserError, nearest

WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
RESAMPLING = ("bilinear", "bicubic")


def apply_op(
    name: str,
    images: UInt8[AnyArray, "*batch height width 3"],
    arg: Shaped[AnyArray, "..."] | float = 0.0,
    resampling: str = "bilinear",
    fill: tuple[int, int, int] = (124, 116, 104),
) -> UInt8[Array, "*batch height width 3"]:
    """One of timm's ops on an image or a batch, uint8 in and out, as PIL computes it.

    `arg` is what the op finally takes, not the magnitude; a number, or one per image: degrees counter-clockwise
    (Rotate), slope (ShearX, ShearY), share of the side (TranslateXRel, TranslateYRel), factor (Color, Contrast,
    Brightness, Sharpness: 1 is the image), bits kept (Posterize), threshold (Solarize), addend (SolarizeAdd). With
    and without "Increasing" a name means the same. Raises UserError for an unknown name or resampling.
    """
    number = IDS.get(name.removesuffix("Increasing") if name in OPS else name)
    if number is None:
        raise UserError(
            f"augmentation op '{name}' is not known{nearest(name, [*OPS, *IDS])}: use one of {', '.join(OPS)}"
        )
    if resampling not in RESAMPLING:
        raise UserError(
            f"resampling '{resampling}' is not known{nearest(resampling, RESAMPLING)}: use {' or '.join(RESAMPLING)}"
        )
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise UserError(
            f"images are {images.dtype}{list(images.shape)}: give uint8 (height, width, 3) or (batch, height, width, 3)"
        )
    batch = images.reshape(-1, *images.shape[-3:])
    if np.size(arg) not in (1, len(batch)):
        raise UserError(f"arg holds {np.size(arg)} numbers for {len(batch)} images: give one, or one per image")
    xp: Any = jnp if isinstance(arg, jax.Array) else np
    args = xp.broadcast_to(xp.asarray(arg, xp.float64 if xp is np else xp.float32).reshape(-1), batch.shape[:1])
    name = list(IDS)[number]
    if name in WARPS:
        op, cubic = xp.full(args.shape, number), xp.full(args.shape, resampling == "bicubic")
        height, width = batch.shape[1:3]
        to = affine(op, args, cubic, height, width, xp)
        out = _warp(batch, to, tuple(fill), name == "Rotate")
    else:
        out = _recolour(name, batch, jnp.asarray(args, jnp.float32))
    return out.reshape(images.shape)


@functools.partial(jax.jit, static_argnames=("fill", "both_axes"))
def _warp(images, to, fill, both_axes):
    return unpack(warp(pack(images), to, pack_colour(fill), both_axes=both_axes))


@functools.partial(jax.jit, static_argnames="name")
def _recolour(name, images, arg):
    pixels = pack(images)
    if name == "Equalize":
        return unpack(equalize(pixels))
    if name == "Sharpness":
        return unpack(sharpness(pixels, arg))
    return unpack(pixelwise(pixels, table(jnp.full(arg.shape, IDS[name]), arg)))
