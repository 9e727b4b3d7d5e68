"""What a batch is: its arrays, and the views that stand in its rows, a pure function of the step.

A training batch has, per row: the cropped image, its label, and where the view stands in the run (image `index` of the
source, `epoch`, `repeat`), which are the keys of its augmentation; with stored teacher labels also `teacher` (and
`teacher_probability` of the k likeliest classes). An evaluation batch has image, label and `mask`: 1 for an image, 0
for padding. Where an image may have several right labels, `labels` holds them, then -1.

A label of -1 in an evaluation batch is that of an image that cannot be read and counts as wrong.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from deit_jax.augment.mix import num_groups
from deit_jax.losses import OBJECTIVES
from deit_jax.randomness import generator

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


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The images of one epoch in shuffled order, int64 (length,)."""
    return generator(seed, "order", epoch).permutation(length)


@functools.lru_cache(maxsize=8)
def row_order(batch: int, mix_group: int) -> np.ndarray:
    """The permutation that assigns consecutive views to the rows of a batch, int64 (batch,).

    View j goes to group j mod groups, as the release deals views to its GPUs, which sends copies of an image to
    different groups. Inside a group (G rows, row i is mixed with row G-1-i) the second half stands in reverse, so
    partners are views G/2 places apart in their group and copies do not meet even where there is a single group.
    """
    groups = num_groups(batch, mix_group)

    def rows(group: int) -> np.ndarray:
        dealt = np.arange(group, batch, groups)
        half = (len(dealt) + 1) // 2
        return np.concatenate([dealt[:half], dealt[half:][::-1]])

    return np.concatenate([rows(group) for group in range(groups)])


def batch_views(
    step: int, *, seed: int, length: int, batch: int, repeats: int, mix_group: int, drop_last: bool = True
) -> tuple[int, np.ndarray, np.ndarray]:
    """The views of one step: epoch, then image index and repeat for each row, int64 (batch,) each.

    An epoch is `epoch_steps` steps. Under repeated augmentation (Hoffer et al. 2020; paper, section 6) each image
    stands `repeats` times in a row in the epoch's order, which is then cut to the same number of views. Where the last
    batch reaches past the end of the order, it wraps around; the wrapped views count as further repeats.
    """
    epoch, position = divmod(step, epoch_steps(length, batch, drop_last))
    places = position * batch + row_order(batch, mix_group)
    again, image = np.divmod(places // repeats, length)
    return epoch, epoch_order(seed, epoch, length)[image], places % repeats + again * repeats


def epoch_steps(length: int, batch: int, drop_last: bool = True) -> int:
    """Batches of one pass over `length` images: the whole ones, or with drop_last False as many as hold every image."""
    return length // batch if drop_last else -(-length // batch)
