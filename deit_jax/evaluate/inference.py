"""Accuracy of each head and of their fusion over a whole dataset."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.augment import normalize
from deit_jax.models.vit import fuse
from deit_jax.runtime import sharding

HEADS = ("cls", "dist", "fused_logits", "fused_probabilities")
SUBSET = "subset/"  # before a head's name: its counts with the logits of a subset of the classes alone
USED = ("image", "label", "labels", "mask")  # entries of a batch that go to the devices

Batch = dict[str, Shaped[np.ndarray, "batch ..."]]
Weights = dict[str, Any]  # {"params", "batch_stats"}
Logits = dict[str, Float[Array, "batch classes"]]  # by head


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def head_logits(
    graphdef: nnx.GraphDef,
    weights: Weights,
    images: UInt8[AnyArray, "batch height width 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Logits:
    """Logits per head of the model, in evaluation mode. mean, std: the model's normalization statistics."""
    model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
    cls, dist = model.heads(normalize(images, mean, std))
    if dist is None:
        return {"cls": cls}
    return dict(zip(HEADS, (cls, dist, fuse(cls, dist, "logits"), fuse(cls, dist, "probabilities")), strict=True))


@jax.jit
def count_correct(
    logits: Logits,
    batch: dict[str, Shaped[AnyArray, "batch ..."]],
    subset: Bool[AnyArray, " classes"] | None = None,
) -> dict[str, Float[Array, "4"]]:
    """Score one evaluation batch.

    Args:
        logits: of `head_logits`.
        batch: its `label`, `mask` and, where images have several right labels, `labels`.
        subset: classes whose logits alone are counted in a second count, under "subset/HEAD".

    Returns, per head, [top-1 correct, top-5 correct, summed cross-entropy, count] over the rows whose mask is 1.
    """

    # an image with several right labels (ImageNet-ReaL; padded by -1) is correct where any of them is predicted
    labels, mask = batch.get("labels", batch["label"][:, None]), batch["mask"]

    def count(logits):
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)[..., None]
        # a tie goes to the class that comes first, as argmax decides
        before = jnp.arange(logits.shape[1]) < labels[..., None]
        rank = ((logits[:, None] > own) | ((logits[:, None] == own) & before)).sum(-1)
        # no comparison holds with NaN: without this, a model that has diverged would be correct everywhere
        wrong = max(logits.shape[1], 5)  # a rank that is in no top 5, however few the classes
        rank = jnp.where((labels < 0) | jnp.isnan(own[..., 0]), wrong, rank).min(1)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]
        # an unreadable image, which counts as wrong: the loss of a guess
        loss = jnp.where(batch["label"] < 0, math.log(logits.shape[1]), loss)
        counted = jnp.stack([rank < 1, rank < 5, loss, jnp.ones_like(loss)])
        return jnp.where(mask > 0, counted, 0).sum(1)  # a masked row's loss may be infinite, and 0 x inf is not 0

    counts = {name: count(x) for name, x in logits.items()}
    if subset is not None:
        counts |= {f"{SUBSET}{name}": count(jnp.where(subset, x, -jnp.inf)) for name, x in logits.items()}
    return counts


def placed(batches: Iterable[Batch], mesh: Mesh) -> Iterator[tuple[Batch, dict[str, Shaped[Array, "batch ..."]]]]:
    """Each batch, and what the devices need of it as global arrays over `mesh`."""
    for batch in batches:
        yield batch, sharding.place_batch({k: v for k, v in batch.items() if k in USED}, mesh)


def evaluate(graphdef: nnx.GraphDef, weights: Weights, batches: Iterable[Batch], **options) -> dict[str, Any]:
    """`evaluate_sets` of one set of weights: its result."""
    return evaluate_sets(graphdef, {"": weights}, batches, **options)[""]


def evaluate_sets(
    graphdef: nnx.GraphDef,
    sets: dict[str, Weights],
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    fusion: str = "logits",
    subset: Bool[AnyArray, " classes"] | None = None,
    collect: Callable[[str, Batch, Logits], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate several sets of weights of one model in a single pass over the data.

    Args:
        sets: {name: {"params", "batch_stats"}}.
        batches: of `data.pipeline.eval_batches`.
        mesh: the devices.
        mean, std: the model's normalization statistics.
        fusion: how the joint prediction combines both heads, "logits" or "probabilities".
        subset: which of the model's classes the data has, where it lacks some.
        collect: called with each set's name, batch and logits per head, in the order of the batches.

    Returns, per name, {"top1", "top5", "loss", "heads": {head: {"top1", "top5", "loss"}}, "images"}: accuracies in
    percent, loss the mean cross-entropy; the first three are of the joint prediction. With a subset also "subset": the
    same of decisions between its classes alone.
    """
    mean, std = tuple(mean), tuple(std)
    totals: dict[str, dict[str, np.ndarray]] = {name: {} for name in sets}
    pending: list[tuple[str, Batch, Logits, dict[str, Float[Array, 4]]]] = []

    def settle(name: str, host: Batch, logits: Logits, counts: dict[str, Float[Array, "4"]]) -> None:
        add_counts(totals[name], counts)
        if collect is not None:
            collect(name, host, logits)

    for host, batch in placed(batches, mesh):
        images = batch.pop("image")
        for name, weights in sets.items():
            logits = head_logits(graphdef, weights, images, mean, std)
            pending.append((name, host, logits, count_correct(logits, batch, subset)))
        while len(pending) > 2 * len(sets):  # a little ahead of the device, not a dataset ahead
            settle(*pending.pop(0))
    for entry in pending:
        settle(*entry)
    return {name: accuracies(total, fusion) for name, total in totals.items()}


class Predictions(NamedTuple):
    """What a model predicts for the images of a batch whose mask is 1.

    Attributes:
        images, labels: those of the batch.
        probabilities: of the joint prediction.
        decisions: {head: predicted class}.
    """

    images: UInt8[np.ndarray, "images height width 3"]
    labels: Integer[np.ndarray, " images"]
    probabilities: Float[np.ndarray, "images classes"]
    decisions: dict[str, Integer[np.ndarray, " images"]]


def predictions_of(batch: Batch, logits: Logits, *, fusion: str = "logits") -> Predictions:
    """The predictions that logits of `head_logits` are. fusion: as of `evaluate_sets`."""
    joint = jax.nn.softmax(logits.get(f"fused_{fusion}", logits["cls"]).astype(jnp.float32))
    probabilities, decisions = jax.device_get((joint, {head: x.argmax(-1) for head, x in logits.items()}))
    real = batch["mask"] > 0
    chosen = {head: values[real] for head, values in decisions.items()}
    return Predictions(batch["image"][real], batch["label"][real], probabilities[real], chosen)


def predict(
    graphdef: nnx.GraphDef,
    weights: Weights,
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    fusion: str = "logits",
) -> Iterator[Predictions]:
    """The predictions for each batch. Arguments as of `evaluate_sets`; `mesh` must be of this process's devices."""
    mean, std = tuple(mean), tuple(std)
    for host, batch in placed(batches, mesh):
        yield predictions_of(host, head_logits(graphdef, weights, batch["image"], mean, std), fusion=fusion)


def predict_classes(
    graphdef: nnx.GraphDef,
    weights: Weights,
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    outputs: Integer[np.ndarray, " data_classes"] | None = None,
) -> tuple[dict[str, Integer[np.ndarray, " images"]], Integer[np.ndarray, " images"]]:
    """({head: predicted class}, label) of all images whose mask is 1.

    Arguments as of `predict`. outputs: per class of the data, the index of the model's logit; None: they are numbered
    alike.
    """
    mean, std = tuple(mean), tuple(std)
    labels: list[np.ndarray] = []
    decisions: dict[str, list[np.ndarray]] = {}
    for host, batch in placed(batches, mesh):
        real = host["mask"] > 0
        labels.append(host["label"][real])
        for head, logits in head_logits(graphdef, weights, batch["image"], mean, std).items():
            decided = (logits if outputs is None else logits[:, outputs]).argmax(-1)
            decisions.setdefault(head, []).append(jax.device_get(decided)[real])
    return {head: np.concatenate(parts) for head, parts in decisions.items()}, np.concatenate(labels)


def add_counts(totals: dict[str, Float[np.ndarray, "4"]], counts: dict[str, Float[Array, "4"]]) -> None:
    """Add one batch's counts per head to the totals of a set of weights."""
    for head, values in jax.device_get(counts).items():
        totals[head] = totals.get(head, 0.0) + values.astype(np.float64)


def accuracies(totals: dict[str, Float[np.ndarray, "4"]], fusion: str) -> dict[str, Any]:
    """The result of `evaluate` from its totals per head."""
    whole = {name: total for name, total in totals.items() if not name.startswith(SUBSET)}
    part = {name.removeprefix(SUBSET): total for name, total in totals.items() if name.startswith(SUBSET)}
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in whole.items())
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    result = {**heads[joint], "heads": heads, "images": int(whole["cls"][3])}
    return result | {"subset": accuracies(part, fusion)} if part else result
