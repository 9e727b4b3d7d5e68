"""Stored teacher labels on disk, by place in the run: `[step, row]`, as batches number them.

    FOLDER/labels.json     what made the labels: the images and the teacher
    FOLDER/label/          hard: Zarr array uint16 (steps, batch), the most probable class
    FOLDER/index/          topk: Zarr array uint16 (steps, batch, k), most probable first
    FOLDER/logit/          topk: Zarr array float (steps, batch, k + 1): their logits, and that of each other class

A chunk is CHUNK whole steps and one file per array, which ends in its CRC-32C and is written at once or not at all. So
the files that are there are the record of progress, and several processes write side by side without coordination.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Shaped

from deit_jax.errors import UserError, first_line
from deit_jax.runtime import atomic, storage

Labels = Shaped[np.ndarray, "..."]  # an array of the store
CHUNK = 64  # steps per file
MAX_CLASSES = 2**16 - 1  # uint16, its largest number standing for "not there"
RESTORE = "restore it from a copy, or make labels in another --workdir"
# Two bytes hold a class of 1,000 in ten bits: shuffled, the empty ones cost nothing.
COMPRESSION = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}


def arrays_of(kind: str, k: int, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{array's name: (type, trailing axes)} of a store."""
    if kind == "hard":
        return {"label": ("uint16", ())}
    return {"index": ("uint16", (k,)), "logit": (dtype, (k + 1,))}


def view_bytes(kind: str, k: int = 1, dtype: str = "float16") -> int:
    """Bytes that a store of this form takes per view, before compression."""
    return sum(np.dtype(name).itemsize * math.prod(more) for name, more in arrays_of(kind, k, dtype).values())


def read_header(folder: str | os.PathLike) -> dict[str, Any]:
    """The labels.json of a store. Raises UserError where there is none, or it is damaged."""
    path = storage.as_path(folder) / "labels.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no labels: make them with --mode=label --workdir={folder}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): {RESTORE}") from error


def array_spec(path: Path, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """TensorStore's description of a new array."""
    compression = {**COMPRESSION, "typesize": np.dtype(dtype).itemsize}
    return {
        "driver": "zarr3",
        "kvstore": storage.kvstore(path),
        "metadata": {
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (CHUNK, *shape[1:])}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": compression},
                {"name": "crc32c"},
            ],
            "fill_value": MAX_CLASSES if dtype == "uint16" else "NaN",
        },
    }


class LabelStore:
    """An opened store. `header` is its labels.json; reading is cached and safe from several threads; pickles small.

    Raises UserError where the folder holds none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = storage.as_path(folder)
        self.header = read_header(folder)
        self.arrays = arrays_of(self.header["kind"], self.header["k"], self.header["dtype"])
        self.opened: dict[str, ts.TensorStore] = {}

    @classmethod
    def create(cls, folder: Path, header: dict[str, Any], steps: int) -> "LabelStore":
        """Start a store, or open the existing one. Raises UserError where that has no room for `steps` steps."""
        if not (folder / "labels.json").exists():
            if any(folder.glob("*/zarr.json")):
                raise UserError(f"{folder} holds labels whose labels.json is lost: {RESTORE}")
            atomic.write_json(folder / "labels.json", header)
        store = cls(folder)
        for name, (dtype, more) in store.arrays.items():
            path = folder / name
            if (path / "zarr.json").exists():
                continue
            try:
                ts.open(array_spec(path, (steps, header["batch_size"], *more), dtype), create=True).result()
            except Exception as error:  # TensorStore's are ValueError, RuntimeError and others
                raise atomic.write_error(path, error) from error
        if store.steps < steps:
            raise UserError(f"{folder} is for {store.steps} steps, not {steps}: make labels in another --workdir")
        return store

    def array(self, name: str) -> ts.TensorStore:
        """One of the store's arrays, opened once. Raises UserError where its zarr.json is missing or damaged."""
        if name not in self.opened:
            spec = {"driver": "zarr3", "kvstore": storage.kvstore(self.folder / name)}
            spec["store_data_equal_to_fill_value"] = True  # what was written is there, whatever it says
            path, context = self.folder / name / "zarr.json", ts.Context({"cache_pool": {"total_bytes_limit": 2**27}})
            try:
                # data is written once, so what is cached stays true
                opening = ts.open(spec, open=True, context=context, recheck_cached_data="open")
                self.opened[name] = opening.result()
            except Exception as error:  # tensorstore's errors are ValueError, RuntimeError and others
                raise UserError(f"{path} cannot be read ({first_line(error)}): {RESTORE}") from error
        return self.opened[name]

    @property
    def steps(self) -> int:
        """How many steps it has room for."""
        return self.array(next(iter(self.arrays))).shape[0]

    def present(self) -> set[int]:
        """The chunks of which every array has its file."""
        found = []
        for name, (_, more) in self.arrays.items():
            files = (self.folder / name / "c").glob("*/0" + "/0" * len(more))
            found.append({int(file.parents[len(more)].name) for file in files})
        return set.intersection(*found)

    def damaged(self) -> dict[int, str]:
        """{chunk: what is wrong} of the chunks that are there, read in full."""
        found = {}
        for chunk in sorted(self.present()):
            try:
                self.read_steps(chunk * CHUNK, min((chunk + 1) * CHUNK, self.steps))
            except UserError as error:
                found[chunk] = str(error)
        return found

    def remove(self, chunk: int) -> None:
        """Remove a chunk's files, so that it counts as missing."""
        for name in self.arrays:
            storage.remove(self.folder / name / "c" / str(chunk))
            self.opened.pop(name, None)  # with what is cached

    def missing(self, steps: int) -> list[int]:
        """The chunks of the first `steps` steps that are not there yet."""
        return sorted(set(range(-(-steps // CHUNK))) - self.present())

    def steps_done(self) -> int:
        """Steps from the run's first to the first one without labels."""
        return min([self.steps, *(chunk * CHUNK for chunk in self.missing(self.steps))])

    def write(self, chunk: int, labels: dict[str, Labels]) -> list[ts.WriteFutures]:
        """Write the labels of steps chunk * CHUNK … of the chunk's end, (steps, batch[, k]) each; returns futures."""
        first = chunk * CHUNK
        return [self.array(name)[first : first + len(values)].write(values) for name, values in labels.items()]

    def read(self, step: int, rows: slice = slice(None)) -> dict[str, Labels]:
        """{array's name: labels of one step's rows}. Raises UserError where they are not there or damaged."""
        return {name: values[0] for name, values in self.read_steps(step, step + 1, rows).items()}

    def read_steps(self, first: int, end: int, rows: slice = slice(None)) -> dict[str, Labels]:
        """{array's name: labels of steps first … end - 1, (steps, rows[, k])}. Raises UserError as `read`."""
        arrays = {name: self.array(name) for name in self.arrays}
        try:
            pending = {name: array[first:end, rows].read() for name, array in arrays.items()}
            labels = {name: future.result() for name, future in pending.items()}
        except (ValueError, IndexError) as error:
            raise UserError(f"labels of step {first} in {self.folder} are damaged: run --mode=label again") from error
        lacking = (np.isnan(x) if x.dtype.kind == "f" else x == MAX_CLASSES for x in labels.values())
        if any(found.any() for found in lacking):
            raise UserError(f"{self.folder} has no labels for step {first}: finish it with --mode=label")
        return labels

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}
