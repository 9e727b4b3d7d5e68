"""What a model sees in images.

    python -m deit_jax.predict WEIGHTS IMAGE… [--attention=FILE.png] [--top=5] [--crop=0.875]

prints the likeliest classes of each image with their probabilities, of the class head, the distillation head and both
together. WEIGHTS is whatever `deit_jax.load_model` takes.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from deit_jax.augment import normalize
from deit_jax.data import imagenet
from deit_jax.data.images import eval_image
from deit_jax.errors import UserError
from deit_jax.models.vit import fuse
from deit_jax.weights import Weights, build_model, load_weights


def names_of(weights: Weights) -> list[str]:
    """Class names: the weights' own, ImageNet's where they have 1000 classes, else numbers."""
    if weights.class_names and len(weights.class_names) == weights.num_classes:
        return weights.class_names
    return imagenet.class_names() if weights.num_classes == 1000 else [f"class {i}" for i in range(weights.num_classes)]


def read_images(paths: list[str], size: int, crop: float) -> np.ndarray:
    """Their evaluation views, (n, size, size, 3) uint8. Raises UserError naming one that cannot be read."""
    views = []
    for path in paths:
        try:
            views.append(eval_image(path, size, crop))
        except OSError as error:
            raise UserError(
                f"image {path} cannot be read ({error.strerror or error}): give a JPEG or PNG file"
            ) from error
    return np.stack(views)


def probabilities(model: nnx.Module, images: jax.Array, fusion: str = "logits") -> dict[str, np.ndarray]:
    """Softmax outputs (n, classes) of every head the model has, and of both together, for normalized images."""
    cls, dist = model.heads(images)
    if dist is None:
        return {"class": np.asarray(jax.nn.softmax(cls))}
    heads = {"class head": cls, "distillation head": dist, "both": fuse(cls, dist, fusion)}
    return {name: np.asarray(jax.nn.softmax(logits)) for name, logits in heads.items()}


def describe(heads: dict[str, np.ndarray], names: list[str], top: int) -> str:
    """The likeliest classes of one image, a column a head. heads: (classes,) each."""
    top = min(top, len(names))
    columns = []
    for head, p in heads.items():
        best = np.argsort(-p, kind="stable")[:top]
        cells = [f"{100 * p[i]:5.1f} %  {names[i]}" for i in best]
        width = max(map(len, [head, *cells]))
        columns.append([cell.ljust(width) for cell in [head, *cells]])
    return "\n".join("  " + "    ".join(row).rstrip() for row in zip(*columns, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.predict", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="WEIGHTS", help="hub name, .safetensors or .pth file, Orbax folder, workdir")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--top", type=int, default=5, help="classes shown")
    parser.add_argument("--crop", type=float, default=0.875, help="centre crop's side / resized short side")
    parser.add_argument("--fusion", choices=("logits", "probabilities"), default="logits", help="of the two heads")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training run")
    parser.add_argument("--attention", metavar="FILE.png", help="draw where class and distillation token look")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    if not 0 < args.crop <= 1 or args.top < 1:
        raise UserError(f"--crop {args.crop}, --top {args.top}: the crop lies in 0..1, and at least one class is shown")
    if args.attention and not Path(args.attention).absolute().parent.is_dir():
        raise UserError(f"--attention {args.attention} cannot be written: its folder does not exist")
    weights = load_weights(args.source, weights=args.weights)
    names = names_of(weights)
    model, _ = build_model(weights, weights.architecture.constructor())
    height, width = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    if height != width:
        raise UserError(f"{args.source} takes images of {height}x{width}: only square views are made here")
    pixels = read_images(args.images, height, args.crop)
    images = normalize(pixels, weights.mean, weights.std)
    heads = probabilities(model, images, args.fusion)
    for i, path in enumerate(args.images):
        print(path)
        print(describe({name: p[i] for name, p in heads.items()}, names, args.top))
    if args.attention:
        draw_attention(args.attention, model, pixels, images, [names[p.argmax()] for p in list(heads.values())[-1]])


def draw_attention(path: str, model: nnx.Module, pixels: np.ndarray, images: jax.Array, captions: list[str]) -> None:
    """Attention of the last block, mean over heads, as a picture beside each image."""
    if not hasattr(model, "inspect"):
        raise UserError("--attention needs a ViT or DeiT: a ConvNet has none")
    from deit_jax.report import plots

    attention = model.inspect(images)["attention"][-1].mean(1)[..., model.prefix_tokens :]
    plots.attention(path, pixels, np.asarray(attention), captions, model.grid)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
