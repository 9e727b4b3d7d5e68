"""Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) and the soft targets that go with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deit_jax.augment.erasing import Box


class Mix(NamedTuple):
    """How one group is mixed: `lam` is the share of the image itself (in its target too), the rest its partner's.
    With cutmix the partner fills `box`; `lam` is then the share outside the box."""

    lam: Float[Array, "*groups"]
    cutmix: Bool[Array, "*groups"]
    box: Box


def draw_mix(key: jax.Array, cfg: Any, height: int, width: int) -> Mix:
    """The mixing of one group. `cfg` has mixup, cutmix (alphas; 0: off), mix_switch and mix_prob (probabilities)."""
    key_coins, key_lam = jax.random.split(key)
    applied, switch, y, x = jax.random.uniform(key_coins, (4,))
    either = cfg.mixup > 0 and cfg.cutmix > 0
    cutmix = switch < cfg.mix_switch if either else jnp.asarray(cfg.cutmix > 0)
    lam = draw_beta(key_lam, jnp.where(cutmix, cfg.cutmix, cfg.mixup), largest=max(cfg.cutmix, cfg.mixup))
    lam = jnp.where(applied < cfg.mix_prob, lam, 1.0)

    half = jnp.sqrt(1 - lam) * jnp.asarray([height, width])
    half_h, half_w = half.astype(jnp.int32) // 2
    y, x = jnp.floor(y * height).astype(jnp.int32), jnp.floor(x * width).astype(jnp.int32)
    top, bottom = jnp.clip(y - half_h, 0), jnp.clip(y + half_h, max=height)
    left, right = jnp.clip(x - half_w, 0), jnp.clip(x + half_w, max=width)
    # The box is cut off at the image's edge, so that the share is the box's, not the drawn one.
    corrected = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(jnp.where(cutmix, corrected, lam), cutmix, Box(top, bottom, left, right))


def draw_beta(key: jax.Array, alpha: Float[Array, ""], largest: float) -> Float[Array, ""]:
    """Beta(alpha, alpha), for an alpha up to `largest`; 1 where that is 0 (nothing is mixed).

    Up to 1 by Jöhnk's method, the first of 32 pairs that it accepts (it accepts half or more): jax.random.beta's nested
    loops take a second to compile, and a device to synchronise at each turn.
    """
    if largest == 0:
        return jnp.ones(())
    if largest > 1:
        return jax.random.beta(key, alpha, alpha)
    log_a, log_b = jnp.log(jax.random.uniform(key, (2, 32), minval=2**-24)) / alpha
    first = jnp.argmax(jnp.logaddexp(log_a, log_b) <= 0)
    return jax.nn.sigmoid(log_a[first] - log_b[first])


def group_size(batch: int, wanted: int) -> int:
    """Images that are mixed among themselves: the largest divisor of `batch` that is at most `wanted`."""
    return next(size for size in range(min(batch, wanted), 0, -1) if batch % size == 0)


def _pairs(x: Array, groups: int) -> tuple[Array, Array]:
    """(groups, size, …) and the same with each group's order reversed: the partners."""
    x = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
    return x, x[:, ::-1]


def mix_images(images: Float[Array, "batch height width 3"], mix: Mix) -> Float[Array, "batch height width 3"]:
    """Mix each image with its partner, the image as far from its group's end as it is from its start."""
    own, partner = _pairs(images, mix.lam.shape[0])
    inside = mix.box.mask(*images.shape[1:3])
    share = jnp.where(mix.cutmix[:, None, None], 1.0 - inside, mix.lam[:, None, None])[:, None, :, :, None]
    return (own * share + partner * (1 - share)).reshape(images.shape)


def mix_targets(targets: Float[Array, "batch classes"], lam: Float[Array, "groups"]) -> Float[Array, "batch classes"]:
    """lam x target + (1 - lam) x partner's target, a lam a group."""
    own, partner = _pairs(targets, lam.shape[0])
    lam = lam[:, None, None]
    return (own * lam + partner * (1 - lam)).reshape(targets.shape)
