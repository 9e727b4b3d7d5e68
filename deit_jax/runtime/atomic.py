"""Atomic writes: a reader, or a process killed at any moment, never meets or leaves half a file.

An object in a bucket is replaced whole by the service itself.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.runtime import storage

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

MAX_REASON = 240  # characters of an error's text

# how TensorStore and others quote the system's errors
DISK_TEXTS = (
    "No space left",
    "Disk quota",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Operation not permitted",
    "Input/output error",
    "No such file or directory",
    "Stale file handle",
)
# how TensorStore reports that a bucket refuses or does not answer
BUCKET_TEXTS = ("http_response_code", "CURL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED")


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
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def remove_remains(folder: Path) -> None:
    """Remove the temporaries that `replacing` of killed processes left in a run's folder; those of live ones stay."""
    for pattern in ("*.part", "*/*.part", "checkpoints/*/*.part", "*/checkpoints/*/*.part"):
        for path in folder.glob(pattern):
            number = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
            if number.isdigit() and not is_alive(int(number)):
                storage.remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_alive(number: int) -> bool:
    """Whether a process of this number runs on this host."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


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
    """Replace `path` with UTF-8 text. Raises UserError if that fails."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Replace `path` with `value` as JSON. Raises UserError if that fails."""
    write_text(path, json.dumps(value, indent=indent))


def check_writable(folder: Path) -> None:
    """Make a folder, then write, read and remove a file in it. Raises UserError if that fails.

    `exists` is False for every path in a bucket that does not answer; this check tells that from an empty folder.
    """
    probe = folder / f".writable-{os.urandom(4).hex()}"  # several hosts may check at once
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"deit_jax")
        probe.read_bytes()
        probe.unlink(missing_ok=True)
    except Exception as error:  # gcsfs has errors of its own
        raise write_error(probe, error) from error


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


def write_error(path: str | os.PathLike, error: Exception, needed: int = 0) -> UserError:
    """A one-line error for a failed write: the path, the reason, the free space, and the space needed if known.

    error: an OSError, or a library's error that quotes the system's. needed: bytes.
    """
    text = reason(error)
    if storage.is_bucket(path):
        return UserError(
            f"{path} cannot be written ({text}): check that the bucket exists and that this machine may write to it"
        )
    full = getattr(error, "errno", None) in FULL or "No space left" in str(error) or "Disk quota" in str(error)
    folder = next((p for p in Path(path).absolute().parents if p.is_dir()), Path("/"))
    space = f"{readable(free_space(folder))} free" + (f", {readable(needed)} needed" if needed else "")
    fix = f"{space} in {folder}; make room there" if full else f"check that {folder} exists and can be written"
    return UserError(f"{path} cannot be written ({text}): {fix}")


def reason(error: Exception) -> str:
    """The system's description of an error, in one line, also if a library quotes it."""
    known = error.strerror if isinstance(error, OSError) else next((t for t in DISK_TEXTS if t in str(error)), None)
    text = (known or str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.partition(" [")[0] or text  # TensorStore appends its whole description
    if len(text) <= MAX_REASON:
        return text
    return f"{text[: MAX_REASON // 3]} … {text[-MAX_REASON * 2 // 3 :]}"  # the cause comes last


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is the disk's or the bucket's: the system's own, or a library's that quotes it."""
    return isinstance(error, OSError) or any(text in str(error) for text in DISK_TEXTS + BUCKET_TEXTS)


def free_space(folder: str | os.PathLike) -> float:
    """Bytes free on the disk of `folder`, or of its nearest existing parent; infinite in a bucket."""
    if storage.is_bucket(folder):
        return math.inf
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def readable(count: float) -> str:
    """A number of bytes with its unit: "812 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
