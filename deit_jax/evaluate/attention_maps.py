"""Attention maps of a ViT on images, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from deit_jax.augment import normalize


def draw_attention(
    path: str | Path,
    model: Any,
    images: UInt8[np.ndarray, "images height width 3"],
    captions: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Draw what the class and distillation token attend to in the last block, mean over heads (`plots.attention`).

    Args:
        path: of the picture.
        model: a ViT, whatever its heads.
        images: as the model sees them, before normalization.
        captions: one per image, of one or more lines.
        mean, std: the model's normalization statistics.
    """
    from deit_jax import plots  # here: matplotlib takes a second to import

    attention = model.inspect(normalize(jnp.asarray(images), tuple(mean), tuple(std)))["attention"][-1]
    maps = np.asarray(attention.mean(1)[..., model.prefix_tokens :], np.float32)
    plots.attention(path, images, maps, list(captions), model.grid)
