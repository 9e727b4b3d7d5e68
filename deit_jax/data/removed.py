"""Images that a run found unreadable and that were removed since. They keep their places in the run's data, so that the
run continues as it did while they were there: each is replaced by the next image, and an evaluation counts it as
before.

FOLDER/broken-P.json    what process P of a run, or of a label store, could not read
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deit_jax.errors import UserError
from deit_jax.runtime import atomic


class BrokenFile(NamedTuple):
    """A file that could not be read.

    Attributes:
      split: of its data, as the source names it.
      name: its path below the source's root.
      position: in the source.
      label: its class's name.
      size: bytes.
      digest: SHA-256 of its bytes, in hex digits; "" where the source is known by sizes alone.
    """

    split: str
    name: str
    position: int
    label: str
    size: int
    digest: str = ""


class BrokenRecord:
    """The files that one process of a run could not read, kept in the run's folder from the moment each is found."""

    def __init__(self, folder: Path, process_index: int = 0):
        self._path = folder / f"broken-{process_index}.json"
        self._files = _read(self._path)
        self._lock = threading.Lock()  # evaluation images are checked in the background

    def add(self, source: Any, position: int) -> None:
        """Note an unreadable image of a source; one that is not a file of its own cannot be removed, and is passed
        over. A record that cannot be written must not end a run."""
        while hasattr(source, "positions"):
            source, position = source.source, int(source.positions[position])
        if not hasattr(source, "broken_file") or position in source.removed:
            return
        with contextlib.suppress(UserError, OSError), self._lock:
            found = source.broken_file(position)
            if found not in self._files:
                self._files.append(found)
                atomic.write_json(self._path, [file._asdict() for file in self._files])


def read_broken(folder: Path) -> list[BrokenFile]:
    """What the run of a folder and the runs inside it (its teacher, a study's) recorded."""
    found = [
        file for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}broken-*.json") for file in _read(path)
    ]
    return list(dict.fromkeys(found))


def _read(path: Path) -> list[BrokenFile]:
    """One record; [] where it is not there or is damaged: then the data counts as changed."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = [BrokenFile(**fields) for fields in json.loads(path.read_text())]
        for file in found:
            bytes.fromhex(file.digest)
            if not (isinstance(file.name, str) and file.position >= 0 and file.size >= 0):
                raise ValueError("not a file")
        return found
    return []


def removed_positions(source: Any) -> frozenset[int]:
    """The positions of a source whose files were removed."""
    if hasattr(source, "positions"):
        inner = removed_positions(source.source)
        return frozenset(np.flatnonzero(np.isin(source.positions, list(inner))).tolist()) if inner else inner
    return frozenset(getattr(source, "removed", ()))


def removed_files(sources: Iterable[Any]) -> list[BrokenFile]:
    """The files of some sources that were removed."""
    found = []
    for source in sources:
        while hasattr(source, "positions"):
            source = source.source
        found += getattr(source, "removed", {}).values()
    return list(dict.fromkeys(found))


def describe_removed(files: Sequence[BrokenFile]) -> list[str]:
    """The note about removed files, [] without any."""
    if not files:
        return []
    first = f"{files[0].name}{' …' if len(files) > 1 else ''}"
    images, they = (f"{len(files)} images", "them") if len(files) > 1 else ("1 image", "it")
    return [f"{images} removed after the run recorded {they} as unreadable ({first}): passed over as before"]
