"""What one command does. `train`: the teacher (where it is trained here), the comparison, the student, the report;
`evaluate`: any weights on any data."""

import json
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from deit_jax import agreement, models, plots, report, sharding
from deit_jax.augment import normalize
from deit_jax.checkpoint import claim_workdir, find_step, read_weights
from deit_jax.config import default_config, flat, validate
from deit_jax.data import pipeline, sources
from deit_jax.errors import UserError
from deit_jax.evaluate import evaluate, head_logits
from deit_jax.label_reader import open_labels
from deit_jax.optimizer import num_steps
from deit_jax.teacher import make_teacher
from deit_jax.train import Student, compute_dtype, load_init, make_student, train
from deit_jax.weights import fit_weights, load_weights


def teacher_config(config):
    """The config of training `teacher.name` on the student's data, by the `teacher.*` settings."""
    c, t = config.copy_and_resolve_references(), config.teacher
    c.model.name, c.epochs, c.steps, c.init, c.compare = t.name, t.epochs, 0, "", False
    c.model.img_size = t.img_size or c.model.img_size or models.find(config.model.name)[1].get("img_size", 224)
    c.model.drop_path_rate, c.model.dtype = t.drop_path_rate, t.dtype
    c.optimizer.lr = t.lr or c.optimizer.lr
    c.augment.mean, c.augment.std = t.mean or c.augment.mean, t.std or c.augment.std
    if t.augment == "light":
        a = c.augment
        a.policy, a.erasing, a.mixup, a.cutmix, a.repeats = "none", 0.0, 0.0, 0.0, 1
    c.distill.update(default_config().distill)
    c.distill.kind, c.distill.normalization = "none", config.distill.normalization
    c.teacher.update(default_config().teacher)
    return c


def plain_config(config):
    """The config of the same student without distillation token and teacher."""
    c = config.copy_and_resolve_references()
    c.model.name, c.distill.kind, c.distill.labels, c.compare = plain_name(c.model.name), "none", "", False
    c.teacher.update(default_config().teacher)
    return c


def plain_name(name: str) -> str:
    return name.replace("_distilled", "")


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


def trains_teacher(config) -> bool:
    """Whether the teacher is trained here, on the same data, before the student."""
    return bool(config.teacher.epochs and config.distill.kind in ("soft", "hard") and not config.distill.labels)


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
    if config.compare:
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
    model = nnx.merge(student.graphdef, weights["params"], weights["stats"])
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
    rows = [row for key, result in results.items() for row in report.accuracy_rows(names[key], result)]
    accuracy = report.table(["model", "head", "weights", "top-1 %", "top-5 %"], rows)
    logs = {key: report.read_log(workdir if key == "student" else workdir / key) for key in results}
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
        f"This took {report.duration(seconds)} on {jax.device_count()} x {jax.devices()[0].device_kind}.",
        accuracy,
        *pictures,
        *([agreement.section(agreed)] if agreed else []),
        "## Settings that differ from the defaults",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    (workdir / "report.md").write_text("\n\n".join(text) + "\n")
    (workdir / "results.json").write_text(json.dumps({**results, "seconds": round(seconds, 1)}, indent=1))
    print(f"\n{accuracy}\n\nreport: {workdir / 'report.md'}")


def own_checkpoint(workdir: str) -> str:
    """The workdir, after making sure that it is one: else its name might be taken for a hub's."""
    if find_step(Path(workdir)) is None:
        raise UserError(f"workdir {workdir} holds no checkpoint: train there first, or give --checkpoint=")
    return workdir


def evaluate_checkpoint(config, source: str) -> dict:
    """`--mode=evaluate`: any weights `load_weights` reads, on the evaluation data of `config`; prints a table.

    The model is what the weights are; `config` gives data, crop and size (0: the weights' own).
    """
    weights = load_weights(source)
    eval_source = sources.open_eval_source(config)
    if weights.num_classes != eval_source.num_classes:
        raise UserError(
            f"{source} has {weights.num_classes} classes, the data {eval_source.num_classes}:"
            " evaluate it on data of its classes"
        )
    default = models.find(config.model.name)[1].get("img_size", 224)  # a ConvNet's weights do not tell
    size = config.model.img_size or weights.architecture.config.get("img_size") or default
    build = weights.architecture.constructor(img_size=size, dtype=compute_dtype(config.model.dtype))
    params, stats, notes = fit_weights(weights, build, new_parts=False)
    mesh = sharding.make_mesh()
    arrays = jax.device_put({"params": params, "stats": stats}, sharding.everywhere(mesh))
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = pipeline.eval_batches(config, eval_source, size=size, **process)
    pixels = {"mean": weights.mean, "std": weights.std}
    result = evaluate(models.abstract(build)[0], arrays, batches, mesh=mesh, **pixels, fusion=config.evaluate.fusion)
    if jax.process_index():
        return result
    for note in notes:
        print(note)
    rows = report.accuracy_rows(weights.name or source, {"params": result})
    print(report.table(["model", "head", "weights", "top-1 %", "top-5 %"], rows))
    print(f"\n{result['images']} images, {size} px, crop {config.data.crop}; cross-entropy {result['loss']:.4f}")
    return result
