"""Which image files there are below a folder or in a tar file, and which files are passed over.

Names that begin with a dot are hidden and left out, and so is what operating systems add (`HIDDEN`). Links of a folder
are followed.
"""

import dataclasses
import os
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
      skipped: paths of the files passed over, by their ending or what they are.
    """

    images: dict[str, Span | None] = dataclasses.field(default_factory=dict)
    labels: dict[str, Span | None] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, path: str, span: Span | None = None) -> None:
        """Take in a file."""
        ending = os.path.splitext(path)[1].lower()
        if is_image_name(path):
            self.images[path] = span
            return
        if ending in LABELS:
            self.labels[path] = span
        self.skip(f"{ending} file" if ending else "file without an ending", path)

    def skip(self, kind: str, path: str) -> None:
        """Take in a file that is passed over."""
        self.skipped.setdefault(kind, []).append(path)

    def describe_skipped(self) -> list[str]:
        """ "3 .txt files (a/notes.txt …)"."""
        several = lambda paths, mark: mark if len(paths) > 1 else ""
        return [
            f"{len(paths)} {kind}{several(paths, 's')} ({printable(min(paths))}{several(paths, ' …')})"
            for kind, paths in sorted(self.skipped.items())
        ]


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
    found, root = Listing(), os.path.abspath(root)

    def unreadable(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read ({error.strerror}): make it readable") from error

    for parent, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        prefix = os.path.join(os.path.relpath(parent, root), "").removeprefix("./")
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in list(folders):
            path = Path(parent, name)
            if path.is_symlink() and any(path.samefile(above) for above in path.parents):
                found.skip("link back to a folder above it", prefix + name)
                folders.remove(name)
        found.folders |= {prefix + name for name in folders}
        for name in files:
            if is_hidden(name):
                continue
            if os.path.isfile(os.path.join(parent, name)):
                found.add(prefix + name)
            else:
                found.skip("special file or broken link", prefix + name)
    return found


def class_text(name: str) -> str:
    """A folder's name as a class name, bytes that are not UTF-8 as escapes, so that it can be stored and printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
