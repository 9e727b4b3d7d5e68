"""Weights into files: timm's safetensors, and Orbax folders like one step of a run's checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.models import vit
from deit_jax.runtime import atomic
from deit_jax.weights.description import HEADER_KEY, to_header
from deit_jax.weights.load import Weights
from deit_jax.weights.names import Naming, Timm, counter_keys, entries


def tensors(tree: dict, naming: Naming) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in `naming` that holds `tree`, {"params": …, "batch_stats": …}."""
    return {entry.key: np.ascontiguousarray(entry.view(tree)) for entry in entries(tree, naming)}


def unknown_fields(weights: Weights) -> list[str]:
    """The names in `weights.assumed` whose values are still the assumed ones: what was set since is known."""
    defaults = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": None, "interpolation": ""}
    known = {field for field, default in defaults.items() if getattr(weights, field) != default}
    if isinstance(weights.architecture.config.get("img_size"), tuple):
        known.add("img_size")  # only squares are assumed
    return [field for field in weights.assumed if field not in known]


def known_fields(weights: Weights) -> dict[str, Any]:
    """What is known of weights beside their tensors, as fields of a `Description`; what was assumed is left out."""
    config = weights.architecture.config
    fields = {
        "name": weights.name,
        "mean": weights.mean,
        "std": weights.std,
        "crop": weights.crop,
        "interpolation": weights.interpolation or None,
        "class_names": weights.class_names,
    }
    if weights.architecture.module is vit.ViT:
        fields |= {key: config.get(key) for key in ("num_heads", "norm_eps", "img_size", "dist_head")}
    unknown = unknown_fields(weights)
    return {key: value for key, value in fields.items() if key not in unknown}


def write_file(content: dict[str, np.ndarray], metadata: dict[str, str] | None, path: Path) -> None:
    """Write a .safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with atomic.replacing(path) as part:
            save_file(content, part, metadata)
    except SafetensorError as error:
        raise atomic.write_error(path, error) from error


def save_timm(weights: Weights, path: Path) -> None:
    """A .safetensors file in timm's names, as the official code and `timm.create_model(checkpoint_path=…)` read it.

    What is known beside the tensors goes into the header, which those libraries pass over.
    """
    counters = weights.counters
    if counters is None:  # trained here; PyTorch's batch normalization counts from 0
        counters = dict.fromkeys(counter_keys(weights.tree), 0)
    content = tensors(weights.tree, Timm()) | {key: np.array(count, np.int64) for key, count in counters.items()}
    metadata = {key: value for key, value in (weights.metadata or {}).items() if key != HEADER_KEY}
    write_file(content, (metadata | to_header(known_fields(weights))) or None, path)


def save_orbax(weights: Weights, path: Path) -> None:
    """An Orbax folder like one step of a run's checkpoints: `params` ({"params", "batch_stats"}) and `meta` (JSON)."""
    import orbax.checkpoint as ocp  # here: Orbax is optional, files of other formats need none

    config, known = weights.architecture.config, known_fields(weights)
    meta = {
        "model": {
            "name": weights.name,
            "num_classes": config["num_classes"],
            "img_size": config.get("img_size"),
            **{key: known.get(key) for key in ("num_heads", "norm_eps", "dist_head")},
        },
        "step": 0,
        "weights": {
            "source": weights.source,
            "mean": weights.mean,
            "std": weights.std,
            "crop": weights.crop,
            "interpolation": weights.interpolation or None,
            "class_names": weights.class_names,
            "assumed": unknown_fields(weights),
            "counters": weights.counters,
            "metadata": weights.metadata,
        },
    }
    items = {"params": ocp.args.StandardSave(weights.tree), "meta": ocp.args.JsonSave(meta)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(path.absolute(), args=ocp.args.Composite(**items))
    except OSError as error:
        raise atomic.write_error(path, error) from error
