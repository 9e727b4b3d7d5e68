"""Checkpoints and images that are the same on every machine, so that no weight file has to be stored.

The numbers are those the golden values were computed from: each tensor is drawn from PCG64 keyed by (seed, CRC-32 of
its name), standard normal, then scaled by what the name says it is.
"""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "shapes.json").read_text())


def tensor(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """One tensor of a PyTorch state dict, in PyTorch's layout."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    normal = generator.standard_normal(shape)
    if key.endswith("running_var"):
        return (0.5 + generator.uniform(size=shape)).astype(np.float32)
    if key.endswith("running_mean"):
        scale = 0.1
    elif key in ("cls_token", "dist_token", "pos_embed"):
        scale = 0.2
    elif key.endswith("bias"):
        scale = 0.02
    elif len(shape) == 1:  # a normalization's factor, around 1
        return (1 + 0.1 * normal).astype(np.float32)
    else:
        scale = math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[1:]))
    return (scale * normal).astype(np.float32)


def checkpoint(shapes: dict[str, list[int]] | str, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of the given shapes, or of one of the golden models."""
    shapes = SHAPES[shapes] if isinstance(shapes, str) else shapes
    return {key: tensor(key, tuple(shape), seed) for key, shape in shapes.items()}


def efficientnet(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """`checkpoint` of an EfficientNet, with the factors of each block's last normalization halved.

    With whole ones a B7 is chaotic: 1e-15 of its input moves timm's own float64 logits by half of the largest.
    """
    last = re.compile(r"blocks\.(0\.\d+\.bn2|[1-6]\.\d+\.bn3)\.weight")
    state = checkpoint(shapes, seed)
    return {key: value * np.float32(0.5) if last.fullmatch(key) else value for key, value in state.items()}


def images(count: int, size: int, seed: int = 1) -> np.ndarray:
    """(count, size, size, 3) float32, standard normal."""
    nchw = np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)
    return nchw.transpose(0, 2, 3, 1)
