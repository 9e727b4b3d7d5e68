"""Do the published models, in this code, score what was published?

    python -m deit_jax.certify --data=IMAGENET_VAL [--models=NAME,NAME,…]

evaluates each on ImageNet's validation images (in any layout of docs/evaluation.md) and sets its top-1 accuracy beside
the published one: pass within 0.05 points, exit code 1 where one fails. The weights (20-350 MB each) come from the hub.
EfficientNet's larger ones take images of up to 600 pixels: name the models where that would take too long.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from deit_jax.command import command
from deit_jax.errors import UserError, nearest
from deit_jax.evaluate import tables
from deit_jax.evaluate.classifier import evaluate_classifier, make_classifier
from deit_jax.evaluate.test_sets import match_source, open_eval_set
from deit_jax.runtime import sharding
from deit_jax.weights import load_weights

TOLERANCE = 0.05  # points: half the last published digit

# name: hub repository, and top-1 accuracy by crop (papers' tables; timm's results for crop 1.0 and EfficientNet)
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
    # the paper's comparison; its released weights (AutoAugment) as timm measures them
    "tf_efficientnet_b0": ("timm/tf_efficientnet_b0.aa_in1k", {0.875: 76.882}),
    "tf_efficientnet_b1": ("timm/tf_efficientnet_b1.aa_in1k", {0.882: 78.840}),
    "tf_efficientnet_b2": ("timm/tf_efficientnet_b2.aa_in1k", {0.890: 80.074}),
    "tf_efficientnet_b3": ("timm/tf_efficientnet_b3.aa_in1k", {0.904: 81.648}),
    "tf_efficientnet_b4": ("timm/tf_efficientnet_b4.aa_in1k", {0.922: 83.040}),
    "tf_efficientnet_b5": ("timm/tf_efficientnet_b5.aa_in1k", {0.934: 83.696}),
    "tf_efficientnet_b6": ("timm/tf_efficientnet_b6.aa_in1k", {0.942: 84.124}),
    "tf_efficientnet_b7": ("timm/tf_efficientnet_b7.aa_in1k", {0.949: 84.424}),
}


def verdict(score: float, published: float) -> str:
    """ "pass" where both agree within TOLERANCE points, else "FAIL"."""
    return "pass" if abs(score - published) <= TOLERANCE + 1e-9 else "FAIL"


def certify(data: str, names: Sequence[str], batch_size: int = 256) -> list[list[str]]:
    """A row per model and crop: [model, crop, images, top-1, published, difference, verdict].

    Args:
        data: ImageNet's validation images, as `open_eval_set` takes them.
        names: of published models.
        batch_size: images per batch, rounded up to a multiple of the number of devices.

    Raises UserError for a model that is not published.
    """
    for name in names:
        if name not in PUBLISHED:
            raise UserError(f"model '{name}' is not published{nearest(name, PUBLISHED)}: use {', '.join(PUBLISHED)}")
    source, mesh, rows = open_eval_set(data).source, sharding.make_mesh(), []
    for name in names:
        where, scores = PUBLISHED[name]
        weights = load_weights(where, name=name)
        _, images = match_source(source, weights.class_names, weights.num_classes, data=data, model=where)
        classifier = make_classifier({"params": weights}, mesh, name=name)
        for crop, published in scores.items():
            seen = dataclasses.replace(classifier, view=classifier.view._replace(crop=crop))
            result = evaluate_classifier(seen, images, mesh, batch_size=batch_size)["params"]
            top1, difference = result["top1"], result["top1"] - published
            cells = [f"{crop:g}", str(result["images"]), f"{top1:.3f}", f"{published:g}", f"{difference:+.3f}"]
            rows.append([name, *cells, verdict(top1, published)])
            print(f"{name}, crop {crop:g}: {top1:.3f} ({published:g} published), {rows[-1][-1]}", file=sys.stderr)
    return rows


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.certify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="ImageNet's validation images, as --mode=evaluate takes them")
    parser.add_argument("--models", default=",".join(PUBLISHED), help="comma-separated; default: all published")
    args = parser.parse_args(arguments)
    rows = certify(args.data, args.models.split(","))
    header = ["model", "crop", "images", "top-1 %", "published %", "difference", f"within {TOLERANCE}"]
    print(tables.table(header, rows))
    return any(row[-1] == "FAIL" for row in rows)


if __name__ == "__main__":
    main()
