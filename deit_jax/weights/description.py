"""What is known of weights beside their tensors: heads, epsilon, image size, pixels, evaluation view, class names.

It is read from three places, the first that says something winning: config.json (timm's or Hugging Face's),
preprocessor_config.json (Hugging Face's), the safetensors header as our exports write it (under HEADER_KEY).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from deit_jax.config.settings import INTERPOLATIONS
from deit_jax.errors import UserError

HEADER_KEY = "deit_jax"  # of a safetensors header: a JSON object of the fields of Description
LARGEST_JSON = 16 << 20  # bytes; ImageNet-22k's class names fill a tenth of it
LARGEST_IMAGE = 1 << 16  # pixels per side
# each family's activation under the names that configurations use for it
ACTIVATIONS = {"ViT": ("gelu", "gelu_python"), "RegNet": ("relu",), "EfficientNet": ("silu", "swish")}


@dataclasses.dataclass
class Description:
    """What files say of weights; None (or "") where none does.

    Attributes:
        name: a model's name, of this package or not.
        num_heads, depth: of a transformer.
        norm_eps: of its layer normalizations.
        activation: name of the activation function.
        img_size: pixels per side, or (height, width).
        mean, std: normalization statistics of the pixels.
        crop: side of the evaluation's centre crop / short side of the resized image.
        interpolation: a name of PIL's Image.Resampling in lower case, of the evaluation's resizing.
        class_names: by output.
        dist_head: False for a distillation token without a head of its own.
        notes: what the files ask for and is done otherwise here, a line each.
    """

    name: str = ""
    num_heads: int | None = None
    depth: int | None = None
    norm_eps: float | None = None
    activation: str | None = None
    img_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None
    interpolation: str | None = None
    class_names: list[str] | None = None
    dist_head: bool | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


Reader = Callable[[Any], Any]  # returns the checked value, or raises ValueError with what it must be


def whole(largest: int) -> Reader:
    def read(value):
        if type(value) is not int or not 1 <= value <= largest:
            raise ValueError(f"a whole number from 1 to {largest}")
        return value

    return read


def number(above: float, largest: float) -> Reader:
    def read(value):
        if type(value) not in (int, float) or not above < value <= largest:
            raise ValueError(f"a number above {above:g}, {largest:g} at most")
        return float(value)

    return read


def size(value) -> int | tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        height, width = (whole(LARGEST_IMAGE)(side) for side in value)
        return height if height == width else (height, width)
    try:
        return whole(LARGEST_IMAGE)(value)
    except ValueError:
        raise ValueError("a number of pixels, or [height, width]") from None


def three(lowest: float) -> Reader:
    def read(value):
        right = isinstance(value, list | tuple) and len(value) == 3
        if not right or not all(type(x) in (int, float) and math.isfinite(x) and x >= lowest for x in value):
            raise ValueError("three numbers" + (" above 0" if lowest > 0 else ""))
        return tuple(float(x) for x in value)

    return read


def text(value) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def interpolation(value) -> str:
    if type(value) is int and 0 <= value < len(Image.Resampling):  # transformers writes Pillow's number
        return Image.Resampling(value).name.lower()
    if value not in INTERPOLATIONS:
        raise ValueError(f"one of {', '.join(INTERPOLATIONS)}")
    return value


def names(value) -> list[str]:
    """Class names by output, of a list or of Hugging Face's {"0": name, …}."""
    if isinstance(value, Mapping):
        value = [value.get(str(i)) for i in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError('a list of names, or {"0": name, "1": name, …}')
    return [str(name) for name in value]


def truth(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


FIELDS: dict[str, Reader] = {
    "name": text,
    "num_heads": whole(1 << 12),
    "depth": whole(1 << 12),
    "norm_eps": number(0, 1),
    "activation": text,
    "img_size": size,
    "mean": three(-math.inf),
    "std": three(1e-6),
    "crop": number(0, 1),
    "interpolation": interpolation,
    "class_names": names,
    "dist_head": truth,
}


class Source:
    """A JSON object with its path, for error messages that name file and key."""

    def __init__(self, content: Mapping[str, Any], where: str):
        self.content, self.where = content, where

    def __bool__(self) -> bool:
        return bool(self.content)

    def get(self, key: str, reader: Reader) -> Any:
        """The checked value of `key`; None where it is missing or null. Raises UserError for a wrong one."""
        value = self.content.get(key)
        if value is None:
            return None
        try:
            return reader(value)
        except ValueError as error:
            raise UserError(f"{self.where} says {key} {value!r:.60}: it must be {error}") from None

    def inside(self, key: str) -> "Source":
        """The object under `key`, empty where there is none."""
        value = self.content.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{self.where} says {key} {value!r:.60}: it must be an object")
        return Source(value or {}, f"{self.where}, {key},")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file. Raises UserError where it is anything else."""
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON >> 20} MiB")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({first_line(error)}): fix it, or remove it") from error
    return content


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to fit into a line of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


def describe(folder: Path, metadata: Mapping[str, str] | None, file: str) -> Description:
    """What the header `metadata` of `file` and the JSON files of `folder` say together.

    Raises UserError for values that cannot be, and for models that are not implemented.
    """
    config = Source(read_json(folder / "config.json"), str(folder / "config.json"))
    processor = Source(read_json(folder / "preprocessor_config.json"), str(folder / "preprocessor_config.json"))
    known = Description()
    for said in (from_timm(config), from_hugging_face(config), from_processor(processor), from_header(metadata, file)):
        for field in FIELDS:
            if getattr(known, field) in (None, ""):
                setattr(known, field, getattr(said, field))
        known.notes += said.notes
    return known


def from_header(metadata: Mapping[str, str] | None, file: str) -> Description:
    """What our own export wrote into the safetensors header (see `to_header`)."""
    written = (metadata or {}).get(HEADER_KEY)
    if written is None:
        return Description()
    try:
        content = json.loads(written)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: its header's '{HEADER_KEY}' is not readable ({first_line(error)})") from error
    source = Source(content, f"{file}: its header's '{HEADER_KEY}'")
    said = Description(**{key: source.get(key, reader) for key, reader in FIELDS.items()})
    said.name = said.name or ""
    return said


def to_header(fields: Mapping[str, Any]) -> dict[str, str]:
    """The header's entry that `from_header` reads; empty where nothing is known."""
    known = {key: value for key, value in fields.items() if key in FIELDS and value not in (None, "")}
    return {HEADER_KEY: json.dumps(known)} if known else {}


def from_timm(config: Source) -> Description:
    """timm's config.json: architecture, model_args, pretrained_cfg, label_names."""
    pretrained, arguments = config.inside("pretrained_cfg"), config.inside("model_args")
    said = Description(
        name=config.get("architecture", text) or "",
        num_heads=arguments.get("num_heads", FIELDS["num_heads"]),
        activation=arguments.get("act_layer", text),
        img_size=arguments.get("img_size", size),
        mean=pretrained.get("mean", FIELDS["mean"]),
        std=pretrained.get("std", FIELDS["std"]),
        crop=pretrained.get("crop_pct", FIELDS["crop"]),
        interpolation=pretrained.get("interpolation", interpolation),
        class_names=config.get("label_names", names) or pretrained.get("label_names", names),
    )
    shape = pretrained.content.get("input_size")
    if said.img_size is None and isinstance(shape, list):
        said.img_size = Source({"input_size": shape[1:]}, pretrained.where).get("input_size", size)
    pool = config.get("global_pool", text) if said.name.startswith(("vit", "deit")) else None
    if pool not in (None, "", "token"):
        raise UserError(f"{config.where} says global_pool '{pool}': a ViT here predicts from its class token")
    if pretrained.content.get("crop_mode") not in (None, "center"):
        said.notes.append(squashed(f"crop_mode '{pretrained.content['crop_mode']}'"))
    return said


def from_hugging_face(config: Source) -> Description:
    """The config.json of transformers' ViT and DeiT."""
    kind = config.get("model_type", text)
    if kind not in (None, "vit", "deit", "timm_wrapper"):
        raise UserError(f"{config.where} says model_type '{kind}': of Hugging Face's models ViT and DeiT are read")
    for key, right in (("qkv_bias", True), ("num_channels", 3)):
        if config.content.get(key, right) != right:
            raise UserError(f"{config.where} says {key} {config.content[key]!r:.60}: {right} is implemented")
    labels = config.get("id2label", names)
    return Description(
        num_heads=config.get("num_attention_heads", FIELDS["num_heads"]),
        depth=config.get("num_hidden_layers", FIELDS["depth"]),
        norm_eps=config.get("layer_norm_eps", FIELDS["norm_eps"]),
        activation=config.get("hidden_act", text),
        img_size=config.get("image_size", size),
        # transformers fills in "LABEL_0", … where nobody named the classes
        class_names=None if labels is None or any(name.startswith("LABEL_") for name in labels) else labels,
    )


def from_processor(processor: Source) -> Description:
    """The preprocessor_config.json of transformers' image processors."""
    said = Description(
        mean=processor.get("image_mean", FIELDS["mean"]),
        std=processor.get("image_std", FIELDS["std"]),
        interpolation=processor.get("resample", interpolation),
    )
    if processor.content.get("do_normalize") is False:
        said.mean, said.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    resized = side(processor, "size") if processor.content.get("do_resize") is not False else None
    if resized is None:
        return said
    cropped = processor.content.get("do_center_crop")
    square, pixels = resized
    if cropped:
        _, inner = side(processor, "crop_size") or (True, pixels)
        said.crop = crop_of(inner, pixels)
    else:
        said.crop = 1.0
    if square:
        said.notes.append(squashed(f"a size of {pixels}x{pixels}"))
    return said


def side(processor: Source, key: str) -> tuple[bool, int] | None:
    """(whether the image is squashed to a square, pixels of its short side) under `key`; None: other forms.

    transformers writes 224, {"shortest_edge": 224} or {"height": 224, "width": 224}.
    """
    value = processor.content.get(key)
    if isinstance(value, Mapping):
        inner = processor.inside(key)
        edge = inner.get("shortest_edge", whole(LARGEST_IMAGE))
        if edge is not None:
            return False, edge
        height, width = (inner.get(name, whole(LARGEST_IMAGE)) for name in ("height", "width"))
        return (True, height) if height is not None and height == width else None
    pixels = processor.get(key, whole(LARGEST_IMAGE))
    return None if pixels is None else (True, pixels)


def crop_of(inner: int, outer: int) -> float:
    """The crop for which an evaluation view of `inner` pixels is cut from a short side of `outer` pixels."""
    crop = min(1.0, inner / outer)
    while int(inner / crop) < outer:  # the division may round up
        crop = math.nextafter(crop, 0)
    return crop


def squashed(what: str) -> str:
    return f"{what} squashes whole images to squares; here the middle square is taken, in its own proportions"
