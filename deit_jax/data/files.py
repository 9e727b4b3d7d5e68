"""Which image files there are below a folder or in a tar file, and which files are passed over.

Both are walked by the same code, so that a folder and a tar file of it hold the same images. Names that begin with a
dot are hidden and left out, and so is what operating systems add (`HIDDEN`). Links are followed.
"""

import collections
import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deit_jax.errors import UserError, printable

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .tga .ico".split()
)
HIDDEN = frozenset(["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"])

UNPACK = "unpack it, or make shards of it with deit-jax prepare"  # what to do with a tar file

FOLDER, FILE = "folder", "file"
BROKEN_LINK, SPECIAL, LOOP = "broken link", "pipe, socket or device", "link back to a folder above it"


class Child(NamedTuple):
    """One entry of a folder: FOLDER, FILE, or why it is passed over; `where` is the tree's own handle of it."""

    name: str
    kind: str
    where: Any


class Tree(Protocol):
    """Something that has folders."""

    root: Any

    def children(self, where: Any) -> Iterator[Child]: ...

    def identity(self, where: Any) -> Any:
        """What is equal for two ways to the same folder."""


def is_tar_name(path: Path) -> bool:
    """Whether a file is named as a tar file, compressed or not."""
    name = path.name.lower()
    return name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name


@dataclasses.dataclass
class Listing:
    """What a tree holds. Paths are relative to its root, with "/" between their parts.

    Attributes:
      images: path → the tree's handle of the file.
      folders: paths of all folders.
      skipped: of the files passed over, by their ending or what they are: how many there are, and the first.
    """

    images: dict[str, Any] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    skipped: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    def skip(self, kind: str, path: str) -> None:
        count, first = self.skipped.get(kind, (0, path))
        self.skipped[kind] = count + 1, min(first, path)

    def describe_skipped(self) -> list[str]:
        """ "3 .txt files (a/notes.txt …)", for people."""
        lines = []
        for kind, (count, first) in sorted(self.skipped.items()):
            what = f"{kind} file" if kind.startswith(".") else kind
            lines.append(f"{count} {what}{'s' if count > 1 else ''} ({printable(first)}{' …' if count > 1 else ''})")
        return lines


def list_images(tree: Tree) -> Listing:
    """All image files of a tree, by their ending. Raises UserError for a folder that cannot be read."""
    found = Listing()
    above: tuple[Any, ...] = (tree.identity(tree.root),)
    waiting = collections.deque([(tree.root, "", above)])
    while waiting:
        where, prefix, above = waiting.popleft()
        for child in tree.children(where):
            if child.name.startswith(".") or child.name in HIDDEN:
                continue
            path = prefix + child.name
            if child.kind == FOLDER:
                identity = tree.identity(child.where)
                if identity in above:
                    found.skip(LOOP, path)
                    continue
                found.folders.add(path)
                waiting.append((child.where, path + "/", (*above, identity)))
            elif child.kind != FILE:
                found.skip(child.kind, path)
            elif is_image_name(child.name):
                found.images[path] = child.where
            else:
                found.skip(os.path.splitext(child.name)[1].lower() or "unnamed kind of", path)
    return found


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image format that is read."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class FolderTree:
    """A folder on disk; handles are paths."""

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)

    def children(self, where: str) -> Iterator[Child]:
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    yield Child(entry.name, _kind(entry), entry.path)
        except OSError as error:
            raise UserError(f"folder {where} cannot be read ({error.strerror}): make it readable") from error

    def identity(self, where: str) -> tuple[int, int]:
        try:
            status = os.stat(where)
        except OSError as error:
            raise UserError(f"folder {where} cannot be read ({error.strerror}): make it readable") from error
        return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry) -> str:
    if not entry.is_symlink():
        if entry.is_dir(follow_symlinks=False):
            return FOLDER
        return FILE if entry.is_file(follow_symlinks=False) else SPECIAL
    try:
        mode = entry.stat().st_mode
    except OSError:  # what it points to is not there, or it points to itself
        return BROKEN_LINK
    return FOLDER if stat.S_ISDIR(mode) else FILE if stat.S_ISREG(mode) else SPECIAL


def class_text(name: str) -> str:
    """A folder's name as a class name: bytes that are not UTF-8 are written as escapes, so that it can be stored and
    printed everywhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
