"""Datasets of TensorFlow Datasets, read without TensorFlow from their ArrayRecord files."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.base import Source, cached
from deit_jax.data.splits import TRAIN, VALIDATION, Splits, open_splits
from deit_jax.errors import UserError, first_line, nearest

NAMES = (
    "imagenet2012 imagenet2012_real imagenet_v2 imagenet_a imagenet_r imagenet_sketch cifar10 cifar100"
    " oxford_flowers102 cars196 i_naturalist2018 oxford_iiit_pet"
).split()


def is_data_dir(root: Path, name: str) -> bool:
    """Whether `root` is a prepared dataset, or a data_dir that holds the one called `name`."""
    base = name.split("/")[0]
    return any(any(root.glob(f"{base}{depth}dataset_info.json")) for depth in ("/*/", "/*/*/")) or (
        (root / "dataset_info.json").is_file() and (root / "features.json").is_file()
    )


def open_tfds(name: str, root: Path | None, splits: Splits) -> tuple[Source | None, Source]:
    """Training (None where the data has no `train`) and evaluation images of one of `NAMES` or another TFDS dataset
    with features `image` and `label`. Splits are TFDS's, slices as `train[:10%]` and sums too.

    Raises UserError where the dataset is unknown, not prepared, in another file format, or damaged.
    """
    builder = _builder(name, root)
    known = list(builder.info.splits) or [TRAIN, VALIDATION]  # none where it is not prepared
    given = {split for split in splits[:2] if re.search(r"[\[+]", split)}
    open_used = lambda used: {split: TfdsSource(builder, split) for split in used}
    return open_splits(open_used, {*known, *given}, name, splits)


def _builder(name: str, root: Path | None):
    os.environ.setdefault("TFDS_DISABLE_PROGRESS_BAR", "1")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"data.name '{name}' needs the package tensorflow-datasets ({error})") from error
    if root and (root / "dataset_info.json").is_file():
        return tfds.builder_from_directory(root)
    try:
        return tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(name, ["digits", *NAMES])
        raise UserError(f"data.name '{name}' is not a dataset of TFDS{hint}: use digits, {', '.join(NAMES)}") from error


def _records(builder, split: str) -> Any:
    """TFDS's random access to one split, with images left encoded."""
    import tensorflow_datasets as tfds

    name, features = builder.info.name, builder.info.features
    if "image" not in features or not {"label", "original_label"} & set(features):
        raise UserError(f"data.name '{name}' has no features image and label: it has {', '.join(features)}")
    encoded = {
        key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, tfds.features.Image)
    }
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
        if len(records):
            records[0]  # a shard that is missing or cut short
    except Exception as error:  # TFDS raises ValueError, NotImplementedError and AssertionError, many lines long
        raise UserError(
            f"split '{split}' of {name} cannot be read in {builder.data_dir} ({first_line(error)}): give its images, a"
            " folder per class, as data.root, or shards of its .tar files (deit-jax prepare FOLDER DST); or its TFDS"
            f" data_dir in ArrayRecord format (tfds build {name} --file_format=array_record, or tfds convert_format)"
        ) from error
    if not len(records):
        raise UserError(f"split '{split}' of {name} is empty")
    return records


class TfdsSource:
    """One split. Where TFDS knows several right labels (imagenet2012_real), a sample has them all in "labels"."""

    def __init__(self, builder, split: str):
        self._records = _records(builder, split)
        features = builder.info.features
        self._label = "label" if "label" in features else "original_label"
        self._name = next((key for key in ("file_name", "id") if key in features), None)
        self.several_labels = "real_label" in features
        self.class_names, self.num_classes = list(features[self._label].names), features[self._label].num_classes
        self.title, self.notes = f"{builder.info.full_name}/{split}", []
        stored = [(key, info.shard_lengths, info.num_bytes) for key, info in builder.info.splits.items()]
        self._identity = repr((self.title, len(self), self.class_names, stored))

    @cached
    def fingerprint(self) -> str:
        """Of name, version, split and sizes, which TFDS's versions answer for."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self._records[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise OSError(f"{self.title}[{index}]: {first_line(error)}") from error
        name = example[self._name] if self._name else index
        name = name.decode() if isinstance(name, bytes) else name
        sample = {"image": example["image"], "label": int(example[self._label]), "name": f"{self.title}/{name}"}
        if self.several_labels:
            sample["labels"] = np.asarray(example["real_label"], np.int32)
        return sample
