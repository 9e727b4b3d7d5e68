"""Which images to train and to evaluate on: the splits of a data set, by their names, or a part held out."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deit_jax.data.base import Source, hold_out
from deit_jax.errors import UserError, nearest

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


class Splits(NamedTuple):
    """What the settings of `data` say of splits: "train" and "" find the usual names, without regard to case.

    Attributes:
      train: the split to train on.
      evaluation: the split to evaluate on; HOLDOUT holds images out though there are other splits.
      holdout: fraction of the training images to evaluate on where there is no split for it.
    """

    train: str = TRAIN
    evaluation: str = ""
    holdout: float = 0.1


def split_of(name: str) -> str:
    """TRAIN, VALIDATION, TEST, or "" for a name that is not a split's."""
    return SPLIT_NAMES.get(name.lower(), "")


def split_in_name(name: str) -> str:
    """The split that a name has as a word: ILSVRC2012_img_val.tar, photos_trainset; or ""."""
    words = (word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    return next(filter(None, (split_of(word.removesuffix("set").removesuffix("s")) for word in words)), "")


def open_splits(
    open_used: Callable[[list[str]], Mapping[str, Source]], known: Iterable[str], where: str, splits: Splits
) -> tuple[Source | None, Source]:
    """The images of a data set to train on, None where there are none, and those to evaluate on.

    Args:
      open_used: splits that are used → their images.
      known: all splits of the data set.
      where: what it is called in messages.
      splits: which are asked for.

    Raises UserError for a split that does not exist, and where the choice would be a guess.
    """
    known = sorted(known)
    check_splits(known, where, splits)
    train_name = splits.train if splits.train in known else _first(known, TRAIN)
    eval_name = splits.evaluation if splits.evaluation in known else None
    if not splits.evaluation:
        left = [name for name in known if name != train_name]
        eval_name = _first(left, VALIDATION) or _first(left, TEST)
        others = [name for name in left if not split_of(name)]
        if eval_name is None and others:
            raise UserError(
                f"{where} has no split to evaluate on but '{others[0]}', which is not a usual name: use --config.data."
                f"eval_split={others[0]}, or --config.data.eval_split={HOLDOUT} to hold training images out"
            )
    if train_name is None and eval_name is None:
        raise UserError(f"{where} has nothing to evaluate on: its splits are {', '.join(known)}")
    if eval_name is not None and splits.holdout >= 1:  # nothing is trained on
        train_name = None
    opened = open_used([name for name in (train_name, eval_name) if name is not None])
    train = None if train_name is None else opened[train_name]
    if eval_name is not None:
        return train, opened[eval_name]
    assert train is not None
    # TFDS's labels would have to be read from every record: the held-out part is drawn without regard to classes.
    return hold_out(train, getattr(train, "labels", np.zeros(len(train), np.int32)), splits.holdout)


def check_splits(known: Sequence[str], where: str, splits: Splits) -> None:
    """Raise UserError for a split that a setting names and that `where` does not have."""
    checked = (("train_split", splits.train, (TRAIN,)), ("eval_split", splits.evaluation, ("", HOLDOUT)))
    for setting, wanted, usual in checked:
        if wanted not in usual and wanted not in known:
            raise UserError(
                f"data.{setting} '{wanted}' is not a split of {where}{nearest(wanted, known)}: it has {preview(known)}"
            )


def _first(known: Sequence[str], kind: str) -> str | None:
    """The split of a kind, or None. Raises UserError where several are named so."""
    same = [name for name in known if split_of(name) == kind]
    if len(same) > 1:
        setting = "train_split" if kind == TRAIN else "eval_split"
        raise UserError(f"{preview(same)} are all names of the {kind} split: choose one with --config.data.{setting}")
    return same[0] if same else None


def preview(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
