"""Weights as a model: `load_model`."""

import functools
import logging
import os
from typing import Any

import jax.numpy as jnp
from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError, printable
from deit_jax.weights.fit import fit_weights
from deit_jax.weights.load import Weights, load_weights
from deit_jax.weights.metadata import given_size

log = logging.getLogger("deit_jax")


def load_model(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    weights: str = "params",
    rngs: int = 0,
    **overrides: Any,
) -> nnx.Module:
    """A model with its weights, in evaluation form: `model(images)`, `model.heads(images)`.

    Args:
        source: hub name, .safetensors or .pth file, or Orbax folder (see `load_weights`).
        name: load into this model instead of what the weights are: `deit_tiny_patch16_224` takes the transformer of a
            distilled one; what is dropped or randomly initialized is logged. Also the model of weights of which nothing
            else says what they are.
        num_classes: other than the weights' own: new heads are initialized, and logged.
        img_size: pixels, or (height, width), other than the weights' own: the position embedding is resized. Also the
            size of weights of which nothing else says it.
        weights: "params", or "ema" of a training checkpoint.
        rngs: seed of whatever is randomly initialized.
        overrides: any other argument of the module (`dtype`, `num_heads`, `drop_path_rate`, `remat`, …).

    Raises:
        UserError: for whatever cannot be found, read or fitted.
    """
    img_size = given_size(img_size)
    loaded = load_weights(source, name=name or "", img_size=img_size, weights=weights)
    given = {key: overrides[key] for key in ("num_heads", "norm_eps") if key in overrides}  # they show in no shape
    loaded.architecture.config.update(given)
    overrides |= {"num_classes": num_classes or loaded.num_classes or None, "img_size": img_size}
    if overrides["num_classes"] is None:
        raise UserError(f"{source} has no classification head: give num_classes=, and a new one is initialized")
    build = models.constructor(name, **overrides) if name else loaded.architecture.constructor(**overrides)
    model, notes = build_model(loaded, build, seed=rngs)
    for note in notes:
        log.warning("%s: %s", printable(source), printable(note))
    return model


def build_model(weights: Weights, build: functools.partial, *, seed: int = 0) -> tuple[nnx.Module, list[str]]:
    """(model, notes of `fit_weights`); uses `weights` up, so that the arrays are not there twice."""
    params, batch_stats, notes = fit_weights(weights, build, seed=seed)
    weights.tree.clear()
    graphdef, _, _ = models.abstract(build)
    return nnx.merge(graphdef, to_device(params), to_device(batch_stats)), notes


def to_device(tree: dict) -> dict:
    """The arrays as JAX's, each host copy freed before the next is made."""
    for key, value in tree.items():
        tree[key] = to_device(value) if isinstance(value, dict) else jnp.asarray(value)
    return tree
