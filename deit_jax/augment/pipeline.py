"""All of the device's augmentation, in the order of the released recipe."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key, PRNGKeyArray, Shaped, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.augment.erasing import draw_erasing, erase
from deit_jax.augment.mix import draw_mix, mix_images, mix_targets, num_groups
from deit_jax.augment.pixels import choose, on_chosen, pack, unpack
from deit_jax.augment.rand import draw_rand_augment, passes_needed, rand_augment
from deit_jax.augment.three import BLUR, draw_three_augment, three_augment
from deit_jax.errors import UserError
from deit_jax.losses import soft_targets


def sample_keys(key: PRNGKeyArray, batch: Mapping[str, Shaped[AnyArray, "batch ..."]]) -> Key[Array, "batch"]:
    """A key per image: a function of the image's epoch, index and view alone, never of its place in the batch."""

    def one(epoch, index, repeat):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, epoch), index), repeat)

    return jax.vmap(one)(batch["epoch"], batch["index"], batch["repeat"])


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


def augment_train(
    batch: Mapping[str, Shaped[AnyArray, "batch ..."]],
    key: PRNGKeyArray,
    step: Integer[AnyArray, ""] | int,
    cfg: Any,
    num_classes: int,
    shards: int | None = None,
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """Flip, policy, normalize, erase and mix a batch of cropped images; smooth and mix its targets.

    `batch` holds image (batch, height, width, 3) uint8 and label, index, epoch, repeat (batch,) int32, and mixed_at
    (batch, 2) where views are repeated: mixing's keys are those of that step and group. `key` is a typed key, `cfg` any
    object with the attributes of `config.augment`. Mixing acts on groups of up to `cfg.mix_group` neighbours, row i of
    a group of G with row G-1-i (`mix`), whatever the devices. `shards`: devices that the batch is split over (None: all
    that jax has); it changes how fast this is, never what it gives. Returns float32 images and probabilities.
    """
    images = batch["image"]
    shards = math.gcd(shards or jax.device_count(), len(images))
    size, height, width = images.shape[:3]
    sample_key, mix_key = jax.random.split(key)
    flip_keys, policy_keys, erase_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(
        sample_keys(sample_key, batch)
    )
    erasing = jax.vmap(lambda k: draw_erasing(k, cfg.erasing, height, width))(erase_keys)
    needed = {"erase": erasing.box.bottom > erasing.box.top}
    if cfg.policy == "rand":
        drawn = jax.vmap(lambda k: draw_rand_augment(k, cfg))(policy_keys)
        needed["policy"] = passes_needed(drawn)
        fill = tuple(min(255, round(255 * channel)) for channel in cfg.mean)
        policy = lambda pixels, chosen: rand_augment(pixels, drawn, fill, chosen)
    elif cfg.policy == "three":
        drawn = jax.vmap(lambda k: draw_three_augment(k, cfg))(policy_keys)
        needed["policy"] = drawn.choice == BLUR
        policy = lambda pixels, chosen: three_augment(pixels, drawn, chosen)
    elif cfg.policy == "none":
        policy = None
    else:
        raise UserError(f"augment.policy is '{cfg.policy}': use rand, three or none")
    chosen = choose(needed, shards)  # the images that need an expensive pass, gathered: the others skip it

    if cfg.flip > 0:
        images = flip(images, jax.vmap(jax.random.uniform)(flip_keys) < cfg.flip)
    if policy:
        images = unpack(policy(pack(images), chosen["policy"]))
    images = normalize(images, cfg.mean, cfg.std)
    if cfg.erasing > 0:
        images = on_chosen(erase, images, chosen["erase"], erasing)

    targets = soft_targets(batch["label"], num_classes, cfg.label_smoothing)
    if cfg.mixup > 0 or cfg.cutmix > 0:
        groups = num_groups(size, cfg.mix_group)
        at, group = jnp.full(groups, step), jnp.arange(groups)
        if "mixed_at" in batch:  # views that are repeated, mixed as the first time; groups are of one size then
            at, group = batch["mixed_at"].reshape(groups, -1, 2)[:, 0].T
        keys = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.fold_in, (None, 0))(mix_key, at), group)
        mix = jax.vmap(lambda k: draw_mix(k, cfg, height, width))(keys)
        images, targets = mix_images(images, mix), mix_targets(targets, mix.lam)
    return images, targets
