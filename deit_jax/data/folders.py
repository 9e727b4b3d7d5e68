"""Folders of images: a folder per class, with or without folders of splits above them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deit_jax.classes.match import sort_classes
from deit_jax.data.base import FileSource, Source, hold_out, not_used
from deit_jax.data.folder_layout import EXPECTED_LAYOUT, HOLDOUT, check_named, choose_splits, classes_below, read_layout
from deit_jax.data.listing import class_text, list_images
from deit_jax.errors import UserError


def open_folder(
    root: str,
    *,
    train_split: str,
    eval_split: str,
    holdout: float,
    layout: str = "auto",
) -> tuple[Source | None, Source]:
    """The images of ROOT/CLASS/image or ROOT/SPLIT/CLASS/image.

    Args:
      train_split, eval_split: see `folder_layout.choose_splits`.
      holdout: fraction of the training images to evaluate on where there is no split for it.
      layout: see `folder_layout.read_layout`.

    Returns:
      The training images (None where there are none) and the evaluation images.

    Raises:
      UserError: for a folder that is missing or has neither layout.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"data.root {root} is not a folder: give one that holds a folder of images for each class")
    listing = list_images(folder)
    top = {path for path in listing.folders if "/" not in path}
    check_named(top, train_split, eval_split, f"is not a folder of {root}")
    found = read_layout(listing, root, (train_split, eval_split), layout)
    if "" in found.splits:
        notes = not_used(found.unused([]) + listing.describe_skipped())
        whole = _source(folder, "", found.splits[""], number_classes(found.splits[""]), notes)
        return hold_out(whole, whole.labels, holdout)
    train_name, eval_name = choose_splits([*found.splits, *found.others], train_split, eval_split, root)
    used = [name for name in (train_name, eval_name) if name]
    for split in used:
        if split not in found.splits:
            raise UserError(
                f"{folder / split} holds images but no class folders: put the images of each class into a folder of its"
                f" own, or use --config.data.eval_split={HOLDOUT} to hold training images out"
            )
    if not used:
        raise UserError(f"{root} has nothing to evaluate on: {EXPECTED_LAYOUT}")
    number = number_classes({name for split in used for name in found.splits[split]})
    notes = not_used(found.unused(used) + listing.describe_skipped())
    parts = {split: _source(folder, split, found.splits[split], number, notes) for split in used}
    train = parts[train_name] if train_name else None
    if eval_name:
        return train, parts[eval_name]
    assert train is not None
    return hold_out(train, train.labels, holdout)


def scan_folder(folder: Path) -> tuple[FileSource, np.ndarray]:
    """The images of FOLDER/CLASS/image and their labels, int32 (n,)."""
    listing = list_images(folder)
    if not any("/" not in path for path in listing.folders):
        raise UserError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    classes = classes_below(listing, "", str(folder))
    notes = not_used(listing.describe_skipped())
    source = _source(Path(folder), "", classes, number_classes(classes), notes)
    return source, source.labels


def _source(
    folder: Path, split: str, classes: dict[str, list[str]], number: dict[str, int], notes: Sequence[str]
) -> FileSource:
    """The images of one split. classes: paths below `folder`; number: label of each class; notes: what was skipped."""
    if len({class_text(name) for name in classes}) < len(classes):
        raise UserError(f"{folder / split} has class folders whose names are the same once written as text: rename one")
    names = [path.removeprefix(f"{split}/") if split else path for paths in classes.values() for path in paths]
    labels = [number[class_text(name)] for name, paths in classes.items() for _ in paths]
    return FileSource(folder / split, names, np.array(labels), list(number), notes=notes)


def number_classes(folders: Iterable[str]) -> dict[str, int]:
    """The label of each class: {class name: label}, in the order of the labels."""
    return {name: label for label, name in enumerate(sort_classes({class_text(folder) for folder in folders}))}
