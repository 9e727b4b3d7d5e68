"""`--mode=evaluate`: any weights on any data."""

from pathlib import Path

import jax

from deit_jax import models
from deit_jax.data import pipeline, sources
from deit_jax.errors import UserError
from deit_jax.report.tables import accuracy_rows, table
from deit_jax.runtime import sharding
from deit_jax.student import compute_dtype
from deit_jax.train.evaluate import evaluate
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.orbax import find_step


def own_checkpoint(workdir: str) -> str:
    """The workdir, after making sure that it is one: else its name might be taken for a hub's."""
    if find_step(Path(workdir)) is None:
        raise UserError(f"workdir {workdir} holds no checkpoint: train there first, or give --checkpoint=")
    return workdir


def evaluate_checkpoint(config, source: str) -> dict:
    """`--mode=evaluate`: any weights `load_weights` reads, on the evaluation data of `config`; prints a table.

    The model is what the weights are; `config` gives data, crop and size (0: the weights' own).
    """
    weights = load_weights(source)
    eval_source = sources.open_eval_source(config)
    if weights.num_classes != eval_source.num_classes:
        raise UserError(
            f"{source} has {weights.num_classes} classes, the data {eval_source.num_classes}:"
            " evaluate it on data of its classes"
        )
    default = models.find(config.model.name)[1].get("img_size", 224)  # a ConvNet's weights do not tell
    size = config.model.img_size or weights.architecture.config.get("img_size") or default
    build = weights.architecture.constructor(img_size=size, dtype=compute_dtype(config.model.dtype))
    params, batch_stats, notes = fit_weights(weights, build, new_parts=False)
    mesh = sharding.make_mesh()
    arrays = jax.device_put({"params": params, "batch_stats": batch_stats}, sharding.replicated(mesh))
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = pipeline.eval_batches(config, eval_source, size=size, **process)
    pixels = {"mean": weights.mean, "std": weights.std}
    result = evaluate(models.abstract(build)[0], arrays, batches, mesh=mesh, **pixels, fusion=config.evaluate.fusion)
    if jax.process_index():
        return result
    for note in notes:
        print(note)
    rows = accuracy_rows(weights.name or source, {"params": result})
    print(table(["model", "head", "weights", "top-1 %", "top-5 %"], rows))
    print(f"\n{result['images']} images, {size} px, crop {config.data.crop}; cross-entropy {result['loss']:.4f}")
    return result
