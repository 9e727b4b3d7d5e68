"""Metadata stored beside the tensors: the model's name and arguments, its evaluation view, its class names.

It is read from config.json and preprocessor_config.json (`deit_jax.weights.library_configs`), from the safetensors
header as our exports write it (under HEADER_KEY), and from the metadata of our checkpoints. The first that has an entry
wins.
"""

import contextlib
import dataclasses
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deit_jax.config.settings import INTERPOLATIONS
from deit_jax.errors import UserError, first_line
from deit_jax.models.inputs import image_size
from deit_jax.own import is_own

HEADER_KEY = "deit_jax"  # of a safetensors header: a JSON object as `metadata_json` makes it
MAX_STATISTIC = 2.0  # of a mean or deviation of pixels in 0..1: larger ones are of pixels in 0..255

# of the arguments that configurations have, what makes them of a JSON value
ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "img_size": image_size,
    "patch_size": operator.index,
    "embed_dim": operator.index,
    "depth": operator.index,
    "num_heads": operator.index,
    "mlp_ratio": float,
    "norm_eps": float,
    "init_values": float,
    "reg_tokens": operator.index,
    "no_embed_class": bool,
}


@dataclasses.dataclass(kw_only=True)
class Conventions:
    """What a model's pixels and outputs mean; empty where it is not known.

    Attributes:
        mean, std: normalization statistics of the pixels, in 0..1.
        crop: side of the evaluation's centre crop / side of the resized image.
        fit: how that resizing and the crop are done, as `eval_image` has it; "": "short".
        interpolation: of that resizing, a name of PIL's Image.Resampling in lower case.
        class_names: by output; also Hugging Face's {"0": name, …}.

    Raises ValueError or TypeError for values that cannot be.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float | None = None
    fit: str = ""
    interpolation: str = ""
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        self.mean, self.std = (tuple(float(x) for x in values or ()) for values in (self.mean, self.std))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and not (len(values) == 3 and all(-MAX_STATISTIC <= x <= MAX_STATISTIC for x in values)):
                raise ValueError(f"{name} {values}: three numbers are needed, for pixels in 0..1")
        if self.std and min(self.std) <= 0:
            raise ValueError(f"std {self.std}: three numbers above 0 are needed")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop {self.crop}: a number in 0..1 is needed")
        if self.interpolation and self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}: use one of {', '.join(INTERPOLATIONS)}")
        names: Any = self.class_names
        self.class_names = [names[str(i)] for i in range(len(names))] if isinstance(names, Mapping) else names
        if not all(isinstance(name, str) for name in self.class_names or ()):
            raise ValueError("class names that are no text")

    def conventions(self) -> dict[str, Any]:
        """The fields above alone."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Conventions)}


@dataclasses.dataclass
class Metadata(Conventions):
    """Metadata stored beside the tensors.

    Attributes:
        name: a model's name; of a registered model or not.
        family: class of the model ("ViT", …) where `arguments` are all of its arguments.
        arguments: of the model's constructor.
    """

    name: str = ""
    family: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        # of files from before 0.2, which are weights that people keep
        arguments = {"two_heads" if key == "dist_head" else key: value for key, value in self.arguments.items()}
        self.arguments = {key: ARGUMENTS.get(key, lambda x: x)(value) for key, value in arguments.items()}

    def __or__(self, other: "Metadata") -> "Metadata":
        """The entries of both, `self` winning."""
        merged = {key: value or getattr(other, key) for key, value in vars(self).items()}
        merged["arguments"] = other.arguments | self.arguments
        return Metadata(**merged)


def given_size(value: Any) -> int | tuple[int, int] | None:
    """`image_size` of a caller's argument, or None. Raises UserError where it is neither."""
    try:
        return None if value is None else image_size(value)
    except ValueError as error:
        raise UserError(str(error)) from None


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever is wrong with an entry of `where` into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} has an entry of another form than expected ({first_line(error)}): fix it") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises UserError where it is missing or anything else."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({first_line(error)}): fix or restore it") from error
    return content


def metadata_json(metadata: Metadata) -> dict[str, Any]:
    """The entries that are known, as `from_json` reads them."""
    return {key: value for key, value in dataclasses.asdict(metadata).items() if value}


def from_json(content: Mapping[str, Any], where: str) -> Metadata:
    """Metadata that `metadata_json` wrote. Raises UserError where it has been changed to something else."""
    with reading(where):
        return Metadata(**{key: content[key] for key in content.keys() & Metadata.__dataclass_fields__.keys()})


def to_header(metadata: Metadata) -> dict[str, str]:
    """The entry of a safetensors header that `from_header` reads."""
    return {HEADER_KEY: json.dumps(metadata_json(metadata))}


def from_header(header: Mapping[str, str], file: str) -> Metadata:
    """What our own export wrote into the header of a .safetensors file."""
    where = f"{file}: its header's '{HEADER_KEY}'"
    with reading(where):
        return from_json(json.loads(header.get(HEADER_KEY, "{}")), where)


def from_checkpoint(meta: Mapping[str, Any], source: str) -> Metadata:
    """The JSON beside a checkpoint's arrays: a run's ("model", "weights", "config"), or of `deit_jax.convert`."""
    where = f"{source}: its metadata"
    with reading(where):
        model, config = meta["model"], meta.get("config", {})
        found = from_json(meta.get("weights", {}), where)
        size = {"img_size": model["img_size"]} if model.get("img_size") else {}
        if is_own(model.get("name") or ""):  # whose number of classes no tensor's name tells
            size["num_classes"] = model["num_classes"]
        data = config["data"] if config else {}  # a run is evaluated as its settings say
        view = {"crop": data.get("crop"), "interpolation": data.get("interpolation", "bicubic") if config else ""}
        return found | Metadata(model.get("name") or "", "", size, **view)
