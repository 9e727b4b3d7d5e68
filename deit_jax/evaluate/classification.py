"""What a classifier gets right and wrong, class by class, and whether its confidence can be trusted: pure NumPy.

Throughout, `labels` and `predictions` are class indices (images,), `probabilities` a softmax (images, classes).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from deit_jax.errors import UserError

Indices = Integer[np.ndarray, " images"]


def confusion_matrix(
    labels: Indices, predictions: Integer[np.ndarray, " _"], num_classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """How many images of each class (row) were taken for each (column).

    Raises UserError for indices outside 0 … num_classes - 1, and arrays of different lengths.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise UserError(f"labels {labels.shape} and predictions {predictions.shape} must be one index per image")
    for what, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise UserError(f"{what} lie in {values.min()} … {values.max()}, outside 0 … {num_classes - 1}")
    pairs = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class ClassScores(NamedTuple):
    """Per class; NaN where a class has no image (recall, f1) or was never predicted (precision).

    Attributes:
        images: images of the class.
        predicted: images taken for it.
        precision: share of these that are of the class.
        recall: share of its images that were taken for it.
        f1: harmonic mean of both, 2 TP / (2 TP + FP + FN).
    """

    images: Integer[np.ndarray, " classes"]
    predicted: Integer[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]


def class_scores(matrix: Integer[np.ndarray, "classes classes"]) -> ClassScores:
    """Precision, recall and counts per class. matrix: of `confusion_matrix`."""
    right, images, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    f1 = np.where(images > 0, _share(2 * right, images + predicted), np.nan)
    return ClassScores(images, predicted, _share(right, predicted), _share(right, images), f1)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def most_confused(matrix: Integer[np.ndarray, "classes classes"], count: int = 20) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes, (class, taken for, images); ties in the order of the classes."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = (np.unravel_index(place, matrix.shape) for place in order)
    return [(int(a), int(b), int(mistakes[a, b])) for a, b in pairs if mistakes[a, b]]


class Calibration(NamedTuple):
    """How confidence and accuracy agree, by bins of confidence.

    Attributes:
        edges: of the bins, from 0 to 1; a bin holds its upper edge.
        images: per bin.
        confidence: mean probability of the predicted class per bin; NaN in an empty one.
        accuracy: share of correct predictions per bin; NaN in an empty one.
        error: expected calibration error, the mean of |accuracy - confidence| weighted by images.
        largest: the largest of these differences.
    """

    edges: Float[np.ndarray, " edges"]
    images: Integer[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    error: float
    largest: float


def calibration(probabilities: Float[np.ndarray, "images classes"], labels: Indices, bins: int = 15) -> Calibration:
    """Reliability of the predicted class's probability, in bins of equal width (Guo et al. 2017).

    Raises UserError without images, and for rows that are not probabilities.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not len(probabilities):
        raise UserError("calibration needs at least one image")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3) or probabilities.min() < 0:
        raise UserError("calibration needs probabilities that sum to 1 per image, not logits")
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    mean_confidence = _share(np.bincount(place, confidence, bins), images)
    accuracy = _share(np.bincount(place, correct, bins), images)
    gaps = np.abs(accuracy - mean_confidence)[images > 0]
    error = float((gaps * images[images > 0]).sum() / len(correct))
    return Calibration(edges, images, mean_confidence, accuracy, error, float(gaps.max()))
