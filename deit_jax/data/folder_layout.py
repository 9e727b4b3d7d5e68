"""What the folders of a data set mean: splits, classes, or neither. One set of rules for folders, tables, shards, tars.

Two layouts are right: ROOT/CLASS/image, and ROOT/SPLIT/CLASS/image, where images may lie in further folders below their
class. Splits are known by `SPLIT_NAMES`, without regard to case. What could be either is an error that shows both.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deit_jax.data.listing import Listing
from deit_jax.errors import UserError, nearest, printable

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
EVAL_SPLITS = tuple(name for name, split in SPLIT_NAMES.items() if split != TRAIN)
HOLDOUT = "holdout"  # as data.eval_split: hold images out, whatever splits there are

EXPECTED_LAYOUT = "use ROOT/CLASS/image or ROOT/train/CLASS/image with ROOT/val/CLASS/image"


def split_of(name: str) -> str:
    """TRAIN, VALIDATION, TEST, or "" for a name that is not a split's."""
    return SPLIT_NAMES.get(name.lower(), "")


def split_in(name: str) -> str:
    """As `split_of`, also of a name with a split's name as a word of it: photos_train, ILSVRC2012_img_val.tar."""
    words = (word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    kinds = (split_of(word.removesuffix("set").removesuffix("s")) for word in words)
    return split_of(name) or next(filter(None, kinds), "")


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

    def unused(self, used: Iterable[str | None]) -> list[str]:
        """What is passed over where only the splits `used` are used: lines to print."""
        counts = {split: sum(map(len, classes.values())) for split, classes in self.splits.items() if split}
        lines = [
            f"folder {printable(name)} ({n} images)" for name, n in (counts | self.others).items() if name not in used
        ]
        return lines + ([f"{self.loose} images outside class folders"] if self.loose else [])


def read_layout(listing: Listing, root: str, split_names: Sequence[str] = (), layout: str = "auto") -> Layout:
    """Sort the images of a listing by split and class.

    Args:
      root: what the listing is of, for messages.
      split_names: further folders that are splits.
      layout: "classes": the folders are classes, whatever their names; "auto": as their names and contents tell.

    Raises:
      UserError: for a folder without images, and for all that is neither of the two layouts.
    """
    count = collections.Counter(path.split("/", 1)[0] for path in listing.images if "/" in path)
    direct = {path.split("/", 1)[0] for path in listing.images if path.count("/") == 1}
    loose = sum("/" not in path for path in listing.images)
    full = sorted(count)
    named = [name for name in full if split_of(name) or name in split_names]
    splits = [name for name in named if name not in direct]
    if not full:
        images = f"{loose} images but " if loose else ""
        raise UserError(f"{root} holds {images}no class folders with images: put each class's into a folder of its own")
    if layout == "classes":
        return Layout({"": classes_below(listing, "", root)}, {}, loose)
    if splits:
        classes = [name for name in full if name in direct and not split_of(name)]
        if classes:
            raise UserError(
                f"{root} holds split folders ({_preview(splits)}) beside class folders ({_preview(classes)}):"
                f" {EXPECTED_LAYOUT}"
            )
        others = {name: count[name] for name in full if name not in splits}
        return Layout({split: classes_below(listing, f"{split}/", root) for split in splits}, others, loose)
    if named:
        _check_classes_named_as_splits(root, full, named, count)
    elif len(full) == 1:
        below = sorted({path.split("/")[1] for path in listing.images if path.count("/") > 1})
        if full[0] not in direct and len(below) > 1:
            raise UserError(
                f"{root} holds a single folder, {full[0]}, with the folders {_preview(below)} in it: if those are"
                f" classes or splits, give {root}/{full[0]} as data.root"
            )
        raise UserError(
            f"{root} holds a single class folder, {full[0]}: a classifier needs two or more; {EXPECTED_LAYOUT}"
        )
    second = {path.split("/")[1] if path.count("/") > 1 else "" for path in listing.images if "/" in path}
    if all(map(split_of, second)):
        raise UserError(
            f"the class folders of {root} hold {_preview(sorted(second))}: splits come first, {EXPECTED_LAYOUT}"
        )
    if not named and (splits := splits_by_word(listing, root)):
        return Layout({split: classes_below(listing, f"{split}/", root) for split in splits}, {}, loose)
    return Layout({"": classes_below(listing, "", root)}, {}, loose)


def splits_by_word(listing: Listing, root: str) -> list[str]:
    """The top folders, where they are splits by a word of their names (photos_train, photos_test) and hold the same
    sub-folders; [] where they are classes. Raises UserError for same sub-folders without such names.

    Folders that hold images themselves are classes; folders named by dates are not.
    """
    below: dict[str, set[str]] = {}
    for path in listing.images:
        top, _, rest = path.partition("/")
        if "/" in rest and not re.fullmatch(r"(19|20)\d\d([-_.]?\d\d){0,2}", rest.split("/")[0]):
            below.setdefault(top, set()).add(rest.split("/")[0])
    tops = sorted(below)
    if len(tops) < 2 or any(path.count("/") == 1 for path in listing.images):
        return []
    train = set().union(*(below[top] for top in tops if split_in(top) == TRAIN))
    if len(train) > 1 and all(split_in(top) and below[top] & train for top in tops):
        return tops
    common = sorted(set.intersection(*below.values()))
    if len(common) > 1 and len(tops) == len({path.split("/")[0] for path in listing.images if "/" in path}):
        raise UserError(
            f"the folders {_preview(tops)} of {root} all hold folders {_preview(common)}: if those are the classes,"
            f" name the folders above them train and val; if {_preview(tops)} are the classes, use"
            " --config.data.layout=classes (--layout=classes of deit-jax prepare and doctor, ,layout=classes of --data)"
        )
    return []


def _check_classes_named_as_splits(root: str, full: list[str], named: list[str], count: dict[str, int]) -> None:
    """Raise UserError for images that lie directly in folders named as splits; among several others, `train` is a class
    (CIFAR-100 has it)."""
    if named == ["train"] and len(full) > 2:
        return
    found = ", ".join(f"{name} ({count[name]} images)" for name in named)
    raise UserError(f"{root} holds images directly in {found}, without class folders: {EXPECTED_LAYOUT}")


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


def check_named(known: Iterable[str], train_split: str, eval_split: str, absent: str) -> None:
    """Raise UserError for a split that a setting names and that is not among the known ones.

    absent: what is said of it, as "is not a folder of /data".
    """
    known = list(known)
    for setting, wanted, usual in (("train_split", train_split, (TRAIN,)), ("eval_split", eval_split, ("", HOLDOUT))):
        if wanted not in usual and wanted not in known:
            there = f": it has {_preview(sorted(known))}" if known else ""
            raise UserError(f"data.{setting} '{wanted}' {absent}{nearest(wanted, known)}{there}")


def choose_splits(known: Iterable[str], train_split: str, eval_split: str, where: str) -> tuple[str | None, str | None]:
    """Which of the known splits of `where` to train and to evaluate on.

    Args:
      train_split, eval_split: as the settings of `data`: "train" and "" find the usual names, without regard to case;
        HOLDOUT holds images out though there are other splits.

    Returns:
      (split to train on, or None where there is none; split to evaluate on, or None to hold images out).

    Raises:
      UserError: where the choice would be a guess.
    """
    known = list(known)
    train = train_split if train_split in known else _first(known, TRAIN)
    if eval_split in known:
        return train, eval_split
    if eval_split == HOLDOUT:
        return train, None
    evaluation = _first([name for name in known if name != train], VALIDATION) or _first(known, TEST)
    others = sorted(name for name in known if name != train and not split_in(name))
    if evaluation is None and others:
        raise UserError(
            f"{where} has no split to evaluate on but '{others[0]}', which is not a usual name: use"
            f" --config.data.eval_split={others[0]}, or --config.data.eval_split={HOLDOUT} to hold training images out"
        )
    return train, evaluation


def _first(known: list[str], kind: str) -> str | None:
    """The split of a kind, or None. Raises UserError where several are named so, and not one of them in lower case."""
    same = [name for name in known if split_in(name) == kind]
    plain = [name for name in same if name in SPLIT_NAMES]
    if len(same) > 1 and len(plain) != 1:
        setting = "train_split" if kind == TRAIN else "eval_split"
        raise UserError(f"{_preview(same)} are all names of the {kind} split: choose one with --config.data.{setting}")
    return (plain or same or [None])[0]


def _preview(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
