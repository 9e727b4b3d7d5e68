"""How often labels, teacher and student disagree (paper, Table 4), and how similar the student's two tokens are
(section 4). For the report of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Integer, UInt8

from deit_jax.augment import normalize
from deit_jax.config import Config
from deit_jax.config.recipes import plain_config
from deit_jax.data import loader
from deit_jax.data.base import Source, limit_images
from deit_jax.evaluate import tables
from deit_jax.evaluate.inference import predict_classes
from deit_jax.losses import OBJECTIVES
from deit_jax.models.inputs import Images
from deit_jax.models.vit import ViT
from deit_jax.runtime import sharding
from deit_jax.train.run import PixelStatistics, Run
from deit_jax.train.step import make_student
from deit_jax.weights.orbax import find_step, read_weights

Predictions = dict[str, Integer[np.ndarray, " images"]]  # by name: the class predicted for each image
PLAIN_STUDENT = "student without a teacher"
COSINE_IMAGES = 64
STUDENT_HEADS = {"cls": "class head", "dist": "distillation head", "fused": "both heads"}


def disagreement(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Percent of the images for which each pair of classifiers predicts different classes."""
    return {a: {b: 100 * float((x != y).mean()) for b, y in predictions.items()} for a, x in predictions.items()}


def token_cosine(model: ViT, images: Images) -> Float[np.ndarray, " layers"]:
    """Mean cosine between class and distillation token, before the blocks and after each.

    model: a distilled ViT. The paper reports 0.06 for the learned tokens and 0.93 at the end.
    """
    seen = model.inspect(images)
    both = [np.asarray(x[..., :2, :], np.float32) for x in (seen["embed"][None], seen["blocks"])]
    tokens = np.concatenate(both)  # (depth + 1, B, 2, D)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return (unit[:, :, 0] * unit[:, :, 1]).sum(-1).mean(-1)


def mean_cosine(
    model: nnx.Module, images: UInt8[np.ndarray, "images height width 3"], view: PixelStatistics
) -> list[float]:
    """`token_cosine` of a model on images before normalization; [] without a second token."""
    if not (isinstance(model, ViT) and model.distilled):
        return []
    return [round(float(x), 4) for x in token_cosine(model, normalize(jnp.asarray(images), **view))]


def measure_agreement(run: Run, student: Predictions) -> dict[str, Any]:
    """What the report says of a finished run with a teacher; computed by this process alone.

    student: what each head of the best student predicts for the evaluation images, and the true labels as "label".

    Returns {"disagreement": {name: {name: percent}}, "cosine": [a value per layer]}, without the latter where there is
    no second token.
    """
    mesh = sharding.make_mesh(jax.local_devices())
    predictions = teacher_predictions(run, mesh)
    plain = run.folder / "plain"
    if find_step(plain):
        plain_student = make_student(plain_config(run.config), run.model.num_classes)
        weights, batches = best_weights(plain, mesh), evaluation_batches(run, plain_student.img_size)
        heads, _ = predict_classes(plain_student.graphdef, weights, batches, mesh=mesh, **run.pixel_statistics)
        predictions[PLAIN_STUDENT] = heads["cls"]
    fused = student.get(f"fused_{run.config.evaluate.fusion}", student["cls"])
    names = STUDENT_HEADS if "dist" in student else {"cls": "student"}
    own = {name: (student | {"fused": fused})[head] for head, name in names.items()}
    agreed: dict[str, Any] = {"disagreement": disagreement({"true label": student["label"]} | predictions | own)}

    weights = best_weights(run.folder, mesh)
    model = nnx.merge(run.model.graphdef, weights["params"], weights["batch_stats"])
    some = some_images(run.config, run.data.evaluation, COSINE_IMAGES, run.model.img_size)
    if cosine := mean_cosine(model, some["image"], run.pixel_statistics):
        agreed["cosine"] = cosine
    return agreed


def evaluation_batches(run: Run, size: int) -> Iterator[loader.Batch]:
    """All evaluation images, `size` pixels high and wide, as one process reads them."""
    return loader.eval_batches(run.config, run.data.evaluation, size=size)


def some_images(config: Config, source: Source, count: int, size: int) -> loader.Batch:
    """At most `count` readable images of a source, evenly over the classes, `size` pixels high and wide."""
    batches = list(loader.eval_batches(config, limit_images(source, count), size=size))
    readable = [(batch["mask"] > 0) & (batch["label"] >= 0) for batch in batches]
    return {
        name: np.concatenate([batch[name][rows] for batch, rows in zip(batches, readable, strict=True)])
        for name in batches[0]
    }


def best_weights(folder: Path, mesh: Mesh) -> dict[str, Any]:
    """{"params", "batch_stats"} of the best checkpoint in a workdir, on all devices of the mesh."""
    return jax.device_put(read_weights(folder)[1], sharding.replicated(mesh))


def teacher_predictions(run: Run, mesh: Mesh, count: int | None = None) -> Predictions:
    """The classes of the data that the live teacher's models predict, for all evaluation images or those of
    `some_images`; {} without one, or where it teaches features."""
    predictions: Predictions = {}
    if run.teacher is None or not OBJECTIVES[run.config.distill.kind].store_kind:
        return predictions
    for number, (model, arrays) in enumerate(zip(run.teacher.models, run.teacher.arrays, strict=True), start=1):
        weights = jax.device_put(dict(zip(("params", "batch_stats"), arrays, strict=True)), sharding.replicated(mesh))
        pixels = {"mean": tuple(model.mean), "std": tuple(model.std)}
        some = count and some_images(run.config, run.data.evaluation, count, model.size)
        batches = [some] if some else evaluation_batches(run, model.size)
        heads, _ = predict_classes(model.graphdef, weights, batches, mesh=mesh, outputs=model.outputs, **pixels)
        name = "teacher" if len(run.teacher.models) == 1 else f"teacher {number}"
        predictions[name] = heads.get("fused_logits", heads["cls"])
    return predictions


def report_agreement(run: Run, student: Predictions) -> str:
    """The report's Markdown about agreement; arguments as of `measure_agreement`."""
    found = measure_agreement(run, student)
    names = list(found["disagreement"])
    rows = [[a, *(f"{found['disagreement'][a][b]:.1f}" if a != b else "" for b in names)] for a in names]
    text = [
        "## Disagreement",
        "Percent of the evaluation images for which two classifiers predict different classes (paper, Table 4):",
        tables.table(["", *names], rows),
    ]
    if "cosine" in found:
        layers = [str(i) for i in range(len(found["cosine"]))]
        values = tables.table(["after block", *layers], [["cosine", *(f"{x:.2f}" for x in found["cosine"])]])
        text += ["Cosine between class and distillation token (0: before the first block):", values]
    return "\n\n".join(text)
