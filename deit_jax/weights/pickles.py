"""PyTorch's files: `.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, read by `torch.load(weights_only=True)`, which runs no
code in them."""

import argparse
import collections
import pathlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.errors import UserError, first_line
from deit_jax.weights.tensors import Tensors

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
# keys under which training scripts (DeiT's, timm's, Lightning's, others') keep a model and its moving average
TRAINED = ("model", "state_dict", "model_state_dict", "net")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema")


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
    asked = trained if weights == "params" else averaged
    if len(asked) > 1:
        both = " and ".join(f"'{key}'" for key in asked)
        raise UserError(f"{path} holds weights under {both}: save one of them alone")
    if not trained and not averaged:
        return dict(content), []
    notes = []
    if weights == "params" and not trained:
        notes = [f"averaged weights ('{averaged[0]}'): the file has no others"]
    elif weights == "params" and averaged:
        notes = [f"trained weights ('{trained[0]}'); the file has averaged ones too ('{averaged[0]}', --weights=ema)"]
    return dict(innermost(content[(asked or averaged)[0]])), notes


def innermost(content: Mapping) -> Mapping:
    """The tensors by name in nested wrappers."""
    for _ in range(4):  # a file may hold a dictionary that holds itself
        content = next((content[key] for key in TRAINED if isinstance(content.get(key), Mapping)), content)
    return content


def holds_tensors(value: Any) -> bool:
    """Whether `value` is a dictionary of tensors, or a wrapper of one."""
    return isinstance(value, Mapping) and any(hasattr(v, "untyped_storage") for v in innermost(value).values())


def model_name(content: Any) -> str:
    """The model's name that timm's and DeiT's training scripts save with it, or ""."""
    if not isinstance(content, Mapping):
        return ""
    name = content.get("arch") or getattr(content.get("args"), "model", None)
    return name if isinstance(name, str) else ""
