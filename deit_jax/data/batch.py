"""What a batch is: its arrays.

A training batch has, per row: the cropped image, its label, and where the view stands in the run (image `index` of the
source, `epoch`, `repeat`), which are the keys of its augmentation; with stored teacher labels also `teacher` (and
`teacher_logit` of the k likeliest classes and of the others), and where `label.views` repeats views `mixed_at`, the
step and the group whose key its mixing has. An evaluation batch has image, label and `mask`: 1 for an image, 0 for
padding. Where an image may have several right labels, `labels` holds them, then -1.

A label of -1 in an evaluation batch is that of an image that cannot be read and counts as wrong.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from deit_jax.losses import OBJECTIVES

Batch = dict[str, np.ndarray]
DeviceBatch = dict[str, Shaped[Array, "batch ..."]]  # its arrays on the devices
MAX_LABELS = 32  # right labels that one image may have
UNREADABLE = -1  # label of an evaluation image that cannot be read


Entries = dict[str, jax.ShapeDtypeStruct]


def train_entries(size: int, rows: int) -> Entries:
    """The arrays of a training batch of `rows` images of `size` pixels per side."""
    numbers = dict.fromkeys(("label", "index", "epoch", "repeat"), jax.ShapeDtypeStruct((rows,), np.int32))
    return {"image": jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8), **numbers}


def teacher_entries(config: Any, rows: int) -> Entries:
    """The arrays that stored teacher labels and `label.views` add to a training batch of a resolved config."""
    needed = OBJECTIVES[config.distill.kind].teacher
    more = {"mixed_at": jax.ShapeDtypeStruct((rows, 2), np.int32)} if config.label.views else {}
    if not config.distill.labels or needed is None:
        return more
    if needed == "hard labels":
        return {"teacher": jax.ShapeDtypeStruct((rows,), np.int32)} | more
    k = config.label.k
    index, logit = jax.ShapeDtypeStruct((rows, k), np.int32), jax.ShapeDtypeStruct((rows, k + 1), np.float32)
    return {"teacher": index, "teacher_logit": logit} | more


def eval_entries(size: int, rows: int, several_labels: bool = False) -> Entries:
    """The arrays of an evaluation batch of `rows` images of `size` pixels per side."""
    entries = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((rows,), np.int32),
        "mask": jax.ShapeDtypeStruct((rows,), np.float32),
    }
    return entries | ({"labels": jax.ShapeDtypeStruct((rows, MAX_LABELS), np.int32)} if several_labels else {})


def zeros(entries: Entries) -> Batch:
    """A batch of zeros on the host."""
    return {name: np.zeros(entry.shape, entry.dtype) for name, entry in entries.items()}
