"""`label.views`: a run whose epochs repeat the views of its first ones, with their stored labels.

Epoch e has the mixing groups of epoch e mod `views`, from the second time on in an order of its own. Groups stay whole,
because a stored label is that of a mixture of two rows of a group.
"""

import dataclasses
import functools

import numpy as np

from deit_jax.augment.mix import num_groups
from deit_jax.data.assemble import TrainBatchMaker, Views, epoch_steps
from deit_jax.data.batch import Batch
from deit_jax.randomness import generator


@functools.lru_cache(maxsize=2)
def group_order(seed: int, epoch: int, groups: int) -> np.ndarray:
    """The mixing groups of an epoch that repeats another, in shuffled order, int64 (groups,)."""
    return generator(seed, "replay", epoch).permutation(groups)


def stored_groups(step: int, *, seed: int, per_epoch: int, groups: int, views: int) -> np.ndarray:
    """Where the mixing groups of a step stand in the first `views` epochs: step and group, int64 (groups, 2)."""
    epoch, position = divmod(step, per_epoch)
    places = np.arange(position * groups, (position + 1) * groups)
    if epoch >= views:
        epoch, places = epoch % views, group_order(seed, epoch, per_epoch * groups)[places]
    return np.stack([epoch * per_epoch + places // groups, places % groups], 1)


@dataclasses.dataclass(frozen=True)
class ReplayBatchMaker(TrainBatchMaker):
    """Step → training batch of a run with `label.views`, whose batches are of whole groups (`loader.steps_per_epoch`).

    A batch has the further entry "mixed_at", int32 (rows, 2): the step and the group that a row is mixed as.
    """

    @property
    def group_size(self) -> int:
        """Rows of a mixing group."""
        return self.config.batch_size // num_groups(self.config.batch_size, self.config.augment.mix_group)

    def stored_at(self, step: int) -> np.ndarray:
        """`stored_groups` of a step of this run."""
        config, groups = self.config, self.config.batch_size // self.group_size
        per_epoch = epoch_steps(len(self.source), config.batch_size, config.data.drop_last)
        return stored_groups(step, seed=config.seed, per_epoch=per_epoch, groups=groups, views=config.label.views)

    def views(self, step: int) -> Views:
        """The views of the groups that the step repeats; these are of one epoch."""
        stored, size = self.stored_at(step).tolist(), self.group_size
        found = [(TrainBatchMaker.views(self, at), slice(group * size, (group + 1) * size)) for at, group in stored]
        image = np.concatenate([views.image[rows] for views, rows in found])
        repeat = np.concatenate([views.repeat[rows] for views, rows in found])
        return Views(found[0][0].epoch, image, repeat)

    def teacher_labels(self, step: int) -> Batch:
        """The labels of this process's rows, each group's from the step that it was stored in, and "mixed_at"."""
        stored, size, rows, read = self.stored_at(step), self.group_size, self.rows, self.stored_labels
        out = {"mixed_at": np.repeat(stored, size, 0)[rows].astype(np.int32)}
        if read is None:
            return out
        parts = []
        for number in range(rows.start // size, -(-rows.stop // size)):
            at, group = stored[number].tolist()
            first, last = max(rows.start, number * size), min(rows.stop, (number + 1) * size)
            moved = (group - number) * size
            parts.append(read(at, slice(first + moved, last + moved)))
        return out | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
