"""Predict the classes of images with any supported weights.

    python -m deit_jax.predict WEIGHTS IMAGE… [--attention=FILE.png] [--top=5] [--crop=0.875]
    python -m deit_jax.predict WEIGHTS FOLDER --output=FILE.csv

prints the likeliest classes of each image with their probabilities, of the class head, the distillation head and both
together; with `--output` they go into a table. WEIGHTS is whatever `deit_jax.load_model` takes. Images
are turned as their EXIF orientation says, and resized, cropped and normalized as the weights say.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from deit_jax.augment import normalize
from deit_jax.classes.imagenet import output_names
from deit_jax.command import command
from deit_jax.config import default_config
from deit_jax.data import loader
from deit_jax.data.base import FileSource
from deit_jax.data.images import eval_image
from deit_jax.data.listing import EXTENSIONS, list_images
from deit_jax.errors import UserError, printable
from deit_jax.evaluate.classifier import Classifier, evaluation_rows, make_classifier
from deit_jax.evaluate.inference import infer
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.weights import load_weights
from deit_jax.weights.load import View

MAX_DRAWN = 8  # images of an attention picture
BATCH = 32  # images per forward pass


class Prediction(NamedTuple):
    """The prediction for one image: per head, (class name, probability) of the likeliest, most likely first."""

    path: str
    heads: dict[str, list[tuple[str, float]]]


def find_images(paths: Sequence[str]) -> list[str]:
    """The image files that `paths` name; of a folder, all below it, sorted. Raises UserError where there is none."""
    found = []
    for path in map(os.path.expanduser, paths):
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = list_images(path).images
        if not inside:
            raise UserError(f"folder {path} holds no images: give one with {', '.join(sorted(EXTENSIONS)[:4])} … files")
        found += [str(Path(path, name)) for name in sorted(inside)]
    return found


def read_view(path: str, view: View) -> np.ndarray:
    """The evaluation view of an image file, turned as its EXIF orientation says: uint8 (size, size, 3).

    Raises OSError where it cannot be read.
    """
    return eval_image(path, view.size, view.crop, view.interpolation, exif=True, fit=view.fit)


def predict_images(classifier: Classifier, paths: Sequence[str], mesh: Mesh, *, top: int) -> Iterator[Prediction]:
    """The prediction for each image that can be read; the others are named on stderr.

    Raises UserError where none can be read.
    """
    names, view = output_names(classifier.class_names, classifier.num_classes), classifier.view
    config = default_config()
    config.data.exif, config.data.eval_broken = True, "skip"
    config.data.crop, config.data.interpolation = view.crop, view.interpolation
    config.data.eval_batch_size = evaluation_rows(BATCH, len(paths), mesh.devices.size)
    source = FileSource("", paths, np.arange(len(paths)), paths)  # each a class of its own
    batches = loader.eval_batches(config, source, size=view.size, fit=view.fit)
    titles = {"cls": "class head", "dist": "distillation head", "fused_logits": "both"}
    reduce = jax.jit(lambda logits, _: {head: jax.nn.softmax(x) for head, x in logits.items() if head in titles})
    found = infer(classifier.graphdef, classifier.sets, batches, mesh=mesh, mean=view.mean, std=view.std, reduce=reduce)
    for batch, sets in found:
        probabilities = next(iter(sets.values()))
        heads = {title: probabilities[head] for head, title in titles.items() if head in probabilities}
        for i in np.flatnonzero(batch["mask"]):
            best = {head: likeliest(p[i], names, top) for head, p in heads.items()}
            yield Prediction(paths[int(batch["label"][i])], best)


def likeliest(probability: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """(class name, probability) of the `top` likeliest of one image, (classes,)."""
    best = np.argsort(-probability, kind="stable")[: min(top, len(names))]
    return [(names[int(i)], float(probability[i])) for i in best]


def format_prediction(prediction: Prediction) -> str:
    """A prediction as text, a column per head."""
    columns = []
    for head, classes in prediction.heads.items():
        cells = [head, *(f"{100 * p:5.1f} %  {printable(name)}" for name, p in classes)]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])
    return "\n".join("  " + "    ".join(row).rstrip() for row in zip(*columns, strict=True))


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """The table of all predictions as CSV: a row per image, with the joint prediction's classes."""
    text = io.StringIO()
    joint = [next(reversed(p.heads.values())) for p in predictions]
    top = max(map(len, joint), default=0)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *(f"{what}{i}" for i in range(1, top + 1) for what in ("class", "probability"))])
    for p, classes in zip(predictions, joint, strict=True):
        writer.writerow([p.path, *(cell for name, value in classes for cell in (name, f"{value:.6f}"))])
    atomic.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def run(args: argparse.Namespace) -> None:
    """Predict, print or write, draw."""
    output = args.output and storage.as_path(args.output)
    if output and (output.suffix != ".csv" or output.exists() or not output.parent.is_dir()):
        raise UserError(f"--output {output}: give a new FILE.csv in a folder that exists")
    if not 0 < (1 if args.crop is None else args.crop) <= 1 or args.top < 1:
        raise UserError(f"--crop {args.crop}, --top {args.top}: the crop lies in 0..1, and at least one class is shown")
    paths = find_images(args.images)
    weights = load_weights(args.source, weights=args.weights)
    if not weights.num_classes:
        raise UserError(f"{args.source} has no classification head: give weights that have one")
    mesh = sharding.make_mesh(jax.local_devices())
    classifier = make_classifier({args.weights: weights}, mesh, crop=args.crop or 0.0)
    print(f"images: {classifier.view.describe()}", file=sys.stderr)
    predictions = []
    for one in predict_images(classifier, paths, mesh, top=args.top):
        predictions.append(one)
        if not output:
            print(printable(one.path))
            print(format_prediction(one))
    if output:
        write_predictions(output, predictions)
        print(f"wrote {output}: {len(predictions)} of {len(paths)} images")
    if args.attention:
        draw_predictions(storage.as_path(args.attention), classifier, predictions)
    if len(predictions) < len(paths):
        raise UserError(
            f"{len(paths) - len(predictions)} of {len(paths)} images could not be read: they are named above"
        )


def draw_predictions(path: Path, classifier: Classifier, predictions: Sequence[Prediction]) -> None:
    """Draw the attention of the last block beside each of the first MAX_DRAWN images."""
    from deit_jax import plots  # here: matplotlib takes a second to import

    weights, view = next(iter(classifier.sets.values())), classifier.view
    model = nnx.merge(classifier.graphdef, weights["params"], weights["batch_stats"])
    if not hasattr(model, "inspect"):
        raise UserError("--attention needs a ViT or DeiT: a ConvNet has none")
    drawn = predictions[:MAX_DRAWN]
    captions = [printable(next(reversed(p.heads.values()))[0][0]) for p in drawn]
    images = np.stack([read_view(p.path, view) for p in drawn])
    seen = model.inspect(normalize(jnp.asarray(images), view.mean, view.std))
    plots.attention(path, images, seen["attention"][-1][:, :, : 1 + model.distilled], captions, model.grid)
    print(f"wrote {path}: {len(drawn)} of {len(predictions)} images")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m deit_jax.predict", description="Predict the classes of images.")
    parser.add_argument("source", metavar="WEIGHTS", help="hub name, .safetensors or .pth file, Orbax folder, workdir")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--output", metavar="FILE", help="write a table, as CSV, instead of printing")
    parser.add_argument("--top", type=int, default=5, help="classes per image")
    parser.add_argument("--crop", type=float, help="side of the centre crop / resized short side")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="which of a training run")
    parser.add_argument("--attention", metavar="FILE.png", help="draw the attention of class and distillation token")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
