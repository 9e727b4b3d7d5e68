"""ArrayRecord shards made by `deit-jax prepare`: few large files instead of a million small ones.

A folder holds `dataset.json` ({"complete", "classes": […], "splits": {split: [shard, …]}}) and the shards it lists: of
each its file, records, bytes, sha256 and labels ([label, how many in a row], …). A record is label (uint32) and length
of the name (uint16), little-endian, the name in UTF-8, and the image file's own bytes.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.base import Source, cached
from deit_jax.data.splits import Splits, open_splits
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
    """Whether `root` is a folder that `prepare` has made or begun."""
    return (root / INDEX).is_file()


def check_place(root: Path, what: str) -> None:
    """Raise UserError for a folder in a bucket. what: the setting that names it."""
    if storage.is_bucket(root):
        raise UserError(f"{what} {root} is in a bucket: mount it (gcsfuse) or copy it, and give the folder's path")


def open_shards(root: Path, splits: Splits) -> tuple[Source | None, Source]:
    """The images of a prepared folder, as `open_splits`. Raises UserError where its index is damaged or
    unfinished."""
    path = root / INDEX
    try:
        index = json.loads(path.read_text())
        done, known = index["complete"], list(index["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)[:80]}): make it again with deit-jax prepare") from error
    if not done:
        raise UserError(f"{root} is not finished: run its deit-jax prepare command again")
    open_used = lambda used: {split: ShardSource(root, index, split) for split in used}
    return open_splits(open_used, known, str(root), splits)


class ShardSource:
    """One split of a prepared folder."""

    def __init__(self, root: Path, index: dict[str, Any], split: str):
        self.root, self.split, self.shards = root, split, index["splits"][split]
        self.class_names, self.num_classes = list(index["classes"]), len(index["classes"])
        self.title, self.notes = f"{root}, split {split}", []
        for shard in self.shards:
            path = root / shard["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise UserError(f"shard {path} has {size} bytes instead of {shard['bytes']}: copy or prepare it again")
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # With its records a file need not be opened to count them.
        self._records: Any = ArrayRecordDataSource([f"{root / s['file']}[0:{s['records']}]" for s in self.shards])

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
