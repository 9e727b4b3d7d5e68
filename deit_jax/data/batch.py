"""What a batch is: its arrays, and the views that stand in its rows, a pure function of the step.

A training batch has, per row: the cropped image, its label, and where the view stands in the run (image `index` of the
source, `epoch`, `repeat`), which are the keys of its augmentation; with stored teacher labels also `teacher` (and
`teacher_logit` of the k likeliest classes and of the others), and where `label.views` repeats views `mixed_at`, the
step and the group whose key its mixing has. An evaluation batch has image, label and `mask`: 1 for an image, 0 for
padding. Where an image may have several right labels, `labels` holds them, then -1.

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


class Views(NamedTuple):
    """The views of one step: their epoch, and int64 arrays (batch,) of the image and the repeat of each row."""

    epoch: int
    image: np.ndarray
    repeat: np.ndarray


def batch_views(
    step: int, *, seed: int, length: int, batch: int, repeats: int, mix_group: int, drop_last: bool = True
) -> Views:
    """The views of one step.

    An epoch is `epoch_steps` steps. Under repeated augmentation (Hoffer et al. 2020; paper, section 6) each image
    stands `repeats` times in a row in the epoch's order, which is then cut to the same number of views. Where the last
    batch reaches past the end of the order, it wraps around; the wrapped views count as further repeats.
    """
    epoch, position = divmod(step, epoch_steps(length, batch, drop_last))
    places = position * batch + row_order(batch, mix_group)
    again, image = np.divmod(places // repeats, length)
    return Views(epoch, epoch_order(seed, epoch, length)[image], places % repeats + again * repeats)


def epoch_steps(length: int, batch: int, drop_last: bool = True) -> int:
    """Batches of one pass over `length` images: the whole ones, or with drop_last False as many as hold every image."""
    return length // batch if drop_last else -(-length // batch)
