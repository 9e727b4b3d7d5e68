"""Paths in a bucket of Google Cloud Storage, with the methods of `pathlib.Path`, by Google's own client.

A bucket has objects and no folders: a folder is there while an object lies below it. An object is written whole or not
at all, and read as it was last written by anyone. A folder cannot be renamed at once: its objects are copied, then
removed one by one.

What goes wrong is an OSError as of a disk; "is it there?" is answered by the bucket or fails, so that a network that is
down is never taken for a run that has not begun. Orbax uses the same class, as it is registered with etils.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import fnmatch
import functools
import io
import os
import posixpath
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Self

import requests
from etils import epath
from etils.epath.gpath import PosixGPath
from etils.epath.stat_utils import StatResult
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, PreconditionFailed, Unauthorized
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.fileio import BlobReader
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from deit_jax.errors import UserError

RETRY = DEFAULT_RETRY.with_timeout(60)  # seconds in which a request is tried again
CONNECTIONS = 64  # kept open, for the threads that read and write at once
PART = 1 << 25  # bytes that one request of a large object asks for


@functools.cache
def client() -> storage.Client:
    """Google's client. Raises UserError where this machine has no credentials."""
    try:
        found = storage.Client()
        found._http.mount("https://", HTTPAdapter(pool_maxsize=CONNECTIONS))
        found._http.mount("http://", HTTPAdapter(pool_maxsize=CONNECTIONS))
        return found
    except (GoogleAuthError, OSError) as error:
        raise UserError(
            f"gs:// addresses need Google Cloud credentials ({reason(error)}): run `gcloud auth application-default"
            " login`, or use a machine whose service account may read and write the bucket"
        ) from error


def reason(error: BaseException) -> str:
    """What the service says, in one line; the client's own message begins with a long address."""
    text = str(error)
    with contextlib.suppress(AttributeError, ValueError, KeyError, TypeError):
        text = error.response.json()["error"]["message"]  # type: ignore[attr-defined]
    return (text.strip() or type(error).__name__).splitlines()[0][:160]


@contextlib.contextmanager
def as_os_errors(path: "BucketPath") -> Iterator[None]:
    """Raise the errors of Google's client as OSErrors, which readers of a disk expect."""
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(errno.ENOENT, reason(error), str(path)) from error
    except (Forbidden, Unauthorized) as error:
        raise PermissionError(errno.EACCES, f"not permitted: {reason(error)}", str(path)) from error
    except PreconditionFailed:
        raise
    except (GoogleAPIError, GoogleAuthError, DataCorruption, requests.RequestException) as error:
        raise OSError(errno.EIO, f"the bucket does not answer: {reason(error)}", str(path)) from error


def at_once(work: Callable[["BucketPath"], object], paths: Iterable["BucketPath"]) -> None:
    """Do something with many objects, some at a time: each waits for the network."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(work, paths))


@dataclasses.dataclass
class Stat(StatResult):
    """What is known of an object, by the names of etils and of `os.stat`."""

    @property
    def st_size(self) -> int:
        return self.length


class Reader(BlobReader):
    """An object that is read in parts, each of which may fail as a disk does."""

    def __init__(self, path: "BucketPath"):
        super().__init__(path.blob, chunk_size=PART, retry=RETRY)
        self.path = path

    def read(self, size: int = -1) -> bytes:
        with as_os_errors(self.path):
            return super().read(size)


@epath.register_path_cls("gs://")
class BucketPath(PosixGPath):
    """gs://BUCKET/KEY. Every method that asks the bucket may raise OSError."""

    @property
    def bucket(self) -> str:
        return self.parts[2]

    @property
    def key(self) -> str:
        """The object's name in its bucket."""
        return "/".join(self.parts[3:])

    @property
    def blob(self) -> storage.Blob:
        """The client's handle of the object; nothing is asked."""
        return client().bucket(self.bucket).blob(self.key)

    def within(self, name: str) -> Self:
        """The path of an object of the same bucket."""
        return type(self)(f"gs://{self.bucket}/{name}")

    def list_objects(self, **options: Any) -> Any:
        """The client's listing of the objects below this folder."""
        prefix = f"{self.key}/" if self.key else ""
        return client().list_blobs(self.bucket, prefix=prefix, retry=RETRY, **options)

    # asking

    def is_file(self) -> bool:
        with as_os_errors(self):  # False for a bucket that is not there, too
            return bool(self.key) and self.blob.exists(retry=RETRY)

    def is_dir(self) -> bool:
        try:
            with as_os_errors(self):
                return next(iter(self.list_objects(max_results=1)), None) is not None
        except FileNotFoundError:  # the bucket itself
            return False

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def stat(self) -> Stat:
        try:
            with as_os_errors(self):
                found = client().bucket(self.bucket).get_blob(self.key, retry=RETRY) if self.key else None
        except FileNotFoundError:
            found = None
        if found is not None:
            return Stat(False, found.size or 0, int(found.updated.timestamp()) if found.updated else 0)
        if self.is_dir():
            return Stat(True, 0, 0)
        raise FileNotFoundError(errno.ENOENT, "no such object", str(self))

    def files(self) -> dict[Self, int]:
        """Every object below this folder, sorted, and its bytes."""
        with as_os_errors(self):
            found = {blob.name: blob.size or 0 for blob in self.list_objects()}
        return {self.within(name): size for name, size in sorted(found.items()) if not name.endswith("/")}

    def iterdir(self) -> Iterator[Self]:
        with as_os_errors(self):
            listing = self.list_objects(delimiter="/")
            names = {blob.name for blob in listing}  # first: prefixes are known once all pages are read
            names |= {prefix.rstrip("/") for prefix in listing.prefixes}
        yield from (self.within(name) for name in sorted(names) if not name.endswith("/"))

    def glob(self, pattern: str) -> Iterator[Self]:
        """As pathlib's; a `**` is refused."""
        if "**" in pattern:
            raise NotImplementedError(f"{pattern}: list a bucket with files()")
        folder, wanted = self, pattern.split("/")
        while len(wanted) > 1 and not any(c in wanted[0] for c in "*?["):
            folder, wanted = folder / wanted[0], wanted[1:]
        if len(wanted) == 1:
            yield from (path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, wanted[0]))
            return
        depth = len(folder.parts)
        found = {path.parts[: depth + len(wanted)] for path in folder.files()}
        for parts in sorted(found):
            names = parts[depth:]
            if len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted)):
                yield type(self)(*parts)

    def rglob(self, pattern: str) -> Iterator[Self]:
        """The objects, not the folders, at any depth whose name fits."""
        yield from (path for path in self.files() if fnmatch.fnmatchcase(path.name, pattern))

    def walk(
        self, *, top_down: bool = True, on_error: Callable[[OSError], object] | None = None
    ) -> Iterator[tuple[Self, list[str], list[str]]]:
        there = list(self.iterdir())
        names = [path.name for path in there if path.is_dir()]
        here = self, names, [path.name for path in there if path.name not in names]
        if top_down:
            yield here
        for name in names:
            yield from (self / name).walk(top_down=top_down, on_error=on_error)
        if not top_down:
            yield here

    def absolute(self) -> Self:
        return self

    def resolve(self, strict: bool = False) -> Self:
        return self

    def expanduser(self) -> Self:
        return self

    # reading and writing

    def open(self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, **more: Any) -> IO[Any]:
        text = {} if "b" in mode else {"encoding": encoding or "utf-8", "errors": errors}
        with as_os_errors(self):
            if "r" in mode:
                return typing.cast(
                    IO[Any], io.TextIOWrapper(typing.cast(Any, Reader(self)), **text) if text else Reader(self)
                )
            return typing.cast(IO[Any], self.blob.open(mode, chunk_size=PART, retry=RETRY, **text))

    def read_bytes(self) -> bytes:
        with as_os_errors(self):
            return self.blob.download_as_bytes(retry=RETRY)

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def write_bytes(self, data: bytes) -> int:
        """Replaces the object whole."""
        with as_os_errors(self):
            self.blob.upload_from_string(bytes(data), content_type="application/octet-stream", retry=RETRY)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def upload(self, local: str | os.PathLike) -> None:
        """Replaces the object by a local file's content."""
        with as_os_errors(self):
            self.blob.upload_from_filename(os.fspath(local), retry=RETRY)

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        if not self.is_file():
            self.write_bytes(b"")

    # folders

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing is made; raises FileExistsError where there is something, unless `exist_ok`."""
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, "already there", str(self))

    def rmdir(self) -> None:
        """A folder without objects is not there."""

    def rmtree(self, missing_ok: bool = False) -> None:
        found = list(self.files())
        if not found and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self))
        at_once(lambda path: path.unlink(missing_ok=True), found)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with as_os_errors(self):
                self.blob.delete(retry=RETRY)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def copy(self, dst: str | os.PathLike, overwrite: bool = False) -> Self:
        """Copies an object within the bucket's service; no byte passes through this machine."""
        to = type(self)(dst)
        if not overwrite and to.exists():
            raise FileExistsError(errno.EEXIST, "already there", str(to))
        with as_os_errors(self):
            source, target, retry = self.blob, to.blob, typing.cast(Any, RETRY)
            token = target.rewrite(source, retry=retry)[0]
            while token is not None:  # a large one is copied part by part
                token = target.rewrite(source, token=token, retry=retry)[0]
        return to

    def rename(self, target: str | os.PathLike) -> Self:
        """An object, or a folder object by object: all are copied before the first is removed."""
        to = type(self)(target)
        if to.exists():
            raise FileExistsError(errno.EEXIST, "already there", str(to))
        return self.replace(to)

    def replace(self, target: str | os.PathLike) -> Self:
        to = type(self)(target)
        moved: dict[BucketPath, BucketPath] = {}
        moved |= {path: to.within(posixpath.join(to.key, str(path)[len(str(self)) + 1 :])) for path in self.files()}
        moved = moved or {self: to}
        at_once(lambda path: path.copy(moved[path], overwrite=True), moved)
        at_once(lambda path: path.unlink(), moved)
        return to


def path(address: str) -> BucketPath:
    """The path of an address, "gs://bucket/run"."""
    return BucketPath(address.rstrip("/"))
