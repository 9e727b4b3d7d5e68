"""Paths that users give: on a disk of this machine, or in a bucket of Google Cloud Storage (by `etils.epath`).

A path in a bucket has the methods of `pathlib.Path`. What differs is here, in `atomic` (an object is replaced whole)
and in `lock` (a bucket has no locks).
"""

import contextlib
import os
from pathlib import Path
from typing import cast

from deit_jax.errors import UserError

BUCKET = "gs://"


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def check_address(name: str, text: str) -> None:
    """Raise UserError for an address other than `gs://`. name: of the flag or setting, for the message."""
    if "://" in text and not text.rstrip("/").startswith(BUCKET):
        raise UserError(f"{name} {text} is not a path of this machine: use a path, or gs://BUCKET/FOLDER")


def as_path(path: str | os.PathLike) -> Path:
    """The absolute path for what a user gave: "runs/a", "~/a", "gs://bucket/a".

    Raises UserError for another kind of address, and for a bucket if the packages for it are missing.
    """
    text = os.fspath(path)
    check_address("path", text)
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
    import fsspec

    system, root = fsspec.url_to_fs(os.fspath(folder))
    return sorted(as_path(f"{BUCKET if is_bucket(folder) else ''}{path}") for path in system.find(root, refresh=True))


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it, as far as that is possible."""
    from etils import epath

    with contextlib.suppress(OSError):
        epath.Path(path).rmtree() if path.is_dir() else path.unlink()


def kvstore(folder: Path) -> dict[str, str]:
    """TensorStore's description of a folder."""
    if is_bucket(folder):
        bucket, _, key = str(folder).removeprefix(BUCKET).partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{key}/" if key else ""}
    return {"driver": "file", "path": f"{os.path.realpath(folder)}/"}  # which takes no ".."
