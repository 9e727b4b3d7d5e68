"""One process at a time in a folder. The system releases the lock of a process that ends in any way.

FOLDER/.lock is the lock, FOLDER/.holder.json describes the process that has it. A bucket has no such locks: only one
process may write to one of its folders.
"""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage


@contextlib.contextmanager
def try_hold(folder: str | os.PathLike) -> Iterator[str | None]:
    """Hold `folder` for this process while the block lasts: yields None, or the other process that holds it.

    A process may hold a folder several times. Raises UserError if the folder cannot be written.
    """
    folder = storage.as_path(folder)
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
            since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            who = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            atomic.write_json(folder / ".holder.json", who)
        yield None
    finally:
        held.release()


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` as `try_hold` does, or raise UserError that names the process that has it."""
    with try_hold(folder) as other:
        if other is not None:
            raise UserError(f"{folder} is in use by {other}: wait for it, stop it, or choose another --workdir")
        yield


def holder(folder: Path) -> str:
    """The process that holds the lock of `folder`; "another process" until it has written its record."""
    try:
        return json.loads((folder / ".holder.json").read_text())
    except (OSError, ValueError):
        return "another process"
