"""Weight files, safetensors and PyTorch's: every name and shape at once, each array when it is asked for.

PyTorch's (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`) are read by `torch.load(weights_only=True)`, which runs no code
in them.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from deit_jax.errors import UserError, first_line

# what libraries call the weights of a folder; the first that exists counts
NAMES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
# keys under which training scripts (DeiT's, timm's, Lightning's, others') keep a model and its moving average
TRAINED = ("model", "state_dict", "model_state_dict", "net")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema")
# what wrappers of a model put before its tensors' names: DataParallel, torch.compile, a trainer's attribute, timm's
# model inside transformers
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "timm_model.")
# official codes' names where they are not timm's: DeiT III's LayerScale, DINOv2's registers
OFFICIAL = {r"(blocks\.\d+)\.gamma_([12])": r"\1.ls\2.gamma", "register_tokens": "reg_token"}
# tensors that take no part in classification: their ends, and what they are
UNUSED_TENSORS = {
    "pooler.dense.weight": "the pooler",
    "pooler.dense.bias": "the pooler",
    "mask_token": "the mask token",
    "n_averaged": "the counter of averaged weights",
}


@dataclasses.dataclass
class Tensors:
    """What a file holds.

    Attributes:
        shapes: by name.
        read: one array by its name, as numpy's; a second read of the same name may fail.
        header: of a safetensors file.
        name: a model's name that the file holds beside its tensors, or "".
        notes: what was chosen or left out, a line each.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    header: dict[str, str] | None = None
    name: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def unwrap(tensors: Tensors, path: Any) -> Tensors:
    """The same tensors without wrappers' prefixes and without those that take no part in classification.

    Raises UserError where two names become one.
    """
    original: dict[str, str] = {}
    for key in tensors.shapes:
        bare = key
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), ""):
            bare = bare.removeprefix(prefix)
        for theirs, ours in OFFICIAL.items():
            bare = re.sub(f"^{theirs}$", ours, bare)
        if bare in original:
            raise UserError(f"{path} holds {bare} twice, as {original[bare]} and as {key}: keep one of the two models")
        original[bare] = key
    unused = {
        bare: what
        for bare in original
        for end, what in UNUSED_TENSORS.items()
        if re.search(rf"(^|\.){re.escape(end)}$", bare)
    }
    notes = (
        [f"left out {', '.join(sorted(set(unused.values())))}: it takes no part in classification"] if unused else []
    )
    return dataclasses.replace(
        tensors,
        shapes={bare: tensors.shapes[key] for bare, key in original.items() if bare not in unused},
        read=lambda bare: tensors.read(original[bare]),
        notes=tensors.notes + notes,
    )


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


def is_pickle(path: Path) -> bool:
    """Whether the file's name is one of PyTorch's."""
    return path.name.endswith(SUFFIXES)


def open_pickle(path: Path, weights: str = "params") -> Tensors:
    """The tensors of a PyTorch file, bare or in a training script's wrapper.

    weights: "params", or "ema" for the EMA that lies beside them. Code in the file is refused, never run;
    settings beside the tensors (`argparse.Namespace`, paths, numpy's numbers) are read as the data they are. Raises
    UserError where the file is damaged or holds something else.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  optional
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch, or give a .safetensors file") from error
    try:
        with torch.serialization.safe_globals(harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler and the zip reader find wrong
        if "unsupported" in str(error).lower():
            raise UserError(
                f"{path} holds more than tensors, which could run code: it is refused, save its state dict alone"
            ) from error
        raise UserError(
            f"{path} is not a readable PyTorch file ({first_line(error)}): it is corrupt or was cut short: download it"
            " again"
        ) from error
    state, notes = choose_weights(content, weights, path)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path} has an unknown layout: a PyTorch file of tensors by name, or those under 'model', is needed"
        )
    shapes = {str(key): tuple(tensor.shape) for key, tensor in state.items()}

    def read(key: str) -> np.ndarray:
        tensor = state.pop(key)  # PyTorch's memory is freed as ours fills
        try:
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (TypeError, RuntimeError) as error:
            raise UserError(f"{path}: {key} of type {tensor.dtype} is not supported: save it as float32") from error

    return Tensors(shapes, read, name=model_name(content), notes=notes)


def harmless() -> list:
    """Classes that training scripts save beside tensors and that hold data only."""
    scalar = np.float64().__reduce__()[0]  # how numpy pickles its numbers
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [
        argparse.Namespace,
        collections.OrderedDict,
        collections.defaultdict,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        *numbers,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
    ]


def choose_weights(content: Any, weights: str, path: Path) -> tuple[dict, list[str]]:
    """(tensors by name, notes) of a file's content: the trained ones or their average.

    Raises UserError where the file does not hold what is asked for, or holds two models.
    """
    if not isinstance(content, Mapping):
        return {}, []
    trained, averaged = ([key for key in keys if holds_tensors(content.get(key))] for keys in (TRAINED, AVERAGED))
    if weights == "ema" and not averaged:
        raise UserError(f"{path} holds no averaged weights: leave --weights=ema out")
    if averaged and weights == "params" and not trained:
        raise UserError(f"{path} holds averaged weights ('{averaged[0]}') and no others: read them by --weights=ema")
    asked = trained if weights == "params" else averaged
    if len(asked) > 1:
        both = " and ".join(f"'{key}'" for key in asked)
        raise UserError(f"{path} holds weights under {both}: save one of them alone")
    notes = []
    if averaged and weights == "params":
        notes = [f"trained weights ('{trained[0]}'); the file has averaged ones too ('{averaged[0]}', --weights=ema)"]
    return dict(content[asked[0]] if asked else content), notes


def holds_tensors(value: Any) -> bool:
    """Whether `value` is a dictionary with tensors in it."""
    return isinstance(value, Mapping) and any(hasattr(v, "untyped_storage") for v in value.values())


def model_name(content: Any) -> str:
    """The model's name that timm's and DeiT's training scripts save with it, or ""."""
    if not isinstance(content, Mapping):
        return ""
    name = content.get("arch") or getattr(content.get("args"), "model", None)
    return name if isinstance(name, str) else ""
