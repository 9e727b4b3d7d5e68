"""ArrayRecord shards made by deit_jax.data.prepare: few large files instead of a million small ones.

A folder holds `dataset.json` ({"complete", "classes": […], "splits": {split: [shard, …]}}) and the shards it lists: of
each its file, records, bytes, sha256 and labels ([label, how many in a row], …). A record is label (uint32) and length
of the name (uint16), little-endian, the name in UTF-8, and the image file's own bytes.
"""

import dataclasses
import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.base import Source, first_line, hold_out
from deit_jax.data.folders import EVAL_SPLITS
from deit_jax.errors import UserError, nearest

INDEX = "dataset.json"
HEADER = struct.Struct("<IH")


def pack(label: int, name: str, image: bytes) -> bytes:
    """One record."""
    encoded = name.encode()
    return HEADER.pack(label, len(encoded)) + encoded + image


def unpack(record: bytes) -> tuple[int, str, bytes]:
    """(label, name, image bytes) of a record."""
    label, length = HEADER.unpack_from(record)
    end = HEADER.size + length
    return label, record[HEADER.size : end].decode(), record[end:]


def is_shards(root: Path) -> bool:
    """Whether `root` is a folder that `prepare` has made or begun, or lost its index."""
    return (root / INDEX).is_file() or (
        any(root.glob("*.array*record*")) and not (root / "dataset_info.json").is_file()
    )


def read_index(root: Path) -> dict[str, Any]:
    """The folder's index. Raises UserError where it is missing, damaged or unfinished."""
    path = root / INDEX
    if not path.is_file():
        raise UserError(f"{root} holds shards but no {INDEX}: make it with python -m deit_jax.data.prepare")
    try:
        index = json.loads(path.read_text())
        done = index["complete"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): make it anew with python -m deit_jax.data.prepare") from error
    if not done:
        raise UserError(f"{root} is not finished: run its python -m deit_jax.data.prepare command again")
    return index


def open_shards(
    root: Path, *, train_split: str, eval_split: str, holdout: float
) -> tuple["ShardSource | None", Source]:
    """Training (None without a split `train`) and evaluation images of a prepared folder."""
    index = read_index(root)
    known = list(index["splits"])
    for setting, split in (("train_split", train_split), ("eval_split", eval_split)):
        if split not in known and split not in ("", "train"):
            raise UserError(
                f"data.{setting} '{split}' is no split of {root}{nearest(split, known)}: it has {', '.join(known)}"
            )
    train = ShardSource(root, index, train_split) if train_split in known else None
    found = [split for split in ([eval_split] if eval_split else EVAL_SPLITS) if split in known]
    if found:
        return train, ShardSource(root, index, found[0])
    if train is None:
        raise UserError(f"{root} has no split to evaluate on: it has {', '.join(known)}")
    return hold_out(train, train.labels, holdout)


@dataclasses.dataclass(frozen=True)
class Part:
    """What array_record wants to know of a file, so that it need not open all of them to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ShardSource:
    """One split of a prepared folder."""

    def __init__(self, root: Path, index: dict[str, Any], split: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.root, self.split, self.shards = root, split, index["splits"][split]
        self.class_names, self.num_classes = list(index["classes"]), len(index["classes"])
        if not sum(shard["records"] for shard in self.shards):
            raise UserError(f"split '{split}' of {root} is empty: prepare it anew")
        for shard in self.shards:
            path = root / shard["file"]
            if not path.is_file():
                raise UserError(f"shard {path} is missing: copy it here or prepare it anew")
            if path.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"shard {path} has {path.stat().st_size} bytes instead of {shard['bytes']}: copy it again"
                )
        self._records = ArrayRecordDataSource(
            [Part(str(root / shard["file"]), 0, shard["records"], shard["records"]) for shard in self.shards]
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        identity = [self.class_names, self.split, [(shard["records"], shard["sha256"]) for shard in self.shards]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @functools.cached_property
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
