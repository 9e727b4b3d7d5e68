"""How alike teacher and student decide (paper, Table 4), how alike the student's two tokens are (section 4), and what
the teacher costs. For the report of a run."""

import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.data import pipeline, sources
from deit_jax.distill.teacher import load_teacher
from deit_jax.report import log, tables
from deit_jax.runtime import sharding
from deit_jax.student import compute_dtype, make_student
from deit_jax.train.evaluate import count_correct, evaluate
from deit_jax.weights.orbax import find_step, read_weights

COSINE_IMAGES = 64
STUDENT_HEADS = {"cls": "class head", "dist": "distillation head", "fused": "both heads"}


def disagreement(decisions: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Percent of the images that each pair decides differently. decisions: {name: classes (images,)}."""
    return {a: {b: 100 * float((x != y).mean()) for b, y in decisions.items()} for a, x in decisions.items()}


def token_cosine(model: nnx.Module, images: jax.Array) -> np.ndarray:
    """(depth + 1,): mean cosine between class and distillation token before the blocks and after each.

    model: a distilled ViT; images: normalized. The paper reports 0.06 for the learned tokens and 0.93 at the end.
    """
    seen = model.inspect(images)
    both = [np.asarray(x[..., :2, :], np.float32) for x in (seen["embed"][None], seen["blocks"])]
    tokens = np.concatenate(both)  # (depth + 1, B, 2, D)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return (unit[:, :, 0] * unit[:, :, 1]).sum(-1).mean(-1)


def study(config, workdir: Path, teacher_folder: str = "", teacher: bool = True) -> dict:
    """What the report says of a finished run with a teacher; runs on this process alone.

    config: resolved. teacher_folder: the weights of a teacher trained here. teacher: whether its weights are at hand.
    Returns {"disagreement": {name: {name: percent}}, "cosine": [a value a layer], "teacher_share": of a step's time};
    the last two are absent where there is nothing to say.
    """
    _, eval_source = sources.open_sources(config)
    mesh = sharding.make_mesh(jax.local_devices())
    everywhere = sharding.replicated(mesh)
    decisions: dict[str, np.ndarray] = {}
    found: dict = {}

    def labelled(batches):
        labels = []
        for batch in batches:
            labels.append(batch["label"][batch["mask"] > 0])
            yield batch
        decisions["true label"] = np.concatenate(labels)

    def decide(graphdef, weights, size, mean, std) -> dict[str, np.ndarray]:
        kept: dict[str, list] = {}
        batches = labelled(pipeline.eval_batches(config, eval_source, size=size))
        evaluate(graphdef, weights, batches, mesh=mesh, mean=mean, std=std, decisions=kept)
        return {head: np.concatenate(parts) for head, parts in kept.items()}

    def best(folder: Path, name: str) -> tuple:
        meta, weights = read_weights(folder)
        c = config.copy_and_resolve_references()
        c.model.name = name
        student = make_student(c, meta["model"]["num_classes"])
        return student, jax.device_put(weights, everywhere)

    if teacher:
        student = make_student(config, eval_source.num_classes)
        sizes = {"img_size": student.img_size, "num_classes": student.num_classes}
        members, arrays = load_teacher(config, teacher_folder, **sizes, dtype=compute_dtype(config.teacher.dtype))
        seconds = 0.0
        for member, (params, batch_stats) in zip(members, arrays, strict=True):
            weights = jax.device_put({"params": params, "batch_stats": batch_stats}, everywhere)
            known = models.abstract(member.build)[0], weights, member.size, member.mean, member.std
            name = "teacher" if len(members) == 1 else f"teacher {max(1, len(decisions))}"
            decisions[name] = decide(*known)["cls"]
            seconds += image_seconds(config, eval_source, mesh, *known)
        share = teacher_share(log.read_log(workdir), seconds)
        if share is not None:
            found["teacher_share"] = share

    pixels = tuple(config.augment.mean), tuple(config.augment.std)
    plain = workdir / "plain"
    if find_step(plain):
        student, weights = best(plain, config.model.name.replace("_distilled", ""))
        decisions["student without teacher"] = decide(student.graphdef, weights, student.img_size, *pixels)["cls"]
    student, weights = best(workdir, config.model.name)
    heads = decide(student.graphdef, weights, student.img_size, *pixels)
    heads["fused"] = heads.get(f"fused_{config.evaluate.fusion}", heads["cls"])
    shown = STUDENT_HEADS if "dist" in heads else {"cls": "student"}
    decisions |= {name: heads[head] for head, name in shown.items()}
    found["disagreement"] = disagreement(decisions)

    model = nnx.merge(student.graphdef, weights["params"], weights["batch_stats"])
    if getattr(model, "distilled", False):
        batch = next(pipeline.eval_batches(config, eval_source, size=student.img_size))
        real = np.linspace(0, int(batch["mask"].sum()) - 1, COSINE_IMAGES).astype(int)
        cosine = token_cosine(model, normalize(batch["image"][real], *pixels))
        found["cosine"] = [round(float(x), 4) for x in cosine]
    return found


def image_seconds(config, source, mesh, graphdef, weights, size: int, mean, std) -> float:
    """Seconds a model's forward pass takes for an image, on all devices of the run together."""
    batch = next(pipeline.eval_batches(config, source, size=size))
    placed = sharding.place_batch({k: batch[k] for k in ("image", "label", "mask")}, mesh)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(count_correct(graphdef, weights, placed, tuple(mean), tuple(std)))
        times.append(time.perf_counter() - begun)
    return min(times) / len(batch["label"]) * mesh.devices.size / jax.device_count()


def teacher_share(log: list[dict], image_seconds: float) -> float | None:
    """The teacher's part of a train step's time (waiting for data left out), or None where no speed was logged."""
    steps = [(1 - r["wait_share"]) / r["images_per_second"] for r in log if r.get("images_per_second")]
    return image_seconds / float(np.median(steps)) if steps else None


def section(found: dict) -> str:
    """The report's Markdown about agreement."""
    names = list(found["disagreement"])
    rows = [[a, *(f"{found['disagreement'][a][b]:.1f}" if a != b else "" for b in names)] for a in names]
    text = ["## Agreement",
            "Share of the evaluation images that two classifiers decide differently, in percent (paper, Table 4):",
            tables.table(["", *names], rows)]  # fmt: skip
    if "cosine" in found:
        layers = [str(i) for i in range(len(found["cosine"]))]
        values = tables.table(["after block", *layers], [["cosine", *(f"{x:.2f}" for x in found["cosine"])]])
        text += ["Cosine between class and distillation token (0: before the first block):", values]
    if "teacher_share" in found:
        text.append(f"The teacher takes about {100 * found['teacher_share']:.0f} % of a training step; "
                    "`--mode=label` stores its labels once for all later runs.")  # fmt: skip
    return "\n\n".join(text)
