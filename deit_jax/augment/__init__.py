"""Augmentation on the device: pure functions of images and keys, all jittable."""

from deit_jax.augment.apply import apply_op
from deit_jax.augment.ops import OPS
from deit_jax.augment.pipeline import augment_train, normalize

__all__ = ["OPS", "apply_op", "augment_train", "normalize"]
