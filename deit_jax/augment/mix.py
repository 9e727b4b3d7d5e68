"""Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) and the soft targets that go with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from deit_jax.arrays import AnyArray
from deit_jax.augment.erasing import Box


class Mix(NamedTuple):
    """How one group is mixed: `lam` is the share of the image itself (in its target too), the rest its partner's.
    With cutmix the partner fills `box`; `lam` is then the share outside the box."""

    lam: Float[Array, "*groups"]
    cutmix: Bool[Array, "*groups"]
    box: Box


def draw_mix(key: PRNGKeyArray, cfg: Any, height: int, width: int) -> Mix:
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


def draw_beta(key: PRNGKeyArray, alpha: Float[Array, ""], largest: float) -> Float[Array, ""]:
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


MIN_GROUP = 8  # images: smaller groups of equal size give way to larger ones of unequal size


def num_groups(batch: int, wanted: int) -> int:
    """Groups within which the images of a batch are mixed, each of `wanted` images at most.

    The fewest of equal size, where they have at least 8 images (or nearly `wanted`, where less is wanted). Other sizes
    (67 = 1 x 67, 134 = 2 x 67, 335 = 5 x 67) would be left unmixed or mixed in fixed pairs: their groups differ by one
    image, the larger groups first, as `numpy.array_split` cuts.
    """
    fewest, smallest = -(-batch // wanted), min(MIN_GROUP, wanted, max(2, wanted // 2))
    equal = (groups for groups in range(fewest, batch // smallest + 1) if batch % groups == 0)
    return next(equal, fewest)


def _partners(batch: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row its partner (the row at the mirrored position of its group) and its group, int (batch,) each."""
    parts = np.array_split(np.arange(batch), groups)
    return np.concatenate([rows[::-1] for rows in parts]), np.repeat(np.arange(groups), [len(rows) for rows in parts])


def _mix_rows(x: Float[Array, "batch *rest"], share: Float[Array, "groups ..."]) -> Float[Array, "batch *rest"]:
    """share x row + (1 - share) x partner's row, with the share of the row's group."""
    batch, groups = x.shape[0], share.shape[0]
    if batch % groups:
        partner, group = _partners(batch, groups)
        return x * share[group] + x[partner] * (1 - share[group])
    # Groups of equal size are an axis of their own: rows stay on the device that has them, where a device has whole
    # groups. Of a gather XLA cannot tell that it stays within a device.
    own, share = x.reshape(groups, batch // groups, *x.shape[1:]), share[:, None]
    return (own * share + own[:, ::-1] * (1 - share)).reshape(x.shape)


def mix_images(images: Float[AnyArray, "batch height width 3"], mix: Mix) -> Float[Array, "batch height width 3"]:
    """Mix each image with its partner: row i of a group of G images with row G-1-i.

    The number of groups is that of `mix.lam`; groups are neighbouring rows (see `num_groups` for their sizes).
    """
    inside = mix.box.mask(*images.shape[1:3])
    share = jnp.where(mix.cutmix[:, None, None], 1.0 - inside, mix.lam[:, None, None])
    return _mix_rows(jnp.asarray(images), share[..., None])


def mix_targets(
    targets: Float[AnyArray, "batch classes"], lam: Float[AnyArray, "groups"]
) -> Float[Array, "batch classes"]:
    """lam x target + (1 - lam) x partner's target, with one lam per group."""
    return _mix_rows(jnp.asarray(targets), jnp.asarray(lam)[:, None])
