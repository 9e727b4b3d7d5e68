"""Weights into files: timm's safetensors, and Orbax folders like one step of a run's checkpoints."""

from pathlib import Path

import numpy as np

from deit_jax.runtime import atomic
from deit_jax.weights import integrity
from deit_jax.weights.load import Weights
from deit_jax.weights.metadata import HEADER_KEY, Metadata, metadata_json, to_header
from deit_jax.weights.names import Naming, Timm, counter_keys, entries


def tensors(tree: dict, naming: Naming) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in `naming` that holds `tree`, {"params": …, "batch_stats": …}."""
    return {entry.key: np.ascontiguousarray(entry.view(tree)) for entry in entries(tree, naming)}


def metadata_of(weights: Weights) -> Metadata:
    """What describes weights beside their tensors, of every family."""
    arguments = {key: value for key, value in weights.architecture.config.items() if key != "num_classes"}
    return Metadata(
        name=weights.name,
        family=weights.architecture.module.__name__,
        arguments=arguments,
        mean=tuple(weights.mean),
        std=tuple(weights.std),
        crop=weights.crop,
        fit=weights.fit,
        interpolation=weights.interpolation or None,
        class_names=weights.class_names,
    )


def write_file(content: dict[str, np.ndarray], header: dict[str, str] | None, path: Path) -> None:
    """Write a .safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with atomic.replacing(path) as part:
            save_file(content, part, header)
    except SafetensorError as error:
        raise atomic.write_error(path, error) from error


def save_timm(weights: Weights, path: Path) -> None:
    """A .safetensors file in timm's names, as the official code and `timm.create_model(checkpoint_path=…)` read it.

    The metadata goes into the header, which those libraries pass over.
    """
    counters = weights.counters
    if counters is None:  # trained here; PyTorch's batch normalization counts from 0
        counters = dict.fromkeys(counter_keys(weights.tree), 0)
    content = tensors(weights.tree, Timm()) | {key: np.array(count, np.int64) for key, count in counters.items()}
    header = {key: value for key, value in (weights.header or {}).items() if key != HEADER_KEY}
    write_file(content, header | to_header(metadata_of(weights)), path)


def save_orbax(weights: Weights, path: Path) -> None:
    """An Orbax folder like one step of a run's checkpoints: `params` ({"params", "batch_stats"}) and `meta` (JSON)."""
    import orbax.checkpoint as ocp  # here: Orbax is optional, files of other formats need none

    config = weights.architecture.config
    meta = {
        "model": {"name": weights.name, "num_classes": config["num_classes"], "img_size": config.get("img_size")},
        "step": 0,
        "weights": metadata_json(metadata_of(weights))
        | {"source": weights.source, "counters": weights.counters, "header": weights.header},
    }
    items = {"params": ocp.args.StandardSave(weights.tree), "meta": ocp.args.JsonSave(meta)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(path.absolute(), args=ocp.args.Composite(**items))
        integrity.write_sums(path)
    except OSError as error:
        raise atomic.write_error(path, error) from error
