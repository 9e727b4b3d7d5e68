"""Weight files: safetensors, whole or in shards, and PyTorch's; which of a folder's files holds its weights."""

from pathlib import Path

import jax.numpy as jnp  # registers bfloat16 with numpy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from deit_jax.errors import UserError
from deit_jax.weights.description import first_line, read_json
from deit_jax.weights.pickles import SUFFIXES, is_pickle, open_pickle
from deit_jax.weights.tensors import Tensors, unwrap

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
INDEX = ".index.json"
# what libraries call the weights of a folder, the first that is there counting
NAMES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
MOST_SHARDS = 1_000


def open_file(path: Path, weights: str = "params") -> Tensors:
    """The tensors of a weight file or of a shard index.

    weights: "params", or "ema" for the averaged weights of a training script's file. Raises UserError where it is
    neither, or damaged.
    """
    if path.name.endswith(INDEX):
        tensors = open_shards(path)
    elif path.suffix == ".safetensors":
        tensors = open_safetensors(path)
    elif is_pickle(path):
        return unwrap(open_pickle(path, weights), path)
    else:
        raise UserError(
            f"{path} is not a weight file: give a .safetensors or {SUFFIXES[0]} file, an Orbax folder or a hub name"
        )
    if weights != "params":
        raise UserError(f"{path} holds one set of weights: leave --weights={weights} out")
    return unwrap(tensors, path)


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file. Raises UserError where it is damaged.

    The library checks the header against the file's size, maps the file and copies each array out of the map. It is
    opened again for each array, because the pages of a map that stays open count as much memory as the arrays.
    """
    try:
        with safe_open(path, "numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  it is not a dictionary
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            unknown = next(((key, s.get_dtype()) for key, s in slices.items() if s.get_dtype() not in DTYPES), None)
            metadata = file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable .safetensors file ({first_line(error)}): it is corrupt or was cut short:"
            " download it again"
        ) from error
    if unknown:
        raise UserError(f"{path}: {unknown[0]} of type {unknown[1]} is not supported: save it as float32")

    def read(key: str) -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(key)

    return Tensors(shapes, read, metadata)


def open_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as an index of shards, {"weight_map": {name: file beside it}}, lists them. Raises
    UserError where it is not one."""
    placed = read_json(path).get("weight_map")
    right = isinstance(placed, dict) and all(isinstance(file, str) for file in placed.values())
    if not right or not placed or any(Path(file).name != file for file in placed.values()):
        raise UserError(f"{path} is not an index of shards: its weight_map must give each tensor a file beside it")
    if len(set(placed.values())) > MOST_SHARDS:
        raise UserError(f"{path} names {len(set(placed.values()))} files: {MOST_SHARDS} at most are read")
    return placed


def open_shards(index: Path) -> Tensors:
    """The tensors that an index lists. Raises UserError where a file or tensor that it names is missing."""
    placed = open_index(index)
    files = sorted(set(placed.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(f"{index} names {', '.join(missing[:3])}, which is not there: download the missing shards")
    shards = {}
    for file in files:
        path = index.parent / file
        shards[file] = open_pickle(path) if is_pickle(path) else open_safetensors(path)
    shapes = {}
    for key, file in placed.items():
        if key not in shards[file].shapes:
            raise UserError(f"{index} places {key} in {file}, which does not hold it: download both again")
        shapes[key] = shards[file].shapes[key]
    return Tensors(shapes, lambda key: shards[placed[key]].read(key), shards[files[0]].metadata)


def weight_file(folder: Path) -> Path | None:
    """The weight file of a folder: by its usual name, else the only one that is there; None where there is none.

    Raises UserError where there are several.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.is_file() and (p.suffix == ".safetensors" or is_pickle(p)))
    if len(found) > 1:
        shown = ", ".join(p.name for p in found[:4]) + (", …" if len(found) > 4 else "")
        raise UserError(f"{folder} holds several weight files: name one of {shown}")
    return found[0] if found else None
