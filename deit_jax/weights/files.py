"""Tensors in files: safetensors, PyTorch's `.pth`, and the Hugging Face hub that serves both.

A file is opened as `Tensors`: every name and shape at once, each array when it is asked for.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from deit_jax.errors import UserError

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
LARGEST_HEADER = 100 << 20  # the format's own limit
PICKLES = (".pth", ".pt", ".bin")
AGAIN = "it is corrupt or was cut short: download it again"


@dataclasses.dataclass
class Tensors:
    """What a file holds: shapes by name; `read(name)` gives one array, once."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str] | None = None


def reason(error: Exception) -> str:
    """What an error says, cut to fit into a line."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


def open_file(path: Path) -> Tensors:
    """The tensors of a .safetensors or .pth file. Raises UserError where it is neither, or broken."""
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in PICKLES:
        return open_pickle(path)
    raise UserError(f"{path} is no weight file: give a .safetensors or .pth file, an Orbax folder or a hub name")


def open_safetensors(path: Path) -> Tensors:
    """A .safetensors file: header length (8 bytes), JSON header, arrays.

    Read piece by piece and not through the library's memory map, whose pages would count as much again as the arrays
    they are copied into.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None)
        shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        dtypes = {key: np.dtype(DTYPES[entry["dtype"]]) for key, entry in header.items()}
        spans = {key: tuple(entry["data_offsets"]) for key, entry in header.items()}
        end = 0
        for key, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
            if start != end or stop - start != dtypes[key].itemsize * int(np.prod(shapes[key], dtype=np.int64)):
                raise ValueError(f"{key} is out of place")
            end = stop
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes where its header says {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no readable .safetensors file ({reason(error)}): {AGAIN}") from error

    def read(key: str) -> np.ndarray:
        count = int(np.prod(shapes[key], dtype=np.int64))
        return np.fromfile(path, dtypes[key], count, offset=8 + length + spans[key][0]).reshape(shapes[key])

    return Tensors(shapes, read, metadata)


def open_pickle(path: Path) -> Tensors:
    """A PyTorch file: tensors by name, bare or under the key "model". Code in it is refused, never run."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch, or give a .safetensors file") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler and the zip reader find wrong
        if "unsupported" in str(error).lower():
            raise UserError(
                f"{path} holds more than tensors, which could run code: it is refused, save its state dict alone"
            ) from error
        raise UserError(f"{path} is no readable PyTorch file ({reason(error)}): {AGAIN}") from error
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(
            f"{path} has an unknown layout: a PyTorch file of tensors by name, or those under 'model', is needed"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in content.items()}

    def read(key: str) -> np.ndarray:
        tensor = content.pop(key)  # let go of PyTorch's memory as ours fills
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return Tensors(shapes, read)


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form owner/name of a hub repository (and is no file's name)."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and Path(source).suffix not in (".safetensors", *PICKLES)


def fetch(name: str) -> Path:
    """The folder a hub repository's weights and configuration are cached in, downloaded where they are not there yet.

    Raises UserError where the name does not exist, holds no weights, or the hub cannot be reached.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        try:
            path = hub.hf_hub_download(name, "model.safetensors")
        except errors.RemoteEntryNotFoundError:
            path = hub.hf_hub_download(name, "pytorch_model.bin")
        for extra in ("config.json", "preprocessor_config.json"):
            try:
                hub.hf_hub_download(name, extra)
            except errors.EntryNotFoundError:
                continue  # only helps: the weights say what they are by themselves
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated: ask for access on its page, then log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} does not exist, neither as a file or folder here nor on the hub: check the spelling (names are "
            "like timm/deit_small_patch16_224.fb_in1k), or log in with `hf auth login` where it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is not in the cache and the hub cannot be reached (offline mode or no network): connect and try "
            "again, or give a file or folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name} holds neither model.safetensors nor pytorch_model.bin: give another name") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise UserError(f"{name} could not be downloaded ({reason(error)}): try again") from error
    return Path(path).parent


def weight_file(folder: Path) -> Path | None:
    """The weight file of a folder in Hugging Face's form, or None."""
    return next((folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).exists()), None)


def read_json(path: str | os.PathLike) -> dict:
    """A JSON file's dictionary; empty where there is none."""
    path = Path(path)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no readable JSON file: {AGAIN}") from error
    return content if isinstance(content, dict) else {}
