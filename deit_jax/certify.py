"""Do the published models, in this code, score what was published?

    python -m deit_jax.certify --data=IMAGENET_VAL [--models=NAME,NAME=WEIGHTS,…]

evaluates each on ImageNet's validation images, a folder a class (`n01440764/…`), and sets its top-1 accuracy beside
the published one: pass within 0.05 points, exit code 1 where one fails. NAME=WEIGHTS takes other weights (a file, an
Orbax folder) for a published model's. Each model's weights (20-350 MB) come from the hub.
"""

import argparse
import sys
from pathlib import Path

import jax

from deit_jax import models
from deit_jax.config import default_config
from deit_jax.data import imagenet, pipeline
from deit_jax.data.base import Source
from deit_jax.data.folders import scan_folder
from deit_jax.errors import UserError, nearest
from deit_jax.report import tables
from deit_jax.runtime import sharding
from deit_jax.train.evaluate import evaluate
from deit_jax.weights import Weights, fit_weights, load_weights

TOLERANCE = 0.05  # points: half the last published digit
IMAGES = 50_000

# name: hub repository, and top-1 accuracy by crop (papers' tables, and timm's for crop 1.0)
PUBLISHED: dict[str, tuple[str, dict[float, float]]] = {
    "deit_tiny_patch16_224": ("timm/deit_tiny_patch16_224.fb_in1k", {0.875: 72.2}),
    "deit_small_patch16_224": ("timm/deit_small_patch16_224.fb_in1k", {0.875: 79.9}),
    "deit_base_patch16_224": ("timm/deit_base_patch16_224.fb_in1k", {0.875: 81.8}),
    "deit_base_patch16_384": ("timm/deit_base_patch16_384.fb_in1k", {0.875: 82.9, 1.0: 83.1}),
    "deit_tiny_distilled_patch16_224": ("timm/deit_tiny_distilled_patch16_224.fb_in1k", {0.875: 74.5}),
    "deit_small_distilled_patch16_224": ("timm/deit_small_distilled_patch16_224.fb_in1k", {0.875: 81.2}),
    "deit_base_distilled_patch16_224": ("timm/deit_base_distilled_patch16_224.fb_in1k", {0.875: 83.4}),
    "deit_base_distilled_patch16_384": ("timm/deit_base_distilled_patch16_384.fb_in1k", {0.875: 85.2}),
    "regnety_160": ("timm/regnety_160.deit_in1k", {0.875: 82.9}),
}


def verdict(score: float, published: float) -> str:
    """ "pass" where both agree within TOLERANCE points, else "FAIL"."""
    return "pass" if abs(score - published) <= TOLERANCE + 1e-9 else "FAIL"


def open_images(folder: str) -> Source:
    """The labelled images below `folder`, a folder a class: ImageNet's classes where the folders bear its names (some
    may be missing), else the folders in sorted order."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--data {folder} is not a folder: give ImageNet's validation images, a folder a class")
    known = set(imagenet.synsets())
    present = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    source, _ = scan_folder(path, imagenet.synsets() if present and present <= known else None)
    return source


def chosen(argument: str) -> dict[str, str]:
    """{name: weights} of --models; all published ones where it is empty."""
    if not argument:
        return {name: hub for name, (hub, _) in PUBLISHED.items()}
    out = {}
    for part in argument.split(","):
        name, _, weights = part.partition("=")
        if name not in PUBLISHED:
            raise UserError(
                f"--models: '{name}' is no published model{nearest(name, PUBLISHED)}: choose of {', '.join(PUBLISHED)}"
            )
        out[name] = weights or PUBLISHED[name][0]
    return out


def score(weights: Weights, name: str, source: Source, crop: float, batch_size: int) -> dict:
    """`evaluate`'s result for published model `name` with `weights` on `source`."""
    if weights.num_classes != source.num_classes:
        raise UserError(
            f"{weights.source} has {weights.num_classes} classes, the data {source.num_classes}: they must agree"
        )
    config = default_config()
    config.batch_size, config.data.crop = batch_size, crop
    if batch_size % jax.device_count():
        raise UserError(f"--batch_size {batch_size} is not divisible by {jax.device_count()} devices")
    size = models.find(name)[1].get("img_size", 224)
    build = models.constructor(name, num_classes=weights.num_classes, img_size=size)
    params, batch_stats, _ = fit_weights(weights, build, new_parts=False)
    mesh = sharding.make_mesh()
    arrays = jax.device_put({"params": params, "batch_stats": batch_stats}, sharding.replicated(mesh))
    batches = pipeline.eval_batches(config, source, size=size)
    return evaluate(models.abstract(build)[0], arrays, batches, mesh=mesh, mean=weights.mean, std=weights.std)


def certify(data: str, chosen_models: dict[str, str], batch_size: int = 256) -> list[list[str]]:
    """A row a model and crop: [model, crop, images, top-1, published, difference, verdict]."""
    source = open_images(data)
    rows = []
    for name, where in chosen_models.items():
        weights = load_weights(where)
        for crop, published in PUBLISHED[name][1].items():
            result = score(weights, name, source, crop, batch_size)
            top1, difference = result["top1"], result["top1"] - published
            cells = [f"{crop:g}", str(result["images"]), f"{top1:.3f}", f"{published:.1f}", f"{difference:+.3f}"]
            rows.append([name, *cells, verdict(top1, published)])
            print(f"{name}, crop {crop:g}: {top1:.3f} ({published:.1f} published), {rows[-1][-1]}", file=sys.stderr)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.certify", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="ImageNet's validation images, a folder a class")
    parser.add_argument("--models", default="", help="NAME or NAME=WEIGHTS, comma-separated; default: all published")
    parser.add_argument("--batch_size", type=int, default=256)
    args = parser.parse_args(arguments)
    try:
        rows = certify(args.data, chosen(args.models), args.batch_size)
    except UserError as error:
        sys.exit(f"error: {error}")
    header = ["model", "crop", "images", "top-1 %", "published %", "difference", f"within {TOLERANCE}"]
    print(tables.table(header, rows))
    if int(rows[0][2]) != IMAGES:
        print(f"\nThe published scores are of all {IMAGES:,} validation images; here are {rows[0][2]}.")
    sys.exit(any(row[-1] == "FAIL" for row in rows))


if __name__ == "__main__":
    main()
