"""PyTorch's files: `.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`. Nothing in them is run, and nothing large is read before
it is known to be small enough."""

import argparse
import collections
import pathlib
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from deit_jax.errors import UserError
from deit_jax.weights.description import first_line
from deit_jax.weights.tensors import Tensors

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
# keys under which training scripts (DeiT's, timm's, Lightning's, others') keep a model and its moving average
TRAINED = ("model", "state_dict", "model_state_dict", "net")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema")
# An EfficientNet-B7 with its average and optimizer takes about 150,000 operations, a DeiT 30,000 and 0.5 MB.
MOST_OPERATIONS = 300_000
DEEPEST = 1_000  # open marks, one per nested container
LARGEST_PICKLE = 32 << 20
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of a file older than PyTorch 1.6


def is_pickle(path: Path) -> bool:
    """Whether the file's name is one of PyTorch's."""
    return path.name.endswith(SUFFIXES)


def open_pickle(path: Path, weights: str = "params") -> Tensors:
    """The tensors of a PyTorch file, bare or in a training script's wrapper.

    weights: "params", or "ema" for the averaged ones that lie beside them. Code in the file is refused, never run;
    settings beside the tensors (`argparse.Namespace`, paths, numpy's numbers) are read as the data they are. Raises
    UserError where the file is damaged or holds something else.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  optional
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch, or give a .safetensors file") from error
    try:
        check_pickle(path)
        with torch.serialization.safe_globals(harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever the unpickler and the zip reader find wrong
        if "unsupported" in str(error).lower():
            raise UserError(
                f"{path} holds more than tensors, which could run code: it is refused, save its state dict alone"
            ) from error
        raise UserError(
            f"{path} is not a readable PyTorch file ({first_line(error)}): it is corrupt or was cut short: download it"
            " again"
        ) from error
    state, notes = choose(content, weights, path)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path} has an unknown layout: a PyTorch file of tensors by name, or those under 'model', is needed"
        )
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {key} is not a plain array ({tensor.layout}): save it with .contiguous()")
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
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]  how numpy's numbers are pickled
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


def check_pickle(path: Path) -> None:
    """Raise UserError or ValueError for a file whose pickles are too long or nested too deeply to be a model's."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:  # PyTorch stores; a small file could unpack to anything
                    raise ValueError("its entries are compressed")
                if entry.filename.endswith("/data.pkl"):
                    if entry.file_size > LARGEST_PICKLE:
                        raise ValueError(f"a list of tensors of {entry.file_size >> 20} MiB")
                    with archive.open(entry) as file:
                        count_operations(file, MOST_OPERATIONS)
        return
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("neither a zip archive nor PyTorch's older form")
        left = MOST_OPERATIONS
        for _ in range(4):  # protocol, system, content, names of the storages
            left = count_operations(file, left)


def count_operations(file: IO[bytes], left: int) -> int:
    """`left` less the operations of the pickle at the file's position. Raises ValueError where that is below 0."""
    depth = 0
    for operation, _, _ in pickletools.genops(file):
        left -= 1
        depth = depth + 1 if operation.name == "MARK" else 0 if operation.name == "STOP" else depth
        if operation.name in CLOSING:
            depth = max(depth - 1, 0)
        if left < 0 or depth > DEEPEST:
            raise ValueError("its list of tensors is too long or nested too deeply to be a model's")
    return left


CLOSING = frozenset(
    op.name for op in pickletools.opcodes if pickletools.markobject in op.stack_before or op.name == "POP_MARK"
)


def choose(content: Any, weights: str, path: Path) -> tuple[dict, list[str]]:
    """(tensors by name, notes) of a file's content: the trained ones or their average. Raises UserError where what is
    asked for is not there, or two models are."""
    notes: list[str] = []
    if not isinstance(content, Mapping):
        return {}, notes
    trained, averaged = ([key for key in keys if holds_tensors(content.get(key))] for keys in (TRAINED, AVERAGED))
    if weights == "ema" and not averaged:
        raise UserError(f"{path} holds no averaged weights: leave --weights=ema out")
    asked = trained if weights == "params" else averaged
    if len(asked) > 1:
        both = " and ".join(f"'{key}'" for key in asked)
        raise UserError(f"{path} holds weights under {both}: save one of them alone")
    if not trained and not averaged:
        return dict(content), notes
    if weights == "ema" or not trained:
        key = averaged[0]
        notes += [] if weights == "ema" else [f"averaged weights ('{key}'): the file has no others"]
    else:
        key = trained[0]
        if averaged:
            notes.append(f"trained weights ('{key}'); the file has averaged ones too ('{averaged[0]}', --weights=ema)")
    return dict(innermost(content[key])), notes


def innermost(content: Mapping) -> Mapping:
    """The tensors by name in nested wrappers."""
    for _ in range(4):  # a file may hold a dictionary that holds itself
        content = next((content[key] for key in TRAINED if isinstance(content.get(key), Mapping)), content)
    return content


def holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(hasattr(v, "untyped_storage") for v in innermost(value).values())


def model_name(content: Any) -> str:
    """The model's name that timm's and DeiT's training scripts save with it, or ""."""
    if not isinstance(content, Mapping):
        return ""
    arguments = content.get("args")
    name = content.get("arch") or getattr(arguments, "model", None)
    return name if isinstance(name, str) else ""
