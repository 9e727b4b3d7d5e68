"""Paths that users give: on a disk of this machine, or in a bucket of Google Cloud Storage (by `etils.epath`).

A path in a bucket has the methods of `pathlib.Path`. What differs is here, in `atomic` (an object is replaced whole)
and in `lock` (a bucket has no locks).
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

from deit_jax.errors import UserError

BUCKET = "gs://"


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def local_text(name: str, text: str) -> str:
    """`text` with a `file://` address replaced by its path. Raises UserError for other addresses than `gs://`.

    name: of the flag or setting, for the message.
    """
    scheme, found, rest = text.partition("://")
    if not found or (scheme == "gs" and rest.strip("/")):
        return text
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return rest.removeprefix("localhost")
    raise UserError(
        f"{name} {text} is not a path of this machine: use file:///FOLDER, gs://BUCKET/FOLDER, or mount the storage and"
        " give its path"
    )


def as_path(path: str | os.PathLike) -> Path:
    """The absolute path for what a user gave: "runs/a", "~/a", "file:///data/a", "gs://bucket/a".

    Raises UserError for another kind of address, and for a bucket if the packages for it are missing.
    """
    text = local_text("path", os.fspath(path))
    if not is_bucket(text):
        return Path(os.path.expanduser(text)).absolute()
    try:
        import gcsfs  # noqa: F401  an optional dependency, which epath needs for buckets
        from etils import epath
    except ImportError as error:
        raise UserError(f"{text} needs the extra gcs ({error}): pip install 'deit-jax[all,gcs]'") from error
    return cast(Path, epath.Path(text.rstrip("/")))


def files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted, without those that are removed meanwhile."""
    if is_bucket(folder):
        import fsspec

        found, prefix = fsspec.filesystem("gs").find(str(folder), refresh=True), BUCKET
    else:
        found, prefix = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names], ""
    return sorted(as_path(prefix + path) for path in found)


def remove(folder: Path) -> None:
    """Remove a folder and all in it, as far as that is possible."""
    if is_bucket(folder):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(folder, ignore_errors=True)


def kvstore(folder: Path) -> dict[str, str]:
    """TensorStore's description of a folder."""
    if is_bucket(folder):
        bucket, _, key = str(folder).removeprefix(BUCKET).partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{key}/" if key else ""}
    return {"driver": "file", "path": f"{folder}/"}


def local_copy(path: Path, beside: tuple[str, ...] = ()) -> Path:
    """A local file as it is; an object copied to a new temporary folder.

    beside: names of the files that are copied with it where they lie beside it.
    """
    if not is_bucket(path):
        return path
    folder = Path(tempfile.mkdtemp(prefix="deit_jax-"))
    for source in (path, *(path.with_name(name) for name in beside)):
        if source.is_file():
            with source.open("rb") as there, open(folder / source.name, "wb") as here:
                shutil.copyfileobj(there, here, 1 << 24)
    return folder / path.name
