"""What a classifier gets right and wrong: counts per batch, scores per class, calibration.

Throughout, `labels` and `predictions` are class indices (images,).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError

SUBSET = "subset/"  # before a head's name: its counts with the logits of a subset of the classes alone

Indices = Integer[np.ndarray, " images"]


@jax.jit
def count_correct(
    logits: dict[str, Float[Array, "batch classes"]],
    batch: dict[str, Shaped[AnyArray, "batch ..."]],
    subset: Bool[AnyArray, " classes"] | None = None,
) -> dict[str, Float[Array, "4"]]:
    """Score one evaluation batch.

    Args:
        logits: of `inference.head_logits`.
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


def add_counts(totals: dict[str, Float[np.ndarray, "4"]], counts: dict[str, Float[AnyArray, "4"]]) -> None:
    """Add one batch's counts per head to the totals of a set of weights."""
    for head, values in counts.items():
        totals[head] = totals.get(head, 0.0) + np.asarray(values, np.float64)


def accuracies(totals: dict[str, Float[np.ndarray, "4"]], fusion: str) -> dict[str, Any]:
    """The result of `inference.evaluate` from its totals per head."""
    whole = {name: total for name, total in totals.items() if not name.startswith(SUBSET)}
    part = {name.removeprefix(SUBSET): total for name, total in totals.items() if name.startswith(SUBSET)}
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in whole.items())
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    result = {**heads[joint], "heads": heads, "images": int(whole["cls"][3])}
    return result | {"subset": accuracies(part, fusion)} if part else result


def confusion_counts(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int
) -> tuple[Integer[np.ndarray, " pairs"], Integer[np.ndarray, " pairs"], Integer[np.ndarray, " pairs"]]:
    """The pairs (class, predicted class) that occur, in their order, and how many images have each.

    Their number is at most that of the images, however many classes there are.
    Raises UserError for indices outside 0 … num_classes - 1, and arrays of different lengths.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise UserError(f"labels {labels.shape} and predictions {predictions.shape} must be one index per image")
    for what, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise UserError(f"{what} lie in {values.min()} … {values.max()}, outside 0 … {num_classes - 1}")
    pairs, images = np.unique(labels.astype(np.int64) * num_classes + predictions, return_counts=True)
    return pairs // num_classes, pairs % num_classes, images


def confusion_matrix(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """How many images of each class (row) were predicted as each (column). Raises as `confusion_counts`."""
    rows, columns, images = confusion_counts(labels, predictions, num_classes)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    matrix[rows, columns] = images
    return matrix


def most_confused(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int, count: int = 20
) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes, (class, predicted class, images); ties in the order of the classes."""
    rows, columns, images = confusion_counts(labels, predictions, num_classes)
    wrong = np.flatnonzero(rows != columns)
    order = wrong[np.argsort(-images[wrong], kind="stable")][:count]
    return [(int(rows[i]), int(columns[i]), int(images[i])) for i in order]


class ClassScores(NamedTuple):
    """Per class; NaN where a class has no image (recall, f1) or was never predicted (precision).

    Attributes:
        images: images of the class.
        predicted: images predicted as it.
        precision: fraction of these that are of the class.
        recall: fraction of its images that were predicted as it.
        f1: harmonic mean of both, 2 TP / (2 TP + FP + FN).
    """

    images: Integer[np.ndarray, " classes"]
    predicted: Integer[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]


def class_scores(labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int) -> ClassScores:
    """Precision, recall and counts per class. Raises as `confusion_counts`."""
    rows, columns, counts = confusion_counts(labels, predictions, num_classes)

    def total(classes: np.ndarray, where: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.bincount(classes[where], counts[where], num_classes).astype(np.int64)

    right, images, predicted = total(rows, rows == columns), total(rows), total(columns)
    f1 = np.where(images > 0, _fraction(2 * right, images + predicted), np.nan)
    return ClassScores(images, predicted, _fraction(right, predicted), _fraction(right, images), f1)


def _fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


class Calibration(NamedTuple):
    """How confidence and accuracy agree, by bins of confidence.

    Attributes:
        edges: of the bins, from 0 to 1; a bin holds its upper edge.
        images: per bin.
        confidence: mean probability of the predicted class per bin; NaN in an empty one.
        accuracy: fraction of correct predictions per bin; NaN in an empty one.
        error: expected calibration error, the mean of |accuracy - confidence| weighted by images.
        largest: the largest of these differences.
    """

    edges: Float[np.ndarray, " edges"]
    images: Integer[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    error: float
    largest: float


def calibration(
    confidence: Float[np.ndarray, " images"], correct: Bool[np.ndarray, " _"], bins: int = 15
) -> Calibration:
    """Reliability of the predicted class's probability, in bins of equal width (Guo et al. 2017).

    Args:
        confidence: the probability of the predicted class.
        correct: whether that is the image's class.
        bins: number of bins.

    Raises UserError without images, and for numbers that are not probabilities.
    """
    confidence = np.asarray(confidence, np.float64)
    if not len(confidence):
        raise UserError("calibration needs at least one image")
    if confidence.min() < 0 or confidence.max() > 1 + 1e-3:
        raise UserError("calibration needs the probability of each predicted class, from 0 to 1, not logits")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    mean_confidence = _fraction(np.bincount(place, confidence, bins), images)
    accuracy = _fraction(np.bincount(place, correct, bins), images)
    gaps = np.abs(accuracy - mean_confidence)[images > 0]
    error = float((gaps * images[images > 0]).sum() / len(correct))
    return Calibration(edges, images, mean_confidence, accuracy, error, float(gaps.max()))
