"""Labels that stand in a file of their own, beside images that are not sorted into class folders.

| file | one entry per image, as |
|---|---|
| ImageNet's development kit, its folder or ILSVRC2012_devkit_t12.tar.gz | ILSVRC2012_ID, which its meta.mat explains |
| its ILSVRC2012_validation_ground_truth.txt, with meta.mat in the same folder | the same |
| .csv, .tsv | path,class; or Kaggle's LOC_val_solution.csv: name,class and boxes |
| .json | ReaL's: a list of right class numbers, in the order of the file names (Beyer et al. 2020) |

A table's path names the image file whose path ends in it, or that ends its path, with its ending or without.
"""

import collections
import io
import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deit_jax.classes import imagenet
from deit_jax.classes.match import sort_classes
from deit_jax.data.table import is_table, read_rows
from deit_jax.errors import UserError, first_line

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
BESIDE = (DEVKIT, DEVKIT.removesuffix(".tar.gz"), "LOC_val_solution.csv")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


class FileLabels(NamedTuple):
    """What a label file says.

    Attributes:
        class_names: the classes it uses, in the order of their numbers.
        by_name: {path or name in the file: numbers of its right classes}.
        of_image: {path of an image: its entry of `by_name`}.
        several: whether an image may have several right classes, or none.
    """

    class_names: list[str]
    by_name: dict[str, list[int]]
    of_image: dict[str, str]
    several: bool = False

    @property
    def missing(self) -> list[str]:
        """Names of the file that belong to no image."""
        found = set(self.of_image.values())
        return [name for name in self.by_name if name not in found]


def find_beside(folder: Path) -> Path | None:
    """A development kit or Kaggle's table in the folder or the one above it; None where there is none."""
    places = (place / name for place in (folder, folder.parent) for name in BESIDE)
    return next((path for path in places if path.exists()), None)


def read_label_file(path: Path, images: Sequence[str]) -> FileLabels:
    """The right classes of each image.

    Args:
        path: one of the files above.
        images: paths of the image files below their folder.

    Raises:
        UserError: for a file of another form, a name that may be two images or has two labels, and where images have
            no label (three are named).
    """
    if not path.exists():
        raise UserError(f"labels {path} are not there: give a .csv or .json file, or ImageNet's development kit")
    try:
        class_names, by_name, several = _read(path, images)
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"labels {path} cannot be read ({first_line(error)}): {_FORMS}") from error
    of_image = match_names(list(by_name), images, str(path))
    without = [name for name in images if name not in of_image]
    if without:
        raise UserError(
            f"{len(without)} images have no label in {path}: {_three(without)}: add them, or move them away"
        )
    return FileLabels(class_names, by_name, of_image, several)


_FORMS = "it must be a table of path,class, ReaL's list or ImageNet's development kit"
Labels = tuple[list[str], dict[str, list[int]], bool]


def _read(path: Path, images: Sequence[str]) -> Labels:
    if path.is_dir() or path.name == TRUTH or path.name.endswith((".tar.gz", ".tgz", ".tar")):
        wnids = read_devkit(path.parent if path.name == TRUTH else path)
        return _numbered(dict(zip(_names_in_order(len(wnids), images, path), wnids, strict=True)))
    if path.suffix == ".json":
        return _read_real(path, images)
    if is_table(path):
        return _numbered(read_labels(path))
    raise ValueError("its ending is not .csv, .tsv or .json")


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
    return found


def match_names(names: Sequence[str], images: Sequence[str], where: str) -> dict[str, str]:
    """The name that stands for each image, {path of the image: name}; images without one are left out.

    Of a name and a path, the shorter one has to be the end of the longer one; the longest name counts. Spellings of
    Unicode (NFC, NFD) are alike. Raises UserError for a name that may be two images, or two names of one image.
    """
    parts = lambda path: unicodedata.normalize("NFC", os.path.normpath(path)).split("/")
    by_stem = collections.defaultdict(list)
    for name in names:
        *above, last = parts(name)
        for stem in {last, os.path.splitext(last)[0]}:
            by_stem[stem].append((above, last, name))
    found, image_of = {}, {}
    for image in images:
        *folders, last = parts(image)
        stem = os.path.splitext(last)[0]
        fits = [
            (len(above), name)
            for above, ending, name in by_stem[last] + [x for x in by_stem[stem] if x[1] == stem]
            if _ends_alike(above, folders)
        ]
        best = [name for depth, name in fits if depth == max(fits)[0]]
        if len(best) > 1:
            raise UserError(
                f"{where} has {best[0]} and {best[1]}, which may both be {image}: write paths below its folder"
            )
        if best:
            other = image_of.setdefault(best[0], image)
            if other != image:
                raise UserError(
                    f"{where} has {best[0]}, which may be {other} or {image}: write paths below their folder"
                )
            found[image] = best[0]
    return found


def _ends_alike(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether the shorter of two lists is the end of the longer one."""
    shorter = min(len(a), len(b))
    return list(a[len(a) - shorter :]) == list(b[len(b) - shorter :])


def _read_real(path: Path, images: Sequence[str]) -> Labels:
    entries = json.loads(path.read_text())
    if not isinstance(entries, list) or not all(isinstance(entry, list) for entry in entries):
        raise ValueError("it is not a list of lists")
    if not all(isinstance(label, int) and 0 <= label < 1000 for entry in entries for label in entry):
        raise ValueError("its entries are not class numbers from 0 to 999")
    names = _names_in_order(len(entries), images, path)
    return imagenet.synsets(), dict(zip(names, entries, strict=True)), True


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


def _numbered(classes: dict[str, str]) -> Labels:
    """Of {path: class}."""
    class_names = sort_classes(set(classes.values()))
    number = {name: i for i, name in enumerate(class_names)}
    return class_names, {name: [number[label]] for name, label in classes.items()}, False


def _names_in_order(count: int, images: Sequence[str], path: Path) -> list[str]:
    """The names that a list of `count` entries belongs to: ImageNet's validation images by their number, others where
    there are just as many."""
    if images and all(VALIDATION_NAME.match(os.path.basename(name)) for name in images):
        return [f"ILSVRC2012_val_{number:08}" for number in range(1, count + 1)]
    if count != len(images):
        raise UserError(
            f"{path} has {count} entries for {len(images)} images, whose names do not tell which is which:"
            " give all the images, or a .csv of path,class"
        )
    return sorted(images)


def _three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
