"""What a classifier gets right and wrong: counts per batch, scores per class, calibration.

Throughout, `labels` and `predictions` are class indices (images,).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from deit_jax.arrays import AnyArray

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


def accuracies(totals: dict[str, Float[np.ndarray, "4"]], fusion: str) -> dict[str, Any]:
    """The result of `inference.evaluate_sets` from its totals per head."""
    whole = {name: total for name, total in totals.items() if not name.startswith(SUBSET)}
    part = {name.removeprefix(SUBSET): total for name, total in totals.items() if name.startswith(SUBSET)}
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in whole.items())
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    result = {**heads[joint], "heads": heads, "images": int(whole["cls"][3])}
    return result | {"subset": accuracies(part, fusion)} if part else result


def confusion_matrix(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """How many images of each class (row) were predicted as each (column)."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def most_confused(
    labels: Indices, predictions: Integer[np.ndarray, " _"], count: int = 20
) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes, (class, predicted class, images); ties in the order of the classes.

    Its memory grows with the images, however many classes there are.
    """
    wrong = np.stack([labels, predictions])[:, labels != predictions]
    pairs, images = np.unique(wrong, axis=1, return_counts=True)
    order = np.argsort(-images, kind="stable")[:count]
    return [tuple(row) for row in np.stack([*pairs, images])[:, order].T.tolist()]


def class_scores(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int
) -> dict[str, Shaped[np.ndarray, " classes"]]:
    """Counts and scores per class.

    Returns "images" of the class and those "predicted" as it; "precision", the fraction of these that are of the class;
    "recall", the fraction of its images that were predicted as it; "f1", the harmonic mean of both. NaN where a class
    was never predicted (precision) or has no image (recall, f1).
    """
    count = lambda classes: np.bincount(classes, minlength=num_classes)
    images, predicted, right = count(labels), count(predictions), count(labels[labels == predictions])
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        f1 = np.where(images > 0, 2 * right / (images + predicted), np.nan)
        scores = {"precision": right / predicted, "recall": right / images, "f1": f1}
    return {"images": images, "predicted": predicted, **scores}


def calibration(
    confidence: Float[np.ndarray, " images"], correct: Bool[np.ndarray, " _"], bins: int = 15
) -> dict[str, Any]:
    """Reliability of the predicted class's probability, in bins of equal width (Guo et al. 2017).

    Args:
        confidence: the probability of the predicted class.
        correct: whether that is the image's class.
        bins: number of bins.

    Returns "bin_edges" from 0 to 1, a bin holding its upper one; per bin the number of "images", their mean
    "confidence" and their "accuracy", NaN without images; "expected_calibration_error", the mean of
    |accuracy - confidence| weighted by images, and "largest_difference" of these.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        mean, accuracy = (np.bincount(place, x, bins) / images for x in (confidence, correct))
    gaps = np.abs(accuracy - mean)
    return {
        "expected_calibration_error": float(np.nansum(gaps * images) / len(correct)),
        "largest_difference": float(np.nanmax(gaps)),
        "bin_edges": edges,
        "images": images,
        "confidence": mean,
        "accuracy": accuracy,
    }
