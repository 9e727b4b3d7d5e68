"""The processes of one run, on the hosts: barriers, broadcasts, output, and the lock of the folder they write to.

FOLDER/.lock is the lock; the system releases that of a process that ends in any way. A bucket has no such locks: only
one process may write to one of its folders.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage

BARRIER_TIMEOUT = 30 * 24 * 3600  # seconds
calls = itertools.count()  # the same on all processes: a barrier's name must be new each time


def print_once(text: str) -> None:
    """Print a line from process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def wait_for_process_0(name: str) -> None:
    """Return when every process has called this, however long process 0 takes. All must call it in the same order.

    A process that ends alone waits in jax's shutdown barrier, which gives up after 300 s and ends the others badly; a
    collective of the devices has time limits of its own.
    """
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))  # named, it is a barrier of the coordinator, not of the devices
        multihost.sync_global_processes(f"deit_jax/{name}/{next(calls)}", timeout=BARRIER_TIMEOUT, processes=everyone)


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
        raise failure or UserError("process 0 cannot continue: it says why")
    return int(decided)


@contextlib.contextmanager
def try_hold(folder: str | os.PathLike) -> Iterator[bool]:
    """Hold `folder` for this process while the block lasts: yields whether it does, or another process holds it.

    A process may hold a folder several times. Raises UserError if the folder cannot be written.
    """
    folder = storage.as_path(folder)
    if storage.is_bucket(folder):
        yield True
        return
    held = filelock.FileLock(folder / ".lock", timeout=0, is_singleton=True, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise atomic.write_error(folder / ".lock", error) from error
    try:
        yield True
    finally:
        held.release()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder for all processes of this run. Raises UserError on all where another process holds it."""

    def take() -> None:
        if not held.enter_context(try_hold(folder)):
            raise UserError(
                f"{folder} is in use by another process, maybe of another host: wait for it, or choose another"
                " --workdir"
            )

    with contextlib.ExitStack() as held:
        from_process_0(take)
        yield
