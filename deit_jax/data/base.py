"""What a source of images is, and the plain kinds: pixels in memory, files, a part of another source."""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from deit_jax.data import order
from deit_jax.errors import UserError

# The held-out share does not follow config.seed: runs with other seeds are measured on the same images, and a teacher
# trained with another seed has not seen them.
HOLDOUT_SEED = 0


class Source(Protocol):
    """Images with labels by position. `image` is encoded bytes or uint8 pixels (height, width[, 3])."""

    num_classes: int
    class_names: list[str]  # by label

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when the images or labels do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": …, "label": int, "name": str}"""


def hold_out(source: Source, labels: np.ndarray, share: float) -> tuple[Source | None, Source]:
    """Split by image, evenly over the classes, the same way every time: (training part, held-out part).

    A share of 1 holds everything out: (None, source).
    """
    if share >= 1:
        return None, source
    if len(source) < 2:
        raise UserError("there is only 1 image: holding one out for evaluation needs at least 2")
    held = order.spread(labels, share, HOLDOUT_SEED)
    return Subset(source, np.setdiff1d(np.arange(len(source)), held)), Subset(source, held)


def limit_images(source: Source, limit: int) -> Source:
    """At most `limit` images (0: all), the same ones each time; evenly over the classes where the labels are known
    without reading the images."""
    if not limit or limit >= len(source):
        return source
    labels = getattr(source, "labels", np.zeros(len(source), np.int32))
    return Subset(source, order.spread(labels, limit / len(source), HOLDOUT_SEED))


def check_unchanged(source: Source, recorded: str, name: str) -> None:
    """Raise UserError where `source` no longer holds what it did when its fingerprint was `recorded`."""
    if source.fingerprint != recorded:
        raise UserError(
            f"{name} has changed since the run began (fingerprint {source.fingerprint[:12]}, then {recorded[:12]}): "
            "restore the images, or start anew in another --workdir"
        )


def first_line(error: Exception) -> str:
    """What a library's error says, without the lines that follow; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class ArraySource:
    """Pixels in memory: uint8 (n, height, width[, 3]) and labels (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], name: str = "image"):
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.name = name

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(self.labels)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index]), "name": f"{self.name}[{index}]"}


class FileSource:
    """Image files: paths below `root` and labels (n,)."""

    def __init__(self, root: str | os.PathLike, names: Sequence[str], labels: np.ndarray, class_names: Sequence[str]):
        self.root = os.fspath(root)
        self.names = np.array([os.fsencode(name) for name in names])  # one block: cheap to send to worker processes
        self.labels = np.asarray(labels, np.int32)
        self.class_names, self.num_classes = list(class_names), len(class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of names, sizes and labels, not of the files' bytes: ImageNet's takes seconds, not an hour."""
        sizes = np.array([os.stat(self.path(i)).st_size for i in range(len(self))], np.int64)
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part in (self.names, sizes, self.labels):
            digest.update(part)
        return digest.hexdigest()

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.path(index)
        with open(path, "rb") as file:
            return {"image": file.read(), "label": int(self.labels[index]), "name": path}


class Subset:
    """Some of a source's images, by position."""

    def __init__(self, source: Source, positions: np.ndarray):
        self.source, self.positions = source, np.asarray(positions, np.int64)
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self.several_labels = getattr(source, "several_labels", False)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.positions.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.positions[index])]
