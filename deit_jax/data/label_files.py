"""Labels that stand in a file of their own, beside images that are not sorted into class folders.

| file | one entry per image, as |
|---|---|
| ImageNet's development kit, its folder or ILSVRC2012_devkit_t12.tar.gz | ILSVRC2012_ID, which its meta.mat explains |
| its ILSVRC2012_validation_ground_truth.txt, with meta.mat in the same folder | the same |
| .csv | name,class; or Kaggle's LOC_val_solution.csv: name,class and boxes |
| .txt | name and class; or a class alone, in the order of the file names |
| .json | ReaL's: a list of right class numbers, in the order of the file names (Beyer et al. 2020) |
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deit_jax.classes import imagenet
from deit_jax.classes.match import sort_classes
from deit_jax.errors import UserError, first_line

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
BESIDE = (DEVKIT, DEVKIT.removesuffix(".tar.gz"), "LOC_val_solution.csv")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


class FileLabels(NamedTuple):
    """What a label file says.

    Attributes:
        class_names: the classes it uses, in the order of their numbers.
        by_name: {file name, with its ending or without: numbers of its right classes}.
        missing: names of the file that belong to no image.
        several: whether an image may have several right classes, or none.
    """

    class_names: list[str]
    by_name: dict[str, list[int]]
    missing: list[str]
    several: bool = False


def find_beside(folder: Path) -> Path | None:
    """A development kit or Kaggle's table in the folder or the one above it; None where there is none."""
    places = (place / name for place in (folder, folder.parent) for name in BESIDE)
    return next((path for path in places if path.exists()), None)


def read_label_file(path: Path, images: Sequence[str]) -> FileLabels:
    """The right classes of each image.

    Args:
        path: one of the files above.
        images: names of the image files, without folders.

    Raises:
        UserError: for a file of another form, and where images have no label (three are named).
    """
    if not path.exists():
        raise UserError(f"labels {path} are not there: give a .csv, .txt or .json file, or ImageNet's development kit")
    try:
        labels = _read(path, images)
    except (OSError, ValueError, KeyError, TypeError, csv.Error, tarfile.TarError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"labels {path} cannot be read ({first_line(error)}): {_FORMS}") from error
    without = [name for name in images if name not in labels.by_name and Path(name).stem not in labels.by_name]
    if without:
        raise UserError(
            f"{len(without)} images have no label in {path}: {_three(without)}: add them, or move them away"
        )
    there = {*images, *(Path(name).stem for name in images)}
    return labels._replace(missing=[name for name in labels.by_name if name not in there])


_FORMS = "it must be name,class lines, a class per line, ReaL's list or ImageNet's development kit"


def _read(path: Path, images: Sequence[str]) -> FileLabels:
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _in_order(read_devkit(path), images, path)
    if path.suffix == ".json":
        return _read_real(path, images)
    if path.suffix == ".csv":
        return _named(_read_table(path))
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if rows and all(len(row) == 2 for row in rows):
        return _named({Path(name).name: label for name, label in rows})
    if not rows or any(len(row) != 1 for row in rows):
        raise ValueError("its lines are neither a class nor a name and a class")
    labels = [row[0] for row in rows]
    if all(label.isdecimal() for label in labels):  # development kit's ids: another order than the models' outputs
        if not (path.parent / META).is_file():
            raise UserError(
                f"labels {path} are numbers of ImageNet's development kit, whose {META} is not beside them:"
                " give the kit's folder, or a .csv of name,class"
            )
        labels = read_devkit(path.parent)
    return _in_order(labels, images, path)


def _read_table(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if rows and rows[0][-1] == "PredictionString":  # Kaggle: "n01751748 111 108 230 366 n01751748 …"
        return {name: prediction.split()[0] for name, prediction in rows[1:]}
    if rows and rows[0][0].lower() in ("path", "name", "file", "filename", "image"):
        rows = rows[1:]
    wrong = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if wrong or not rows:
        raise ValueError(f"'{','.join(wrong or [])}' is not name,class")
    return {Path(name).name: label for name, label in rows}


def _read_real(path: Path, images: Sequence[str]) -> FileLabels:
    entries = json.loads(path.read_text())
    if not isinstance(entries, list) or not all(isinstance(entry, list) for entry in entries):
        raise ValueError("it is not a list of lists")
    if not all(isinstance(label, int) and 0 <= label < 1000 for entry in entries for label in entry):
        raise ValueError("its entries are not class numbers from 0 to 999")
    names = _names_in_order(len(entries), images, path)
    return FileLabels(imagenet.synsets(), dict(zip(names, entries, strict=True)), [], several=True)


def read_devkit(kit: Path) -> list[str]:
    """The WordNet ids of ImageNet's 50,000 validation images, in the order of their file names.

    The truth file's numbers are the ILSVRC2012_ID of meta.mat, not the order of the models' outputs.

    Args:
        kit: ILSVRC2012_devkit_t12.tar.gz, its folder, or the folder of both files.

    Raises:
        UserError: where one of its two files is missing or damaged.
    """
    from scipy.io import loadmat

    found = _kit_files(kit)
    for name in (TRUTH, META):
        if name not in found:
            raise UserError(f"{kit} holds no {name}: give ImageNet's development kit, {DEVKIT} or its folder")
    try:
        synsets = loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        classes = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        return [classes[int(number)] for number in found[TRUTH].split()]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{META} or {TRUTH} of {kit} is damaged ({first_line(error)}): fetch it again") from error


def _kit_files(kit: Path) -> dict[str, bytes]:
    """The bytes of the truth file and of meta.mat, as far as they are there."""
    if kit.is_dir():
        paths = (path for path in sorted(kit.rglob("*")) if path.name in (TRUTH, META))
        return {path.name: path.read_bytes() for path in paths}
    out = {}
    with tarfile.open(kit) as opened:
        for member in opened:
            name = Path(member.name).name
            file = opened.extractfile(member) if name in (TRUTH, META) else None
            if file:
                out[name] = file.read()
    return out


def _named(classes: dict[str, str]) -> FileLabels:
    """Of {file name: class}."""
    class_names = sort_classes(set(classes.values()))
    number = {name: i for i, name in enumerate(class_names)}
    return FileLabels(class_names, {name: [number[label]] for name, label in classes.items()}, [])


def _in_order(classes: Sequence[str], images: Sequence[str], path: Path) -> FileLabels:
    return _named(dict(zip(_names_in_order(len(classes), images, path), classes, strict=True)))


def _names_in_order(count: int, images: Sequence[str], path: Path) -> list[str]:
    """The names that a list of `count` entries belongs to: ImageNet's validation images by their number, others where
    there are just as many."""
    if images and all(VALIDATION_NAME.match(name) for name in images):
        return [f"ILSVRC2012_val_{number:08}" for number in range(1, count + 1)]
    if count != len(images):
        raise UserError(
            f"{path} has {count} entries for {len(images)} images, whose names do not tell which is which:"
            " give all the images, or a .csv of name,class"
        )
    return sorted(images)


def _three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
