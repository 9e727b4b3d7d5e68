"""Labels that stand in a file of their own, beside images that are not sorted into class folders.

| file | one entry per image, as |
|---|---|
| ImageNet's development kit, its folder or ILSVRC2012_devkit_t12.tar.gz | ILSVRC2012_ID, which its meta.mat explains |
| .csv, .tsv | path,class; or Kaggle's LOC_val_solution.csv: name,class and boxes |
| .json | ReaL's: a list of right class numbers, in the order of the file names (Beyer et al. 2020) |

A table's path is that below the images' folder, or the file's name where one image has it, with its ending or without.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar, cast

from deit_jax.classes import imagenet
from deit_jax.classes.match import sort_classes
from deit_jax.data.splits import preview
from deit_jax.data.table import check_labels, is_table, read_rows
from deit_jax.errors import UserError, first_line

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
EXPECTED_LABELS = "a .csv of path,class, ReaL's .json or ImageNet's development kit"

T = TypeVar("T")


class FileLabels(NamedTuple):
    """What a label file says.

    Attributes:
        class_names: the classes it uses, in the order of their numbers.
        right: {path of an image: numbers of its right classes}.
        missing: names of the file that belong to no image.
        several: whether an image may have several right classes, or none.
    """

    class_names: list[str]
    right: dict[str, list[int]]
    missing: list[str]
    several: bool = False


def read_label_file(path: Path, images: Sequence[str]) -> FileLabels:
    """The right classes of each image. path: one of the files above; images: paths of the files below their folder.

    Raises UserError for a file of another form, a name that may be two images or has two labels, and where images have
    no label (some are named).
    """
    if not path.exists():
        raise UserError(f"labels {path} do not exist: give {EXPECTED_LABELS}")
    try:
        class_names, by_name, several = _read(path, images)
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"labels {path} cannot be read ({first_line(error)}): give {EXPECTED_LABELS}") from error
    of_image = match_names(list(by_name), images, str(path))
    without = [name for name in images if name not in of_image]
    if without:
        raise UserError(f"{len(without)} images have no label in {path}: {preview(without)}: add it or move them")
    missing = sorted(by_name.keys() - of_image.values())
    return FileLabels(class_names, {image: by_name[of_image[image]] for image in images}, missing, several)


def _read(path: Path, images: Sequence[str]) -> tuple[list[str], dict[str, list[int]], bool]:
    """(class names, {name in the file: numbers of its right classes}, whether they may be several or none)."""
    if path.suffix == ".json":
        entries = json.loads(path.read_text())
        labels = [label for entry in entries for label in entry]
        if not isinstance(entries, list) or not all(isinstance(label, int) and 0 <= label < 1000 for label in labels):
            raise ValueError("it is not a list of lists of class numbers from 0 to 999")
        return imagenet.synsets(), _in_order(entries, images, path), True
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".tar")):
        classes = _in_order(read_devkit(path), images, path)
    elif is_table(path):
        classes = read_labels(path)
    else:
        raise ValueError("its ending is not .csv, .tsv or .json")
    class_names = sort_classes(set(classes.values()))
    number = {name: i for i, name in enumerate(class_names)}
    return class_names, {name: [number[label]] for name, label in classes.items()}, False


def read_labels(path: Path) -> dict[str, str]:
    """{path: class} of a table. Raises UserError for a path with two labels."""
    found: dict[str, str] = {}
    for row in read_rows(path):
        if row.split:
            raise ValueError(f"'{row.path},{row.label},{row.split}' is not name,class")
        boxes = re.match(r"(n\d{8})( \d+){4}", row.label)  # Kaggle's "n01751748 111 108 230 366 …"
        label = boxes[1] if boxes else row.label
        if found.setdefault(row.path, label) != label:
            raise UserError(f"{path}, line {row.line}: {row.path} has two labels, {found[row.path]} and {label}")
    check_labels(set(found.values()), path)
    return found


def match_names(names: Sequence[str], images: Sequence[str], where: str) -> dict[str, str]:
    """The name that stands for each image, {path of the image: name}; images without one are left out.

    A name is the image's path below its folder, or its file's name, with its ending or without. Raises UserError for a
    name that may be two images, or two names of one image.
    """
    known = {os.path.normpath(name): name for name in names}
    image_of: dict[str, str] = {}
    for image in images:
        forms = [form for path in (image, os.path.basename(image)) for form in (path, os.path.splitext(path)[0])]
        fits = {known[form] for form in forms if form in known}
        if len(fits) > 1:
            raise UserError(
                f"{where} has {' and '.join(sorted(fits))}, both maybe {image}: write paths below its folder"
            )
        for name in fits:
            other = image_of.setdefault(name, image)
            if other != image:
                raise UserError(f"{where} has {name}, which may be {other} or {image}: write paths below its folder")
    return {image: name for name, image in image_of.items()}


def read_devkit(kit: Path) -> list[str]:
    """The WordNet ids of ImageNet's 50,000 validation images, in the order of their file names.

    The truth file's numbers are the ILSVRC2012_ID of meta.mat, not the order of the models' outputs. kit:
    ILSVRC2012_devkit_t12.tar.gz, its folder, or the folder of both files. Raises UserError where one is missing.
    """
    from scipy.io import loadmat

    try:
        if kit.is_dir():
            found = {path.name: path.read_bytes() for path in kit.rglob("*") if path.name in (TRUTH, META)}
        else:
            with tarfile.open(kit) as opened:
                wanted = {Path(name).name: name for name in opened.getnames() if Path(name).name in (TRUTH, META)}
                found = {name: cast(IO[bytes], opened.extractfile(path)).read() for name, path in wanted.items()}
        synsets = loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        classes = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        return [classes[int(number)] for number in found[TRUTH].split()]
    except (OSError, ValueError, KeyError, TypeError, IndexError, tarfile.TarError) as error:
        raise UserError(
            f"{kit} holds no readable {META} and {TRUTH} ({first_line(error)}): give {DEVKIT} or its folder"
        ) from error


def _in_order(entries: Sequence[T], images: Sequence[str], path: Path) -> dict[str, T]:
    """{image: entry} of a list in the order of the files' names, whatever their folders; there must be as many."""
    by_name = {os.path.basename(image): image for image in images}
    if not len(entries) == len(images) == len(by_name):
        raise UserError(
            f"{path} has {len(entries)} entries for {len(images)} images of {len(by_name)} names: give all or a .csv of"
            " path,class"
        )
    return {by_name[name]: entry for name, entry in zip(sorted(by_name), entries, strict=True)}
