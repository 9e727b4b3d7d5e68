"""The configuration files of timm and of Hugging Face's transformers, as `Metadata`."""

import math
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from deit_jax.errors import UserError
from deit_jax.weights.metadata import ARGUMENTS, Metadata, read_object, reading

# timm's model_args: those without effect on a trained model, and the values of others that are implemented
NEUTRAL = {
    "num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "strict_img_size",
}  # fmt: skip
FIXED: dict[str, dict[str, tuple]] = {
    "ViT": {
        "global_pool": ("token",), "act_layer": ("gelu",), "qkv_bias": (True,), "class_token": (True,),
        "pre_norm": (False,), "fc_norm": (False,), "final_norm": (True,), "qk_norm": (False,),
        "pos_embed": ("learn",), "dynamic_img_pad": (False,), "in_chans": (3,),
    },
    "RegNet": {"global_pool": ("avg",), "act_layer": ("relu",), "output_stride": (32,), "in_chans": (3,)},
    "EfficientNet": {"global_pool": ("avg",), "act_layer": ("silu", "swish"), "in_chans": (3,)},
}  # fmt: skip
# transformers' names of arguments, and its defaults where a config.json leaves them out
HUGGING_FACE: dict[str, tuple[str, Any]] = {
    "hidden_size": ("embed_dim", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("num_heads", 12),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "image_size": ("img_size", 224),
    "patch_size": ("patch_size", 16),
}
# DINOv2's models: what their switches are, and their defaults
DINOV2: dict[str, dict[str, Any]] = {
    "dinov2": {"init_values": 1e-5, "pos_offset": 0.1},
    "dinov2_with_registers": {"init_values": 1e-5, "no_embed_class": True, "pos_antialias": True},
}
DINOV2_DEFAULTS = {
    "dinov2": {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "patch_size": 14},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "patch_size": 16, "num_register_tokens": 4},
}
HALF, CLIP_MEAN, CLIP_STD = (0.5,) * 3, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiT": {
        "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224, "image_mean": HALF, "image_std": HALF,
    },
    "Bit": {
        "size": 224, "resample": 3, "do_center_crop": True, "crop_size": 224, "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
}  # fmt: skip
PROCESSORS["CLIP"] = PROCESSORS["Bit"]
TIMM_PROCESSOR = "TimmWrapperImageProcessor"  # makes the pixels that config.json's `pretrained_cfg` describes
FIXED_STEPS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
PROCESSOR_KEYS = {  # the entries that are read, and those without effect on the pixels
    "size", "default_to_square", "resample", "do_center_crop", "crop_size", "crop_pct", "image_mean", "image_std",
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping",
}  # fmt: skip


def read_configuration(folder: Path) -> Metadata:
    """What config.json and preprocessor_config.json in `folder` hold; empty where there are none.

    Raises UserError for entries that cannot be, and for models that are not implemented.
    """
    path = folder / "config.json"
    config = read_object(path) if path.exists() else {}
    with reading(str(path)):
        found = from_timm(config, str(path)) | from_hugging_face(config, str(path))
    path = folder / "preprocessor_config.json"
    if path.exists():
        processor = read_object(path)
        kind = {"vit": "ViT", "deit": "DeiT"}.get(config.get("model_type", ""), "")
        with reading(str(path)):
            found = found | from_processor(processor, str(path), kind)
    return found


def from_timm(config: Mapping[str, Any], where: str) -> Metadata:
    """timm's config.json: architecture, model_args, pretrained_cfg, label_names."""
    name, pretrained = str(config.get("architecture") or ""), config.get("pretrained_cfg") or {}
    fixed = FIXED["EfficientNet" if "efficientnet" in name else "RegNet" if name.startswith("regnet") else "ViT"]
    outside = {k: v for part in (pretrained, config) for k, v in part.items() if k in fixed or k in ARGUMENTS}
    arguments = {}
    for key, value in (outside | dict(config.get("model_args") or {})).items():
        if value is None or key in NEUTRAL:
            continue
        if key in ARGUMENTS:
            arguments[key] = value
        elif value not in fixed.get(key, ()):
            raise UserError(f"{where} has {key} {value!r:.60}, which is not implemented for {name or 'a model'}")
    if "input_size" in pretrained:
        arguments = {"img_size": pretrained["input_size"][1:]} | arguments
    mode = pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UserError(f"{where} has crop_mode '{mode}': center and squash are implemented")
    return Metadata(
        name=name,
        arguments=arguments,
        mean=pretrained.get("mean") or (),
        std=pretrained.get("std") or (),
        crop=pretrained.get("crop_pct"),
        fit="squash" if mode == "squash" else "",
        interpolation=pretrained.get("interpolation") or "",
        class_names=config.get("label_names") or pretrained.get("label_names"),
    )


def from_hugging_face(config: Mapping[str, Any], where: str) -> Metadata:
    """The config.json of transformers' ViT, DeiT and DINOv2; single entries of it without a `model_type`, too."""
    kind = config.get("model_type")
    if kind not in (None, "vit", "deit", "timm_wrapper", *DINOV2):
        raise UserError(f"{where} has model_type '{kind}': of Hugging Face's models ViT, DeiT and DINOv2 are read")
    config = DINOV2_DEFAULTS.get(kind or "", {}) | dict(config)
    fixed = {"qkv_bias": (True,), "num_channels": (3,), "hidden_act": ("gelu", "gelu_python")}
    for key, right in (fixed | {"use_swiglu_ffn": (False,)}).items():
        if config.get(key, right[0]) not in right:
            raise UserError(f"{where} has {key} {config[key]!r:.60}: {right[0]} is implemented")
    complete = kind in ("vit", "deit", *DINOV2)
    arguments = {
        ours: config.get(theirs, default)
        for theirs, (ours, default) in HUGGING_FACE.items()
        if complete or theirs in config
    }
    if float(arguments.get("norm_eps", 1)) <= 0:
        raise ValueError(f"layer_norm_eps {arguments['norm_eps']}")
    if complete:
        ratio = config.get("mlp_ratio") or config.get("intermediate_size", 3072) / arguments["embed_dim"]
        arguments |= {"mlp_ratio": ratio, "distilled": kind == "deit"} | DINOV2.get(kind or "", {})
        arguments["reg_tokens"] = config.get("num_register_tokens", 0)
    # transformers fills in "LABEL_0", … where nobody named the classes
    labels: Any = config.get("id2label") or {}
    named = not any(str(name).startswith("LABEL_") for name in labels.values())
    return Metadata(family="ViT" if complete else "", arguments=arguments, class_names=labels if named else None)


def from_processor(processor: Mapping[str, Any], where: str, kind: str = "") -> Metadata:
    """The preprocessor_config.json of transformers' image processors: what makes the pixels that they make.

    kind: of the processor ("ViT", …) where the file does not name it. Raises UserError, naming the entry, for a
    processor or an entry of it that is not implemented.
    """
    if processor.get("image_processor_type") == TIMM_PROCESSOR:
        return Metadata()
    if written := processor.get("image_processor_type") or processor.get("feature_extractor_type"):
        kind = re.sub("(ImageProcessor(Fast)?|FeatureExtractor)$", "", written)
        if kind not in PROCESSORS:
            raise UserError(f"{where} has the processor {written}: those of {', '.join(PROCESSORS)} are implemented")
    own = {key: value for key, value in processor.items() if value is not None}
    entries: dict[str, Any] = PROCESSORS.get(kind, {}) | own
    for key, value in entries.items():
        ignored = key in PROCESSOR_KEYS or key.startswith("_") or value is False
        if not (math.isclose(value, FIXED_STEPS[key], rel_tol=1e-6) if key in FIXED_STEPS else ignored):
            raise UserError(f"{where} has {key} {value!r:.60}, which is not implemented")
    resample = Image.Resampling(entries["resample"]).name.lower() if "resample" in entries else ""
    found = Metadata(mean=entries.get("image_mean", ()), std=entries.get("image_std", ()), interpolation=resample)
    if "size" in entries:
        squash, outer = side(entries["size"], entries.get("default_to_square", kind not in ("Bit", "CLIP")))
        inner = side(entries.get("crop_size", outer))[1] if entries.get("do_center_crop") else outer
        if inner > outer:
            raise UserError(f"{where} has crop_size {inner} over size {outer}: images are not padded")
        crop = float(processor.get("crop_pct", 1.0))  # our exports', exact where the sizes are rounded
        found.fit = "squash" if squash else "short_floor"
        found.crop = crop if int(inner / crop) == outer else crop_of(inner, outer)
    return found


def side(size: Any, square: bool = True) -> tuple[bool, int]:
    """(whether the whole image is squashed to this size, pixels of its short side) of a processor's size.

    transformers writes {"shortest_edge": 224}, {"height": 224, "width": 224}, or 224, which `square` interprets.
    """
    if not isinstance(size, Mapping):
        return square, operator.index(size)
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"shortest_edge"}:
        return False, operator.index(size["shortest_edge"])
    if keys != {"height", "width"}:
        raise ValueError(f"size {dict(size)}")
    return True, operator.index(size["height"])


def crop_of(inner: int, outer: int) -> float:
    """The crop for which an evaluation view of `inner` pixels is cut from a short side of `outer` pixels."""
    crop = min(1.0, inner / outer)
    while int(inner / crop) < outer:  # the division may round up
        crop = math.nextafter(crop, 0)
    return crop
