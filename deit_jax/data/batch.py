"""What a batch is: its arrays, their types and shapes, for the loader, which fills it, and all that takes it.

A training batch has, per row: the cropped image, its label, and where the view stands in the run (image `index` of the
source, `epoch`, `repeat`), which are the keys of its augmentation; with stored teacher labels also `teacher` (and
`teacher_probability` of the k likeliest classes). An evaluation batch has image, label and `mask`: 1 for an image, 0
for padding. Where an image may have several right labels, `labels` holds them, then -1.

A label of -1 in an evaluation batch is that of an image that cannot be read and counts as wrong.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from deit_jax.losses import OBJECTIVES

Batch = dict[str, np.ndarray]
DeviceBatch = dict[str, Shaped[Array, "batch ..."]]  # its arrays on the devices
MAX_LABELS = 32  # right labels that one image may have
UNREADABLE = -1  # label of an evaluation image that cannot be read


class Entry(NamedTuple):
    """One array of a batch: its type and the shape of a row."""

    dtype: type
    shape: tuple[int, ...] = ()


Entries = dict[str, Entry]


def train_entries(size: int) -> Entries:
    """The arrays of a training batch of images of `size` pixels per side."""
    numbers = {name: Entry(np.int32) for name in ("label", "index", "epoch", "repeat")}
    return {"image": Entry(np.uint8, (size, size, 3)), **numbers}


def teacher_entries(config: Any) -> Entries:
    """The arrays that stored teacher labels add to a training batch of a resolved config; {} where it reads none."""
    needed = OBJECTIVES[config.distill.kind].teacher
    if not config.distill.labels or needed is None:
        return {}
    if needed == "hard labels":
        return {"teacher": Entry(np.int32)}
    top = (config.label.k,)
    return {"teacher": Entry(np.int32, top), "teacher_probability": Entry(np.float32, top)}


def eval_entries(size: int, several_labels: bool = False) -> Entries:
    """The arrays of an evaluation batch of images of `size` pixels per side."""
    entries = {
        "image": Entry(np.uint8, (size, size, 3)),
        "label": Entry(np.int32),
        "mask": Entry(np.float32),
    }
    return entries | ({"labels": Entry(np.int32, (MAX_LABELS,))} if several_labels else {})


def zeros(entries: Entries, rows: int) -> Batch:
    """A batch of zeros on the host."""
    return {name: np.zeros((rows, *entry.shape), entry.dtype) for name, entry in entries.items()}


def abstract(entries: Entries, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a batch of `rows`, for compiling without data."""
    return {name: jax.ShapeDtypeStruct((rows, *entry.shape), entry.dtype) for name, entry in entries.items()}
