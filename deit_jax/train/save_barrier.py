"""How several processes wait for each other while they save: until all have written, or one has failed.

Orbax's own barrier does not hear of a process whose disk is full: the others wait ten minutes for it, and end.
"""

import errno
import itertools
import time
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for its key-value store

# Orbax's names of the barriers that a process comes to whether it has failed or not
LEAVING = "ThreadSaveMultiHostValueHolder:set_value_start"
LAST = "ThreadSaveMultiHostValueHolder:set_value_end"
groups = itertools.count()  # the same on all processes: each makes the barriers of its runs in the same order


class PartFailed(OSError):
    """Another process could not write its part of a checkpoint."""


class SaveBarrier:
    """Orbax's `AsyncOptions.barrier_sync_fn`, on jax's key-value store; it may be called by any thread.

    client: of the store. index, count: of this process among all.
    """

    def __init__(self, client: Any, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.prefix = f"deit_jax/saving/{next(groups)}/"
        self.round = 0  # the same on all processes after each `LAST`

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Return when all processes have come here.

        Raises:
            PartFailed: another process has left the save instead.
            TimeoutError: one has not come in time.
        """
        place, end, pause = f"{self.prefix}{self.round}/", time.monotonic() + timeout_ms / 1000, 0.01
        self.client.key_value_set(f"{place}{key}/{self.index}", "here")
        while True:
            left = set() if key in (LEAVING, LAST) else self.who_came(f"{place}{LEAVING}/")
            here = self.who_came(f"{place}{key}/")  # read last: who was here before leaving is seen here
            if len(here) == self.count:
                break
            if failed := sorted(left - here):
                raise PartFailed(errno.EIO, f"process {failed[0]} could not write its part")
            if time.monotonic() > end:
                missing = sorted(set(range(self.count)) - here)
                raise TimeoutError(f"process {missing[0]} did not finish saving in {timeout_ms / 1000:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        if key == LAST:
            if self.index == 0 and self.round:
                self.client.key_value_delete(f"{self.prefix}{self.round - 1}/")  # which all have left
            self.round += 1

    def who_came(self, place: str) -> set[int]:
        """The processes that have come to a place."""
        return {int(name.rpartition("/")[2]) for name, _ in self.client.key_value_dir_get(place)}


def save_barrier() -> SaveBarrier | None:
    """The barrier of a new set of checkpoints; None where there is one process."""
    if jax.process_count() == 1:
        return None
    return SaveBarrier(distributed.global_state.client, jax.process_index(), jax.process_count())
