"""Data of one's own: a function that `data.name` names returns the training and the evaluation images.

python main.py --config=configs/digits.py:distill=none --workdir=runs/own --config.data.name=examples.own_data:stripes
"""

import numpy as np

from deit_jax.data.base import ArraySource


def images(count: int, seed: int) -> ArraySource:
    """Noise with stripes: across, or upright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    wave = 60 * np.sin(np.arange(16) + rng.uniform(0, 6, (count, 1)))
    stripes = np.where(labels[:, None, None], wave[:, None, :], wave[:, :, None])
    pixels = np.clip(128 + stripes + rng.normal(0, 30, stripes.shape), 0, 255).astype(np.uint8)
    return ArraySource(pixels, labels, ["across", "upright"], name="stripes")


def stripes() -> tuple[ArraySource, ArraySource]:
    """512 images to train on, 128 others."""
    return images(512, 0), images(128, 1)
