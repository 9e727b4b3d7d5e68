"""RandAugment (Cubuk et al. 2020) as timm's rand-m9-mstd0.5-inc1: random ops with random arguments, a few an image."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from deit_jax.arrays import AnyArray
from deit_jax.augment.colour import equalize, pixelwise, sharpness, table
from deit_jax.augment.ops import IDS, OPS
from deit_jax.augment.pixels import Chosen, on_chosen
from deit_jax.augment.warp import affine, pack_colour, warp

MAX_MAGNITUDE = 10.0


class RandAugment(NamedTuple):
    """The ops of one image, in order. `op` counts in OPS; `magnitude` is 0..10; `arg` is what apply_op takes."""

    op: Int[Array, "*batch ops"]
    applied: Bool[Array, "*batch ops"]
    magnitude: Float[Array, "*batch ops"]
    arg: Float[Array, "*batch ops"]
    cubic: Bool[Array, "*batch ops"]


def draw_rand_augment(key: PRNGKeyArray, cfg: Any) -> RandAugment:
    """Draw one image's ops: with replacement, each applied with rand_prob, magnitude normal and cut to 0..10, sign by a
    coin. `cfg` has rand_ops, rand_prob, rand_magnitude, rand_magnitude_std and rand_resampling: the released command
    hands its crops' bicubic on to RandAugment; timm left to itself tosses a coin ("random")."""
    op, applied, negative, cubic, deviation = jax.random.uniform(key, (5, cfg.rand_ops), minval=2**-24)
    op = jnp.floor(op * len(OPS)).astype(jnp.int32)
    normal = math.sqrt(2) * jax.lax.erf_inv(2 * deviation - 1)
    magnitude = jnp.clip(cfg.rand_magnitude + cfg.rand_magnitude_std * normal, 0, MAX_MAGNITUDE)
    arg = argument(op, magnitude, negative < 0.5)
    share = {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[cfg.rand_resampling]
    return RandAugment(op, applied < cfg.rand_prob, magnitude, arg, cubic < share)


def argument(
    op: Int[AnyArray, "*ops"], magnitude: Float[AnyArray, "*ops"], negative: Bool[AnyArray, "*ops"]
) -> Float[Array, "*ops"]:
    """timm's argument of an op (its number in OPS) at a magnitude of 0..10; `negative`: where it has a sign."""
    level = magnitude / MAX_MAGNITUDE
    signed = jnp.where(negative, -level, level)
    by_name = {
        "Rotate": 30 * signed,
        "Posterize": 4 - jnp.floor(4 * level),
        "Solarize": 256 - jnp.floor(256 * level),
        "SolarizeAdd": jnp.floor(110 * level),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), 1 + 0.9 * signed),
        **dict.fromkeys(("ShearX", "ShearY"), 0.3 * signed),
        **dict.fromkeys(("TranslateXRel", "TranslateYRel"), 0.45 * signed),
    }
    out = jnp.zeros_like(level)
    for name, value in by_name.items():
        out = jnp.where(op == IDS[name], value, out)
    return out


# The ops that a pass of their own applies, to the images that need it; the others are pixelwise.
PASSES = (("Equalize",), ("Sharpness",), ("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), ("Rotate",))


def passes_needed(ops: RandAugment) -> Bool[Array, "ops 4 batch"]:
    """Which images need which pass of PASSES, at each of their ops."""
    needed = [jnp.isin(ops.op, jnp.array([IDS[name] for name in names])) & ops.applied for names in PASSES]
    return jnp.stack(needed).transpose(2, 0, 1)


def rand_augment(
    pixels: UInt32[Array, "batch height width"], ops: RandAugment, fill: tuple[int, ...], chosen: Chosen
) -> UInt32[Array, "batch height width"]:
    """Apply each image's ops to packed pixels; `fill` is the colour outside a warped image.

    A layer of ops is five passes, whatever the ops are: one over all pixels for the eight pixelwise ops, and one each
    over the few images that are equalized, sharpened, warped along an axis or rotated: `choose(passes_needed(ops))`.
    """
    colour = pack_colour(fill)
    along_an_axis = functools.partial(warp, fill=colour, both_axes=False)
    around = functools.partial(warp, fill=colour, both_axes=True)

    def layer(pixels, layer):
        ops, chosen = layer
        op = jnp.where(ops.applied, ops.op, -1)
        to = affine(op, ops.arg, ops.cubic, *pixels.shape[1:])
        pixels = pixelwise(pixels, table(op, ops.arg))
        functions = (lambda some, _: equalize(some)), sharpness, along_an_axis, around
        for i, (function, arguments) in enumerate(zip(functions, ((), ops.arg, to, to), strict=True)):
            pixels = on_chosen(function, pixels, jax.tree.map(lambda x, i=i: x[i], chosen), arguments)
        return pixels, None

    by_layer = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), ops)
    return jax.lax.scan(layer, pixels, (by_layer, chosen))[0]
