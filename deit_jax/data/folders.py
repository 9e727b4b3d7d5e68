"""Folders of images: a folder per class, with or without folders of splits above them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_jax.classes.match import sort_classes
from deit_jax.data.base import FileSource, Source, hold_out, not_used
from deit_jax.data.files import EXTENSIONS, FolderTree, class_text, list_images
from deit_jax.data.layout import EVAL_SPLITS, HOLDOUT, RIGHT, check_named, choose_splits, classes_below, read_layout
from deit_jax.errors import UserError, nearest

__all__ = ["EVAL_SPLITS", "EXTENSIONS", "number_classes", "open_folder", "scan_folder"]


def open_folder(
    root: str,
    *,
    train_split: str,
    eval_split: str,
    holdout: float,
) -> tuple[Source | None, Source]:
    """The images of ROOT/CLASS/image or ROOT/SPLIT/CLASS/image.

    Args:
      train_split, eval_split: see `layout.choose_splits`.
      holdout: share of the training images to evaluate on where there is no split for it.

    Returns:
      The training images (None where there are none) and the evaluation images.

    Raises:
      UserError: for a folder that is missing or has neither layout, an evaluation class that training lacks.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"data.root {root} is not a folder: give one that holds a folder of images for each class")
    listing = list_images(FolderTree(folder))
    top = {path for path in listing.folders if "/" not in path}
    check_named(top, train_split, eval_split, f"is not a folder of {root}")
    layout = read_layout(listing, root, (train_split, eval_split))
    if "" in layout.splits:
        notes = not_used(layout.unused([]) + listing.describe_skipped())
        whole = _source(folder, "", layout.splits[""], None, notes)
        return hold_out(whole, whole.labels, holdout)
    train_name, eval_name = choose_splits([*layout.splits, *layout.others], train_split, eval_split, root)
    notes = not_used(layout.unused([train_name, eval_name]) + listing.describe_skipped())

    def part(split: str, known: Sequence[str] | None) -> FileSource:
        if split not in layout.splits:
            raise UserError(
                f"{folder / split} holds images but no class folders: put the images of each class into a folder of its"
                f" own, or use --config.data.eval_split={HOLDOUT} to hold training images out"
            )
        return _source(folder, split, layout.splits[split], known, notes)

    train = part(train_name, None) if train_name else None
    if eval_name:
        return train, part(eval_name, train.class_names if train else None)
    if train is None:
        raise UserError(f"{root} has nothing to evaluate on: {RIGHT}")
    return hold_out(train, train.labels, holdout)


def scan_folder(folder: Path, class_names: Sequence[str] | None = None) -> tuple[FileSource, np.ndarray]:
    """The images of FOLDER/CLASS/image and their labels, int32 (n,).

    class_names: the classes there may be, by label, of which some may be missing; None: those that are there.
    """
    listing = list_images(FolderTree(folder))
    if not any("/" not in path for path in listing.folders):
        raise UserError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    classes = classes_below(listing, "", str(folder))
    source = _source(Path(folder), "", classes, class_names, not_used(listing.describe_skipped()))
    return source, source.labels


def _source(
    folder: Path,
    split: str,
    classes: dict[str, list[str]],
    known: Sequence[str] | None,
    notes: Sequence[str],
) -> FileSource:
    """The images of one split. classes: paths below `folder`; notes: what was passed over, for people."""
    root = folder / split
    number = number_classes(list(classes), known, str(root))
    names = [path.removeprefix(f"{split}/") if split else path for paths in classes.values() for path in paths]
    labels = np.repeat(list(number.values()), [len(paths) for paths in classes.values()])
    class_names = sorted(number, key=number.__getitem__) if known is None else known
    return FileSource(root, names, labels, class_names, notes=notes)


def number_classes(present: Sequence[str], known: Sequence[str] | None, where: str) -> dict[str, int]:
    """The label of each class folder: {class name: label}, in the order of `present`.

    known: the classes there may be, by label; None: those of `present`.

    Raises UserError for a class that is not known, and for two whose names are the same once written as text.
    """
    texts = [class_text(name) for name in present]
    if len(set(texts)) < len(texts):
        raise UserError(f"{where} has class folders whose names are the same once written as text: rename one")
    number = {name: i for i, name in enumerate(sort_classes(texts) if known is None else known)}
    unknown = sorted(set(texts) - set(number))
    if unknown:
        raise UserError(f"{where}/{unknown[0]} is a class the training images lack{nearest(unknown[0], number)}")
    return {text: number[text] for text in texts}
