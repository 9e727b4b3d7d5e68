"""Augmentation on the device: pure functions of images and keys, all jittable."""

from deit_jax.augment.basic import flip, normalize
from deit_jax.augment.erasing import Box, Erasing, draw_erasing, erase
from deit_jax.augment.mix import Mix, draw_mix, group_size, mix_images, mix_targets, soft_targets
from deit_jax.augment.ops import OPS, apply_op
from deit_jax.augment.pipeline import augment_train

__all__ = [
    "OPS",
    "Box",
    "Erasing",
    "Mix",
    "apply_op",
    "augment_train",
    "draw_erasing",
    "draw_mix",
    "erase",
    "flip",
    "group_size",
    "mix_images",
    "mix_targets",
    "normalize",
    "soft_targets",
]
