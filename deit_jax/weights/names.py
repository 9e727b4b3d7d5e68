"""Map parameter names and axis orders between Flax and PyTorch checkpoints.

Our attribute names are timm's, so timm's names (the official code's too) follow from the path of an array; Hugging
Face's follow from timm's by the tables below. `entries` walks a tree in either naming and serves reading and writing
alike: what one writes, the other reads.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flax import traverse_util

# our leaf → PyTorch's; the rest keep their name
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# axes of PyTorch's layout as seen from ours, by rank: linear (out, in), convolution (out, in, height, width)
KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
COUNTER = "num_batches_tracked"
HEADS = ("head", "head_dist", "classifier")  # the last is EfficientNet's

# timm's → Hugging Face's, outside the blocks (behind the prefix "deit." or "vit.")
TOP = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
# inside a block: (timm's, in hub files, in the modules of transformers 5)
BLOCK = (
    ("norm1", "layernorm_before", "layernorm_before"),
    ("attn.q", "attention.attention.query", "attention.q_proj"),
    ("attn.k", "attention.attention.key", "attention.k_proj"),
    ("attn.v", "attention.attention.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("norm2", "layernorm_after", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
)


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `key` there, `shape` in PyTorch's layout, and where it lies in our tree."""

    key: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    block: int | None
    axes: tuple[int, ...] | None
    part: int | None

    def view(self, tree: dict) -> np.ndarray:
        """Our array's share that is this tensor, in PyTorch's layout; writing into it fills `tree`."""
        array: Any = tree
        for name in self.path:
            array = array[name]
        array = array if self.block is None else array[self.block]
        array = array if self.axes is None else array.transpose(self.axes)
        return array if self.part is None else array[self.part * self.shape[0] : (self.part + 1) * self.shape[0]]


@dataclasses.dataclass(frozen=True)
class Timm:
    """timm's and the official code's naming."""

    def split(self, key: str) -> list[str]:
        """A timm name in this naming; several names hold equal shares of its first axis."""
        return [key]


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """Hugging Face's naming: `prefix` "deit.", "vit." or "", heads' names, and hub files' or newer modules' names."""

    prefix: str = "deit."
    head: str = "cls_classifier"
    modules: bool = False

    def split(self, key: str) -> list[str]:
        module, _, leaf = key.rpartition(".")
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
            layer = f"{self.prefix}{'layers' if self.modules else 'encoder.layer'}.{match[1]}."
            rows = {row[0]: row[2 if self.modules else 1] for row in BLOCK}
            parts = ["attn.q", "attn.k", "attn.v"] if match[2] == "attn.qkv" else [match[2]]
            return [f"{layer}{rows[part]}.{leaf}" for part in parts]
        if module in ("head", "head_dist"):
            return [f"{self.head if module == 'head' else 'distillation_classifier'}.{leaf}"]
        return [f"{self.prefix}{TOP[module]}.{leaf}" if module else f"{self.prefix}{TOP[key]}"]


Naming = Timm | HuggingFace


def naming_of(keys: Iterable[str]) -> Naming:
    """The naming a file's keys are in; timm's where nothing speaks for Hugging Face's."""
    keys = set(keys)
    marks = ("embeddings.", "layernorm.", "encoder.layer.")
    if not any(mark in key for key in keys for mark in marks):
        return Timm()
    prefix = next((p for p in ("deit.", "vit.") if any(key.startswith(p) for key in keys)), "")
    head = "cls_classifier" if any(k.startswith(("cls_classifier", "distillation")) for k in keys) else "classifier"
    return HuggingFace(
        prefix, head, modules=any(".q_proj." in key or key.startswith(prefix + "layers.") for key in keys)
    )


def timm_key(path: tuple[str, ...]) -> str:
    """timm's name of our array at `path` (params or batch_stats first), the block's number left out."""
    names = ["patch_embed.proj" if name == "patch_embed" else name for name in path[1:-1]]
    return ".".join([*names, LEAVES.get(path[-1], path[-1])])


def entries(tree: dict, naming: Naming) -> Iterator[TensorEntry]:
    """Every tensor of a file in `naming` that holds `tree`, {"params": …, "batch_stats": …} of arrays or shapes."""
    leaves: dict[Any, Any] = dict(traverse_util.flatten_dict(tree))
    for path, array in leaves.items():
        shape, key = tuple(array.shape), timm_key(path)
        stacked = path[1] == "blocks" and not path[2].isdigit()  # EfficientNet's are apart: blocks.0.0, …
        numbers, shape = (range(shape[0]), shape[1:]) if stacked else ([None], shape)
        axes = KERNEL_AXES[len(shape)] if path[-1] == "kernel" else None
        shape = shape if axes is None else tuple(shape[a] for a in axes)
        for block in numbers:
            keys = naming.split(key if block is None else key.replace("blocks.", f"blocks.{block}.", 1))
            share = (shape[0] // len(keys), *shape[1:])
            for i, name in enumerate(keys):
                yield TensorEntry(name, share, path, block, axes, None if len(keys) == 1 else i)


def counter_keys(tree: dict) -> list[str]:
    """Names of PyTorch's batch counters, one per batch normalization; ours keeps none."""
    paths = traverse_util.flatten_dict(tree)
    return [timm_key((*path[:-1], COUNTER)) for path in paths if path[0] == "batch_stats" and path[-1] == "mean"]
