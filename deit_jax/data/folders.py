"""Folders of images, and what their names mean: splits, classes, or neither; also of tar files.

Two layouts are right: ROOT/CLASS/image, and ROOT/SPLIT/CLASS/image, where images may lie in further folders below their
class. What could be either is an error that shows both.
"""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_jax.classes.match import sort_classes
from deit_jax.data.base import FileSource, Source, hold_out, not_used
from deit_jax.data.listing import Listing, class_text, list_images
from deit_jax.data.splits import HOLDOUT, Splits, check_splits, open_splits, preview, split_in_name, split_of
from deit_jax.errors import UserError, printable

UNLABELLED = "unlabelled"  # `data.layout`, and the name of the only class until the teacher's are known
EXPECTED_LAYOUT = "use ROOT/CLASS/image or ROOT/train/CLASS/image with ROOT/val/CLASS/image"


class Layout(NamedTuple):
    """The images of a data set.

    Attributes:
      splits: per split folder (as written; "" for a root of class folders) its classes, and the sorted paths of each
        class's images.
      others: per folder beside the splits, how many images it holds.
      loose: images outside class folders.
    """

    splits: dict[str, dict[str, list[str]]]
    others: dict[str, int]
    loose: int = 0

    def unused(self, used: Iterable[str]) -> list[str]:
        """What is passed over where only the splits `used` are used: lines to print."""
        counts = {split: sum(map(len, classes.values())) for split, classes in self.splits.items()} | self.others
        lines = [f"folder {printable(name)} ({n} images)" for name, n in counts.items() if name not in used]
        return lines + ([f"{self.loose} images outside class folders"] if self.loose else [])


def open_folder(root: str, splits: Splits, layout: str = "auto") -> tuple[Source | None, Source]:
    """The images of ROOT/CLASS/image or ROOT/SPLIT/CLASS/image, as `open_splits`.

    layout: see `read_layout`; "unlabelled": all images below ROOT, of no class, a fraction held out.
    """
    listing = list_images(root)
    if layout == UNLABELLED:
        names = sorted(listing.images)
        if not names:
            raise UserError(f"{root} holds no images")
        whole = FileSource(root, names, np.zeros(len(names)), [UNLABELLED], notes=not_used(listing.describe_skipped()))
        return hold_out(whole, whole.labels, splits.holdout)
    check_splits(sorted(path for path in listing.folders if "/" not in path), root, splits)
    found = read_layout(listing, root, splits[:2], layout)
    if "" in found.splits:
        whole = split_sources(listing, root, found, [""])[""]
        return hold_out(whole, whole.labels, splits.holdout)
    open_used = lambda used: split_sources(listing, root, found, used)
    return open_splits(open_used, [*found.splits, *found.others], root, splits)


def scan_folder(folder: str | Path) -> FileSource:
    """The images of FOLDER/CLASS/image."""
    listing = list_images(folder)
    if not any("/" not in path for path in listing.folders):
        raise UserError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    found = Layout({"": classes_below(listing, "", str(folder))}, {})
    return split_sources(listing, str(folder), found, [""])[""]


def split_sources(listing: Listing, root: str, found: Layout, used: Sequence[str]) -> dict[str, FileSource]:
    """The images of the splits `used`, with their classes numbered together."""
    for split in used:
        if split not in found.splits:
            raise UserError(f"{root}/{split} has images but no class folders: add them, or data.eval_split={HOLDOUT}")
    names = sort_classes({class_text(name) for split in used for name in found.splits[split]})
    number = {name: label for label, name in enumerate(names)}
    notes = not_used(found.unused(used) + listing.describe_skipped())
    sources = {}
    for split in used:
        classes = found.splits[split]
        paths = [path.removeprefix(f"{split}/") if split else path for below in classes.values() for path in below]
        labels = [number[class_text(name)] for name, below in classes.items() for _ in below]
        sources[split] = FileSource(Path(root, split), paths, np.array(labels), names, notes=notes)
    return sources


def read_layout(listing: Listing, root: str, split_names: Sequence[str] = (), layout: str = "auto") -> Layout:
    """Sort the images of a listing by split and class.

    Args:
      root: what the listing is of, for messages.
      split_names: further folders that are splits.
      layout: "classes": the folders are classes, whatever their names; "auto": as their names and contents tell.

    Raises UserError for a folder without images, and for all that is neither of the two layouts.
    """
    count = collections.Counter(path.split("/", 1)[0] for path in listing.images if "/" in path)
    direct = {path.split("/", 1)[0] for path in listing.images if path.count("/") == 1}
    loose = len(listing.images) - count.total()
    full = sorted(count)
    named = [name for name in full if split_of(name) or name in split_names]
    splits = [name for name in named if name not in direct]
    if not full:
        images = f"{loose} images but " if loose else ""
        raise UserError(
            f"{root} holds {images}no class folders with images: {EXPECTED_LAYOUT}, or --config.data.layout=unlabelled"
        )
    if splits and layout == "auto":
        classes = [name for name in full if name in direct and not split_of(name)]
        if classes:
            raise UserError(
                f"{root} holds split folders ({preview(splits)}) beside class folders ({preview(classes)}):"
                f" {EXPECTED_LAYOUT}"
            )
    elif layout == "auto":
        _check_class_folders(listing, root, count, named, direct)
    if layout == "classes" or not splits:
        return Layout({"": classes_below(listing, "", root)}, {}, loose)
    others = {name: count[name] for name in full if name not in splits}
    return Layout({split: classes_below(listing, f"{split}/", root) for split in splits}, others, loose)


def _check_class_folders(
    listing: Listing, root: str, count: dict[str, int], named: list[str], direct: set[str]
) -> None:
    """Raise UserError where the folders of a root without splits are not its classes.

    count: images per folder; named: folders named as splits; direct: folders that hold images themselves.
    """
    full = sorted(count)
    if named and not (named == ["train"] and len(full) > 2):  # among several others `train` is a class of CIFAR-100
        found = ", ".join(f"{name} ({count[name]} images)" for name in named)
        raise UserError(f"{root} holds images directly in {found}, without class folders: {EXPECTED_LAYOUT}")
    below = sorted({path.split("/")[1] if path.count("/") > 1 else "" for path in listing.images if "/" in path})
    if len(full) == 1:
        raise UserError(
            f"{root} holds a single folder, {full[0]}: give {root}/{full[0]} if that is the data; {EXPECTED_LAYOUT}"
        )
    if all(map(split_of, below)):
        raise UserError(f"the class folders of {root} hold {preview(below)}: splits come first, {EXPECTED_LAYOUT}")
    pairs = {tuple(path.split("/")[:2]) for path in listing.images if "/" in path}
    common = [name for name in below if all((top, name) in pairs for top in full)]
    if len(common) > (0 if any(map(split_in_name, full)) else 1) and not direct:
        raise UserError(
            f"the folders {preview(full)} of {root} all hold folders {preview(common)}: if those are the classes,"
            f" name the folders above them train and val; if {preview(full)} are the classes, use"
            " --config.data.layout=classes (--layout=classes of deit-jax prepare and doctor)"
        )


def classes_below(listing: Listing, prefix: str, root: str) -> dict[str, list[str]]:
    """The class folders below `prefix` ("" or "SPLIT/"): {class: sorted paths of its images}.

    Raises UserError for one without images.
    """
    depth = prefix.count("/")
    images: dict[str, list[str]] = collections.defaultdict(list)
    for path in listing.images:
        if path.startswith(prefix) and path.count("/") > depth:
            images[path.split("/")[depth]].append(path)
    for path in sorted(listing.folders):
        if path.startswith(prefix) and path.count("/") == depth and path.split("/")[depth] not in images:
            raise UserError(f"class folder {root}/{path} holds no image: add some or remove the folder")
    return {name: sorted(images[name]) for name in sorted(images)}
