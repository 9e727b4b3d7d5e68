"""A model that knows the answer: images that differ by class, and weights that tell them all apart."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import seeded
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.names import Timm, entries

NAME, SIZE = "deit_digits_patch4_16", 16


def image_of(number: int) -> np.ndarray:
    """The one image of a class, uint8 (16, 16, 3): nothing is cut or resized at crop 1."""
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def save_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(number)).save(path, "PNG")


def save_oracle(path: Path, classes: int) -> Path:
    """Write timm weights whose logit c is largest for image_of(c): its head compares the normalized features."""
    _, params, batch_stats = models.abstract(models.constructor(NAME, num_classes=1))
    shapes = {e.key: list(e.shape) for e in entries({"params": params, "batch_stats": batch_stats}, Timm())}
    state = seeded.checkpoint(shapes)
    dim = state["norm.weight"].shape[0]
    state["norm.weight"], state["norm.bias"] = np.ones(dim, np.float32), np.zeros(dim, np.float32)
    state["head.weight"], state["head.bias"] = np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32)
    save_file(state, path)
    build = models.constructor(NAME, num_classes=dim)
    params, batch_stats, _ = fit_weights(load_weights(path), build)
    model = nnx.merge(models.abstract(build)[0], params, batch_stats)
    images = np.stack([image_of(number) for number in range(classes)])
    state["head.weight"] = np.asarray(model(normalize(jnp.asarray(images), IMAGENET_MEAN, IMAGENET_STD)))
    state["head.bias"] = np.zeros(classes, np.float32)
    save_file(state, path)
    return path
