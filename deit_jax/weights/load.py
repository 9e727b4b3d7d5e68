"""Weights from anywhere, in our names and layout: `load_weights`."""

import dataclasses
import logging
import math
import os
import re
from pathlib import Path

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import UserError, printable
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.runtime import storage
from deit_jax.weights import hub
from deit_jax.weights.description import FIELDS, Description, Source, describe, first_line, text
from deit_jax.weights.files import INDEX, open_file, open_index, weight_file
from deit_jax.weights.names import (
    COUNTER,
    HEADS,
    HuggingFace,
    Naming,
    Timm,
    counter_keys,
    entries,
    naming_of,
    timm_shapes,
)
from deit_jax.weights.recognise import Architecture, check_keys, listed, recognise, registered_name
from deit_jax.weights.tensors import Tensors

log = logging.getLogger("deit_jax")
# what is noted where it had to be assumed
ASSUMABLE = {"num_heads": "attention heads", "img_size": "image size", "mean": "pixel mean", "std": "pixel deviation"}


@dataclasses.dataclass
class Weights:
    """A model's arrays and what is known of them.

    Attributes:
        source: where they came from.
        architecture: what they are.
        tree: {"params": …, "batch_stats": …} of numpy arrays, in the form of `models.abstract`.
        mean, std: normalization statistics of the pixels they were trained with.
        crop: the evaluation they are meant for, side of the centre crop / resized short side; None: not known.
        interpolation: of that resizing, a name of PIL's Image.Resampling in lower case; "": not known.
        class_names: by output; None: not known.
        counters, metadata: what a PyTorch file held besides (batch counters; safetensors' header), so that it can be
            written again as it was.
        assumed: which of these, and of the architecture's arguments, nothing said.
        notes: what was chosen, left out or assumed, a line each.
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
    assumed: tuple[str, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """A registry name of this shape, or ""."""
        return self.architecture.name

    @property
    def num_classes(self) -> int:
        """Of each head; 0: the weights have none."""
        return self.architecture.config["num_classes"]


def load_weights(source: str | os.PathLike, *, weights: str = "params") -> Weights:
    """Read a model's weights.

    Args:
        source: hub name (`timm/deit_tiny_patch16_224.fb_in1k`, `facebook/deit-small-distilled-patch16-224`), a
            `.safetensors` file in timm's or Hugging Face's names, a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`,
            `.pth.tar`), an index of shards, a folder that holds one of these and its config.json, or an Orbax folder
            of ours (a workdir, its `checkpoints`, one step, or what `deit_jax.convert` wrote).
        weights: of a training checkpoint, the trained ones ("params") or their moving average ("ema").

    What the model is follows from the names and shapes, and from the configuration beside them or in the file. Every
    tensor must be there, in its shape, and no other, and every number finite.

    Raises:
        UserError: naming each tensor that is wrong, and for whatever cannot be found or read.
    """
    name = str(source)
    if weights not in ("params", "ema"):
        raise UserError(f"weights '{weights}' are not known: use params or ema")
    try:
        file = find_file(name)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check that it is there and may be read") from error
    loaded = read_file(file, name, weights) if file else read_orbax(name, weights)
    for note in loaded.notes:
        log.warning("%s: %s", printable(name), printable(note))
    return loaded


def find_file(source: str) -> Path | None:
    """The weight file that a source stands for, downloaded where it is a hub name; None for an Orbax folder.

    Raises UserError where there is nothing of this name.
    """
    path = storage.place(source).expanduser()
    if path.is_dir():
        if holds_checkpoint(path):
            return None
        file = weight_file(path)
        return file and copied(file)
    if path.is_file():
        return copied(path)
    if hub.is_hub_name(source):
        return hub.fetch(source)
    raise UserError(
        f"{source} does not exist: give a hub name (owner/name), a .safetensors or .pth file or an Orbax folder"
    )


def copied(file: Path) -> Path:
    """A weight file on a disk: one in a bucket is copied, with its shards and the configuration beside it."""
    if not storage.is_bucket(file):
        return file
    shards = sorted(set(open_index(file).values())) if file.name.endswith(INDEX) else []
    return storage.local_copy(file, (*hub.CONFIGURATION, *shards))


def describe_source(source: str) -> Description:
    """What is said of weights beside their tensors; no array is read. Raises UserError as `load_weights`."""
    file = find_file(source)
    if file is None:
        return from_meta(read_checkpoint_meta(source), source)[0]
    tensors = open_file(file)
    said = describe(file.parent, tensors.metadata, source)
    said.name = said.name or tensors.name or source.rstrip("/").split("/")[-1]
    mean, std = published_pixels(registered_name(said.name), said.name)
    return dataclasses.replace(said, mean=said.mean or mean, std=said.std or std)


def read_checkpoint_meta(source: str) -> dict:
    """The metadata of the checkpoint that an Orbax folder stands for. Raises UserError where there is none."""
    from deit_jax.weights import orbax  # here: Orbax is optional, files of other formats need none

    return orbax.read_meta(orbax.intact_step(storage.place(source).expanduser()))


def holds_checkpoint(folder: Path) -> bool:
    """Whether the folder is one of a run's or an Orbax step: weight files may lie beside its checkpoints."""
    return (folder / "checkpoints").is_dir() or (folder / "params").is_dir()


def read_file(path: Path, source: str, weights: str = "params") -> Weights:
    """The weights of one file, with the configuration that lies beside it."""
    tensors = open_file(path, weights)
    said = describe(path.parent, tensors.metadata, source)
    naming = naming_of(tensors.shapes)
    said.name = said.name or tensors.name or source.rstrip("/").split("/")[-1]
    if isinstance(naming, HuggingFace) and "classifier.weight" in tensors.shapes and said.dist_head is None:
        said.dist_head = False  # DeiTForImageClassification: the distillation token has no head of its own
    tensors = cover_tokens(tensors, naming, said)
    found = recognise(timm_shapes(tensors.shapes, naming), source, said)
    tree = allocate(found, tensors.shapes, naming, source)
    for entry in entries(tree, naming):
        entry.view(tree)[...] = tensors.read(entry.key)
    check_finite(tree, naming, source)
    counters = {key: int(tensors.read(key)) for key in tensors.shapes if key.endswith(COUNTER)}
    loaded = Weights(source, found, tree, counters=counters, metadata=tensors.metadata)
    tell(loaded, said)
    loaded.notes = [*said.notes, *tensors.notes, *loaded.notes]
    return loaded


def tell(loaded: Weights, said: Description) -> None:
    """Fill in what is said of the weights beside their tensors, and note what had to be assumed."""
    mean, std = (None, None) if "name" in loaded.architecture.assumed else published_pixels(loaded.name, said.name)
    crop = said.crop or loaded.architecture.config.get("crop")  # an EfficientNet's follows from its size
    said = dataclasses.replace(said, mean=said.mean or mean, std=said.std or std, crop=crop)
    loaded.mean, loaded.std = said.mean or loaded.mean, said.std or loaded.std
    loaded.crop, loaded.interpolation = said.crop, said.interpolation or ""
    fields = [field for field in ("mean", "std", "crop", "interpolation") if getattr(said, field) is None]
    loaded.assumed = (*loaded.architecture.assumed, *fields)
    if said.class_names is not None and loaded.num_classes:
        if len(said.class_names) == loaded.num_classes:
            loaded.class_names = said.class_names
        else:
            loaded.notes.append(
                f"its {len(said.class_names)} class names are not used: the head has {loaded.num_classes} outputs"
            )
    found, config = loaded.architecture, loaded.architecture.config
    if found.module is EfficientNet and "name" in found.assumed:
        other = f"tf_{found.name}"
        loaded.notes.append(
            f"does not say whether it is {found.name} or {other}, whose tensors are the same: it is taken for"
            f" {found.name} where no model is named (a file named {other}.safetensors would say so)"
        )
    values = {"mean": loaded.mean, "std": loaded.std} | {key: config.get(key) for key in ("num_heads", "img_size")}
    if said.img_size:  # it is said, and noted where it does not fit
        values["img_size"] = None
    assumed = [f"{what} {values[key]}" for key, what in ASSUMABLE.items() if key in loaded.assumed and values[key]]
    if assumed:
        loaded.notes.append(
            f"assumed, for nothing says otherwise: {', '.join(assumed)} (a config.json beside the weights can, see"
            " docs/weights.md)"
        )


def published_pixels(name: str, file: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation that the published weights of model `name` were trained with: ImageNet's, but for the
    EfficientNets that timm tags `ap` (AdvProp) or `ra4`, whose pixels lay in -1..1. (None, None) for plain ViTs, which
    were published with either. file: the file's own name, with its tag."""
    if "efficientnet" in name and re.search(r"b\d[._-](ap|ra4)(?![a-z0-9])", file):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (None, None) if name.startswith("vit_") or not name else (IMAGENET_MEAN, IMAGENET_STD)


def cover_tokens(tensors: Tensors, naming: Naming, said: Description) -> Tensors:
    """The same weights with a position embedding that covers the class (and distillation) token.

    timm's `no_embed_class` models add none to these tokens: zeros in their places give the same model.
    """
    key = next(iter(naming.split("pos_embed")))
    shapes = timm_shapes(tensors.shapes, naming)
    shape = tensors.shapes.get(key, ())
    if len(shape) != 3 or "cls_token" not in shapes:
        return tensors
    prefix = 1 + ("dist_token" in shapes)
    patch = shapes.get("patch_embed.proj.weight", (16,))[-1] or 16
    height, width = said.img_size if isinstance(said.img_size, tuple) else (said.img_size or 0,) * 2
    patches = (height // patch) * (width // patch)
    square = lambda n: n > 0 and math.isqrt(n) ** 2 == n
    covered = shape[1] - prefix == patches or (square(shape[1] - prefix) and shape[1] != patches)
    if covered or not (shape[1] == patches or square(shape[1])):
        return tensors
    note = "pos_embed covers the patches alone (no_embed_class): the other tokens' positions are zeros"
    return dataclasses.replace(
        tensors,
        shapes={**tensors.shapes, key: (shape[0], shape[1] + prefix, shape[2])},
        read=lambda name: (
            np.pad(tensors.read(name).astype(np.float32), ((0, 0), (prefix, 0), (0, 0)))
            if name == key
            else tensors.read(name)
        ),
        notes=[*tensors.notes, note],
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
    orbax_log.setLevel(logging.ERROR)  # it warns that one item is not a whole checkpoint; one is all that is wanted
    try:
        meta, tree = orbax.read_weights(source, weights)
    except UserError:
        raise
    except Exception as error:  # tensorstore, Orbax and the JSON reader each have their own
        raise UserError(f"{source} is not a readable Orbax folder ({first_line(error)})") from error
    finally:
        orbax_log.setLevel(level)
    said, more = from_meta(meta, source)
    shapes = {entry.key: entry.shape for entry in entries(tree, Timm())}
    found = recognise(shapes, source, said)
    needed = {entry.key: entry.shape for entry in entries(needed_shapes(found), Timm())}
    check_keys(shapes, needed, source, f"all of {found.describe()} and nothing else")
    check_finite(tree, Timm(), source)
    loaded = Weights(
        source, found, tree, counters=more.get("counters"), metadata=more.get("metadata", {"format": "pt"})
    )
    tell(loaded, said)
    return loaded


def from_meta(meta: dict, source: str) -> tuple[Description, dict]:
    """(what a checkpoint's metadata says of its weights, its entry "weights")."""
    where = Source(meta, f"{source}: its metadata")
    model, more, data = where.inside("model"), where.inside("weights"), where.inside("config").inside("data")
    assumed = more.content.get("assumed", ())
    said = Description(notes=[])
    for field, reader in FIELDS.items():
        value = more.get(field, reader) if field in more.content else model.get(field, reader)
        if value is not None and field not in assumed:
            setattr(said, field, value)
    if where.content.get("config") and said.crop is None:  # a run's: evaluated as its settings say
        said.crop, said.interpolation = data.get("crop", FIELDS["crop"]), data.get("interpolation", text) or "bicubic"
    return said, dict(more.content)
