"""The report of a finished run: report.md with its pictures, report.html, results.json."""

import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from deit_jax import losses, plots
from deit_jax.config import default_config, flat, resolve
from deit_jax.config.recipes import without_token
from deit_jax.errors import printable
from deit_jax.evaluate import tables
from deit_jax.evaluate.attention_maps import draw_attention
from deit_jax.evaluate.class_report import Outcomes, write_class_report
from deit_jax.evaluate.inference import head_logits, infer, joint_logits, predict
from deit_jax.report import agreement, report_page
from deit_jax.runtime import atomic, sharding
from deit_jax.runtime.browser_files import PLOTLY
from deit_jax.runtime.hardware import cores
from deit_jax.train import log
from deit_jax.train.run import Run
from deit_jax.train.trackers import Trackers
from deit_jax.version import __version__
from deit_jax.weights.orbax import read_weights, steps_of


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
    try_section("attention.png", draw_student_attention, run, failed=failed)
    curves = lambda: plots.curves(folder / "curves.png", *report_page.read_curves(report_page.trainings(folder)))
    try_section("curves.png", curves, failed=failed)
    sections = []
    outcomes = try_section("predictions", predict_student, run, failed=failed)
    if outcomes and losses.OBJECTIVES[run.config.distill.kind].store_kind:
        predictions = outcomes.heads | {"label": outcomes.column("label")}
        sections.append(try_section("agreement", agreement.report_agreement, run, predictions, failed=failed))
    if outcomes:
        sections.append(try_section("classes", write_class_report, folder, outcomes, failed=failed))
    text = report_markdown(run, results, seconds, [*filter(None, sections)], failed)
    atomic.write_text(folder / "report.md", printable(text, lines=True) + "\n")
    try_section("the trackers' report", track_report, run, results, failed=failed)
    page = folder / "report.html"
    if PLOTLY.cached:
        try_section(page.name, report_page.write_page, page, {str(folder): folder}, failed=failed)
    places = f"report: {folder / 'report.md'}\nas a page: {page if PLOTLY.cached else f'deit-jax report {folder}'}"
    print(printable(f"\n{results_table(run, results)}\n\n{places}", lines=True))
    for line in failed:
        print(printable(line))


def recorded_seconds(folder: Path) -> float:
    """The seconds that results.json records; 0 where it is not there, or damaged and to be written again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((folder / "results.json").read_text())["seconds"])
    return 0.0


def try_section(name: str, make: Callable, *args: Any, failed: list[str]) -> Any:
    """make(*args), or None with a line in `failed`."""
    try:
        return make(*args)
    except Exception as error:
        failed.append(f"{name} could not be made: {type(error).__name__}: {' '.join(str(error).split()):.200}")
        return None


def predict_student(run: Run) -> Outcomes:
    """What the best student predicts for the evaluation images, computed by this process alone."""
    mesh, fusion = sharding.make_mesh(jax.local_devices()), run.config.evaluate.fusion
    weights = {"": agreement.best_weights(run.folder, mesh)}
    batches = agreement.evaluation_batches(run, run.model.img_size)
    outcomes = Outcomes(run.data.train.class_names)
    reduce = lambda logits, _: predict(logits, fusion=fusion)
    graphdef = run.model.graphdef
    for batch, found in infer(graphdef, weights, batches, mesh=mesh, reduce=reduce, **run.pixel_statistics):
        outcomes.add(batch, found[""])
    return outcomes


def track_report(run: Run, results: dict[str, dict]) -> None:
    """Give the report's pictures and table to the run's trackers."""
    step, folder = run.total_steps, run.folder
    with contextlib.closing(Trackers(run, step, print)) as trackers:
        rows = tables.accuracy_rows(named_results(run, results))
        pictures = {path.stem: path for path in sorted(folder.glob("*.png"))}
        trackers.log(step, {}, pictures, [tables.ACCURACY_HEADER, *rows])


def draw_student_attention(run: Run, count: int = 8) -> None:
    """attention.png: attention of the best student's class and distillation token on `count` held-out images.

    Under an image's class stands what the student, or a live teacher, predicts instead.
    """
    config, folder = run.config, run.folder
    weights, graphdef = read_weights(folder)[1], run.model.graphdef
    model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
    if not hasattr(model, "inspect"):
        return  # a ConvNet has no attention
    batch = agreement.some_images(config, run.data.evaluation, count, run.model.img_size)
    logits = head_logits(graphdef, weights, batch["image"], **run.pixel_statistics)
    predicted = agreement.teacher_predictions(run, sharding.make_mesh(jax.local_devices()[:1]), count)
    predicted["student"] = np.asarray(joint_logits(logits, config.evaluate.fusion)).argmax(-1)
    names = [printable(name) for name in run.data.train.class_names]
    captions = [
        "\n".join([names[label], *(f"{who}: {names[x[i]]}" for who, x in predicted.items() if x[i] != label)])
        for i, label in enumerate(batch["label"])
    ]
    draw_attention(folder / "attention.png", model, batch["image"], captions, **run.pixel_statistics)


def results_table(run: Run, results: dict[str, dict]) -> str:
    """Accuracies of all that was trained, per head and set of weights."""
    return tables.accuracy_table(named_results(run, results), run.model.num_classes)


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
    best = steps_of(folder)[0].name
    default = flat(resolve(default_config()))
    changed = [f"{k} = {v}" for k, v in flat(config).items() if v != default[k]]
    text = [
        f"# {config.model.name}",
        f"`{shlex.join(['python', *sys.argv])}`",
        f"Trained on {len(run.data.train):,} images of {run.model.num_classes} classes:"
        f" {run.total_steps / run.steps_per_epoch:.3g} epochs, batches of {config.batch_size}.",
        f"Accuracy on {results['student']['params']['images']} evaluation images, of the weights after the last step"
        f" ({run.total_steps}); attention, disagreement and classes are of each training's best checkpoint, the"
        f" student's of step {best}.",
        results_table(run, results),
        f"Wall time of the start that finished it: {tables.duration(seconds)} on {jax.device_count()} x"
        f" {jax.devices()[0].device_kind} ({cores()} cores per host), deit_jax {__version__}, jax {jax.__version__}.",
        *(picture for name, picture in pictures.items() if (folder / name).exists()),
        *sections,
        *failed,
        "## Settings that differ from the defaults",
        "```\n" + "\n".join(changed) + "\n```",
    ]
    return "\n\n".join(text)
