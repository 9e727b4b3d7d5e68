"""Atomic writes: a reader, or a process killed at any moment, never meets or leaves half a file.

An object in a bucket is replaced whole by the service itself.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.runtime import storage

MAX_REASON = 240  # characters of an error's text


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside the local `path`, to write a file or folder to; it replaces `path` at the end.

    If the block or the disk fails, `path` stays as it was and the temporary is removed; only a process that is killed
    leaves it. Raises UserError if the disk is full or cannot be written.
    """
    path = storage.as_path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        storage.remove(temporary)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replace `path` with `content`. Raises UserError if that fails."""
    path = storage.as_path(path)
    if storage.is_bucket(path):
        try:
            path.write_bytes(content)
        except Exception as error:  # gcsfs has errors of its own
            raise write_error(path, error) from error
    else:
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace `path` with UTF-8 text; of a file's name that is not UTF-8, escapes. Raises UserError if that fails."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Replace `path` with `value` as JSON. Raises UserError if that fails."""
    write_text(path, json.dumps(value, indent=indent))


def write_error(path: str | os.PathLike, error: Exception) -> UserError:
    """A one-line error for a failed write: the path, the reason, the free space.

    error: an OSError, or a library's error that quotes the system's.
    """
    fix = "check that the bucket exists and that this machine may write to it"
    if not storage.is_bucket(path):
        folder = next(p for p in Path(path).absolute().parents if p.is_dir())
        free = readable(shutil.disk_usage(folder).free)
        fix = f"{free} free in {folder}; make room, or check that it exists and can be written"
    return UserError(f"{path} cannot be written ({reason(error)}): {fix}")


def reason(error: Exception) -> str:
    """The description of a failed write, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    text = text.splitlines()[0].partition(" [")[0]  # TensorStore appends its whole description
    return text if len(text) <= MAX_REASON else f"… {text[-MAX_REASON:]}"  # the cause comes last


def readable(count: float) -> str:
    """A number of bytes with its unit: "812 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
