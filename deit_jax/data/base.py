"""What a source of images is, and the plain kinds: pixels in memory, files, a part of another source."""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from deit_jax.errors import UserError, printable
from deit_jax.randomness import generator

# cached_property; but a type checker takes that for another kind of attribute than a property, which a source has.
cached = property if TYPE_CHECKING else functools.cached_property

# The held-out images do not follow config.seed: runs with other seeds are measured on the same images, and a teacher
# trained with another seed has not seen them.
HOLDOUT_SEED = 0


@runtime_checkable
class Source(Protocol):
    """Images with labels by position. `image` is encoded bytes or uint8 pixels (height, width[, 3])."""

    num_classes: int
    class_names: list[str]
    title: str  # where the images are, to print

    @property
    def notes(self) -> Sequence[str]:
        """What was passed over or assumed: lines to print."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when the images or labels do."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": …, "label": int, "name": str}. Raises OSError naming what cannot be read."""
        ...


def spread(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a random fraction of the labels, spread evenly over the classes; at least one, never all."""
    count = min(max(round(len(labels) * fraction), 1), len(labels) - 1)
    shuffled = generator(seed, "subset").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.sort(by_class[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)])


def hold_out(source: Source, labels: np.ndarray, share: float) -> tuple[Source | None, Source]:
    """Split by image, evenly over the classes, the same way every time: (training part, held-out part).

    Args:
      labels: of the images, int (n,); all alike where they are not known.
      share: fraction of the images that is held out. 1 holds everything out, and the training part is None; 0 nothing:
        evaluation then takes the training images.

    Raises UserError where a class would keep no image to train on.
    """
    if share >= 1:
        return None, source
    if share <= 0:
        title = f"{source.title}, the training images themselves: none are held out"
        return source, Subset(source, np.arange(len(source)), title=title, notes=())
    if len(source) < 2:
        raise UserError(f"there is only 1 image in {source.title}: holding one out for evaluation needs at least 2")
    held = spread(labels, share, HOLDOUT_SEED)
    if len(np.unique(np.delete(labels, held))) < len(np.unique(labels)):
        raise UserError(
            f"holding out {share:.0%} of {source.title} leaves a class without a training image: add images, or use"
            " --config.data.holdout=0"
        )
    title = f"{source.title}, {len(held) / len(source):.0%} held out"
    train = Subset(source, np.setdiff1d(np.arange(len(source)), held), title=source.title)
    return train, Subset(source, held, title=title, notes=())


def summary(train: Source | None, evaluation: Source) -> list[str]:
    """What is used for training and evaluation, with counts, and what is passed over: lines to print."""
    lines = []
    for what, source in (("training", train), ("evaluation", evaluation)):
        if source is not None:
            labels, classes = getattr(source, "labels", None), f"{source.num_classes} classes"
            here = source.num_classes if labels is None else len(np.unique(labels))
            classes = f"{here} of {classes}" if here < source.num_classes else classes
            lines.append(f"{what}: {len(source):,} images of {classes}, {printable(source.title)}")
    notes = list(dict.fromkeys(note for source in (train, evaluation) if source is not None for note in source.notes))
    return lines + notes


def not_used(what: Sequence[str]) -> list[str]:
    """The note of what a source passed over."""
    return [f"not used: {', '.join(what)}"] if what else []


def limit_images(source: Source, limit: int) -> Source:
    """At most `limit` images (0: all), the same ones each time; evenly over the classes where the labels are known
    without reading the images."""
    if not limit or limit >= len(source):
        return source
    labels = getattr(source, "labels", np.zeros(len(source), np.int32))
    return Subset(source, spread(labels, limit / len(source), HOLDOUT_SEED))


def file_names(source: Source) -> list[str]:
    """The image files that a source, or what it is a part of, reads; [] for one that is not made of files."""
    while isinstance(source, Subset):
        source = source.source
    return [os.fsdecode(name) for name in source.names] if isinstance(source, FileSource) else []


class ArraySource:
    """Pixels in memory: uint8 (n, height, width[, 3]) and labels (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], name: str = "image"):
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.name = self.title = name
        self.notes: Sequence[str] = ()

    @cached
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index]), "name": f"{self.name}[{index}]"}


class FileSource:
    """Image files: paths below `root` and labels (n,)."""

    def __init__(
        self,
        root: str | os.PathLike,
        names: Sequence[str],
        labels: np.ndarray,
        class_names: Sequence[str],
        title: str = "",
        notes: Sequence[str] = (),
    ):
        self.root, self.title, self.notes = os.fspath(root), title or os.fspath(root), list(notes)
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.names = np.array([os.fsencode(name) for name in names])  # one block: cheap to send to worker processes
        self.labels = np.asarray(labels, np.int32)

    @cached
    def fingerprint(self) -> str:
        """Of names, sizes and labels. Raises UserError for a file that is gone."""
        digest = hashlib.sha256(repr(self.class_names).encode("utf-8", "backslashreplace"))
        try:
            sizes = np.fromiter((os.path.getsize(self.path(index)) for index in range(len(self))), np.int64)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): restore it") from error
        for part in (self.names, sizes, self.labels):
            digest.update(part.data)
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

    def __init__(self, source: Source, positions: np.ndarray, *, title: str = "", notes: Sequence[str] | None = None):
        self.source, self.positions = source, np.asarray(positions, np.int64)
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self.title = title or source.title
        self.notes = source.notes if notes is None else list(notes)
        self.several_labels = getattr(source, "several_labels", False)

    @cached
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.positions.tobytes()).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        """int32 (n,); AttributeError where the source does not know its labels without reading its images."""
        return getattr(self.source, "labels")[self.positions]  # noqa: B009

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.positions[index])]


class Whole(Subset):
    """All images of a source, shown in another way; the fingerprint is that of the source."""

    def __init__(self, source: Source, *, notes: Sequence[str] | None = None):
        super().__init__(source, np.arange(len(source)), notes=notes)

    @cached
    def fingerprint(self) -> str:
        return self.source.fingerprint
