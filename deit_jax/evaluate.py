"""Accuracy of each head and of their fusion over a whole dataset."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deit_jax import sharding
from deit_jax.augment import normalize
from deit_jax.errors import UserError
from deit_jax.models.vit import fuse

HEADS = ("cls", "dist", "fused_logits", "fused_probabilities")


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def head_logits(graphdef, weights: dict, images: jax.Array, mean: tuple, std: tuple) -> dict[str, jax.Array]:
    """Logits of uint8 images (B, S, S, 3) by every head the model has, in evaluation mode."""
    model = nnx.merge(graphdef, weights["params"], weights["stats"])
    cls, dist = model.heads(normalize(images, mean, std))
    if dist is None:
        return {"cls": cls}
    return dict(zip(HEADS, (cls, dist, fuse(cls, dist, "logits"), fuse(cls, dist, "probabilities")), strict=True))


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def count_correct(graphdef, weights: dict, batch: dict, mean: tuple, std: tuple) -> dict[str, jax.Array]:
    """A head: (top-1 right, top-5 right, summed cross-entropy, images) of a batch; padding (mask 0) does not count."""

    def count(logits):
        label, mask = batch["label"], batch["mask"]
        own = jnp.take_along_axis(logits, label[:, None], axis=1)
        # a tie goes to the class that comes first, as argmax decides
        before = jnp.arange(logits.shape[1]) < label[:, None]
        rank = ((logits > own) | ((logits == own) & before)).sum(1)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
        return (jnp.stack([rank < 1, rank < 5, loss, jnp.ones_like(loss)]) * mask).sum(1)

    logits = head_logits(graphdef, weights, batch["image"], mean, std)
    return {name: count(x) for name, x in logits.items()}


def evaluate(graphdef, weights: dict, batches: Iterable[dict], *, mesh, mean, std, fusion: str = "logits") -> dict:
    """Evaluate `weights` ({"params", "stats"}) over `batches` of `data.eval_batches`.

    Returns {"top1", "top5", "loss", "heads": {head: {"top1", "top5", "loss"}}, "images"}; accuracies in percent, loss
    the mean cross-entropy. The first three are the model's joint prediction, fused as `fusion` says.
    mean, std: of the pixels the model knows.
    """
    mean, std = tuple(mean), tuple(std)
    totals: dict[str, np.ndarray] = {}
    pending = []
    for batch in batches:
        placed = sharding.place_batch({k: batch[k] for k in ("image", "label", "mask")}, mesh)
        pending.append(count_correct(graphdef, weights, placed, mean, std))
        if len(pending) > 2:  # a little ahead of the device, not a dataset ahead
            add(totals, pending.pop(0))
    for counts in pending:
        add(totals, counts)
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in totals.items()
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    return {**heads[joint], "heads": heads, "images": int(totals["cls"][3])}


def add(totals: dict, counts: dict) -> None:
    for name, values in jax.device_get(counts).items():
        totals[name] = totals.get(name, 0.0) + values.astype(np.float64)


def evaluate_checkpoint(config, source: str) -> dict:
    """`--mode=evaluate`: any weights `load_weights` reads, on the evaluation data of `config`; prints a table.

    The model is what the weights are; `config` gives data, crop and size (0: the weights' own).
    """
    from deit_jax import models, report
    from deit_jax.data import pipeline, sources
    from deit_jax.train import compute_dtype
    from deit_jax.weights import fit_weights, load_weights

    weights = load_weights(source)
    train_source, eval_source = sources.open_sources(config)
    if weights.num_classes != train_source.num_classes:
        raise UserError(
            f"{source} has {weights.num_classes} classes, the data {train_source.num_classes}:"
            " evaluate it on data of its classes"
        )
    default = models.find(config.model.name)[1].get("img_size", 224)  # a ConvNet's weights do not tell
    size = config.model.img_size or weights.architecture.config.get("img_size") or default
    build = weights.architecture.constructor(img_size=size, dtype=compute_dtype(config.model.dtype))
    params, stats, notes = fit_weights(weights, build, new_parts=False)
    mesh = sharding.make_mesh()
    arrays = jax.device_put({"params": params, "stats": stats}, sharding.everywhere(mesh))
    batches = pipeline.eval_batches(config, eval_source, size=size)
    pixels = {"mean": weights.mean, "std": weights.std}
    result = evaluate(models.abstract(build)[0], arrays, batches, mesh=mesh, **pixels, fusion=config.evaluate.fusion)
    for note in notes:
        print(note)
    rows = report.accuracy_rows(weights.name or source, {"params": result})
    print(report.table(["model", "head", "weights", "top-1 %", "top-5 %"], rows))
    print(f"\n{result['images']} images, {size} px, crop {config.data.crop}; cross-entropy {result['loss']:.4f}")
    return result
