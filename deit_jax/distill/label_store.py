"""Stored teacher labels on disk, by place in the run: `[step, row]`, as batches number them.

    FOLDER/labels.json     what made the labels: the images and the teacher; a hash over both
    FOLDER/decision/       hard: Zarr array uint16 (steps, batch), the likeliest class
    FOLDER/index/          topk: Zarr array uint16 (steps, batch, k), likeliest first
    FOLDER/probability/    topk: Zarr array float (steps, batch, k)

A chunk is CHUNK whole steps and one file an array, written at once or not at all. So the files that are there are the
record of progress, and several processes write side by side without a word between them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from deit_jax.errors import UserError
from deit_jax.runtime import atomic

CHUNK = 64  # steps a file
MAX_CLASSES = 2**16 - 1  # uint16, its largest number standing for "not there"
# Two bytes hold a class of 1,000 in ten bits: shuffled, the empty ones cost nothing.
COMPRESSION = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}


def arrays_of(kind: str, k: int, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{array's name: (type, trailing axes)} of a store."""
    if kind == "hard":
        return {"decision": ("uint16", ())}
    return {"index": ("uint16", (k,)), "probability": (dtype, (k,))}


def size_forecast(views: int, kind: str, k: int, dtype: str) -> int:
    """Bytes of the labels of `views` views before compression: 0.77 GB for ImageNet x 300 epochs, hard."""
    return sum(views * np.dtype(t).itemsize * int(np.prod(more)) for t, more in arrays_of(kind, k, dtype).values())


def digest(values: dict[str, Any]) -> str:
    """SHA-256 of a dictionary's JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_header(folder: str | os.PathLike) -> dict[str, Any]:
    """The labels.json of a store. Raises UserError where there is none, or it is damaged."""
    path = Path(folder).expanduser() / "labels.json"
    try:
        header = json.loads(path.read_text())
        intact = header["hash"] == digest({"images": header["images"], "teacher": header["teacher"]})
    except FileNotFoundError:
        raise UserError(f"{folder} holds no labels: make them with --mode=label --workdir={folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r:.80}): make the labels anew in another folder") from error
    if not intact:
        raise UserError(f"{path} was changed by hand (its hash does not fit): restore it, or make the labels anew")
    return header


def runs(chunks: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as ranges (first, after the last)."""
    found: list[tuple[int, int]] = []
    for chunk in chunks:
        if found and found[-1][1] == chunk:
            found[-1] = (found[-1][0], chunk + 1)
        else:
            found.append((chunk, chunk + 1))
    return found


class LabelStore:
    """An opened store. `header` is its labels.json; reading is cached and safe from several threads; pickles small.

    Raises UserError where the folder holds none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser().absolute()
        self.header = read_header(folder)
        self.opened: dict[str, ts.TensorStore] = {}

    @classmethod
    def create(cls, folder: Path, header: dict[str, Any], steps: int) -> "LabelStore":
        """Start a store, or open the one that is there and make room for `steps` steps."""
        if not (folder / "labels.json").exists():
            atomic.write_json(folder / "labels.json", header)
        store = cls(folder)
        for name, (dtype, more) in store.arrays().items():
            shape = (steps, header["batch_size"], *more)
            if (folder / name / "zarr.json").exists():
                store.make_room(name, steps)
                continue
            ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(folder / name)},
                    "metadata": {
                        "shape": shape,
                        "data_type": dtype,
                        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (CHUNK, *shape[1:])}},
                        "codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {
                                "name": "blosc",
                                "configuration": {**COMPRESSION, "typesize": np.dtype(dtype).itemsize},
                            },
                        ],
                        "fill_value": MAX_CLASSES if dtype == "uint16" else "NaN",
                    },
                },
                create=True,
            ).result()
        return store

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return arrays_of(self.header["kind"], self.header["k"], self.header["dtype"])

    def make_room(self, name: str, steps: int) -> None:
        array = self.array(name)
        if array.shape[0] < steps:
            # what was the last chunk may be cut short: it is made again, whole
            shutil.rmtree(self.folder / name / "c" / str(array.shape[0] // CHUNK), ignore_errors=True)
            array.resize(exclusive_max=(steps, *array.shape[1:]), expand_only=True).result()
            self.opened.pop(name)

    def array(self, name: str) -> ts.TensorStore:
        if name not in self.opened:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.folder / name)}}
            spec["store_data_equal_to_fill_value"] = True  # what was written is there, whatever it says
            context = ts.Context({"cache_pool": {"total_bytes_limit": 2**27}})
            # data is written once, so what is cached stays true
            self.opened[name] = ts.open(spec, open=True, context=context, recheck_cached_data="open").result()
        return self.opened[name]

    def present(self) -> set[int]:
        """The chunks that are there."""
        per_array = []
        for name, (_, more) in self.arrays().items():
            leaf = "/".join(["0"] * (1 + len(more)))
            files = self.folder.glob(f"{name}/c/*/{leaf}")
            per_array.append({int(f.relative_to(self.folder / name / "c").parts[0]) for f in files})
        return set.intersection(*per_array)

    def missing(self, steps: int) -> list[int]:
        """The chunks of the first `steps` steps that are not there yet."""
        return sorted(set(range(-(-steps // CHUNK))) - self.present())

    def stored(self, steps: int) -> int:
        """How many of the first `steps` steps have labels."""
        return steps - sum(min(steps - chunk * CHUNK, CHUNK) for chunk in self.missing(steps))

    def steps_done(self) -> int:
        """Steps from the run's first to the first one without labels."""
        steps = self.array(next(iter(self.arrays()))).shape[0]
        gaps = self.missing(steps)
        return min(steps, gaps[0] * CHUNK) if gaps else steps

    def write(self, chunk: int, labels: dict[str, np.ndarray]) -> list[ts.WriteFutures]:
        """Write the labels of steps chunk * CHUNK … of the chunk's end, (steps, batch[, k]) each; returns futures."""
        first = chunk * CHUNK
        return [self.array(name)[first : first + len(values)].write(values) for name, values in labels.items()]

    def read(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """{array's name: labels of one step's rows}. Raises UserError where they are not there or damaged."""
        try:
            pending = {name: self.array(name)[step, rows].read() for name in self.arrays()}
            labels = {name: future.result() for name, future in pending.items()}
        except (ValueError, IndexError) as error:
            raise UserError(
                f"the labels of step {step} in {self.folder} cannot be read ({first_line(error)}): remove the files of"
                f" chunk {step // CHUNK} and run --mode=label again"
            ) from error
        first = next(iter(labels.values()))
        if (first == MAX_CLASSES).any():
            raise UserError(f"{self.folder} has no labels for step {step}: finish it with --mode=label")
        return labels

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160]
