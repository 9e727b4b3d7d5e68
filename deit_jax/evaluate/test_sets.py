"""Data to evaluate on, from the files people have: every labelled image of it, whatever its layout.

`open_eval_set("NAME=ROOT,labels=FILE,split=NAME")`. ROOT is a folder of class folders (their names may be WordNet ids,
names or numbers, see `deit_jax.classes.match`), a folder of such folders by split, a flat folder with a label file (see
`deit_jax.data.label_files`), a .csv table, shards of `deit-jax prepare`, parquet, or a TFDS data_dir. NAME alone is a
TFDS dataset, digits, or hf:user/name.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deit_jax.classes.match import ClassMap, match_classes
from deit_jax.data import shards
from deit_jax.data.base import FileSource, Source, Whole, limit_images
from deit_jax.data.folders import scan_folder
from deit_jax.data.label_files import FileLabels, read_label_file
from deit_jax.data.listing import TAR_HINT, is_hidden, is_image_name, is_tar_name, list_images
from deit_jax.data.sources import open_digits, open_stored
from deit_jax.data.splits import EVAL_SPLITS, Splits, split_of
from deit_jax.errors import UserError, nearest
from deit_jax.runtime import storage

SUBSETS_OF_TFDS = ("imagenet_a", "imagenet_r")  # 200 classes each, which their own metadata do not tell


class EvalSet(NamedTuple):
    """Labelled images to evaluate on.

    Attributes:
        name: heading of its column in tables.
        source: the images.
        note: what a reader should know of them, or "".
    """

    name: str
    source: Source
    note: str = ""


class Spec(NamedTuple):
    """What `--data=` names; `root` is None for a dataset of TFDS and for digits."""

    name: str
    root: Path | None
    labels: str = ""
    split: str = ""


def parse_spec(text: str) -> Spec:
    """The parts of `[NAME=]ROOT[,labels=FILE][,split=NAME]`; another comma is part of a path.

    Raises UserError where there is no such folder.
    """
    where, *options = re.split(r",(?=(?:labels|split)=)", text)
    given = dict(option.split("=", 1) for option in options)
    name, equals, root = where.partition("=")
    if not equals or name.startswith(("/", ".", "~")):
        name, root = "", where
    path = storage.as_path(root)
    if path.exists():
        return Spec(name or path.resolve().name, path, **given)
    if equals or not re.fullmatch(r"\w+([/:][\w.-]+)*", root) or given:
        raise UserError(f"--data {text}: {root} does not exist: give NAME=FOLDER, a .csv table or a TFDS name")
    return Spec(root, None)


def open_eval_set(text: str) -> EvalSet:
    """Open what a `--data=` names. Raises UserError for what is missing, empty or without labels."""
    spec = parse_spec(text)
    root = spec.root
    if root is None and spec.name == "digits":
        return EvalSet("digits", open_digits()[1], "the held-out fifth")
    if root:
        shards.check_place(root, "--data")
    if stored := open_stored(root, spec.name, Splits(evaluation=spec.split, holdout=1.0)):
        return EvalSet(spec.name, stored[1])
    assert root
    if not root.is_dir():
        right = TAR_HINT if is_tar_name(root) else "give one, or a .csv table of path,label"
        raise UserError(f"--data {root} is not a folder: {right}")
    folder = _split_folder(root, spec)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not is_hidden(entry.name))
    flat = [name for name in names if is_image_name(name)]
    if spec.labels or flat:
        return _with_labels(spec, folder, flat)
    return EvalSet(spec.name, scan_folder(folder))


def _split_folder(root: Path, spec: Spec) -> Path:
    """The folder of the split to evaluate on: `spec.split`, else validation, val or test, else root itself."""
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if spec.split:
        if spec.split not in folders:
            raise UserError(f"split '{spec.split}' is not a folder of {root}{nearest(spec.split, folders)}")
        return root / spec.split
    splits = [name for name in folders if split_of(name)]
    found = [name for split in EVAL_SPLITS for name in splits if name.lower() == split]
    if splits and not found:
        raise UserError(f"{root} has a folder of training images but none to evaluate on: add split=train to use it")
    return root / found[0] if found else root


def _with_labels(spec: Spec, folder: Path, flat: list[str]) -> EvalSet:
    """Images whose labels stand in a file: those in the folder itself, else those in its class folders."""
    if not spec.labels:
        raise UserError(
            f"{folder} holds images but no class folders: add labels=FILE to --data, a .csv of name,class, ReaL's"
            " real.json or ImageNet's development kit"
        )
    file, paths = Path(spec.labels).expanduser(), flat or sorted(list_images(folder).images)
    labels = read_label_file(file, paths)
    source = LabelledFiles(folder, paths, labels)
    note = f"labels of {file}" + (f", {source.left_out} images without a right class left out" * bool(source.left_out))
    if labels.missing:
        shown = ", ".join(labels.missing[:3])
        note += f"; {len(labels.missing)} of its images are not in {folder}: {shown}, …"
    return EvalSet(spec.name, source, note)


class LabelledFiles(FileSource):
    """Image files with the labels of a file; an image may have several right ones (ReaL), those without any are left
    out, as Beyer et al. 2020 count.

    Attributes:
        several_labels: whether samples have "labels", all the right ones.
        left_out: how many images have no right class.
    """

    def __init__(self, folder: Path, paths: Sequence[str], labels: FileLabels):
        right = labels.right
        kept = [path for path in paths if right[path]]
        if not kept:
            raise UserError(f"no image of {folder} has a right class")
        super().__init__(folder, kept, np.array([right[path][0] for path in kept]), labels.class_names)
        self.several_labels, self.left_out = labels.several, len(paths) - len(kept)
        self.right = [np.array(right[path], np.int32) for path in kept]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return sample | {"labels": self.right[index]} if self.several_labels else sample


def present_classes(source: Source) -> np.ndarray:
    """The sorted labels that occur; those of TFDS's are taken from its metadata, where they are right.

    ImageNet-A and -R of TFDS are read through for theirs.
    """
    if isinstance(source, LabelledFiles):
        return np.unique(np.concatenate(source.right))
    labels = getattr(source, "labels", None)
    if labels is None and source.title.startswith(SUBSETS_OF_TFDS):
        labels = [source[i]["label"] for i in range(len(source))]
    return np.arange(source.num_classes) if labels is None else np.unique(labels)


def match_source(
    source: Source,
    model_names: Sequence[str] | None,
    num_outputs: int,
    *,
    limit: int = 0,
    data: str = "the data",
    model: str = "the weights",
) -> tuple[ClassMap, "MappedSource"]:
    """`match_classes` of the classes that occur, and at most `limit` images (0: all) with the model's logits as labels.

    data, model: what errors call both, as `match_classes`.
    """
    present = present_classes(source)
    classes = match_classes(
        [source.class_names[i] for i in present], model_names, num_outputs, subset=True, data=data, model=model
    )
    outputs = np.full(source.num_classes, -1, np.int32)
    outputs[present] = classes.outputs
    return classes, MappedSource(limit_images(source, limit), outputs, num_outputs)


class MappedSource(Whole):
    """A source whose labels are a model's logits; outputs: the logit of each label, -1 for one that never occurs."""

    def __init__(self, source: Source, outputs: np.ndarray, num_outputs: int):
        super().__init__(source)
        self.outputs, self.num_classes = outputs, num_outputs
        self.class_names = [str(i) for i in range(num_outputs)]

    @property
    def labels(self) -> np.ndarray:
        return self.outputs[super().labels]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.source[index])
        sample["label"] = int(self.outputs[sample["label"]])
        if self.several_labels:
            sample["labels"] = self.outputs[sample["labels"]]
        return sample
