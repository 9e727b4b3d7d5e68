"""`--mode=evaluate --probe=knn|linear`: what frozen features tell of the classes, whatever the head has learned.

    python main.py --mode=evaluate --workdir=RUN --probe=knn
    python main.py --mode=evaluate --checkpoint=WEIGHTS --config.data.root=FOLDER --probe=linear

A classifier of the training images' features is scored on the evaluation images. Features are a ViT's class token, a
ConvNet's last activations averaged over the pixels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer, UInt8

from deit_jax.arrays import AnyArray
from deit_jax.augment import normalize
from deit_jax.data import loader, sources
from deit_jax.data.base import Source
from deit_jax.errors import UserError, nearest
from deit_jax.evaluate import tables
from deit_jax.evaluate.classifier import Classifier, make_classifier, weight_sets
from deit_jax.evaluate.evaluation_command import Request, named_sources, target_settings
from deit_jax.models.vit import ViT
from deit_jax.runtime import sharding
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.runtime.progress import track

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's (Caron et al. 2021, arXiv 2104.14294, section 3 and eval_knn.py)
Labels = Integer[AnyArray, " images"]


def probe_command(config: Any, explicit: dict[str, Any], request: Request, kind: str) -> list[dict[str, Any]]:
    """Probe the features of every set of weights; a line each.

    Arguments as `evaluate_command`; kind: a key of `PROBES`.

    Returns [{"source", "kind": "params" or "ema", "top1": percent, "train", "images": their numbers}]. Raises UserError
    for bad input.
    """
    if kind not in PROBES:
        raise UserError(f"--probe {kind} is not known{nearest(kind, PROBES)}: use {' or '.join(PROBES)}")
    if request.data or request.output:
        raise UserError("--probe takes the training and the evaluation images of --config.data.root=, and no --output")
    if jax.process_count() > 1:
        raise UserError("--probe runs in one process: start it on one host")
    found, mesh = [], sharding.make_mesh()
    for source in named_sources(request):
        own = target_settings(config, explicit, source)
        train, evaluation = sources.open_sources(own)
        own.batch_size = -(-own.batch_size // mesh.size) * mesh.size
        sets, dtype = weight_sets(source, request.kind), compute_dtype(own.model.dtype)
        classifier = make_classifier(sets, mesh, img_size=own.model.img_size, dtype=dtype)
        for name in sets:
            known, asked = (extract_features(classifier, name, images, own) for images in (train, evaluation))
            predicted = PROBES[kind](*known, asked[0])
            top1 = 100 * float((predicted == asked[1]).mean())
            print(
                f"{source}: {kind} top-1 {top1:.2f} % of {len(asked[1]):,} images, from {len(known[1]):,} training"
                f" images, {tables.WEIGHT_LABELS[name]} weights"
            )
            found.append(
                {"source": source, "kind": name, "top1": top1, "train": len(known[1]), "images": len(asked[1])}
            )
    return found


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def pooled_features(
    graphdef: nnx.GraphDef,
    weights: dict[str, Any],
    images: UInt8[Array, "batch height width 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "batch dim"]:
    """A vector per image, float32. mean, std: the model's normalization statistics."""
    model: Any = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
    if not hasattr(model, "features"):
        raise UserError(f"--probe needs features, which {type(model).__name__} does not have: evaluate its heads")
    found = model.features(normalize(images, mean, std))
    if isinstance(model, ViT):
        return found[:, 0].astype(jnp.float32)
    last = [*found.values()][-1] if isinstance(found, dict) else found
    return last.astype(jnp.float32).mean((1, 2))


def extract_features(
    classifier: Classifier, name: str, source: Source, config: Any
) -> tuple[Float[np.ndarray, "images dim"], Labels]:
    """(features, labels) of the images that can be read, in the evaluation view. name: "params" or "ema"."""
    view, mesh = classifier.view, sharding.make_mesh()
    config = config.copy_and_resolve_references()
    config.data.crop, config.data.interpolation, config.data.eval_broken = view.crop, view.interpolation, "skip"
    stream = loader.eval_batches(config, source, size=view.size, fit=view.fit)
    features, labels = [], []
    for batch in track(stream, "batches", -(-len(source) // config.batch_size)):
        images = sharding.place_batch({"image": batch["image"]}, mesh)["image"]
        found = pooled_features(classifier.graphdef, classifier.sets[name], images, view.mean, view.std)
        kept = batch["mask"] > 0
        features.append(np.asarray(found)[kept])
        labels.append(batch["label"][kept])
    return np.concatenate(features), np.concatenate(labels)


def nearest_neighbours(
    known: Float[AnyArray, "known dim"],
    labels: Labels,
    asked: Float[AnyArray, "asked dim"],
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Labels:
    """The class with most votes of the k features of the largest cosine, each worth exp(cosine / temperature)."""
    from sklearn.neighbors import KNeighborsClassifier  # here: the rest of the evaluation needs none

    votes: Any = lambda distances: np.exp((1 - distances) / temperature)
    return KNeighborsClassifier(min(k, len(known)), weights=votes, metric="cosine").fit(known, labels).predict(asked)


def linear_probe(known: Float[AnyArray, "known dim"], labels: Labels, asked: Float[AnyArray, "asked dim"]) -> Labels:
    """The predictions of scikit-learn's logistic regression (C=1) on standardized features."""
    from sklearn.linear_model import LogisticRegression  # here: as above
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known, labels).predict(asked)


PROBES = {"knn": nearest_neighbours, "linear": linear_probe}
