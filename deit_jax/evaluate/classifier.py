"""Weights as a classifier: loaded, fitted and placed on the devices once, for any number of evaluations."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool

from deit_jax import models
from deit_jax.arrays import AnyArray
from deit_jax.config import default_config
from deit_jax.data import loader
from deit_jax.data.base import Source
from deit_jax.errors import UserError
from deit_jax.evaluate.inference import evaluate_sets
from deit_jax.runtime import sharding
from deit_jax.runtime.progress import track
from deit_jax.weights import Weights, fit_weights, load_weights
from deit_jax.weights.load import View, view_of
from deit_jax.weights.orbax import best_checkpoint

WEIGHT_SETS = ("params", "ema")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model with its weights on the devices.

    Attributes:
        name: a registry name, or "".
        build: constructor of the model.
        sets: {"params" or "ema": {"params", "batch_stats"}} of arrays on the mesh.
        view: the evaluation view, with the normalization statistics.
        num_classes: of its outputs.
        class_names: of its outputs; None where the weights have no names.
        notes: what was changed to fit, one line each.
    """

    name: str
    build: functools.partial
    sets: dict[str, dict[str, Any]]
    view: View
    num_classes: int
    class_names: list[str] | None
    notes: list[str]

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        return models.abstract(self.build)[0]

    def parameters(self) -> int:
        """Number of trainable parameters, without batch statistics."""
        weights = next(iter(self.sets.values()))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights["params"]))


def weight_sets(source: str, which: str = "") -> dict[str, Weights]:
    """{"params" and "ema": weights}: the set `which`, or both of a checkpoint that has both; as `load_weights`."""
    step = best_checkpoint(source)
    kinds = (which,) if which else WEIGHT_SETS if step and (step / "ema").is_dir() else WEIGHT_SETS[:1]
    return {kind: load_weights(source, weights=kind) for kind in kinds}


def make_classifier(
    sets: dict[str, Weights],
    mesh: Mesh,
    *,
    name: str = "",
    img_size: int = 0,
    crop: float = 0.0,
    interpolation: str = "",
    dtype: Any = jnp.float32,
) -> Classifier:
    """Fit weights into their model, and place them on every device of the mesh.

    Args:
        sets: of `weight_sets`.
        name: the registry model they must be of; "": what they are.
        mesh: the devices.
        img_size, crop, interpolation: of the evaluation view; 0 and "": the weights' own.
        dtype: the compute type.

    Raises:
        UserError: where weights and model do not fit.
    """
    weights = next(iter(sets.values()))
    size = img_size or weights.architecture.img_size
    if not isinstance(size, int):
        raise UserError(
            f"{weights.source} takes images that are not square: give a square size by --config.model.img_size"
        )
    headless = not weights.num_classes  # then a head that nothing may read is made: features are probed
    options = {"num_classes": weights.num_classes or 1, "img_size": size, "dtype": dtype}
    build = models.constructor(name, **options) if name else weights.architecture.constructor(**options)
    placed, notes = {}, []
    for kind, one in sets.items():
        params, batch_stats, notes = fit_weights(one, build, allow_new_parameters=headless)
        placed[kind] = jax.device_put({"params": params, "batch_stats": batch_stats}, sharding.replicated(mesh))
    view = view_of(weights, size, crop=crop, interpolation=interpolation)
    return Classifier(name or weights.name, build, placed, view, weights.num_classes, weights.class_names, notes)


def evaluation_rows(wanted: int, images: int, devices: int) -> int:
    """Images per batch: about `wanted`, divisible over the devices, not more than the images need."""
    return -(-min(wanted, max(images, 1)) // devices) * devices


def evaluate_classifier(
    classifier: Classifier,
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    config: Any = None,
    fusion: str = "logits",
    subset: Bool[AnyArray, " classes"] | None = None,
    outcomes: Any = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate every set of weights on images labelled by the classifier's outputs.

    Args:
        classifier: the model.
        source: its labels are indices of logits (`test_sets.MappedSource`).
        mesh: the devices that the classifier's weights are on.
        batch_size: images per batch over all devices, rounded up to a multiple of their number.
        config: `data.threads`, `data.workers` and `data.prefetch` are used.
        fusion, subset, outcomes: as `evaluate_sets`.
        progress: show a line with the time left.

    Returns {"params" or "ema": result of `evaluate_sets`, and "unreadable": a line per image of this process that could
    not be read}; these count as `data.eval_broken` says. Raises UserError where none can be read.
    """
    view, rows = classifier.view, evaluation_rows(batch_size, len(source), mesh.devices.size)
    config = (config or default_config()).copy_and_resolve_references()
    config.data.eval_batch_size, config.data.crop, config.data.interpolation = rows, view.crop, view.interpolation
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    stream = loader.eval_batches(config, source, size=view.size, fit=view.fit, **processes)
    shown = progress and jax.process_index() == 0
    batches = track(stream, "batches", -(-len(source) // rows) if shown else 0)
    options = {"fusion": fusion, "subset": subset, "outcomes": outcomes}
    results = evaluate_sets(
        classifier.graphdef, classifier.sets, batches, mesh=mesh, mean=view.mean, std=view.std, **options
    )
    return {name: result | {"unreadable": list(stream.broken)} for name, result in results.items()}
