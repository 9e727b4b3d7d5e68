"""Accuracy of each head and of their fusion over a whole dataset."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deit_jax.augment import normalize
from deit_jax.models.vit import fuse
from deit_jax.runtime import sharding

HEADS = ("cls", "dist", "fused_logits", "fused_probabilities")
USED = ("image", "label", "labels", "mask")  # of a batch; names stay on the host


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def head_logits(graphdef, weights: dict, images: jax.Array, mean: tuple, std: tuple) -> dict[str, jax.Array]:
    """Logits of uint8 images (B, S, S, 3) by every head the model has, in evaluation mode."""
    model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
    cls, dist = model.heads(normalize(images, mean, std))
    if dist is None:
        return {"cls": cls}
    return dict(zip(HEADS, (cls, dist, fuse(cls, dist, "logits"), fuse(cls, dist, "probabilities")), strict=True))


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def count_correct(graphdef, weights: dict, batch: dict, mean: tuple, std: tuple) -> tuple[dict, dict]:
    """A head: (top-1 right, top-5 right, summed cross-entropy, images) of a batch, where padding (mask 0) does not
    count; and a head: its decision for each row, int32 (rows,)."""

    # an image of several right labels (ImageNet-ReaL; padded by -1) counts as right where any is found
    labels, mask = batch.get("labels", batch["label"][:, None]), batch["mask"]

    def count(logits):
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)[..., None]
        # a tie goes to the class that comes first, as argmax decides
        before = jnp.arange(logits.shape[1]) < labels[..., None]
        rank = ((logits[:, None] > own) | ((logits[:, None] == own) & before)).sum(-1)
        # no comparison holds with NaN: without this, a model that has diverged would be right everywhere
        rank = jnp.where((labels < 0) | jnp.isnan(own[..., 0]), logits.shape[1], rank).min(1)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]
        return (jnp.stack([rank < 1, rank < 5, loss, jnp.ones_like(loss)]) * mask).sum(1)

    logits = head_logits(graphdef, weights, batch["image"], mean, std)
    return {name: count(x) for name, x in logits.items()}, {name: x.argmax(-1) for name, x in logits.items()}


def evaluate(graphdef, weights: dict, batches: Iterable[dict], *, decisions: dict | None = None, **options) -> dict:
    """`evaluate_sets` of one set of weights: its result.

    decisions: where given, gets each head's decisions, (images,) a batch; `mesh` must then lie on this process.
    """
    kept = None if decisions is None else {"": decisions}
    return evaluate_sets(graphdef, {"": weights}, batches, decisions=kept, **options)[""]


def evaluate_sets(
    graphdef,
    sets: dict[str, dict],
    batches: Iterable[dict],
    *,
    mesh,
    mean,
    std,
    fusion: str = "logits",
    decisions: dict[str, dict] | None = None,
) -> dict[str, dict]:
    """Evaluate each of `sets` ({name: {"params", "batch_stats"}}) in one pass over `batches` of `data.eval_batches`.

    Returns, a name, {"top1", "top5", "loss", "heads": {head: {"top1", "top5", "loss"}}, "images"}; accuracies in
    percent, loss the mean cross-entropy. The first three are the model's joint prediction, fused as `fusion` says.
    mean, std: of the pixels the model knows. decisions: see `evaluate`, by name.
    """
    mean, std = tuple(mean), tuple(std)
    totals: dict[str, dict] = {name: {} for name in sets}
    pending = []
    for batch in batches:
        placed = sharding.place_batch({k: v for k, v in batch.items() if k in USED}, mesh)
        for name, weights in sets.items():
            counts, decided = count_correct(graphdef, weights, placed, mean, std)
            pending.append((name, counts))
            if decisions is not None:
                for head, values in jax.device_get(decided).items():
                    decisions[name].setdefault(head, []).append(values[batch["mask"] > 0])
        while len(pending) > 2 * len(sets):  # a little ahead of the device, not a dataset ahead
            add(totals, *pending.pop(0))
    for name, counts in pending:
        add(totals, name, counts)
    return {name: accuracies(total, fusion) for name, total in totals.items()}


def add(totals: dict, name: str, counts: dict) -> None:
    for head, values in jax.device_get(counts).items():
        totals[name][head] = totals[name].get(head, 0.0) + values.astype(np.float64)


def accuracies(totals: dict[str, np.ndarray], fusion: str) -> dict:
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in totals.items())
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    return {**heads[joint], "heads": heads, "images": int(totals["cls"][3])}
