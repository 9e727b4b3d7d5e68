"""Weights into other libraries' files and back.

    python -m deit_jax.convert SRC DST [--to=timm|huggingface|orbax] [--weights=params|ema]

SRC is whatever `deit_jax.load_model` takes: a hub name, a .safetensors or .pth file, an Orbax folder. DST says what is
made: `NAME.safetensors` is timm's (and the official code's) file, a folder is Orbax's, or Hugging Face's with
`--to=huggingface` (model.safetensors and config.json, for `transformers`). Round trips give every tensor back as it
was. An existing DST is never overwritten.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from deit_jax.errors import UserError
from deit_jax.models import vit
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.runtime import atomic
from deit_jax.weights import Weights, load_weights
from deit_jax.weights.names import HuggingFace, Naming, Timm, counter_keys, entries

FORMATS = ("timm", "huggingface", "orbax")
DISTILLED = HuggingFace("deit.", "cls_classifier")
PLAIN = HuggingFace("vit.", "classifier")


def convert(source, destination, *, to: str | None = None, weights: str = "params") -> Path:
    """Read `source` and write it to `destination`.

    Args:
        source: see `load_weights`.
        destination: a file NAME.safetensors (timm) or a new folder (Orbax, Hugging Face).
        to: "timm", "huggingface" or "orbax"; None: timm for a .safetensors file, Orbax for a folder.
        weights: of a training checkpoint, "params" or "ema".

    Returns the path written. Raises UserError where `destination` exists, or the model has no such form.
    """
    path = Path(destination).expanduser()
    is_file = path.suffix == ".safetensors"
    to = to or ("timm" if is_file else "orbax")
    if to not in FORMATS:
        raise UserError(f"--to={to} is not known: use {', '.join(FORMATS)}")
    if is_file != (to == "timm"):
        wanted = "a file NAME.safetensors" if to == "timm" else "a folder, without a suffix"
        raise UserError(f"DST {destination} does not fit --to={to}: give {wanted}")
    if path.exists():
        raise UserError(f"DST {destination} exists already: remove it or give another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"DST {destination} cannot be written: the folder {path.parent} does not exist")
    loaded = load_weights(source, weights=weights)
    {"timm": save_timm, "huggingface": save_huggingface, "orbax": save_orbax}[to](loaded, path)
    return path


def tensors(tree: dict, naming: Naming) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in `naming` that holds `tree`."""
    return {entry.key: np.ascontiguousarray(entry.view(tree)) for entry in entries(tree, naming)}


def write_file(content: dict[str, np.ndarray], metadata: dict[str, str] | None, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with atomic.replacing(path) as part:
            save_file(content, part, metadata)
    except SafetensorError as error:
        raise atomic.write_error(path, error) from error


def save_timm(weights: Weights, path: Path) -> None:
    """A .safetensors file in timm's names, as the official code and `timm.create_model(checkpoint_path=…)` read it."""
    counters = weights.counters
    if counters is None:  # trained here; PyTorch's batch normalization counts from 0
        counters = dict.fromkeys(counter_keys(weights.tree), 0)
    content = tensors(weights.tree, Timm()) | {key: np.array(count, np.int64) for key, count in counters.items()}
    metadata = weights.metadata
    if weights.architecture.module is EfficientNet and not weights.architecture.guessed:
        metadata = {**(metadata or {}), "architecture": weights.name}  # the tensors do not tell it from its namesake
    write_file(content, metadata, path)


def save_huggingface(weights: Weights, path: Path) -> None:
    """A folder that `transformers` loads: DeiTForImageClassificationWithTeacher, for a plain model
    ViTForImageClassification. Raises UserError for a model that has no such form."""
    config = weights.architecture.config
    if weights.architecture.module is not vit.ViT:
        raise UserError(
            f"{weights.source} is {weights.architecture.describe()}: only a ViT or DeiT becomes Hugging Face's"
        )
    for what in ("num_classes", "num_heads", "img_size"):
        if not config[what]:
            raise UserError(f"{weights.source} does not say its {what}, which Hugging Face's config.json needs")
    distilled, width = config["distilled"], config["embed_dim"]
    names = weights.class_names or [f"LABEL_{i}" for i in range(config["num_classes"])]
    description = {
        "architectures": ["DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"],
        "model_type": "deit" if distilled else "vit",
        "hidden_size": width,
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": int(width * config["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # the library's default, 1e-12, is not what the weights were trained with
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    processor = {"image_mean": list(weights.mean), "image_std": list(weights.std)}
    with atomic.replacing(path) as part:
        part.mkdir()
        (part / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        (part / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
        content = tensors(weights.tree, DISTILLED if distilled else PLAIN)
        write_file(content, {"format": "pt"}, part / "model.safetensors")


def save_orbax(weights: Weights, path: Path) -> None:
    """An Orbax folder like one step of a run's checkpoints: `params` ({"params", "batch_stats"}) and `meta` (JSON)."""
    import orbax.checkpoint as ocp

    config = weights.architecture.config
    meta = {
        "model": {"name": weights.name, "num_classes": config["num_classes"], "img_size": config.get("img_size")},
        "step": 0,
        "weights": {
            "source": weights.source,
            "mean": weights.mean,
            "std": weights.std,
            "class_names": weights.class_names,
            "counters": weights.counters,
            "metadata": weights.metadata,
        },
    }
    items = {"params": ocp.args.StandardSave(weights.tree), "meta": ocp.args.JsonSave(meta)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(path.absolute(), args=ocp.args.Composite(**items))
    except OSError as error:
        raise atomic.write_error(path, error) from error


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SRC", help="hub name, .safetensors or .pth file, Orbax folder")
    parser.add_argument("destination", metavar="DST", help="NAME.safetensors (timm's), or a new folder")
    parser.add_argument("--to", choices=FORMATS, help="default: timm for a .safetensors file, orbax for a folder")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training checkpoint")
    args = parser.parse_args(arguments)
    try:
        path = convert(args.source, args.destination, to=args.to, weights=args.weights)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
