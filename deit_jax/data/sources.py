"""Where images come from: `config.data` → a training and an evaluation source."""

from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.config import Config
from deit_jax.data import hf_source, shards, tfds_source
from deit_jax.data.base import ArraySource, Source, Subset, hold_out, limit_images
from deit_jax.data.cache import Resized
from deit_jax.data.folders import EXPECTED_LAYOUT, open_folder
from deit_jax.data.listing import TAR_HINT, is_tar_name
from deit_jax.data.splits import HOLDOUT, Splits
from deit_jax.data.table import DELIMITERS, is_table, open_csv
from deit_jax.errors import UserError, nearest
from deit_jax.own import is_own, own_part
from deit_jax.randomness import generator
from deit_jax.runtime import storage


def open_sources(config: Config) -> tuple[Source, Source]:
    """The training and the evaluation images that `config.data` names.

    A `root` decides by what it is: a .csv or .tsv table, a folder of shards as `deit-jax prepare` makes them, a TFDS
    data_dir, what Hugging Face's `datasets` reads, a folder of images by class. Raises UserError for what is missing,
    empty or unknown, for a single class, and where `model.num_classes` is given and differs.
    """
    train, evaluation = find_sources(config)
    wanted, limit = config.model.num_classes, config.data.limit
    if train is None:
        raise UserError(
            f"{config.data.root or config.data.name} has no images to train on: choose another train_split, or a"
            " data.holdout below 1"
        )
    if config.data.layout == "unlabelled":  # its classes are the teacher's
        wanted = 0
    elif train.num_classes < 2:
        raise UserError(
            f"{train.title} holds a single class, {train.class_names[0]}: a classifier needs two or more;"
            f" {EXPECTED_LAYOUT}"
        )
    if wanted not in (0, train.num_classes):
        raise UserError(f"model.num_classes is {wanted} but {train.title} has {train.num_classes} classes: leave it 0")
    if 0 < limit < len(train):
        drawn = generator(config.seed, "subset").permutation(len(train))[:limit]
        train = Subset(train, np.sort(drawn))
    if side := config.data.device_size:
        train = Resized(train, side, config.data.exif)
    return train, limit_images(evaluation, config.evaluate.limit)


def open_digits() -> tuple[Source | None, Source]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8, a fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"data.name 'digits' needs scikit-learn ({error}): pip install scikit-learn") from error

    scans: Any = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)
    whole = ArraySource(pixels, scans.target, [str(name) for name in scans.target_names], name="digits")
    return hold_out(whole, scans.target, 0.2)


def open_own_sources(name: str) -> tuple[Source, Source]:
    """What the function that `module:name` is returns: training and evaluation images. Raises UserError for others."""
    with own_part("data.name", name) as function:
        found = function() if callable(function) else function
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, Source) for one in found)):
        raise UserError(
            f"data.name {name} returns {type(found).__name__}: return two sources, to train and to evaluate on"
        )
    return found


def find_sources(config: Config) -> tuple[Source | None, Source]:
    """All training images, None where there are none, and the evaluation images; see `open_sources`."""
    data = config.data
    splits = Splits(data.train_split, data.eval_split, data.holdout)
    check_root(data.root)
    on_hub = data.root.startswith(hf_source.HUB)
    root = storage.as_path(data.root) if data.root and not on_hub else None
    if not data.root and data.name == "digits":
        if splits._replace(evaluation="") != Splits() or splits.evaluation not in ("", HOLDOUT):
            raise UserError("of digits a fifth is held out: leave data.train_split, eval_split and holdout unset")
        train, evaluation = open_digits()
    elif not data.root and is_own(data.name):
        train, evaluation = open_own_sources(data.name)
    elif stored := open_stored(root, data.root if on_hub else data.name, splits, data.columns):
        train, evaluation = stored
    else:
        train, evaluation = open_folder(str(root), splits, data.layout)
    if train is not None:
        check_every_class_is_trained(train)
    return train, evaluation


def open_stored(root: Path | None, name: str, splits: Splits, columns: str = "") -> tuple[Source | None, Source] | None:
    """The images of what `datasets` reads, a table, shards or TFDS, as `open_splits`; None for a folder of images.

    name: of a dataset of TFDS, or hf:NAME where there is no root. columns: as `open_hf`.
    """
    if hf_source.is_hf(root) if root else name.startswith(hf_source.HUB):
        return hf_source.open_hf(str(root or name), splits, columns)
    if root and is_table(root):
        return open_csv(str(root), splits)
    if root and shards.is_shards(root):
        return shards.open_shards(root, splits)
    if root is None or tfds_source.is_data_dir(root, name):
        return tfds_source.open_tfds(name, root, splits)
    return None


def check_every_class_is_trained(train: Source) -> None:
    """Raise UserError for a class without a training image, where labels are known without reading the images: of
    TFDS's they are not."""
    labels = getattr(train, "labels", np.arange(train.num_classes))
    lacking = [train.class_names[label] for label in np.setdiff1d(np.arange(train.num_classes), labels)]
    if lacking:
        known = set(train.class_names) - set(lacking)
        raise UserError(
            f"{lacking[0]} is a class the training images lack{nearest(lacking[0], known)} ({train.title};"
            f" {len(lacking)} such): remove its images, or add some to train on"
        )


def check_root(given: str) -> None:
    """Raise UserError unless `data.root` is "", hf:NAME, a folder or a table: what can be told before anything is
    read."""
    if not given or given.startswith(hf_source.HUB):
        return
    root = storage.as_path(given)
    shards.check_place(root, "data.root")
    if not (root.is_dir() or ((is_table(root) or root.suffix == hf_source.PARQUET) and root.is_file())):
        tables = ", ".join([*DELIMITERS, hf_source.PARQUET])
        right = f"give one that holds a folder of images for each class, or a table ({tables})"
        raise UserError(f"data.root {given} is not a folder: {TAR_HINT if is_tar_name(root) else right}")
