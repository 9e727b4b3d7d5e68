"""Weights from anywhere, in our names and layout: `load_weights`."""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import UserError, first_line, printable
from deit_jax.runtime import storage
from deit_jax.weights import hub
from deit_jax.weights.architecture import Architecture, architecture_of, check_keys, listed, registered_name
from deit_jax.weights.library_configs import read_configuration
from deit_jax.weights.metadata import Metadata, from_checkpoint, from_header, given_size, reading
from deit_jax.weights.names import COUNTER, HEADS, Naming, Timm, counter_keys, entries, naming_of
from deit_jax.weights.tensors import Tensors
from deit_jax.weights.weight_files import open_file, weight_file

log = logging.getLogger("deit_jax")


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
    counters: dict[str, int] | None = None
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
            `.pth.tar`), a folder that holds one of these and its config.json, or an Orbax folder
            of ours (a workdir, its `checkpoints`, one step, or what `deit_jax.convert` wrote).
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
        file = find_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check that it exists and may be read") from error
    loaded = read_file(file, path, weights, name, img_size) if file else read_orbax(path, weights)
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
        f"{source} does not exist: give a hub name (owner/name), a .safetensors or .pth file or an Orbax folder"
    )


def read_metadata(source: str) -> Metadata:
    """The metadata of weights, with what their model was published with; no array is read. Errors as `load_weights`."""
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
    metadata.name = stated.split("/")[-1].split(".")[0] or next(filter(None, map(registered_name, hints)), "")
    mean, std = published_pixels(metadata.name, hints[0])
    metadata.mean, metadata.std = metadata.mean or mean, metadata.std or std
    return metadata


def published_pixels(name: str, file: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation that the published weights of model `name` were trained with: ImageNet's, but for the
    EfficientNets that timm tags `ap` (AdvProp) or `ra4`, whose pixels lay in -1..1. (None, None) for plain ViTs, which
    were published with either. file: the file's own name, with its tag."""
    if "efficientnet" in name and re.search(r"b\d[._-](ap|ra4)(?![a-z0-9])", file):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (None, None) if name.startswith("vit_") or not name else (IMAGENET_MEAN, IMAGENET_STD)


def read_file(path: Path, source: str, weights: str, name: str, img_size: Any) -> Weights:
    """The weights of one file, with the configuration that lies beside it."""
    tensors = open_file(path, weights)
    metadata, naming = file_metadata(path, source, tensors), naming_of(tensors.shapes)
    if metadata.arguments.get("no_embed_class"):
        tensors = cover_tokens(tensors)
    with reading(source):
        found = architecture_of(tensors.shapes, naming, metadata, source, name=name, img_size=img_size)
        tree = allocate(found, tensors.shapes, naming, source)
    for entry in entries(tree, naming):
        entry.view(tree)[...] = tensors.read(entry.key)
    check_finite(tree, naming, source)
    counters = {key: int(tensors.read(key)) for key in tensors.shapes if key.endswith(COUNTER)}
    loaded = Weights(source, found, tree, counters=counters, header=tensors.header, notes=tensors.notes)
    apply_metadata(loaded, metadata)
    return loaded


def apply_metadata(weights: Weights, metadata: Metadata) -> None:
    """Fill in the evaluation view and class names, and note what is not used or had to be assumed."""
    weights.notes = [*metadata.notes, *weights.notes]
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


def cover_tokens(tensors: Tensors) -> Tensors:
    """Weights of timm's `no_embed_class`, whose position embedding covers the patches alone, with zeros as the other
    tokens' positions, which makes the same model."""
    prefix, shape = 1 + ("dist_token" in tensors.shapes), tensors.shapes.get("pos_embed", ())
    if len(shape) != 3:
        return tensors
    pad = lambda array: np.pad(array.astype(np.float32), ((0, 0), (prefix, 0), (0, 0)))
    return dataclasses.replace(
        tensors,
        shapes={**tensors.shapes, "pos_embed": (shape[0], shape[1] + prefix, shape[2])},
        read=lambda key: pad(tensors.read(key)) if key == "pos_embed" else tensors.read(key),
    )


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
    counters = dict.fromkeys(counter_keys(tree), ())
    if counters.keys() & shapes.keys():  # files of older PyTorch versions have none
        needed |= counters
    check_keys(shapes, needed, source, f"all of {found.describe()} and nothing else")
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), tree)


def read_orbax(source: str, weights: str) -> Weights:
    """The weights of an Orbax folder: our own names and layout."""
    from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

    orbax_log = logging.getLogger("absl")
    level = orbax_log.level
    orbax_log.setLevel(logging.ERROR)  # it warns that one item is not a whole checkpoint; one is all that is wanted
    try:
        meta, tree = orbax.read_weights(source, weights)
    except UserError:
        raise
    except Exception as error:  # tensorstore, Orbax and the JSON reader each have their own
        raise UserError(f"{source} is not a readable Orbax folder ({first_line(error)})") from error
    finally:
        orbax_log.setLevel(level)
    metadata, written = from_checkpoint(meta, source), meta.get("weights", {})
    shapes = {entry.key: entry.shape for entry in entries(tree, Timm())}
    with reading(source):
        found = architecture_of(shapes, Timm(), metadata, source)
        allocate(found, shapes, Timm(), source)
    check_finite(tree, Timm(), source)
    loaded = Weights(
        source, found, tree, counters=written.get("counters"), header=written.get("header", {"format": "pt"})
    )
    apply_metadata(loaded, metadata)
    return loaded
