"""Image folders and lists of image files."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_jax.data.base import FileSource, Source, hold_out
from deit_jax.errors import UserError, nearest

EXTENSIONS = frozenset(".jpg .jpeg .jpe .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif .tga .ico".split())
EVAL_SPLITS = ("validation", "val", "test")


def open_folder(root: str, *, train_split: str, eval_split: str, holdout: float) -> tuple[Source | None, Source]:
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


def open_csv(path: str, *, train_split: str, eval_split: str, holdout: float) -> tuple[Source | None, Source]:
    """A table of image paths and labels, one a line: `path,label` or `path,label,split`.

    Paths are relative to the table's folder. Labels are class names, numbered in sorted order, or numbers from 0. A
    first line that starts with "path" is a heading. With splits, the evaluation split is `eval_split` or whichever of
    validation, val and test occurs; without one, `holdout` of the training images is kept for it.
    """
    rows = _table_rows(path)
    given = [row[1] for row in rows]
    if all(label.isdecimal() for label in given):
        labels = np.array([int(label) for label in given], np.int32)
        class_names = [str(number) for number in range(labels.max() + 1)]
    else:
        class_names, labels = np.unique(given, return_inverse=True)
        class_names, labels = class_names.tolist(), labels.astype(np.int32)
    folder = Path(path).parent
    if not (folder / rows[0][0]).is_file():
        raise UserError(f"{path} names {rows[0][0]}, which is no file: paths are taken from the table's own folder")

    def part(chosen: np.ndarray) -> FileSource:
        names = [rows[i][0] for i in chosen]
        return FileSource(folder, names, labels[chosen], class_names)

    splits = np.array([row[2] if len(row) > 2 else train_split for row in rows])
    present = set(splits.tolist())
    if train_split not in present:
        raise UserError(
            f"data.train_split '{train_split}' does not occur in {path}{nearest(train_split, present)}: "
            f"it has {', '.join(sorted(present))}"
        )
    train = part(np.flatnonzero(splits == train_split))
    found = [name for name in ([eval_split] if eval_split else EVAL_SPLITS) if name in present]
    if found:
        return train, part(np.flatnonzero(splits == found[0]))
    if eval_split:
        raise UserError(
            f"data.eval_split '{eval_split}' does not occur in {path}{nearest(eval_split, present)}: "
            f"it has {', '.join(sorted(present))}"
        )
    return hold_out(train, train.labels, holdout)


def _table_rows(path: str) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if row]
    if rows and rows[0][1][0].lower() == "path":
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path} lists no image: each line is path,label")
    for number, row in rows:
        if len(row) not in (2, 3) or not all(row):
            raise UserError(f"{path}, line {number} is '{','.join(row)}': it must be path,label or path,label,split")
    return [row for _, row in rows]
