"""Weights into files: timm's safetensors, alone or in a folder with their config.json, Orbax folders like one step of a
run's checkpoints, and folders that Hugging Face's `transformers` loads: model, configuration and image processor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit_jax.classes.imagenet import output_names
from deit_jax.errors import UserError
from deit_jax.models import vit
from deit_jax.own import is_own
from deit_jax.runtime import atomic
from deit_jax.weights import integrity
from deit_jax.weights.architecture import all_arguments
from deit_jax.weights.library_configs import TIMM_PROCESSOR
from deit_jax.weights.load import CROP, INTERPOLATION, Weights
from deit_jax.weights.metadata import Metadata, metadata_json, to_header
from deit_jax.weights.names import HuggingFace, Naming, Timm, entries

DISTILLED = HuggingFace("deit.", "cls_classifier")
ONE_HEAD = HuggingFace("deit.", "classifier")
PLAIN = HuggingFace("vit.", "classifier")
CLASSES = {
    DISTILLED: "DeiTForImageClassificationWithTeacher",
    ONE_HEAD: "DeiTForImageClassification",
    PLAIN: "ViTForImageClassification",
}
# arguments of timm's ViT: its size, and what DeiT III and DINOv2 have beside it
VIT_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
VIT_SWITCHES = ("init_values", "no_embed_class", "reg_tokens")


def tensors(tree: dict, naming: Naming) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in `naming` that holds `tree`, {"params": …, "batch_stats": …}."""
    return {entry.key: np.ascontiguousarray(entry.view(tree)) for entry in entries(tree, naming)}


def metadata_of(weights: Weights) -> Metadata:
    """What describes weights beside their tensors, of every family. Raises UserError for a model of the user's own."""
    found = weights.architecture
    if is_own(found.name):
        raise UserError(
            f"{weights.source} is {found.describe()}, whose code is yours alone: it stays in its run's folder, or goes"
            " out by deit-jax export FILE.stablehlo"
        )
    arguments = {key: value for key, value in found.config.items() if key != "num_classes"}
    return Metadata(found.name, found.module.__name__, arguments, **weights.conventions())


def write_file(content: dict[str, np.ndarray], header: dict[str, str], path: Path) -> None:
    """Write a .safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with atomic.replacing(path) as part:
            save_file(content, part, header)
    except SafetensorError as error:
        raise atomic.write_error(path, error) from error


def save_timm(weights: Weights, path: Path) -> None:
    """A .safetensors file in timm's names, as the official code and `timm.create_model(checkpoint_path=…)` read it, or
    a folder of it and its config.json, for `timm.create_model("local-dir:FOLDER", pretrained=True)` and a hub.

    The metadata goes into the header, which those libraries pass over. Raises UserError where timm has no such model,
    and where it cannot be written.
    """
    header = {"format": "pt"} | to_header(metadata_of(weights))
    content = tensors(weights.tree, Timm())
    if path.suffix == ".safetensors":
        return write_file(content, header, path)
    config = timm_config(weights)
    with atomic.replacing(path) as part:
        part.mkdir()
        atomic.write_json(part / "config.json", config)
        write_file(content, header, part / "model.safetensors")


def timm_config(weights: Weights) -> dict[str, Any]:
    """The config.json that timm reads, and transformers by way of timm.

    Raises UserError for a model that timm does not have.
    """
    found = weights.architecture
    config, arguments = all_arguments(found.module, found.config), {}
    name, described = weights.name, f"{weights.source} is {found.describe()}"
    if not weights.num_classes:
        raise UserError(f"{described}, without a classification head, which config.json needs: write a .safetensors")
    if found.module is vit.ViT:
        if config["distilled"] and not config["two_heads"]:
            raise UserError(f"{described}, of one head, which timm does not have: use --to=huggingface")
        if config["norm_eps"] != 1e-6:
            raise UserError(f"{described} with norm_eps {config['norm_eps']}, timm's is 1e-6: use --to=huggingface")
        name = "deit_base_distilled_patch16_224" if config["distilled"] else "vit_base_patch16_224"
        arguments = {"img_size": found.img_size} | {key: config[key] for key in VIT_SIZES}
        arguments |= {key: config[key] for key in VIT_SWITCHES if config[key]}
    elif not name or name.startswith(("regnety_cifar", "regnety_digits", "regnety_mini")):
        raise UserError(f"{described}, which timm does not have: give a model of timm's")
    return {
        "architecture": name,
        "num_classes": weights.num_classes,
        "label_names": output_names(weights.class_names, weights.num_classes),
        "model_args": arguments,
        "pretrained_cfg": {"num_classes": weights.num_classes}
        | pretrained_cfg(weights, fixed_size=found.module is vit.ViT),
    }


def save_orbax(weights: Weights, path: Path) -> None:
    """An Orbax folder like one step of a run's checkpoints: `params` ({"params", "batch_stats"}) and `meta` (JSON)."""
    import orbax.checkpoint as ocp  # here: Orbax is optional, files of other formats need none

    config = weights.architecture.config
    meta = {
        "model": {"name": weights.name, "num_classes": config["num_classes"], "img_size": config.get("img_size")},
        "step": 0,
        "weights": metadata_json(metadata_of(weights)) | {"source": weights.source},
    }
    items = {"params": ocp.args.StandardSave(weights.tree), "meta": ocp.args.JsonSave(meta)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(path.absolute(), args=ocp.args.Composite(**items))
        integrity.write_sums(path)
    except OSError as error:
        raise atomic.write_error(path, error) from error


def save_huggingface(weights: Weights, path: Path) -> None:
    """A folder that `transformers` loads, by `from_pretrained` of the class in CLASSES or by `pipeline`.

    Raises UserError for a model that has no such form, and where the folder cannot be written.
    """
    if weights.architecture.module is not vit.ViT:
        raise UserError(
            f"{weights.source} is {weights.architecture.describe()}: only a ViT or DeiT becomes Hugging Face's"
        )
    config = all_arguments(vit.ViT, weights.architecture.config)
    if not config["num_classes"]:
        raise UserError(f"{weights.source} has no classification head, which Hugging Face's config.json needs")
    if config["init_values"] or config["no_embed_class"] or config["reg_tokens"]:
        raise UserError(f"{weights.source} has LayerScale or registers, Hugging Face's ViT and DeiT not: use --to=timm")
    naming = PLAIN if not config["distilled"] else DISTILLED if config["two_heads"] else ONE_HEAD
    processor = processor_config(weights)
    content = model_config(weights, naming)
    if processor["image_processor_type"] == TIMM_PROCESSOR:
        content |= {"image_processor_type": TIMM_PROCESSOR, "pretrained_cfg": pretrained_cfg(weights, fixed_size=True)}
    with atomic.replacing(path) as part:
        part.mkdir()
        (part / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        (part / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
        write_file(tensors(weights.tree, naming), {"format": "pt"}, part / "model.safetensors")


def model_config(weights: Weights, naming: HuggingFace) -> dict[str, Any]:
    """The config.json of transformers' ViT or DeiT."""
    config = all_arguments(vit.ViT, weights.architecture.config)
    names = weights.class_names or [f"LABEL_{i}" for i in range(config["num_classes"])]
    return {
        "architectures": [CLASSES[naming]],
        "model_type": "deit" if config["distilled"] else "vit",
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": round(config["embed_dim"] * config["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": config["norm_eps"],  # transformers' default is 1e-12
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def pretrained_cfg(weights: Weights, *, fixed_size: bool) -> dict[str, Any]:
    """The entry of that name in timm's config.json: what the images must be.

    fixed_size: whether no other image size works.
    """
    size = weights.architecture.img_size
    return {
        "input_size": [3, *(size if isinstance(size, tuple) else (size, size))],
        "fixed_input_size": fixed_size,
        "crop_pct": weights.crop or CROP,
        "crop_mode": "squash" if weights.fit == "squash" else "center",
        "interpolation": weights.interpolation or INTERPOLATION,
        "mean": list(weights.mean),
        "std": list(weights.std),
    }


def processor_config(weights: Weights) -> dict[str, Any]:
    """The preprocessor_config.json: the evaluation view of `deit_jax.eval_image` in transformers' terms.

    transformers' own processors cut the middle out as `fit` "short_floor" or "squash" does, and resize by torchvision's
    kernels; timm's, which transformers wraps, makes the bytes of "short", from the `pretrained_cfg` in config.json. The
    other entries then serve programs that know Bit's processor alone. Rectangular models squash the whole image.
    """
    size = weights.architecture.img_size
    height, width = (size, size) if isinstance(size, int) else size
    squash = weights.fit == "squash" or height != width
    crop = weights.crop or (1.0 if squash else CROP)
    outer = {"height": int(height / crop), "width": int(width / crop)}
    kind = "DeiTImageProcessor" if squash else "BitImageProcessor" if weights.fit == "short_floor" else TIMM_PROCESSOR
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": outer if squash else {"shortest_edge": outer["height"]},
        "resample": Image.Resampling[(weights.interpolation or INTERPOLATION).upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "crop_pct": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(weights.mean),
        "image_std": list(weights.std),
    }
