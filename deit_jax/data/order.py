"""The order of an epoch's views and of a batch's rows, as pure functions of numbers."""

import functools

import numpy as np

from deit_jax.augment.mix import num_groups
from deit_jax.randomness import PURPOSES


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0, repeat: int = 0) -> np.random.Generator:
    """The random generator of one place in a run; no other place draws the same numbers."""
    key = np.array([seed, PURPOSES[purpose]], np.uint64)  # of a list with a seed from 2^63 on NumPy makes float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, epoch, repeat]))


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


def spread(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a random fraction of the labels, spread evenly over the classes; at least one, never all."""
    count = min(max(round(len(labels) * fraction), 1), len(labels) - 1)
    shuffled = generator(seed, "subset").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.sort(by_class[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)])
