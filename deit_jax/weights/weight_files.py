"""Weight files, safetensors and PyTorch's: their tensors by name, as numpy arrays.

PyTorch's (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`) are read by `torch.load(weights_only=True)`, which runs no code
in them.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping
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
# tensors that take no part in classification: of ViTModel and DINOv2, and a counter of averaged weights
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "mask_token", "n_averaged")
COUNTER = ".num_batches_tracked"  # PyTorch's, of each batch normalization: no weight


@dataclasses.dataclass
class Tensors:
    """What a file holds.

    Attributes:
        arrays: by name, in the file's type or float32.
        header: of a safetensors file.
        name: a model's name that the file holds beside its tensors, or "".
        notes: what was chosen or left out, a line each.
    """

    arrays: dict[str, np.ndarray]
    header: dict[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def unwrap(tensors: Tensors, path: Path) -> Tensors:
    """The same tensors without wrappers' prefixes and without those that take no part in classification.

    Raises UserError where two names become one.
    """
    bare_names: dict[str, str] = {}
    for key in (key for key in tensors.arrays if not key.endswith(COUNTER)):
        bare = key
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), ""):
            bare = bare.removeprefix(prefix)
        for theirs, ours in OFFICIAL.items():
            bare = re.sub(f"^{theirs}$", ours, bare)
        if bare in bare_names:
            raise UserError(
                f"{path} holds {bare} twice, as {bare_names[bare]} and as {key}: keep one of the two models"
            )
        bare_names[bare] = key
    unused = [bare for bare in bare_names if f".{bare}".endswith(tuple(f".{end}" for end in UNUSED))]
    arrays = {bare: tensors.arrays[key] for bare, key in bare_names.items() if bare not in unused}
    notes = [f"left out {', '.join(unused)}: no part of a classifier"] if unused else []
    return dataclasses.replace(tensors, arrays=arrays, notes=tensors.notes + notes)


def is_weight_file(path: Path) -> bool:
    """Whether the file's name is one of safetensors or PyTorch."""
    return path.name.endswith((".safetensors", *SUFFIXES))


def weight_file(folder: Path) -> Path | None:
    """The weight file of a folder: by its usual name, else the only one; None where it holds none.

    Raises UserError where there are several.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_weight_file(path))
    if len(found) > 1:
        raise UserError(f"{folder} holds several weight files: name one of {', '.join(p.name for p in found[:4])}")
    return found[0] if found else None


def open_file(path: Path, weights: str = "params") -> Tensors:
    """The tensors of a weight file.

    weights: "params", or "ema" for the EMA of a training script's file. Raises UserError where it is
    another kind of file, or damaged.
    """
    if not is_weight_file(path):
        raise UserError(
            f"{path} is not a weight file: give a .safetensors or {SUFFIXES[0]} file, an Orbax folder or a hub name"
        )
    if path.suffix != ".safetensors":
        return unwrap(open_pickle(path, weights), path)
    if weights != "params":
        raise UserError(f"{path} holds one set of weights: leave --weights={weights} out")
    try:
        with safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
        raise damaged_file(path, error) from error
    return unwrap(Tensors(arrays, header), path)


def damaged_file(path: Path, error: Exception) -> UserError:
    """The error for a damaged weight file, or one of a type that numpy lacks."""
    return UserError(
        f"{path} is not a readable {path.suffix} file of float32, float16 or bfloat16 ({first_line(error)}): it is"
        " corrupt or was cut short: download it again"
    )


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
        state, notes = choose_weights(content, weights, path)
        if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise UserError(
                f"{path} has an unknown layout: a PyTorch file of tensors by name, or those under 'model', is needed"
            )
        arrays = {str(k): (v.float() if v.is_floating_point() else v).numpy() for k, v in state.items()}
    except UserError:
        raise
    except Exception as error:  # whatever the unpickler and the zip reader find wrong
        if "unsupported" in str(error).lower():
            raise UserError(
                f"{path} holds more than tensors, which could run code: it is refused, save its state dict alone"
            ) from error
        raise damaged_file(path, error) from error
    return Tensors(arrays, name=model_name(content), notes=notes)


def harmless() -> list:
    """Classes that training scripts save beside tensors and that hold data only."""
    scalar = np.float64().__reduce__()[0]  # how numpy pickles its numbers
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    containers = [argparse.Namespace, collections.OrderedDict, collections.defaultdict]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    return [*containers, *paths, np.dtype, *numbers, scalar, (scalar, "numpy.core.multiarray.scalar")]


def choose_weights(content: Any, weights: str, path: Path) -> tuple[dict, list[str]]:
    """(tensors by name, notes) of a file's content: the trained ones or their average.

    Raises UserError where the file does not hold what is asked for, or holds two models.
    """
    if not isinstance(content, Mapping):
        return {}, []
    holds_tensors = lambda value: (
        isinstance(value, Mapping) and any(hasattr(v, "untyped_storage") for v in value.values())
    )
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


def model_name(content: Any) -> str:
    """The model's name that timm's and DeiT's training scripts save with it, or ""."""
    if not isinstance(content, Mapping):
        return ""
    name = content.get("arch") or getattr(content.get("args"), "model", None)
    return name if isinstance(name, str) else ""
