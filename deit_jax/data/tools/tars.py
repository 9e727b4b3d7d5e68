"""Tar files as trees of folders, for `deit_jax.data.files.list_images`: the same rules as for folders on disk.

A .tar inside a tar is a folder of its name (ImageNet's training images come as a tar of a tar per class). Links are
resolved within the tar.
"""

import bz2
import gzip
import lzma
import posixpath
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deit_jax.data.files import BROKEN_LINK, FILE, FOLDER, SPECIAL, Child
from deit_jax.errors import UserError

MAX_LINKS = 40  # that lead to links, as Linux follows
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class Span(NamedTuple):
    """The bytes [start, start + size) of a file, which hold an image."""

    path: str
    start: int
    size: int


class Link(NamedTuple):
    """A link to another member, by its path from the root of the tar."""

    target: str


class TarTree:
    """The members of an uncompressed tar file. Handles of folders are paths, of files `Span`s.

    Raises UserError for a file that is not a tar file, is damaged, or has members outside of it.
    """

    root = ""

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[str, dict[str, Any]] = {"": {}}  # folder → {name: Span, Link, or a kind}
        try:
            self._read(0, "")
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is damaged or not a .tar file ({error}): fetch it again") from error

    def _read(self, start: int, prefix: str) -> None:
        """Add the members of the tar that begins at `start`, below the folder `prefix`."""
        with open(self.path, "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for member in opened:
                    self._add(prefix, member)

    def _add(self, prefix: str, member: tarfile.TarInfo) -> None:
        path = self._joined(prefix, member.name)
        if not path:
            return
        folder, _, name = path.rpartition("/")
        self._folder(folder)
        if member.isdir():
            self._folder(path)
        elif member.issym():
            inside = "" if member.linkname.startswith("/") else self._joined(folder, member.linkname, climbing=True)
            self.members[folder][name] = Link(inside) if inside else BROKEN_LINK
        elif member.islnk():
            self.members[folder][name] = Link(self._joined(prefix, member.linkname))
        elif not member.isreg() or member.issparse():
            self.members[folder][name] = SPECIAL
        elif name.endswith(".tar") and member.size:
            inner = path.removesuffix(".tar")
            self._folder(inner)
            self._read(member.offset_data, inner)
        else:
            self.members[folder][name] = Span(str(self.path), member.offset_data, member.size)

    def _joined(self, folder: str, name: str, climbing: bool = False) -> str:
        """A member's path from the root; "" for a link that leads outside. Raises UserError for such a member."""
        path = posixpath.normpath(posixpath.join(folder, name.lstrip("/"))) if name else folder
        outside = path == ".." or path.startswith("../")
        if (outside and not climbing) or (".." in name.split("/") and not climbing):
            raise UserError(f"{self.path} has a member outside of it, {name}: pack it again without '..' in the names")
        return "" if path == "." or outside else path

    def _folder(self, path: str) -> None:
        while path not in self.members:
            self.members[path] = {}
            path, _, name = path.rpartition("/")
            self._folder(path)
            self.members[path][name] = FOLDER

    def _resolved(self, path: str) -> tuple[str, Any]:
        """(kind, handle) of what a path leads to, through links."""
        done, waiting, links = "", [part for part in path.split("/") if part], 0
        while waiting:
            name = waiting.pop(0)
            if name == "..":
                done = done.rpartition("/")[0]
                continue
            member = self.members.get(done, {}).get(name, BROKEN_LINK)
            if isinstance(member, Link):
                links += 1
                if links > MAX_LINKS:
                    return BROKEN_LINK, None
                done, waiting = "", [part for part in member.target.split("/") if part] + waiting
            elif member == FOLDER:
                done = f"{done}/{name}" if done else name
            elif isinstance(member, Span):
                return (FILE, member) if not waiting else (BROKEN_LINK, None)
            else:
                return member, None
        return FOLDER, done

    def children(self, where: str) -> Iterator[Child]:
        for name in self.members[where]:
            yield Child(name, *self._resolved(f"{where}/{name}"))

    def identity(self, where: str) -> str:
        return where


def unpacked(path: Path, folder: Path) -> Path:
    """A tar file that can be read at any place: itself, or, where it is compressed, a copy in `folder` that is not."""
    with open(path, "rb") as file:
        mark = file.read(8)
    opener = next((opener for start, opener in COMPRESSED.items() if mark.startswith(start)), None)
    if opener is None:
        return path
    copy = folder / f"{path.name}.unpacked"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with opener(path) as packed, open(copy, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (OSError, EOFError, lzma.LZMAError) as error:
        copy.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be unpacked into {folder} ({error}): fetch it again, or make room") from error
    return copy
