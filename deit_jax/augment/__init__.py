"""Augmentation on the device: pure functions of images and keys, all jittable."""

from deit_jax.augment.basic import draw_flip, flip, normalize
from deit_jax.augment.erasing import Box, Erasing, draw_erasing, erase
from deit_jax.augment.mix import Mix, draw_beta, draw_mix, group_size, mix_images, mix_targets, num_groups
from deit_jax.augment.ops import OPS, apply_op
from deit_jax.augment.pipeline import augment_train, sample_keys
from deit_jax.augment.rand import RandAugment, draw_rand_augment, rand_augment
from deit_jax.augment.three import ThreeAugment, draw_three_augment, gaussian_blur, three_augment

__all__ = [
    "OPS",
    "Box",
    "Erasing",
    "Mix",
    "RandAugment",
    "ThreeAugment",
    "apply_op",
    "augment_train",
    "draw_beta",
    "draw_erasing",
    "draw_flip",
    "draw_mix",
    "draw_rand_augment",
    "draw_three_augment",
    "erase",
    "flip",
    "gaussian_blur",
    "group_size",
    "mix_images",
    "mix_targets",
    "normalize",
    "num_groups",
    "rand_augment",
    "sample_keys",
    "three_augment",
]
