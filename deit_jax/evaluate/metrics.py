"""What a classifier gets right and wrong: counts per batch, frequent mistakes, calibration.

Throughout, `labels` and `predictions` are class indices (images,).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from deit_jax.arrays import AnyArray

Indices = Integer[np.ndarray, " images"]


@jax.jit
def count_correct(
    logits: dict[str, Float[Array, "batch classes"]],
    batch: dict[str, Shaped[AnyArray, "batch ..."]],
) -> dict[str, Float[Array, "4"]]:
    """Score one evaluation batch.

    Args:
        logits: of `inference.head_logits`; -inf of classes that the data lacks.
        batch: its `label`, `mask` and, where images have several right labels, `labels`.

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
        loss = jnp.where(batch["label"] < 0, jnp.log((logits != -jnp.inf).sum(1)), loss)
        counted = jnp.stack([rank < 1, rank < 5, loss, jnp.ones_like(loss)])
        return jnp.where(mask > 0, counted, 0).sum(1)  # a masked row's loss may be infinite, and 0 x inf is not 0

    return {name: count(x) for name, x in logits.items()}


def accuracies(totals: dict[str, Float[np.ndarray, "4"]], fusion: str) -> dict[str, Any]:
    """The result of `inference.evaluate_sets` from its totals per head."""
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in totals.items())
    }
    joint = f"fused_{fusion}" if "dist" in heads else "cls"
    return {**heads[joint], "heads": heads, "images": int(totals["cls"][3])}


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


def calibration_error(
    confidence: Float[np.ndarray, " images"], correct: Bool[np.ndarray, " _"], bins: int = 15
) -> float:
    """The expected calibration error (Guo et al. 2017): mean of |accuracy - confidence| over bins of equal width,
    weighted by their images.

    Args:
        confidence: the probability of the predicted class; a bin holds its upper edge.
        correct: whether that is the image's class.
        bins: number of bins in 0..1.
    """
    place = np.ceil(confidence * bins).astype(int)
    return float(np.abs(np.bincount(place, correct - confidence)).sum() / len(correct))
