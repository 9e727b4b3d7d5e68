"""Weights from anywhere, in our names and layout: `load_weights`."""

import dataclasses
import logging
import re
from pathlib import Path

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import UserError
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.weights import files
from deit_jax.weights.names import COUNTER, HEADS, Naming, Timm, counter_keys, entries, naming_of, timm_shapes
from deit_jax.weights.recognise import Architecture, check_keys, recognise


@dataclasses.dataclass
class Weights:
    """A model's arrays and what is known of them.

    source: where they came from. architecture: what they are. tree: {"params": …, "batch_stats": …} of numpy arrays, in
    the form of `models.abstract`. mean, std: pixel normalization they were trained with. class_names: by index, where
    known. counters, metadata: what a PyTorch file held besides (batch counters; safetensors' header), so that it can
    be written again as it was.
    """

    source: str
    architecture: Architecture
    tree: dict
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float | None = None
    interpolation: str = ""
    class_names: list[str] | None = None
    counters: dict[str, int] | None = None
    metadata: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """A registry name of this shape, or ""."""
        return self.architecture.name

    @property
    def num_classes(self) -> int:
        """Of each head; 0: the weights have none."""
        return self.architecture.config["num_classes"]


def load_weights(source, *, weights: str = "params") -> Weights:
    """Read a model's weights.

    Args:
        source: hub name (`timm/deit_tiny_patch16_224.fb_in1k`, `facebook/deit-small-distilled-patch16-224`), a
            `.safetensors` file in timm's or Hugging Face's names, an official `.pth`, a folder with model.safetensors
            and config.json, or an Orbax folder of ours (a workdir, its `checkpoints`, one step, or what
            `deit_jax.convert` wrote).
        weights: of a training checkpoint, the trained ones ("params") or their moving average ("ema").

    What the model is follows from the names and shapes. Every tensor must be there, in its shape, and no other:
    raises UserError naming each that is not, and for whatever cannot be found or read.
    """
    source = str(source)
    path = Path(source).expanduser()
    if path.is_dir():
        file = files.weight_file(path)
        return read_file(file, source) if file else read_orbax(source, weights)
    if path.is_file():
        return read_file(path, source)
    if files.is_hub_name(source):
        return read_file(files.weight_file(files.fetch(source)), source)
    raise UserError(
        f"{source} does not exist: give a hub name (owner/name), a .safetensors or .pth file or an Orbax folder"
    )


def read_file(path: Path, source: str) -> Weights:
    """The weights of one file, with the configuration that lies beside it."""
    tensors = files.open_file(path)
    config = files.read_json(path.parent / "config.json")
    naming = naming_of(tensors.shapes)
    timm_config = config.get("pretrained_cfg") or {}
    named = config.get("architecture") or (tensors.metadata or {}).get("architecture")
    hint = named or source.split("/")[-1].split(".")[0].replace("-", "_")
    said = config.get("image_size") or tuple(timm_config.get("input_size", ())[1:]) or None
    said = tuple(said) if isinstance(said, list) else said
    if not isinstance(said, int | tuple | None):
        raise UserError(f"{path.parent / 'config.json'} says image_size {said!r}: it must be a number of pixels")
    found = recognise(timm_shapes(tensors.shapes, naming), source, hint=hint, img_size=said)
    check_depth(found, source, config.get("num_hidden_layers"), hint)
    empty = allocate(found, tensors.shapes, naming, source)
    for entry in entries(empty, naming):
        entry.view(empty)[...] = tensors.read(entry.key)
    processor = files.read_json(path.parent / "preprocessor_config.json")
    mean, std = trained_pixels(found, source)
    labels = config.get("id2label", {})
    names = [labels.get(str(i), "LABEL_") for i in range(len(labels))]
    counters = {key: int(tensors.read(key)) for key in tensors.shapes if key.endswith(COUNTER)}
    return Weights(
        source,
        found,
        empty,
        mean=tuple(timm_config.get("mean") or processor.get("image_mean") or mean),
        std=tuple(timm_config.get("std") or processor.get("image_std") or std),
        class_names=None if not names or any(name.startswith("LABEL_") for name in names) else names,
        counters=counters,
        metadata=tensors.metadata,
    )


def trained_pixels(found: Architecture, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Pixel mean and deviation of weights without a configuration: ImageNet's, but for the EfficientNets that timm tags
    `ap` (AdvProp) or `ra4`, whose pixels lay in -1..1."""
    if found.module is EfficientNet and re.search(r"b\d[._-](ap|ra4)(?![a-z0-9])", source):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return IMAGENET_MEAN, IMAGENET_STD


def check_depth(found: Architecture, source: str, said: int | None, hint: str) -> None:
    """Raise UserError where a ViT lacks its last blocks: it would pass for a shallower one. said: the depth its
    configuration gives; hint: its name."""
    depth = found.config.get("depth")
    if depth is None:
        return
    if said is None and hint in models.list_models():
        said = models.find(hint)[1].get("depth", 12)
    if said is not None and depth < said:
        raise UserError(
            f"{source} lacks blocks {depth}..{said - 1} of {said} (blocks.{depth}.norm1.weight and what follows):"
            " it was cut short: download it again"
        )


def allocate(found: Architecture, shapes: dict, naming: Naming, source: str) -> dict:
    """Unfilled arrays of the model `found`, after checking that a file of `shapes` holds just these."""
    tree = needed_shapes(found)
    needed = {entry.key: entry.shape for entry in entries(tree, naming)}
    counters = dict.fromkeys(counter_keys(tree), ())
    if counters.keys() & shapes.keys():  # older files have none of them
        needed |= counters
    check_keys(shapes, needed, source, f"all of {found.describe()} and nothing else")
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), tree)


def needed_shapes(found: Architecture) -> dict:
    """{"params": …, "batch_stats": …} of shapes, without the head where the weights have none."""
    overrides = {"num_classes": found.config["num_classes"] or 1}
    if "num_heads" in found.config:  # neither heads nor the grid's sides show in any shape
        overrides |= {"num_heads": found.config["num_heads"] or 1, "img_size": found.config["img_size"]}
        if overrides["img_size"] is None:
            patch = found.config["patch_size"]
            overrides["img_size"] = (patch, found.positions * patch)
    _, params, batch_stats = models.abstract(found.constructor(**overrides))
    if not found.config["num_classes"]:
        params = {k: v for k, v in params.items() if k not in HEADS}
    return {"params": params, "batch_stats": batch_stats}


def read_orbax(source: str, weights: str) -> Weights:
    """The weights of an Orbax folder: our own names and layout."""
    from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

    orbax_log = logging.getLogger("absl")
    level = orbax_log.level
    orbax_log.setLevel(logging.ERROR)  # it warns that one item alone is no whole checkpoint, which is what we want
    try:
        meta, tree = orbax.read_weights(source, weights)
    except UserError:
        raise
    except Exception as error:  # tensorstore, Orbax and the JSON reader each have their own
        raise UserError(f"{source} is no readable Orbax folder ({files.reason(error)})") from error
    finally:
        orbax_log.setLevel(level)
    model, more = meta.get("model", {}), meta.get("weights", {})
    size = model.get("img_size")
    shapes = {entry.key: entry.shape for entry in entries(tree, Timm())}
    found = recognise(
        shapes, source, hint=model.get("name", ""), img_size=tuple(size) if isinstance(size, list) else size
    )
    needed = {entry.key: entry.shape for entry in entries(needed_shapes(found), Timm())}
    check_keys(shapes, needed, source, f"all of {found.describe()} and nothing else")
    return Weights(
        source,
        found,
        tree,
        mean=tuple(more.get("mean", IMAGENET_MEAN)),
        std=tuple(more.get("std", IMAGENET_STD)),
        crop=meta.get("config", {}).get("data", {}).get("crop"),
        class_names=more.get("class_names"),
        counters=more.get("counters"),
        metadata=more.get("metadata", {"format": "pt"}),
    )
