"""ArrayRecord shards made by `deit-jax prepare`: few large files instead of a million small ones.

A folder holds `dataset.json` ({"complete", "classes": […], "splits": {split: [shard, …]}}) and the shards it lists: of
each its file, records, bytes, sha256 and labels ([label, how many in a row], …). A record is label (uint32) and length
of the name (uint16), little-endian, the name in UTF-8, and the image file's own bytes.
"""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.base import Source, cached, hold_out
from deit_jax.data.folder_layout import check_named, choose_splits
from deit_jax.errors import UserError, first_line
from deit_jax.runtime import storage

INDEX = "dataset.json"
HEADER = struct.Struct("<IH")


def pack(label: int, name: str, image: bytes) -> bytes:
    """One record."""
    encoded = name.encode("utf-8", "surrogateescape")
    return HEADER.pack(label, len(encoded)) + encoded + image


def unpack(record: bytes) -> tuple[int, str, bytes]:
    """(label, name, image bytes) of a record."""
    label, length = HEADER.unpack_from(record)
    end = HEADER.size + length
    return label, record[HEADER.size : end].decode("utf-8", "surrogateescape"), record[end:]


def is_shards(root: Path) -> bool:
    """Whether `root` is a folder that `prepare` has made or begun, or lost its index."""
    return (root / INDEX).is_file() or (
        any(root.glob("*.array*record*")) and not (root / "dataset_info.json").is_file()
    )


def check_place(root: Path, what: str) -> None:
    """Raise UserError for a folder in a bucket. what: the setting that names it."""
    if storage.is_bucket(root):
        raise UserError(f"{what} {root} is in a bucket: mount it (gcsfuse) or copy it, and give the folder's path")


def read_index(root: Path) -> dict[str, Any]:
    """The folder's index. Raises UserError where it is missing, damaged or unfinished."""
    path = root / INDEX
    if not path.is_file():
        raise UserError(f"{root} holds shards but no {INDEX}: make it with deit-jax prepare")
    try:
        index = json.loads(path.read_text())
        done = index["complete"]
        _check_index(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)[:80]}): make it again with deit-jax prepare") from error
    if not done:
        raise UserError(f"{root} is not finished: run its deit-jax prepare command again")
    return index


def _check_index(index: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError for an index that `prepare` cannot have written: before anything is
    allocated by its counts."""
    classes = index["classes"]
    if not all(isinstance(name, str) for name in classes):
        raise ValueError("a class is not a name")
    for split, written in index["splits"].items():
        for shard in written:
            name, records, size = shard["file"], shard["records"], shard["bytes"]
            if not isinstance(name, str) or "/" in name or not isinstance(shard["sha256"], str):
                raise ValueError(f"a shard of {split} has no name or checksum")
            runs = shard["labels"]
            if any(len(run) != 2 for run in runs):
                raise ValueError(f"{name} has labels that are not [label, how many] pairs")
            if not all(type(x) is int and x >= 0 for x in (records, size, *(x for run in runs for x in run))):
                raise ValueError(f"{name} has counts that are not whole numbers")
            if records * HEADER.size > size or sum(run[1] for run in runs) != records:
                raise ValueError(f"{name} cannot hold {records} records")
            if any(run[0] >= len(classes) for run in runs):
                raise ValueError(f"{name} has a label outside the {len(classes)} classes")


def open_shards(root: Path, *, train_split: str, eval_split: str, holdout: float) -> tuple[Source | None, Source]:
    """Training (None without a split `train`) and evaluation images of a prepared folder."""
    index = read_index(root)
    known = list(index["splits"])
    check_named(known, train_split, eval_split, f"is not a split of {root}")
    train_name, eval_name = choose_splits(known, train_split, eval_split, str(root))
    train = ShardSource(root, index, train_name) if train_name else None
    if eval_name:
        return train, ShardSource(root, index, eval_name)
    if train is None:
        raise UserError(f"{root} has no split to evaluate on: it has {', '.join(known)}")
    return hold_out(train, train.labels, holdout)


@dataclasses.dataclass(frozen=True)
class Part:
    """array_record's description of a file, so that it need not open all of them to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def open_records(root: Path, shards: list[dict[str, Any]]) -> Any:
    """The records of some shards below `root`, by position."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    parts: list[Any] = [Part(str(root / shard["file"]), 0, shard["records"], shard["records"]) for shard in shards]
    return ArrayRecordDataSource(parts)


class ShardSource:
    """One split of a prepared folder."""

    def __init__(self, root: Path, index: dict[str, Any], split: str):
        self.root, self.split, self.shards = root, split, index["splits"][split]
        self.class_names, self.num_classes = list(index["classes"]), len(index["classes"])
        self.title, self.notes = f"{root}, split {split}", []
        if not sum(shard["records"] for shard in self.shards):
            raise UserError(f"split '{split}' of {root} is empty: prepare it again")
        for shard in self.shards:
            path = root / shard["file"]
            if not path.is_file():
                raise UserError(f"shard {path} is missing: copy it here or prepare it again")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise UserError(f"shard {path} has {size} bytes instead of {shard['bytes']}: copy it again")
        self._records = open_records(root, self.shards)

    @cached
    def fingerprint(self) -> str:
        identity = [self.class_names, self.split, [(shard["records"], shard["sha256"]) for shard in self.shards]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @cached
    def labels(self) -> np.ndarray:
        """int32 (n,)"""
        runs = np.array([run for shard in self.shards for run in shard["labels"]], np.int32)
        return np.repeat(runs[:, 0], runs[:, 1])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            label, name, image = unpack(self._records[index])
        except (RuntimeError, ValueError, IndexError, struct.error) as error:
            raise OSError(f"record {index} of {self.root}/{self.split}: {first_line(error)}") from error
        return {"image": image, "label": label, "name": f"{self.root}/{self.split}/{name}"}
