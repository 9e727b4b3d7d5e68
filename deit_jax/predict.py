"""What a model sees in images.

    python -m deit_jax.predict WEIGHTS IMAGE… [--attention=FILE.png] [--top=5] [--crop=0.875]
    python -m deit_jax.predict WEIGHTS FOLDER --output=FILE.csv

prints the likeliest classes of each image with their probabilities, of the class head, the distillation head and both
together; with `--output` they go into a table, .csv or .json. WEIGHTS is whatever `deit_jax.load_model` takes. Images
are turned as their EXIF orientation says, and resized, cropped and normalized as the weights say.
"""

import argparse
import csv
import functools
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deit_jax.augment import normalize
from deit_jax.classes import imagenet
from deit_jax.command import command
from deit_jax.config.settings import INTERPOLATIONS
from deit_jax.data.files import EXTENSIONS, FolderTree, list_images
from deit_jax.data.images import eval_image
from deit_jax.errors import UserError, printable
from deit_jax.models.vit import fuse
from deit_jax.runtime import atomic, storage
from deit_jax.weights import Weights, build_model, load_weights
from deit_jax.weights.view import View, view_of

DRAWN = 16  # images of an attention picture
BATCH = 32  # images per forward pass
HEADS = ("class head", "distillation head", "both")
SUFFIXES = (".csv", ".json")


class Prediction(NamedTuple):
    """What a model says of one image: per head, (class name, probability) of the likeliest, most likely first."""

    path: str
    heads: dict[str, list[tuple[str, float]]]


def names_of(weights: Weights) -> list[str]:
    """Class names by output: the weights' own, ImageNet's where they have 1000 classes, else numbers."""
    if weights.class_names and len(weights.class_names) == weights.num_classes:
        return weights.class_names
    return imagenet.class_names() if weights.num_classes == 1000 else [f"class {i}" for i in range(weights.num_classes)]


def find_images(paths: Sequence[str]) -> list[str]:
    """The image files that `paths` name; of a folder, all below it, sorted. Raises UserError where there is none."""
    found = []
    for path in [storage.local_text("image", path) for path in paths]:
        if storage.is_bucket(path):
            raise UserError(f"image {path} is in a bucket: copy it to a folder here")
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = list_images(FolderTree(path)).images
        if not inside:
            raise UserError(f"folder {path} holds no images: give one with {', '.join(sorted(EXTENSIONS)[:4])} … files")
        found += [inside[name] for name in sorted(inside)]
    return found


def read_view(path: str, view: View) -> np.ndarray:
    """The evaluation view of an image file, turned as its EXIF orientation says: uint8 (size, size, 3).

    Raises OSError where it cannot be read.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise OSError("not a regular file")  # a named pipe would wait for ever
    return eval_image(path, view.size, view.crop, view.interpolation, exif=True, fit=view.fit)


def read_views(paths: Sequence[str], view: View) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """(views (n, size, size, 3) uint8, their paths, {path: why it cannot be read})."""
    views, read, failed = [], [], {}
    for path in paths:
        try:
            views.append(read_view(path, view))
            read.append(path)
        except OSError as error:
            failed[path] = str(error.strerror or error or type(error).__name__).splitlines()[0]
    return np.stack(views) if views else np.zeros((0, view.size, view.size, 3), np.uint8), read, failed


def probabilities(model: nnx.Module, images: jax.Array, fusion: str = "logits") -> dict[str, np.ndarray]:
    """Softmax outputs (n, classes) of every head the model has, and of both together, for normalized images."""
    graphdef, state = nnx.split(model)
    found = [np.asarray(p) for p in head_probabilities(graphdef, state, images, fusion)]
    return dict(zip(HEADS[: len(found)], found, strict=True))


@functools.partial(jax.jit, static_argnames=("graphdef", "fusion"))
def head_probabilities(graphdef, state, images: jax.Array, fusion: str) -> list[jax.Array]:
    cls, dist = nnx.merge(graphdef, state).heads(images)
    logits = [cls] if dist is None else [cls, dist, fuse(cls, dist, fusion)]
    return [jax.nn.softmax(x) for x in logits]


def predict_batches(
    model: nnx.Module, paths: Sequence[str], view: View, fusion: str
) -> Iterator[tuple[list[str], dict[str, np.ndarray], dict[str, str]]]:
    """(paths, per head probabilities (n, classes), {path: why it cannot be read}) of one batch of images after the
    other."""
    rows = min(BATCH, len(paths))
    for start in range(0, len(paths), rows):
        pixels, read, failed = read_views(paths[start : start + rows], view)
        heads = {}
        if read:
            padded = np.pad(pixels, ((0, rows - len(pixels)), (0, 0), (0, 0), (0, 0)))  # one shape compiles once
            every = probabilities(model, normalize(jnp.asarray(padded), view.mean, view.std), fusion)
            heads = {name: p[: len(read)] for name, p in every.items()}
        yield read, heads, failed


def likeliest(probability: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """(class name, probability) of the `top` likeliest of one image, (classes,)."""
    best = np.argsort(-probability, kind="stable")[: min(top, len(names))]
    return [(names[int(i)], float(probability[i])) for i in best]


def describe(heads: dict[str, np.ndarray], names: Sequence[str], top: int) -> str:
    """The likeliest classes of one image, a column per head. heads: (classes,) each."""
    return show(Prediction("", {head: likeliest(p, names, top) for head, p in heads.items()}))


def show(prediction: Prediction) -> str:
    """A prediction as text, a column per head."""
    columns = []
    for head, classes in prediction.heads.items():
        cells = [head, *(f"{100 * p:5.1f} %  {printable(name)}" for name, p in classes)]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])
    return "\n".join("  " + "    ".join(row).rstrip() for row in zip(*columns, strict=True))


def write_predictions(path: Path, predictions: Sequence[Prediction], about: dict[str, Any]) -> None:
    """The table of all predictions: .csv with a row per image (of the joint prediction), .json with every head.

    about: what made them, the head of the .json.
    """
    if path.suffix == ".json":
        rows = [
            {
                "path": p.path,
                "heads": {
                    head: [{"class": name, "probability": round(value, 6)} for name, value in classes]
                    for head, classes in p.heads.items()
                },
            }
            for p in predictions
        ]
        atomic.write_json(path, about | {"images": rows})
        return
    text = io.StringIO()
    top = max((len(next(reversed(p.heads.values()))) for p in predictions), default=0)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *(f"{what}{i}" for i in range(1, top + 1) for what in ("class", "probability"))])
    for p in predictions:
        joint = next(reversed(p.heads.values()))
        writer.writerow([p.path, *(cell for name, value in joint for cell in (name, f"{value:.6f}"))])
    atomic.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def square_size(model: Any, source: str) -> int:
    """Pixels per side of the images that the model takes. Raises UserError where they are not square."""
    size = model.img_size
    height, width = size if isinstance(size, tuple) else (size, size)
    if height != width:
        raise UserError(f"{source} takes images of {height}x{width}: only square views are made here")
    return height


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for what can be known to be wrong before the weights are read."""
    if (args.crop is not None and not 0 < args.crop <= 1) or args.top < 1:
        raise UserError(f"--crop {args.crop}, --top {args.top}: the crop lies in 0..1, and at least one class is shown")
    for flag, path in (("attention", args.attention), ("output", args.output)):
        if path and storage.is_bucket(path):
            raise UserError(f"--{flag} {path} is in a bucket: give a path")
        if path and not Path(path).absolute().parent.is_dir():
            raise UserError(f"--{flag} {path} cannot be written: its folder does not exist")
    if args.output and Path(args.output).suffix not in SUFFIXES:
        raise UserError(f"--output {args.output} is not a table: give FILE{' or FILE'.join(SUFFIXES)}")
    if args.output and Path(args.output).exists():
        raise UserError(f"--output {args.output} exists already: remove it or give another name")


def run(args: argparse.Namespace) -> None:
    """The command: predict, print or write, draw."""
    check_arguments(args)
    paths = find_images(args.images)
    weights = load_weights(args.source, weights=args.weights)
    if not weights.num_classes:
        raise UserError(f"{args.source} has no classification head: give weights that have one")
    names = names_of(weights)
    model, _ = build_model(weights, weights.architecture.constructor())
    view = view_of(weights, square_size(model, args.source), crop=args.crop, interpolation=args.interpolation)
    print(f"images: {view.describe()}", file=sys.stderr)
    predictions, failed = [], {}
    for read, heads, unread in predict_batches(model, paths, view, args.fusion):
        failed |= unread
        for i, path in enumerate(read):
            one = Prediction(path, {head: likeliest(p[i], names, args.top) for head, p in heads.items()})
            predictions.append(one)
            if not args.output:
                print(printable(path))
                print(show(one))
    named = [path for path in failed if path in args.images or not predictions]
    if named:
        raise UserError(f"image {named[0]} cannot be read ({failed[named[0]]}): give a JPEG or PNG file")
    for path, why in failed.items():  # in a folder, one bad file does not cost the others
        print(f"image {printable(path)} cannot be read ({printable(why)})", file=sys.stderr)
    if args.output:
        about = {"weights": str(args.source), "view": view._asdict(), "failed": failed}
        write_predictions(Path(args.output), predictions, about)
        print(f"wrote {args.output}: {len(predictions)} images" + (f", {len(failed)} unreadable" if failed else ""))
    if args.attention:
        draw_attention(args.attention, model, predictions, view)


def draw_attention(path: str, model: Any, predictions: Sequence[Prediction], view: View) -> None:
    """Attention of the last block, mean over heads, as a picture beside each image, of the first DRAWN."""
    if not hasattr(model, "inspect"):
        raise UserError("--attention needs a ViT or DeiT: a ConvNet has none")
    from deit_jax import plots  # here: matplotlib takes a second

    drawn = predictions[:DRAWN]
    pixels, _, _ = read_views([p.path for p in drawn], view)
    attention = model.inspect(normalize(jnp.asarray(pixels), view.mean, view.std))["attention"][-1]
    maps = np.asarray(attention.mean(1)[..., model.prefix_tokens :])
    captions = [printable(next(reversed(p.heads.values()))[0][0]) for p in drawn]
    plots.attention(path, pixels, maps, captions, model.grid)
    more = f", the first {DRAWN} of {len(predictions)} images" if len(predictions) > DRAWN else ""
    print(f"wrote {path}{more}")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m deit_jax.predict", description="What a model sees in images.")
    parser.add_argument("source", metavar="WEIGHTS", help="hub name, .safetensors or .pth file, Orbax folder, workdir")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--output", metavar="FILE", help="write a table, .csv or .json, instead of printing")
    parser.add_argument("--top", type=int, default=5, help="classes per image")
    parser.add_argument("--crop", type=float, help="side of the centre crop / resized short side")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="of the resizing")
    parser.add_argument("--fusion", choices=("logits", "probabilities"), default="logits", help="of the two heads")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training run")
    parser.add_argument("--attention", metavar="FILE.png", help="draw where class and distillation token look")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
