"""The report of a finished run: report.md with its pictures, report.html, results.json.

What it measures beside accuracy: how often labels, teacher and student disagree (paper, Table 4), and how similar the
student's two tokens are (section 4).
"""

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Integer

from deit_jax import losses, plots
from deit_jax.augment import normalize
from deit_jax.config import default_config, flat, resolve
from deit_jax.config.recipes import plain_config, without_token
from deit_jax.data import loader
from deit_jax.data.base import HOLDOUT_SEED, Subset, spread
from deit_jax.errors import printable
from deit_jax.evaluate import tables
from deit_jax.evaluate.class_report import Outcomes, write_class_report
from deit_jax.evaluate.inference import infer, joint_head, predict, predict_classes
from deit_jax.report import report_page
from deit_jax.runtime import atomic, sharding
from deit_jax.runtime.browser_files import PLOTLY
from deit_jax.runtime.hardware import cores
from deit_jax.train import log
from deit_jax.train.run import PLAIN_STUDENT, Run
from deit_jax.train.step import model_spec
from deit_jax.train.trackers import Trackers
from deit_jax.version import __version__
from deit_jax.weights.orbax import best_checkpoint, checkpoints_of, read_weights

Predictions = dict[str, Integer[np.ndarray, " images"]]  # by name: the class predicted for each image
INSPECTED, DRAWN = 64, 8  # images whose tokens are compared, and those of them in attention.png
STUDENT_HEADS = {"cls": "class head", "dist": "distillation head", "fused": "both heads"}


def write_report(run: Run, results: dict[str, dict], seconds: float) -> None:
    """results.json, report.md and its pictures, report.html, in the student's folder. The table is printed, too.

    The page needs plotly.js; where that is not in the cache, a line names the command that fetches it.

    A part that fails is a line in the report: the training is done, and its results must not depend on a picture.
    seconds: since the command began; a finished run keeps its first.
    """
    folder = run.folder
    seconds = recorded_seconds(folder) or seconds
    atomic.write_json(folder / "results.json", log.to_json({**results, "seconds": round(seconds, 1)}))
    failed: list[str] = []
    # of what `train/log.py` has written: log.jsonl of each training
    curves = lambda: plots.curves(folder / "curves.png", *report_page.read_curves(report_page.trainings(folder)))
    try_section("curves.png", curves, failed=failed)
    sections = []
    outcomes = try_section("predictions", predict_student, run, failed=failed)
    teachers = try_section("the teacher's predictions", teacher_predictions, run, failed=failed) or {}
    if outcomes:
        cosine = try_section("attention.png and cosine", inspect_student, run, outcomes, teachers, failed=failed) or []
        if losses.OBJECTIVES[run.config.distill.kind].teaches_classes:
            predictions = outcomes.heads | {"label": outcomes.column("label")}
            agreement = lambda: report_agreement(measure_disagreement(run, predictions, teachers), cosine)
            sections.append(try_section("agreement", agreement, failed=failed))
        sections.append(try_section("classes", write_class_report, folder, outcomes, failed=failed))
    text = report_markdown(run, results, seconds, [*filter(None, sections)], failed)
    atomic.write_text(folder / "report.md", printable(text, lines=True) + "\n")
    try_section("the trackers' report", track_report, run, results, failed=failed)
    page = folder / "report.html"
    if PLOTLY.cached:
        try_section(page.name, report_page.write_page, page, {str(folder): folder}, failed=failed)
    places = f"report: {folder / 'report.md'}\nas a page: {page if PLOTLY.cached else f'deit-jax report {folder}'}"
    table = tables.accuracy_table(named_results(run, results), run.model.num_classes)
    print(printable(f"\n{table}\n\n{places}", lines=True))
    for line in failed:
        print(printable(line))


def try_section(name: str, make: Callable, *args: Any, failed: list[str]) -> Any:
    """make(*args), or None with a line in `failed`."""
    try:
        return make(*args)
    except Exception as error:
        failed.append(f"{name} could not be made: {type(error).__name__}: {' '.join(str(error).split()):.200}")
        return None


def recorded_seconds(folder: Path) -> float:
    """The seconds that results.json records; 0 where it is not there, or damaged and to be written again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((folder / "results.json").read_text())["seconds"])
    return 0.0


def report_markdown(run: Run, results: dict[str, dict], seconds: float, sections: list[str], failed: list[str]) -> str:
    """report.md: what was trained, how well it does, the pictures, the settings.

    sections: of agreement and classes. failed: lines about parts that could not be made.
    """
    config, folder = run.config, run.folder
    tokens = "class and the distillation token" if "dist" in results["student"]["params"]["heads"] else "class token"
    pictures = {
        "curves.png": "![loss and accuracy](curves.png)",
        "attention.png": f"![attention of the {tokens} in the last block, mean over heads](attention.png)",
    }
    default = flat(resolve(default_config()))
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != default[k]]
    text = [
        f"# {config.model.name}",
        f"`{shlex.join(['python', *sys.argv])}`",
        f"Trained on {len(run.data.train):,} images of {run.model.num_classes} classes:"
        f" {run.total_steps / run.steps_per_epoch:.3g} epochs, batches of {config.batch_size}.",
        f"Accuracy on {results['student']['params']['images']} evaluation images, of the weights after the last step"
        f" ({run.total_steps}); attention, disagreement and classes are of each training's best checkpoint (the"
        f" teacher's is the one that taught), the student's of step {checkpoints_of(folder)[0].name}.",
        tables.accuracy_table(named_results(run, results), run.model.num_classes),
        f"Wall time of the start that finished it: {tables.duration(seconds)} on {jax.device_count()} x"
        f" {jax.devices()[0].device_kind} ({cores()} cores per host), deit_jax {__version__}, jax {jax.__version__}.",
        *(picture for name, picture in pictures.items() if (folder / name).exists()),
        *sections,
        *failed,
        "## Settings that differ from the defaults",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    return "\n\n".join(text)


def named_results(run: Run, results: dict[str, dict]) -> list[tuple[str, dict]]:
    """[(what was trained, its evaluations)]."""
    config = run.config
    names = {
        "teacher": config.teacher.name,
        "plain": f"{without_token(config.model.name)}, no teacher",
        "student": f"{config.model.name}, {losses.OBJECTIVES[config.distill.kind].title}",
    }
    if config.distill.kind == "none":
        names["student"] = config.model.name
    return [(names[key], result) for key, result in results.items()]


def track_report(run: Run, results: dict[str, dict]) -> None:
    """Give the report's pictures and table to the run's trackers."""
    step, folder = run.total_steps, run.folder
    with contextlib.closing(Trackers(run, step, print)) as trackers:
        rows = tables.accuracy_rows(named_results(run, results))
        pictures = {path.stem: path for path in sorted(folder.glob("*.png"))}
        trackers.log(step, {}, pictures, [tables.ACCURACY_HEADER, *rows])


def predict_student(run: Run) -> Outcomes:
    """What the best student predicts for the evaluation images, computed by this process alone."""
    mesh, fusion = sharding.make_mesh(jax.local_devices()), run.config.evaluate.fusion
    weights = {"": best_weights(run.folder, mesh)}
    batches = evaluation_batches(run, run.model.img_size)
    outcomes = Outcomes(run.data.train.class_names)
    reduce = lambda logits, _: predict(logits, fusion=fusion)
    graphdef = run.model.graphdef
    for batch, found in infer(graphdef, weights, batches, mesh=mesh, reduce=reduce, **run.pixel_statistics):
        outcomes.add(batch, found[""])
    return outcomes


def best_weights(folder: Path, mesh: Mesh) -> dict[str, Any]:
    """{"params", "batch_stats"} of the best checkpoint in a workdir, on all devices of the mesh."""
    return jax.device_put(read_weights(folder)[1], sharding.replicated(mesh))


def evaluation_batches(run: Run, size: int) -> Iterator[loader.Batch]:
    """All evaluation images, `size` pixels high and wide, as one process reads them."""
    return loader.eval_batches(run.config, run.data.evaluation, size=size)


def report_agreement(different: dict[str, dict[str, float]], cosine: Sequence[float]) -> str:
    """The report's Markdown about agreement, of what `measure_disagreement` and `token_cosine` return."""
    names = list(different)
    rows = [[a, *(f"{different[a][b]:.1f}" if a != b else "" for b in names)] for a in names]
    text = [
        "## Disagreement",
        "Percent of the evaluation images for which two classifiers predict different classes (paper, Table 4):",
        tables.table(["", *names], rows),
    ]
    if cosine:
        layers = [str(i) for i in range(len(cosine))]
        values = tables.table(["after block", *layers], [["cosine", *(f"{x:.2f}" for x in cosine)]])
        text += ["Cosine between class and distillation token (0: before the first block):", values]
    return "\n\n".join(text)


def measure_disagreement(run: Run, student: Predictions, teachers: Predictions) -> dict[str, dict[str, float]]:
    """{name: {name: percent}} of the true labels, teachers, plain student and each head of a finished run's student.

    student: what each head of the best student predicts for the evaluation images, and the true labels as "label".
    teachers: of `teacher_predictions`.
    """
    mesh = sharding.make_mesh(jax.local_devices())
    predictions = dict(teachers)
    plain = run.folder / "plain"
    if best_checkpoint(plain):
        plain_student = model_spec(plain_config(run.config), run.model.num_classes)
        weights, batches = best_weights(plain, mesh), evaluation_batches(run, plain_student.img_size)
        heads, _ = predict_classes(plain_student.graphdef, weights, batches, mesh=mesh, **run.pixel_statistics)
        predictions[PLAIN_STUDENT] = heads["cls"]
    fused = student[joint_head(student, run.config.evaluate.fusion)]
    names = STUDENT_HEADS if "dist" in student else {"cls": "student"}
    own = {name: (student | {"fused": fused})[head] for head, name in names.items()}
    return disagreement({"true label": student["label"]} | predictions | own)


def teacher_predictions(run: Run) -> Predictions:
    """The classes of the data that the live teacher's models predict for the evaluation images; {} without one, or
    where it teaches features."""
    predictions, mesh = {}, sharding.make_mesh(jax.local_devices())
    if run.teacher is None or not losses.OBJECTIVES[run.config.distill.kind].teaches_classes:
        return predictions
    for number, (model, arrays) in enumerate(zip(run.teacher.models, run.teacher.arrays, strict=True), start=1):
        weights = jax.device_put(dict(zip(("params", "batch_stats"), arrays, strict=True)), sharding.replicated(mesh))
        pixels = {"mean": tuple(model.mean), "std": tuple(model.std)}
        batches = evaluation_batches(run, model.size)
        heads, _ = predict_classes(model.graphdef, weights, batches, mesh=mesh, outputs=model.outputs, **pixels)
        name = "teacher" if len(run.teacher.models) == 1 else f"teacher {number}"
        predictions[name] = heads[joint_head(heads, "logits")]  # what it teaches: as its `__call__`
    return predictions


def disagreement(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Percent of the images for which each pair of classifiers predicts different classes."""
    return {a: {b: 100 * float((x != y).mean()) for b, y in predictions.items()} for a, x in predictions.items()}


def inspect_student(run: Run, outcomes: Outcomes, teachers: Predictions) -> list[float]:
    """Draw attention.png: the attention of the best student's class and distillation token on DRAWN held-out images.

    Under an image's class stands what the student or a teacher predicts instead. teachers: of `teacher_predictions`.

    Returns the `token_cosine` of INSPECTED held-out images; [] without a second token. All are spread evenly over the
    classes.
    """
    weights = read_weights(run.folder)[1]
    model = nnx.merge(run.model.graphdef, weights["params"], weights["batch_stats"])
    if not hasattr(model, "inspect"):
        return []  # a ConvNet has no attention
    labels, names = outcomes.column("label"), outcomes.class_names

    def some(rows, count):
        return rows[spread(labels[rows], count / len(rows), HOLDOUT_SEED)] if count < len(rows) else rows

    # rows of `outcomes`, as `drawn`
    inspected = some(np.flatnonzero(labels >= 0), INSPECTED if model.distilled else DRAWN)
    drawn = some(inspected, DRAWN)
    source = Subset(run.data.evaluation, outcomes.column("index")[inspected])
    batches = [batch["image"] for batch in loader.eval_batches(run.config, source, size=run.model.img_size)]
    images = np.concatenate(batches)[: len(inspected)]
    seen = model.inspect(normalize(jnp.asarray(images), **run.pixel_statistics))

    predicted = teachers | {"student": outcomes.column("joint")}
    captions = [
        "\n".join([names[labels[i]], *(f"{who}: {names[x[i]]}" for who, x in predicted.items() if x[i] != labels[i])])
        for i in drawn
    ]
    at = np.searchsorted(inspected, drawn)
    attention = seen["attention"][-1][at, :, : 1 + model.distilled]
    plots.attention(run.folder / "attention.png", images[at], attention, captions, model.grid)
    return token_cosine(seen) if model.distilled else []


def token_cosine(seen: dict[str, Float[jax.Array, "..."]]) -> list[float]:
    """Mean cosine between class and distillation token, before the blocks and after each.

    seen: what a distilled ViT's `inspect` returns. The paper reports 0.06 for the learned tokens and 0.93 at the end.
    """
    both = [np.asarray(x[..., :2, :], np.float64) for x in (seen["embed"][None], seen["blocks"])]
    tokens = np.concatenate(both)  # (depth + 1, B, 2, D)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return (unit[:, :, 0] * unit[:, :, 1]).sum(-1).mean(-1).round(4).tolist()
