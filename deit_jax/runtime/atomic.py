"""Atomic writes: a reader, or a process killed at any moment, never meets or leaves half a file.

An object in a bucket is replaced whole by the service itself.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.runtime import storage

MAX_REASON = 240  # characters of an error's text


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside the local `path`, to write a file or folder to; it replaces `path` at the end.

    The content reaches the disk before the name does. If the block or the disk fails, `path` stays as it was and the
    temporary is removed. Raises UserError if the disk is full or cannot be written.
    """
    path = storage.as_path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            sync(written)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        storage.remove(temporary)


def remove_remains(folder: Path) -> None:
    """Remove the temporaries that `replacing` of killed processes left in a run's folder; those of live ones stay."""
    for pattern in ("", "*/", "checkpoints/*/", "*/checkpoints/*/"):
        for path in folder.glob(f"{pattern}*.[0-9]*.part"):
            if not Path("/proc", path.suffixes[-2][1:]).exists():
                storage.remove(path)


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


def check_writable(folder: Path) -> None:
    """Make a folder, then write, read and remove a file in it. Raises UserError if that fails.

    `exists` is False for every path in a bucket that does not answer; this check tells that from an empty folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not storage.is_bucket(folder):
            with tempfile.TemporaryFile(dir=folder) as probe:  # without a name: a killed process leaves nothing
                probe.write(b"deit_jax")
                probe.flush()
            return
        probe = folder / f".writable-{os.urandom(4).hex()}"  # several hosts may check at once
        probe.write_bytes(b"deit_jax")
        probe.read_bytes()
        probe.unlink(missing_ok=True)
    except Exception as error:  # gcsfs has errors of its own
        raise write_error(folder, error) from error


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk, if the file system supports that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot sync a folder
            raise
    finally:
        os.close(descriptor)


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
