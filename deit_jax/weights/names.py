"""Map parameter names and axis orders between Flax and PyTorch checkpoints.

Our attribute names are timm's, so timm's names (the official code's too) follow from the path of an array; Hugging
Face's and efficientnet_pytorch's follow from timm's by the tables below. `entries` walks a tree in any naming and
serves reading and writing alike: what one writes, the other reads.
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
HEADS = ("head", "head_dist", "classifier")  # the last is EfficientNet's
PROJECTION = "feature_proj"  # a student's, to its teacher's features: no part of the weights that others read

# timm's → Hugging Face's, outside the blocks (behind the prefix "deit." or "vit.")
TOP = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
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
# what DINOv2's blocks call differently; its LayerScale's gamma is lambda1
DINOV2 = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
DINOV2 |= {"ls1": "layer_scale1", "ls2": "layer_scale2"}

# timm's → efficientnet_pytorch's: outside the blocks, in a block of expansion 1, in the others
EFFICIENTNET_TOP = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
MBCONV1 = SQUEEZE | {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
MBCONV = SQUEEZE | {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


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
class Naming:
    """How a file names the tensors of a model."""

    def split(self, key: str) -> list[str]:
        """A timm name in this naming; several names hold equal shares of its first axis."""
        return [key]

    def of(self, paths: Iterable[tuple[str, ...]]) -> "Naming":
        """This naming for a model of our arrays' `paths`."""
        return self

    def tensors(self, path: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[TensorEntry]:
        """The tensors that our array at `path`, of that shape, becomes."""
        key = timm_key(path)
        stacked = path[1] == "blocks" and not path[2].isdigit()  # EfficientNet's are apart: blocks.0.0, …
        numbers, shape = (range(shape[0]), shape[1:]) if stacked else ([None], shape)
        axes = KERNEL_AXES[len(shape)] if path[-1] == "kernel" else None
        shape = shape if axes is None else tuple(shape[a] for a in axes)
        for block in numbers:
            keys = self.split(key if block is None else key.replace("blocks.", f"blocks.{block}.", 1))
            share = (shape[0] // len(keys), *shape[1:])
            for i, name in enumerate(keys):
                yield TensorEntry(name, share, path, block, axes, None if len(keys) == 1 else i)


@dataclasses.dataclass(frozen=True)
class Timm(Naming):
    """timm's and the official code's naming."""


@dataclasses.dataclass(frozen=True)
class HuggingFace(Naming):
    """Hugging Face's naming: `prefix` "deit.", "vit.", "dinov2." or "", heads' names, hub files' or newer modules'
    names, DINOv2's blocks."""

    prefix: str = "deit."
    head: str = "cls_classifier"
    modules: bool = False
    dinov2: bool = False

    def split(self, key: str) -> list[str]:
        module, _, leaf = key.rpartition(".")
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
            layer = f"{self.prefix}{'layers' if self.modules and not self.dinov2 else 'encoder.layer'}.{match[1]}."
            rows = {row[0]: row[2 if self.modules else 1] for row in BLOCK} | (DINOV2 if self.dinov2 else {})
            leaf = "lambda1" if leaf == "gamma" else leaf
            parts = ["attn.q", "attn.k", "attn.v"] if match[2] == "attn.qkv" else [match[2]]
            return [f"{layer}{rows[part]}.{leaf}" for part in parts]
        if module in ("head", "head_dist"):
            return [f"{self.head if module == 'head' else 'distillation_classifier'}.{leaf}"]
        return [f"{self.prefix}{TOP[module]}.{leaf}" if module else f"{self.prefix}{TOP[key]}"]


@dataclasses.dataclass(frozen=True)
class EfficientNetPytorch(Naming):
    """The naming of the packages efficientnet_pytorch and efficientnet_lite_pytorch.

    blocks: timm's names of the blocks in order, "0.0", "1.0", "1.1", …: here they are counted through.
    """

    blocks: tuple[str, ...] = ()

    def split(self, key: str) -> list[str]:
        module, _, leaf = key.rpartition(".")
        if match := re.fullmatch(r"blocks\.((\d+)\.\d+)\.(.+)", module):
            names = MBCONV1 if match[2] == "0" else MBCONV
            return [f"_blocks.{self.blocks.index(match[1])}.{names[match[3]]}.{leaf}"]
        return [f"{EFFICIENTNET_TOP.get(module, module)}.{leaf}"]

    def of(self, paths: Iterable[tuple[str, ...]]) -> "EfficientNetPytorch":
        blocks = {(int(path[2]), int(path[3])) for path in paths if path[1] == "blocks"}
        return EfficientNetPytorch(tuple(f"{stage}.{block}" for stage, block in sorted(blocks)))


@dataclasses.dataclass(frozen=True)
class Own(Naming):
    """The naming of a model of the user's own: the paths of its arrays, in our layout."""

    def tensors(self, path: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[TensorEntry]:
        yield TensorEntry("/".join(map(str, path)), shape, path, None, None, None)


def naming_of(keys: Iterable[str]) -> Naming:
    """The naming a file's keys are in; timm's where nothing speaks for Hugging Face's."""
    keys = set(keys)
    if any(key.startswith("params/") for key in keys):
        return Own()
    if "_conv_stem.weight" in keys:
        return EfficientNetPytorch()
    marks = ("embeddings.", "layernorm.", "encoder.layer.")
    if not any(mark in key for key in keys for mark in marks):
        return Timm()
    prefixes = ("deit.", "vit.", "dinov2.", "dinov2_with_registers.")
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in keys)), "")
    head = "cls_classifier" if any(k.startswith(("cls_classifier", "distillation")) for k in keys) else "classifier"
    return HuggingFace(
        prefix,
        head,
        modules=any(".q_proj." in key or key.startswith(prefix + "layers.") for key in keys),
        dinov2=any("layer_scale1." in key for key in keys),
    )


def timm_key(path: tuple[str, ...]) -> str:
    """timm's name of our array at `path` (params or batch_stats first), the block's number left out."""
    names = ["patch_embed.proj" if name == "patch_embed" else str(name) for name in path[1:-1]]  # a list's are numbers
    return ".".join([*names, LEAVES.get(path[-1], path[-1])])


def entries(tree: dict, naming: Naming) -> Iterator[TensorEntry]:
    """Every tensor of a file in `naming` that holds `tree`, {"params": …, "batch_stats": …} of arrays or shapes."""
    leaves: dict[Any, Any] = dict(traverse_util.flatten_dict(tree))
    naming = naming.of(leaves)
    for path, array in leaves.items():
        yield from naming.tensors(path, tuple(array.shape))
