"""One process at a time in a folder. The system lets go of a dead process's lock, so none has to be removed by hand.

FOLDER/.lock          the lock itself, always empty
FOLDER/.holder.json   who has it: process, host, since when

A bucket has no such locks: let one process write to one of its folders.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage
from deit_jax.runtime.holder import holder_text, ourselves


@contextlib.contextmanager
def try_hold(folder: str | os.PathLike) -> Iterator[str | None]:
    """Hold `folder` for this process while the block lasts: yields None, or who holds it where another process does.

    A process that holds it already holds it again. Raises UserError where the folder cannot be written.
    """
    folder = storage.place(folder).absolute()
    if storage.is_bucket(folder):
        yield None
        return
    held = filelock.FileLock(folder / ".lock", timeout=0, is_singleton=True, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        yield holder(folder)
        return
    except OSError as error:
        raise atomic.write_error(folder / ".lock", error) from error
    try:
        if held.lock_counter == 1:
            atomic.remove_remains(folder)
            atomic.write_json(folder / ".holder.json", ourselves())
        yield None
    finally:
        held.release()


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` as `try_hold` does, or raise UserError that says which process has it."""
    with try_hold(folder) as other:
        if other is not None:
            raise UserError(f"{folder} is in use by {other}: wait for it, stop it, or choose another --workdir")
        yield


def holder(folder: Path) -> str:
    """Who holds the lock of `folder`, for people; "another process" in the moment before it has said so."""
    try:
        return holder_text(json.loads((folder / ".holder.json").read_text()))
    except (OSError, ValueError):
        return "another process"
