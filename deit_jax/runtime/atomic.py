"""Writing files whole or not at all: a reader, or a process killed at any moment, never leaves or meets half a file.

An object in a bucket is replaced at once by the service itself, a folder of objects is not: its files come one by one.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.runtime import storage

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

LINE = 240  # characters of an error's text

# how tensorstore and others quote the system's errors
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
# how tensorstore tells what a bucket answered, or that it does not answer
BUCKET_TEXTS = ("http_response_code", "CURL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, for the block to write a file or folder to; it takes `path`'s place at the end.

    The content reaches the disk before the name does. Where the block or the disk fails, `path` stays as it was and
    the temporary is removed. Raises UserError where the disk is full or cannot be written. What goes to a bucket is
    written to this machine's temporary folder first, and uploaded at the end.
    """
    path = storage.place(path)
    if storage.is_bucket(path):
        try:
            with tempfile.TemporaryDirectory(prefix="deit_jax-") as folder:
                yield (temporary := Path(folder) / path.name)
                upload(temporary, path)
        except OSError as error:
            raise UserError(
                f"{path} is written to this machine's temporary folder first, which fails ({reason(error)}): make room"
                " there, or set TMPDIR to another folder"
            ) from error
        return
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


def upload(temporary: Path, path: Path) -> None:
    """Put a local file, or each file of a local folder, into a bucket. Raises UserError where the bucket fails."""
    for written in [temporary] if temporary.is_file() else storage.files(temporary):
        try:
            path.joinpath(written.relative_to(temporary)).upload(written)  # type: ignore[attr-defined]
        except OSError as error:
            raise write_error(path, error) from error


def remove_remains(folder: Path) -> None:
    """Remove the temporaries that `replacing` of killed processes left in a run's folder; those of live ones stay."""
    if storage.is_bucket(folder):  # they are not there
        return
    for pattern in ("*.part", "*/*.part", "checkpoints/*/*.part", "*/checkpoints/*/*.part"):
        for path in folder.glob(pattern):
            number = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
            if number.isdigit() and not is_alive(int(number)):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    """Replace `path` with `content`. Raises UserError as `replacing` does."""
    path = storage.place(path)
    if storage.is_bucket(path):
        try:
            path.write_bytes(content)
        except OSError as error:
            raise write_error(path, error) from error
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace `path` with UTF-8 text. Raises UserError as `replacing` does."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Replace `path` with `value` as JSON. Raises UserError as `replacing` does."""
    write_text(path, json.dumps(value, indent=indent))


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk, where the file system can say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks know no sync of a folder
            raise
    finally:
        os.close(descriptor)


def write_error(path: str | os.PathLike, error: Exception, needed: int = 0) -> UserError:
    """The one line for a write that failed: where, why, how much is free, and how much is needed where that is known.

    error: an OSError, or a library's error whose text holds the system's. needed: bytes.
    """
    text = reason(error)
    if storage.is_bucket(path):
        return UserError(
            f"{path} cannot be written ({text}): check that the bucket is there and that this machine may write to it"
        )
    full = getattr(error, "errno", None) in FULL or "No space left" in str(error) or "Disk quota" in str(error)
    folder = next((p for p in Path(path).absolute().parents if p.is_dir()), Path("/"))
    space = f"{readable(free_space(folder))} free" + (f", {readable(needed)} needed" if needed else "")
    fix = f"{space} in {folder}; make room there" if full else f"check that {folder} is there and can be written"
    return UserError(f"{path} cannot be written ({text}): {fix}")


def reason(error: Exception) -> str:
    """The system's words for an error, in one line, also where a library quotes them."""
    known = error.strerror if isinstance(error, OSError) else next((t for t in DISK_TEXTS if t in str(error)), None)
    text = (known or str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.partition(" [")[0] or text  # tensorstore appends its whole description
    return text if len(text) <= LINE else f"{text[: LINE // 3]} … {text[-LINE * 2 // 3 :]}"  # the cause comes last


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is the disk's or the bucket's: the system's own, or a library's that quotes it."""
    return isinstance(error, OSError) or any(text in str(error) for text in DISK_TEXTS + BUCKET_TEXTS)


def free_space(folder: str | os.PathLike) -> float:
    """Bytes that can still be written on the disk of `folder`, or of its nearest parent that exists; infinite in a
    bucket."""
    if storage.is_bucket(folder):
        return math.inf
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def readable(count: float) -> str:
    """A number of bytes for people: "812 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
