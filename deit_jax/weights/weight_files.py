"""Weight files: safetensors and PyTorch's; which of a folder's files holds its weights."""

from pathlib import Path

import jax.numpy as jnp  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from deit_jax.errors import UserError, first_line
from deit_jax.weights.pickles import SUFFIXES, is_pickle, open_pickle
from deit_jax.weights.tensors import Tensors, unwrap

# what libraries call the weights of a folder; the first that exists counts
NAMES = ("model.safetensors", "pytorch_model.bin")


def is_weight_file(path: Path) -> bool:
    """Whether the file's name is one of safetensors or PyTorch."""
    return path.suffix == ".safetensors" or is_pickle(path)


def open_file(path: Path, weights: str = "params") -> Tensors:
    """The tensors of a weight file.

    weights: "params", or "ema" for the EMA of a training script's file. Raises UserError where it is
    another kind of file, or damaged.
    """
    if not is_weight_file(path):
        raise UserError(
            f"{path} is not a weight file: give a .safetensors or {SUFFIXES[0]} file, an Orbax folder or a hub name"
        )
    if is_pickle(path):
        return unwrap(open_pickle(path, weights), path)
    if weights != "params":
        raise UserError(f"{path} holds one set of weights: leave --weights={weights} out")
    return unwrap(open_safetensors(path), path)


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file. Raises UserError where it is damaged.

    The library checks the header against the file's size, maps the file and copies each array out of the map. It is
    opened again for each array, because the pages of a map that stays open count as much memory as the arrays.
    """
    try:
        with safe_open(path, "numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  not a dict
            header = file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable .safetensors file ({first_line(error)}): it is corrupt or was cut short:"
            " download it again"
        ) from error

    def read(key: str) -> np.ndarray:
        try:
            with safe_open(path, "numpy") as file:
                return file.get_tensor(key)
        except (SafetensorError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{path}: {key} cannot be read ({first_line(error)}): save it as float32") from error

    return Tensors(shapes, read, header)


def weight_file(folder: Path) -> Path | None:
    """The weight file of a folder: by its usual name, else the only one; None where it holds none.

    Raises UserError where there are several.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_weight_file(path))
    if len(found) > 1:
        shown = ", ".join(p.name for p in found[:4]) + (", …" if len(found) > 4 else "")
        raise UserError(f"{folder} holds several weight files: name one of {shown}")
    return found[0] if found else None
