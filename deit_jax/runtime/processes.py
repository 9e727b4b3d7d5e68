"""What the processes of one run say to each other beside their devices' collectives."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from deit_jax.errors import UserError
from deit_jax.runtime import lock

A_MONTH = 30 * 24 * 3600  # seconds


def wait_for_process_0(name: str) -> None:
    """Return when every process has called this with the same name, however long process 0 takes.

    A process that ends alone waits in jax's shutdown barrier, which gives up after 300 s and ends the others badly.
    """
    if jax.process_count() > 1:
        multihost.sync_global_processes(name, timeout=A_MONTH)


def from_process_0(decide: Callable[[], int | None]) -> int:
    """What `decide` returns on process 0, on every process; where it raises UserError there, all of them do."""
    if jax.process_count() == 1:
        return decide() or 0
    decided, failure = 0, None
    if jax.process_index() == 0:
        try:
            decided = decide() or 0
        except UserError as error:
            failure = error
    decided, failed = multihost_utils.broadcast_one_to_all(np.array([decided, failure is not None], np.int32))
    if failed:
        raise failure or UserError("process 0 cannot go on: it says why")
    return int(decided)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder for all processes of this run. Raises UserError on all where another process holds it."""
    with contextlib.ExitStack() as held:
        from_process_0(lambda: held.enter_context(lock.hold(folder)))
        yield
