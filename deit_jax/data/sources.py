"""Where images come from: index → (encoded bytes or pixels, label, name)."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_collections
import numpy as np

from deit_jax.data import order
from deit_jax.errors import UserError, nearest

EXTENSIONS = frozenset(".jpg .jpeg .jpe .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .tga .ico".split())
EVAL_SPLITS = ("validation", "val", "test")
# The held-out share does not follow config.seed: runs with other seeds are measured on the same images, and a teacher
# trained with another seed has not seen them.
HOLDOUT_SEED = 0


class Source(Protocol):
    """Images with labels by position. `image` is encoded bytes or uint8 pixels (height, width[, 3])."""

    num_classes: int
    class_names: list[str]

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when the images or labels do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": …, "label": int, "name": str}"""


def open_sources(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
    """The training and the evaluation images that `config.data` names.

    A `root` decides by what it is: image folder, else `data.name` is looked up. Raises UserError for what is missing,
    empty or unknown, and where `model.num_classes` is given and differs.
    """
    data = config.data
    if data.root:
        train, evaluation = open_folder(
            data.root, train_split=data.train_split, eval_split=data.eval_split, holdout=data.holdout
        )
    elif data.name == "digits":
        train, evaluation = open_digits()
    else:
        raise UserError(f"data.name is '{data.name}'{nearest(data.name, ['digits'])}: use digits, or give data.root")
    wanted = config.model.num_classes
    if wanted and wanted != train.num_classes:
        where = data.root or data.name
        raise UserError(
            f"model.num_classes is {wanted} but {where} has {train.num_classes} classes: leave it 0 or set it to that"
        )
    if data.limit and data.limit < len(train):
        drawn = order.generator(config.seed, order.PURPOSE_LIMIT).permutation(len(train))[: data.limit]
        train = Subset(train, np.sort(drawn))
    return train, evaluation


def open_digits() -> tuple[Source, Source]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8, a fifth held out."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)
    whole = ArraySource(pixels, scans.target, [str(name) for name in scans.target_names], name="digits")
    return hold_out(whole, scans.target, 0.2)


def open_folder(root: str, *, train_split: str, eval_split: str, holdout: float) -> tuple[Source, Source]:
    """root/<class>/<image>, or root/<split>/<class>/<image>; classes are numbered in sorted order.

    Without an evaluation split, `holdout` of the training images is kept for it.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"data.root {root} is not a folder: give one that holds a folder of images for each class")
    splits = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    train_folder = folder / train_split if train_split in splits else folder
    if train_folder is folder and train_split != "train":
        raise UserError(
            f"data.train_split '{train_split}' is no folder of {root}{nearest(train_split, splits)}: "
            "name one that is there"
        )
    train, labels = scan_folder(train_folder)
    if train_folder is folder and not eval_split:
        return hold_out(train, labels, holdout)
    found = [name for name in ([eval_split] if eval_split else EVAL_SPLITS) if name in splits]
    if not found and eval_split:
        raise UserError(
            f"data.eval_split '{eval_split}' is no folder of {root}{nearest(eval_split, splits)}: "
            "name one that is there, or leave it empty to hold images out"
        )
    if not found:
        return hold_out(train, labels, holdout)
    return train, scan_folder(folder / found[0], train.class_names)[0]


def scan_folder(folder: Path, class_names: Sequence[str] | None = None) -> tuple["FileSource", np.ndarray]:
    """The images below <folder>/<class>/ and their labels. With `class_names`, only those classes may occur, and
    classes may be missing."""
    present = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not present:
        raise UserError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    known = list(class_names) if class_names is not None else present
    unknown = sorted(set(present) - set(known))
    if unknown:
        raise UserError(f"{folder / unknown[0]} is a class the training images lack{nearest(unknown[0], known)}")
    names, labels = [], []
    for class_name in present:
        found = sorted(_images_below(folder / class_name, class_name))
        if not found:
            raise UserError(f"class folder {folder / class_name} holds no image: add some or remove the folder")
        names += found
        labels += [known.index(class_name)] * len(found)
    labels = np.asarray(labels, np.int32)
    return FileSource(folder, names, labels, known), labels


def _images_below(folder: Path, prefix: str) -> list[str]:
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _images_below(Path(entry.path), f"{prefix}/{entry.name}")
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            found.append(f"{prefix}/{entry.name}")
    return found


def hold_out(source: Source, labels: np.ndarray, share: float) -> tuple[Source, Source]:
    """Split by image, evenly over the classes, the same way every time: (training part, held-out part)."""
    if len(source) < 2:
        raise UserError("there is only 1 image: holding one out for evaluation needs at least 2")
    held = order.spread(labels, share, HOLDOUT_SEED)
    return Subset(source, np.setdiff1d(np.arange(len(source)), held)), Subset(source, held)


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

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.positions.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.positions[index])]
