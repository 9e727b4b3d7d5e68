"""Where a file lives: on a disk of this machine, or as an object in a bucket of Google Cloud Storage.

`place` turns what a user gives into a path. A path in a bucket has the methods of `pathlib.Path`
(`deit_jax.runtime.bucket`), so that code which reads, lists and asks need not know which of the two it has. What
differs is here, in `atomic` (how a file is replaced) and in `lock` (how a folder is held).
"""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from deit_jax.errors import UserError

BUCKET = "gs://"


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def place(where: str | os.PathLike) -> Path:
    """The path of a local file or folder ("runs/a", "file:///data/a"), or in a bucket ("gs://bucket/a").

    Raises UserError for another kind of address, and where a bucket is named and its packages are missing.
    """
    if isinstance(where, pathlib.PurePath):
        return cast(Path, where)
    text = local_text("path", os.fspath(where))
    if not is_bucket(text):
        return Path(text)
    try:
        from deit_jax.runtime import bucket  # here: an optional dependency, which takes 0.4 s to import
    except ImportError as error:
        raise UserError(f"{text} needs the extra gcs ({error}): pip install 'deit-jax[all,gcs]'") from error
    return cast(Path, bucket.path(text))  # it has the methods of Path


def local_text(name: str, text: str) -> str:
    """`text` with a `file://` address as the path that it means. Raises UserError for an address that is of no use.

    name: of the flag or setting, for the message.
    """
    scheme, found, rest = text.partition("://")
    if not found or scheme == "gs":
        if found and not rest.strip("/"):
            raise UserError(f"{name} {text} names no bucket: use gs://BUCKET/FOLDER")
        return text
    if scheme != "file":
        raise UserError(
            f"{name} {text} is an address of a kind that is not read: use gs://BUCKET/FOLDER, or mount the storage and"
            " give its path"
        )
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise UserError(f"{name} {text} is not a path of this machine: use file:///FOLDER")
    return f"/{path}"


def files(folder: Path) -> dict[Path, int]:
    """Every file below a folder, sorted, and its bytes; of a bucket by one listing.

    What another thread or process removes meanwhile is left out: Orbax clears away what a killed save has left, while a
    run starts, and a run that is checked while it trains removes its older steps.
    """
    if is_bucket(folder):
        return folder.files()  # type: ignore[attr-defined]
    found = {}
    walk = os.walk(folder, onerror=unless_gone)
    for path in sorted(Path(parent, name) for parent, _, names in walk for name in names):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.stat().st_size
    return found


def unless_gone(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed, unless there is none."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def folders(folder: Path) -> list[Path]:
    """Every folder below a folder."""
    if is_bucket(folder):
        return sorted({parent for path in files(folder) for parent in path.parents if folder in parent.parents})
    return sorted(Path(parent, name) for parent, names, _ in os.walk(folder, onerror=unless_gone) for name in names)


def sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Bytes of those of the named files below a folder that are there."""
    if is_bucket(folder):
        there = {str(path): size for path, size in files(folder).items()}
        return {name: there[str(folder / name)] for name in names if str(folder / name) in there}
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def remove(folder: Path) -> None:
    """Remove a folder and all in it, as far as that can be."""
    if is_bucket(folder):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(folder, ignore_errors=True)


def kvstore(folder: Path) -> dict[str, str]:
    """TensorStore's description of a folder."""
    if is_bucket(folder):
        return {"driver": "gcs", "bucket": folder.bucket, "path": f"{folder.key}/" if folder.key else ""}  # type: ignore[attr-defined]
    return {"driver": "file", "path": f"{folder}/"}


@functools.cache
def local_copy(path: Path, beside: tuple[str, ...] = ()) -> Path:
    """The path of a local file as it is; for an object, that of a copy in a folder removed when the process ends.

    beside: names of files that are copied with it where they lie beside it.
    """
    if not is_bucket(path):
        return path
    folder = Path(tempfile.mkdtemp(prefix="deit_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in (path.name, *beside):
        source = path.with_name(name)
        if name == path.name or source.is_file():
            with source.open("rb") as there, open(folder / name, "wb") as here:
                shutil.copyfileobj(there, here, 1 << 24)
    return folder / path.name
