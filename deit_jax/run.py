"""`--mode=train`: the teacher (where it is trained here), the comparison, the student, the report."""

import json
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from deit_jax.augment import normalize
from deit_jax.config import default_config, flat, validate
from deit_jax.config.derived import plain_config, plain_name, teacher_config, trains_teacher
from deit_jax.data import pipeline, sources
from deit_jax.distill import agreement
from deit_jax.distill.label_reader import open_labels
from deit_jax.distill.teacher import make_teacher
from deit_jax.errors import UserError
from deit_jax.report import log, plots, tables
from deit_jax.student import Student, compute_dtype, make_student
from deit_jax.train.evaluate import head_logits
from deit_jax.train.loop import load_init, train
from deit_jax.train.optimizer import num_steps
from deit_jax.train.workdir import claim_workdir
from deit_jax.weights.orbax import find_step, read_weights


def check(config, workdir: str | Path) -> Path:
    """Everything that can be wrong with a run, its data, weights and teacher, before the first compile and before
    anything is written. Returns the claimed folder."""
    train_source, _ = sources.open_sources(config)
    student = check_models(config, train_source.num_classes, begun=find_step(Path(workdir)) is not None)
    open_labels(config, train_source, student, num_steps(config, pipeline.steps_per_epoch(config, train_source)))
    return claim_workdir(workdir, config, train_source.fingerprint)


def check_models(config, num_classes: int, *, begun: bool = False) -> Student:
    """Raise UserError for a student, teacher or weights that cannot be. begun: a run that goes on has proved its own.

    Returns the student.
    """
    student = make_student(config, num_classes)
    if trains_teacher(config):
        if config.teacher.init:
            raise UserError(
                "teacher.init and teacher.epochs are both given: use the weights, or train the teacher here"
            )
        teacher = teacher_config(config)
        if "_distilled" in teacher.model.name:
            raise UserError(
                f"teacher {teacher.model.name} would be trained without a teacher of its own:"
                f" use {plain_name(teacher.model.name)}"
            )
        validate(teacher)
        make_student(teacher, num_classes)
    elif not begun:
        sizes = {"img_size": student.img_size, "num_classes": num_classes}
        make_teacher(config, **sizes, dtype=compute_dtype(config.teacher.dtype))
    if not begun:
        load_init(config, student)
    return student


def train_teacher(config, workdir: Path) -> tuple[str, dict | None]:
    """(folder of the teacher's weights, its results), trained in WORKDIR/teacher; ("", None) where none is trained."""
    if not trains_teacher(config):
        return "", None
    folder = workdir / "teacher"
    return str(folder), train(teacher_config(config), folder, title="teacher")


def run(config, workdir: str | Path) -> dict:
    """`--mode=train`. Returns {"teacher", "plain", "student"}: the evaluations of what was trained."""
    begun = time.perf_counter()
    workdir = check(config, workdir)
    finished = workdir / "results.json"
    spent = json.loads(finished.read_text())["seconds"] if finished.exists() else 0.0
    results = {}
    teacher_folder, results["teacher"] = train_teacher(config, workdir)
    if config.train_baseline:
        results["plain"] = train(plain_config(config), workdir / "plain", title="plain student")
    results["student"] = train(config, workdir, title="student", teacher_init=teacher_folder)
    results = {k: v for k, v in results.items() if v is not None}
    if jax.process_index() == 0:
        draw_attention(config, workdir)
        taught = config.distill.kind in ("soft", "hard")
        found = agreement.study(config, workdir, teacher_folder, not config.distill.labels) if taught else None
        write_report(config, workdir, results, spent or time.perf_counter() - begun, found)
    return results


def draw_attention(config, workdir: Path, count: int = 8) -> None:
    """attention.png: where the class and distillation token of the best student look, on held-out images."""
    meta, weights = read_weights(workdir)
    student = make_student(config, meta["model"]["num_classes"])
    model = nnx.merge(student.graphdef, weights["params"], weights["batch_stats"])
    if not hasattr(model, "inspect"):
        return  # a ConvNet has no attention
    _, eval_source = sources.open_sources(config)
    batch = next(pipeline.eval_batches(config, eval_source, size=student.img_size))
    picked = np.linspace(0, int(batch["mask"].sum()) - 1, count).astype(int)
    images, labels = batch["image"][picked], batch["label"][picked]
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    attention = model.inspect(normalize(images, mean, std))["attention"][-1]
    maps = np.asarray(attention.mean(1)[..., model.prefix_tokens :], np.float32)
    logits = head_logits(student.graphdef, weights, images, mean, std)
    guesses = np.asarray(logits.get(f"fused_{config.evaluate.fusion}", logits["cls"])).argmax(-1)
    names = meta["weights"]["class_names"]
    captions = [
        f"{names[label]}" + ("" if label == guess else f" (said {names[guess]})")
        for label, guess in zip(labels, guesses, strict=True)
    ]
    plots.attention(workdir / "attention.png", images, maps, captions, model.grid)


def write_report(config, workdir: Path, results: dict, seconds: float, agreed: dict | None = None) -> None:
    """report.md: what was trained, how well it does, the pictures, the settings. Printed as well.

    agreed: what `agreement.study` found.
    """
    names = {"teacher": config.teacher.name, "plain": f"{plain_name(config.model.name)}, no teacher",
             "student": f"{config.model.name}, {config.distill.kind} distillation"}  # fmt: skip
    if config.distill.kind == "none":
        names["student"] = config.model.name
    rows = [row for key, result in results.items() for row in tables.accuracy_rows(names[key], result)]
    accuracy = tables.table(["model", "head", "weights", "top-1 %", "top-5 %"], rows)
    logs = {key: log.read_log(workdir if key == "student" else workdir / key) for key in results}
    plots.curves(workdir / "curves.png", logs)
    pictures = ["![loss and accuracy](curves.png)"]
    if (workdir / "attention.png").exists():
        pictures.append("Attention of the class and the distillation token in the last block, mean over heads:\n\n"
                        "![attention](attention.png)")  # fmt: skip
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != flat(default_config())[k]]
    text = [
        f"# {config.model.name}",
        f"`{shlex.join(['python', *sys.argv])}`",
        f"Evaluated on {results['student']['params']['images']} held-out images. "
        f"This took {tables.duration(seconds)} on {jax.device_count()} x {jax.devices()[0].device_kind}.",
        accuracy,
        *pictures,
        *([agreement.section(agreed)] if agreed else []),
        "## Settings that differ from the defaults",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    (workdir / "report.md").write_text("\n\n".join(text) + "\n")
    (workdir / "results.json").write_text(json.dumps({**results, "seconds": round(seconds, 1)}, indent=1))
    print(f"\n{accuracy}\n\nreport: {workdir / 'report.md'}")
