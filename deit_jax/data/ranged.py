"""Records of ArrayRecord files by ranged reads, for files in a bucket: the array_record package opens files of a disk.

A file is a sequence of chunks, interrupted at every 64 KiB by a block header of 24 bytes (riegeli's
doc/riegeli_records_file_format.md). `deit_jax.data.prepare` writes one record per chunk, not compressed. Behind them
lies a chunk with the offset of each, and the last 64 KiB say where that is. So a record costs one request, and a file
two more when it is first touched.

The hashes of the format are not computed here: a bucket and its client verify what they store and send, and an image
that is damaged all the same is found where it does not decode.
"""

import dataclasses
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.runtime import storage

BLOCK, BLOCK_HEADER = 1 << 16, 24
CHUNK_HEADER = struct.Struct("<QQQBBHIQ")  # hash, bytes of data, hash of data, type, records (56 bits), decoded bytes
SIMPLE = ord("r")  # the type of a chunk whose records follow each other


def without_block_headers(raw: bytes, start: int) -> bytes:
    """The bytes of chunks in `raw`, which was read at `start` of a file."""
    parts, position = [], 0
    while position < len(raw):
        place = (start + position) % BLOCK
        position += max(BLOCK_HEADER - place, 0)  # 0 where a block's header is not there
        end = position + BLOCK - (start + position) % BLOCK
        parts.append(raw[position:end])
        position = end
    return b"".join(parts)


def varint(data: bytes, position: int) -> tuple[int, int]:
    """(a number of protocol buffers' base-128 form, where the next thing begins)."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def records_of(chunk: bytes) -> list[bytes]:
    """The records of a chunk, without block headers. Raises ValueError where it is not one, or is compressed."""
    if len(chunk) < CHUNK_HEADER.size + 2:
        raise ValueError("it is cut short")
    _, size, _, kind, low, middle, high, decoded = CHUNK_HEADER.unpack_from(chunk)
    data = chunk[CHUNK_HEADER.size : CHUNK_HEADER.size + size]
    count = low | middle << 8 | high << 24
    if kind != SIMPLE or data[:1] != b"\0" or len(data) < size:
        raise ValueError("it is not an uncompressed record: make the shards with python -m deit_jax.data.prepare")
    length, position = varint(data, 1)
    value = position + length
    if len(data) - value != decoded:
        raise ValueError("its lengths contradict each other")
    found = []
    for _ in range(count):
        size, position = varint(data, position)
        found.append(data[value : value + size])
        value += size
    return found


def first_field(message: bytes) -> int:
    """The number in a protocol buffer's first field."""
    if message[:1] != b"\x08":
        raise ValueError("its index does not start with a field 1 of type varint")
    return varint(message, 1)[0]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file: its path, its records and its bytes."""

    path: Path
    records: int
    bytes: int


class RangedRecords:
    """The records of some files by position, as array_record's data source. Safe from several threads; pickles small.

    Every read may raise ValueError for a damaged file, and OSError where the bucket does not give it.
    """

    def __init__(self, shards: list[Shard]):
        self.shards = shards
        self.first = np.cumsum([0, *(shard.records for shard in shards)])  # position of each shard's first record
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._store: Any = None
        self._offsets: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: int) -> bytes:
        which = int(np.searchsorted(self.first, index, side="right")) - 1
        place, offsets = index - int(self.first[which]), self.offsets(which)
        begin, end = int(offsets[place]), int(offsets[place + 1])
        return records_of(without_block_headers(self.read(which, begin, end), begin))[0]

    def offsets(self, which: int) -> np.ndarray:
        """Where each record of a shard begins and where the last one ends, int64 (records + 1,); read once."""
        if which not in self._offsets:
            shard = self.shards[which]
            last = shard.bytes - BLOCK
            tail = without_block_headers(self.read(which, last, shard.bytes), last)
            footer = first_field(records_of(tail)[-1])
            entries = records_of(without_block_headers(self.read(which, footer, last), footer))[1:]  # behind a summary
            if len(entries) != shard.records:
                raise ValueError(f"{shard.path} has {len(entries)} records instead of {shard.records}")
            self._offsets[which] = np.array([*map(first_field, entries), footer], np.int64)
        return self._offsets[which]

    def read(self, which: int, begin: int, end: int) -> bytes:
        """Bytes of a shard's file."""
        path = self.shards[which].path
        try:
            found = self.store().read(path.name, byte_range=slice(begin, end)).result()
        except ValueError as error:  # tensorstore's, whatever a bucket answered
            raise OSError(f"{path}: {str(error).splitlines()[0][:160]}") from error
        if found.state != "value":
            raise OSError(f"{path} is not there")
        return found.value

    def store(self) -> Any:
        """TensorStore's handle of the folder, opened once per process."""
        with self._lock:
            if self._store is None:
                import tensorstore as ts  # here: it belongs to training, and folders of images need none

                folder = self.shards[0].path.parent
                self._store = ts.KvStore.open(storage.kvstore(folder)).result()
            return self._store

    def __getstate__(self) -> dict:
        return {"shards": self.shards, "first": self.first}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()
