"""Which image files there are below a folder or in a tar file, and which files are passed over.

Names that begin with a dot are hidden and left out, and so is what operating systems add (`HIDDEN`). Links of a folder
are followed.
"""

import collections
import dataclasses
import os
import stat
import tarfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

from deit_jax.errors import UserError, printable

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .tga .ico".split()
)
HIDDEN = frozenset(["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"])
LABELS = (".cls", ".json")  # endings of WebDataset's labels

TAR_HINT = "unpack it, or make shards of it with deit-jax prepare"


class Span(NamedTuple):
    """The bytes [start, start + size) of a file, which hold an image."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclasses.dataclass
class Listing:
    """What a folder or a tar file holds. Paths are relative to its root, with "/" between their parts.

    Attributes:
      images: path → where its bytes are; None for a file of the folder.
      labels: as images, the files that may be WebDataset's labels.
      folders: paths of all folders.
      skipped: of the files passed over, by their ending or what they are: how many there are, and the first.
    """

    images: dict[str, Span | None] = dataclasses.field(default_factory=dict)
    labels: dict[str, Span | None] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    skipped: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    def add(self, path: str, span: Span | None = None) -> None:
        """Take in a file."""
        ending = os.path.splitext(path)[1].lower()
        if is_image_name(path):
            self.images[path] = span
            return
        if ending in LABELS:
            self.labels[path] = span
        self.skip(ending or "unnamed kind of", path)

    def skip(self, kind: str, path: str) -> None:
        """Count a file that is passed over."""
        count, first = self.skipped.get(kind, (0, path))
        self.skipped[kind] = count + 1, min(first, path)

    def describe_skipped(self) -> list[str]:
        """ "3 .txt files (a/notes.txt …)"."""
        lines = []
        for kind, (count, first) in sorted(self.skipped.items()):
            what = f"{kind} file" if kind.startswith(".") else kind
            lines.append(f"{count} {what}{'s' if count > 1 else ''} ({printable(first)}{' …' if count > 1 else ''})")
        return lines


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out without a word."""
    return name.startswith(".") or name in HIDDEN


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image format that is read."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_tar_name(path: Path) -> bool:
    """Whether a file is named as a tar file, compressed or not."""
    name = path.name.lower()
    return name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name


def list_images(root: str | os.PathLike) -> Listing:
    """All image files below a folder, by their ending. Raises UserError for a folder that cannot be read."""
    found = Listing()
    waiting: collections.deque[tuple[str, str, tuple[tuple[int, int], ...]]] = collections.deque()
    waiting.append((os.fspath(root), "", (_identity(os.fspath(root)),)))
    while waiting:
        where, prefix, above = waiting.popleft()
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(where, error) from error
        for entry in entries:
            path = prefix + entry.name
            if is_hidden(entry.name):
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:  # what it points to does not exist, or it points to itself
                found.skip("broken link", path)
                continue
            if stat.S_ISREG(mode):
                found.add(path)
            elif not stat.S_ISDIR(mode):
                found.skip("pipe, socket or device", path)
            elif (identity := _identity(entry.path)) in above:
                found.skip("link back to a folder above it", path)
            else:
                found.folders.add(path)
                waiting.append((entry.path, path + "/", (*above, identity)))
    return found


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _unreadable(folder: str, error: OSError) -> UserError:
    return UserError(f"folder {folder} cannot be read ({error.strerror}): make it readable")


def list_tar(path: Path) -> Listing:
    """The images of an uncompressed tar file. A .tar inside it is a folder of its name, as ImageNet's training images
    come. Raises UserError for a file that is compressed, damaged or not a tar file."""
    found = Listing()
    try:
        _list_members(path, 0, "", found)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged, compressed or not a .tar file ({error}): unpack it and give the folder"
        ) from error
    return found


def _list_members(path: Path, start: int, prefix: str, found: Listing) -> None:
    with open(path, "rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                parts = [part for part in (prefix + member.name).split("/") if part not in ("", ".")]
                if not parts or any(map(is_hidden, parts)):
                    continue
                name = "/".join(parts)
                found.folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
                if member.isdir():
                    found.folders.add(name)
                elif not member.isreg() or member.issparse():
                    found.skip("link or special file", name)
                elif name.endswith(".tar") and member.size:
                    found.folders.add(name.removesuffix(".tar"))
                    _list_members(path, member.offset_data, name.removesuffix(".tar") + "/", found)
                else:
                    found.add(name, Span(str(path), member.offset_data, member.size))


def class_text(name: str) -> str:
    """A folder's name as a class name: in Unicode's composed form (NFC), bytes that are not UTF-8 as escapes, so that
    it is the same on every system and can be stored and printed."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
