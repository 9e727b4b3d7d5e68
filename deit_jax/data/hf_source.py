"""Data of Hugging Face's `datasets`: `hf:user/name` of the hub, parquet files, folders that `save_to_disk` wrote.

Its columns say which holds the images and which the labels; the images' own bytes are decoded by us.
"""

import collections
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.data.base import Source, cached
from deit_jax.data.splits import TRAIN, Splits
from deit_jax.data.table import HEADINGS, open_labelled
from deit_jax.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = "hf:"
PARQUET = ".parquet"
SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk
NUMBERED = re.compile(r"[-_.]?\d+(-of-\d+)?$")  # the end of a shard's name


def is_hf(root: str | Path) -> bool:
    """Whether `datasets` reads it: hf:NAME, a parquet file or a folder of them, or what `save_to_disk` wrote."""
    path = Path(root)
    return str(root).startswith(HUB) or any((path / name).is_file() for name in SAVED) or bool(parquet_files(path))


def parquet_files(root: Path) -> list[Path]:
    """A parquet file itself; those of a folder, or of the folder `data` in it, as the hub has them."""
    if root.suffix.lower() == PARQUET:
        return [root]
    return sorted(root.glob(f"*{PARQUET}")) or sorted(root.glob(f"data/*{PARQUET}"))


def open_hf(root: str, splits: Splits, columns: str = "") -> tuple[Source | None, Source]:
    """The images of `root`, as `open_splits`.

    columns: "IMAGE,LABEL", where the columns' types leave a choice.

    Classes are the names of a ClassLabel, else labels as in a table, in the order of folders.

    Raises UserError where `datasets` is not installed or cannot read it, and without a column of images or of labels.
    """
    parts = load_parts(root)
    chosen = lambda split: find_columns(parts[split], columns, root)
    read_labels = lambda split: label_names(parts[split], chosen(split)[1], f"{root}, split {split}")
    make = lambda split, *described: HfSource(parts[split], chosen(split)[0], *described)
    return open_labelled(parts, read_labels, make, root, splits)


def load_parts(root: str) -> dict[str, "Dataset"]:
    """The rows by split. Parquet files are of the split that their names begin with; of one group alone, of `train`."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data.root {root} needs the extra hf ({error}): pip install datasets") from error
    try:
        if root.startswith(HUB):
            name, _, subset = root.removeprefix(HUB).partition(":")
            return by_split(datasets.load_dataset(name, subset or None))
        groups = collections.defaultdict(list)
        for file in parquet_files(Path(root)):
            groups[NUMBERED.sub("", file.stem) or TRAIN].append(str(file))
        if groups:
            load = lambda files: datasets.load_dataset("parquet", data_files=files, split=TRAIN)
            return {split if len(groups) > 1 else TRAIN: load(files) for split, files in groups.items()}
        return by_split(datasets.load_from_disk(root))
    except Exception as error:  # of datasets, pyarrow, huggingface_hub and their HTTP client
        raise UserError(f"data.root {root} cannot be read by datasets: {first_line(error)}") from error


def by_split(found: "Dataset | DatasetDict") -> dict[str, "Dataset"]:
    """Rows by their split's name; rows without splits are of `train`."""
    return {str(split): rows for split, rows in found.items()} if isinstance(found, dict) else {TRAIN: found}


def find_columns(rows: "Dataset", columns: str, root: str) -> tuple[str, str]:
    """The names of the image and the label column."""
    import datasets

    features = rows.features
    is_image = lambda feature: (
        isinstance(feature, datasets.Image)
        or ("bytes" in feature if isinstance(feature, dict) else getattr(feature, "dtype", "").endswith("binary"))
    )
    images = [name for name, feature in features.items() if is_image(feature)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name in features if name.lower() in HEADINGS["label"]]
    given = [name.strip() for name in columns.split(",")] if columns else []
    listed = f"its columns are {', '.join(features)}"
    if given:
        if len(given) != 2 or not set(given) <= set(features):
            raise UserError(f"data.columns '{columns}' are not an image and a label column of {root}: {listed}")
        return given[0], given[1]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            how = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
            raise UserError(f"{root} has {how}: give --config.data.columns=IMAGE,LABEL ({listed})")
    return images[0], labels[0]


def label_names(rows: "Dataset", column: str, where: str) -> list[str]:
    """Each row's label as text. Raises UserError for a row without one."""
    values, names = rows.data.column(column).to_pylist(), getattr(rows.features[column], "names", None)
    lacking = next((i for i, value in enumerate(values) if value is None or (names and value < 0)), None)
    if lacking is not None:
        raise UserError(f"{where} has images without a label (row {lacking}): choose another split, or leave them out")
    return [names[value] if names else str(value) for value in values]


class HfSource:
    """One split: rows with an image column, whose images stay encoded.

    Attributes:
      labels: int32 (n,)
    """

    def __init__(
        self, rows: "Dataset", column: str, labels: np.ndarray, class_names: list[str], title: str, notes: Sequence[str]
    ):
        import datasets

        self._rows: Any = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._column = column
        self.labels, self.class_names, self.num_classes = labels, class_names, len(class_names)
        self.title, self.notes = title, notes

    @cached
    def fingerprint(self) -> str:
        """Of names, sizes and labels."""
        from pyarrow import compute  # comes with datasets

        pc: Any = compute  # its functions are made when it is imported
        stored = self._rows.data.column(self._column)
        paths = pc.struct_field(stored, "path").to_pylist()
        sizes = pc.binary_length(pc.struct_field(stored, "bytes")).to_pylist()
        return hashlib.sha256(repr((self.class_names, paths, sizes)).encode() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._rows[index][self._column] or {}
        name, data = f"{self.title}/{image.get('path') or index}", image.get("bytes")
        if data is None:
            raise OSError(f"{name} holds no image's bytes")
        return {"image": data, "label": int(self.labels[index]), "name": name}
