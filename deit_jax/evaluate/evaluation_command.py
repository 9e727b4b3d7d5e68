"""`--mode=evaluate`: any weights on any data sets, as one table.

    python main.py --mode=evaluate --workdir=RUN
    python main.py --mode=evaluate --checkpoint=A --checkpoint=B --data=val=/data/imagenet/val --data=v2=/data/v2

See docs/evaluation.md.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax.classes.match import ClassMap
from deit_jax.config import default_config, flat, resolve, validate
from deit_jax.data import sources
from deit_jax.data.base import Subset
from deit_jax.errors import UserError, printable
from deit_jax.evaluate import tables
from deit_jax.evaluate.class_report import Outcomes, write_class_report
from deit_jax.evaluate.classifier import (
    Classifier,
    evaluate_classifier,
    evaluation_rows,
    make_classifier,
    weight_sets,
)
from deit_jax.evaluate.inference import forward_flops, head_logits
from deit_jax.evaluate.test_sets import EvalSet, MappedSource, match_source, open_eval_set
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.runtime.processes import print_once
from deit_jax.runtime.timing import time_calls
from deit_jax.weights import Weights
from deit_jax.weights.orbax import best_checkpoint, read_meta

BATCH_SIZE = 256
# the settings of a run that its evaluation takes over
INHERITED_SETTINGS = ("data.", "evaluate.", "model.img_size", "model.dtype", "recipe", "seed")
TIMED_SECONDS = 1.0  # of the forward pass
OUTPUTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "evaluation.md": tables.evaluation_markdown,
    "evaluation.json": lambda found: json.dumps(found, indent=1) + "\n",
}


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
        checkpoints: weights, as `load_weights` takes them; empty: the workdir's.
        data: as `open_eval_set` takes them; empty: what `config` or the run's checkpoint names.
        kind: "params" or "ema" of a training checkpoint; "": both where both are there.
        workdir: a run's folder, or "".
        output: a folder for the results, or "".
    """

    checkpoints: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    kind: str = ""
    workdir: str = ""
    output: str = ""


class Matched(NamedTuple):
    """A data set whose labels are the outputs of one set of weights."""

    name: str
    about: str
    classes: ClassMap
    images: MappedSource


class EvalTarget(NamedTuple):
    """Weights to evaluate: where they are, their settings, the arrays by kind ("params", "ema"), and the data."""

    source: str
    config: Any
    sets: dict[str, Weights]
    data: list[Matched]


def evaluate_command(config, explicit: dict[str, Any], request: Request) -> dict[str, Any]:
    """`--mode=evaluate`: evaluate, print the tables, write them to `request.output`.

    Args:
        config: of the command line, not resolved.
        explicit: the settings among it that were given, {"data.crop": 0.9}; others are the run's or the weights' own.
        request: everything else.

    Returns the report: {"rows": …, "data": {name: one line}, "device": …}. Raises UserError for bad input, before
    anything is compiled where it can be known.
    """
    output = open_output(request.output)
    settings = {source: target_settings(config, explicit, source) for source in named_sources(request)}
    data = open_requested_sets(settings, explicit, request)
    targets = [open_target(source, own, data, request.kind) for source, own in settings.items()]
    # classes are reported of one set of weights on one data set, evaluated by one process
    alone = len(targets) == len(data) == jax.process_count() == 1
    view = {key: explicit[f"data.{key}"] for key in ("crop", "interpolation") if f"data.{key}" in explicit}
    found = {
        "rows": [],
        "data": {one.name: one.about for one in targets[0].data},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    mesh = sharding.make_mesh()
    try:
        for target in targets:
            found["rows"] += evaluate_target(target, view, mesh, output if alone else None)
    finally:  # a failure does not cost the results before it
        if found["rows"] and jax.process_index() == 0:
            print(f"\n{tables.evaluation_markdown(found)}", end="")
            if output:
                for name, render in OUTPUTS.items():
                    atomic.write_text(output / name, render(found))
                print(f"\nwrote {', '.join(str(output / name) for name in OUTPUTS)}")
    return found


def open_output(folder: str) -> Path | None:
    """The folder for the results, made; None for "". Raises UserError where it holds an earlier evaluation."""
    if not folder:
        return None
    path = storage.as_path(folder)
    there = next((name for name in OUTPUTS if (path / name).exists()), None)
    if there:
        raise UserError(f"--output {folder} holds {there} of an earlier evaluation: choose another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made ({error.strerror}): choose another folder") from error
    return path


def named_sources(request: Request) -> list[str]:
    """The weights to evaluate, in the order given. Raises UserError where there are none."""
    names = [name for part in request.checkpoints for name in part.split(",") if name]
    if names:
        return list(dict.fromkeys(names))
    if not request.workdir:
        raise UserError("nothing to evaluate: give --workdir=RUN or --checkpoint=WEIGHTS")
    if best_checkpoint(request.workdir) is None:  # else its name might be taken for a hub's
        raise UserError(f"workdir {request.workdir} holds no checkpoint: train there first, or give --checkpoint=")
    return [request.workdir]


def target_settings(config, explicit: dict[str, Any], source: str) -> Any:
    """The resolved settings for one set of weights: its run's where it is a run's checkpoint, else `config`'s, and over
    both what is explicit."""
    step = best_checkpoint(source)
    recorded = read_meta(step).get("config") if step else None
    used: dict[str, Any] = {}
    if recorded is None:
        own: Any = config
    else:
        own, known = default_config(), flat(default_config())
        used = {key: v for key, v in flat(recorded).items() if key in known and key.startswith(INHERITED_SETTINGS)}
        own.update_from_flattened_dict(used)
        own.update_from_flattened_dict(explicit)
    own = resolve(own, given=used | explicit)
    own.batch_size = own.data.eval_batch_size or (own.batch_size if "batch_size" in explicit else BATCH_SIZE)
    own.accumulate, own.data.eval_batch_size = 1, 0
    own.data.cache, own.data.device_size = "none", 0  # of training images
    validate(own)
    return own


def open_requested_sets(settings: dict[str, Any], explicit: dict[str, Any], request: Request) -> list[EvalSet]:
    """The data sets to evaluate on. Raises UserError where none is named, or two alike.

    settings: {weights: their config}; without `request.data` that of the first run, or of the command line.
    """
    if request.data:
        sets = [open_eval_set(text) for text in request.data]
    else:
        run = next((source for source in settings if best_checkpoint(source)), None)
        if run is None and not {"data.root", "data.name"} & explicit.keys():
            raise UserError("no data: give --data=NAME=FOLDER, see docs/evaluation.md")
        sets = [default_eval_set(settings[run or next(iter(settings))])]
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--data names two sets '{twice}': give them names of their own, as --data=a=FOLDER")
    return sets


def default_eval_set(config) -> EvalSet:
    """The evaluation images that a config names: a split, or what training holds out."""
    name = Path(config.data.root).name if config.data.root else config.data.name
    train, images = sources.find_sources(config)
    held_out = isinstance(train, Subset) and isinstance(images, Subset) and train.source is images.source
    return EvalSet(name, images, "held out of the training images; --data= takes every image" if held_out else "")


def open_target(source: str, config, data: Sequence[EvalSet], kind: str) -> EvalTarget:
    """Read weights, "params", "ema" or "" for both, and match the data to their classes.

    Raises UserError where a set's classes are not the weights'.
    """
    sets = weight_sets(source, kind)
    weights = next(iter(sets.values()))
    if not weights.num_classes:
        raise UserError(f"{weights.source} has no classification head: it cannot be evaluated")
    matched = []
    for one in data:
        classes, images = match_source(
            one.source,
            weights.class_names,
            weights.num_classes,
            limit=config.evaluate.limit,
            data=one.name,
            model=weights.source,
        )
        about = f"{len(images):,} images of {classes.describe()}" + (f"; {one.note}" if one.note else "")
        matched.append(Matched(one.name, about, classes, images))
    return EvalTarget(source, config, sets, matched)


def evaluate_target(
    target: EvalTarget, view: dict[str, Any], mesh: Mesh, class_folder: Path | None
) -> list[dict[str, Any]]:
    """A row of the report per set of weights.

    Args:
        target: the weights and the data.
        view: "crop" and "interpolation" where they are not the weights' own.
        mesh: the devices.
        class_folder: folder for the report on single classes and images; None writes none.
    """
    config = target.config
    dtype = compute_dtype(config.model.dtype)
    classifier = make_classifier(target.sets, mesh, img_size=config.model.img_size, dtype=dtype, **view)
    print_once(f"{target.source}: {classifier.name or 'a model without a name'}, {classifier.view.size} px")
    for note in classifier.notes:
        print_once(f"  {note}")
    results: dict[str, dict[str, Any]] = {name: {} for name in target.sets}
    for one in target.data:
        print_once(f"  {one.name}: {one.about}")
        for name, result in evaluate_set(target, classifier, one, mesh, class_folder).items():
            results[name][one.name] = result
    rows = evaluation_rows(config.batch_size, max(len(one.images) for one in target.data), mesh.devices.size)
    row = {
        "model": classifier.name,
        "source": target.source,
        "parameters": classifier.parameters(),
        "img_size": classifier.view.size,
        "crop": classifier.view.crop,
        "interpolation": classifier.view.interpolation,
        "flops": forward_flops(classifier.build, classifier.view.size),
        "batch_size": rows,
        "images_per_second": rows / forward_seconds(classifier, rows, mesh),
    }
    return [row | {"kind": name, "results": result} for name, result in results.items()]


def evaluate_set(
    target: EvalTarget, classifier: Classifier, data: Matched, mesh: Mesh, class_folder: Path | None
) -> dict[str, dict[str, Any]]:
    """{"params" or "ema": result} on one data set; its lines are printed, its report on classes written."""
    config, classes, images = target.config, data.classes, data.images
    outcomes = None
    if class_folder and not classes.is_subset and not images.several_labels:
        outcomes = Outcomes([str(name) for name in classifier.class_names or images.class_names])
    results = evaluate_classifier(
        classifier,
        images,
        mesh,
        batch_size=config.batch_size,
        config=config,
        fusion=config.evaluate.fusion,
        subset=np.isin(np.arange(classes.num_outputs), classes.outputs) if classes.is_subset else None,
        outcomes=outcomes,
        progress=True,
    )
    for name, result in results.items():
        print_once(f"  {data.name}: top-1 {result['top1']:.2f} %, {tables.WEIGHT_LABELS[name]} weights")
    if broken := next(iter(results.values()))["unreadable"]:
        treated = "left out" if config.data.eval_broken == "skip" else "counted as wrong"
        print_once(f"  {data.name}: {len(broken)} images cannot be read and are {treated}: {'; '.join(broken[:3])}")
    if class_folder and outcomes:
        section = write_class_report(class_folder, outcomes)
        title = printable(classifier.name or "model")
        atomic.write_text(class_folder / "classes.md", f"# {title}\n\n{section}\n")
        print_once(f"  classes, calibration and mistakes: {class_folder / 'classes.md'}")
    about = {"classes": len(classes.outputs), "outputs": classes.num_outputs, "matched_by": classes.how}
    return {name: result | about for name, result in results.items()}


def forward_seconds(classifier: Classifier, rows: int, mesh: Mesh) -> float:
    """The time of a forward pass over `rows` images that are on the devices already."""
    view, weights = classifier.view, next(iter(classifier.sets.values()))
    blank = np.zeros((rows // jax.process_count(), view.size, view.size, 3), np.uint8)
    images = sharding.place_batch({"image": blank}, mesh)["image"]
    call = lambda: head_logits(classifier.graphdef, weights, images, view.mean, view.std)
    return time_calls(call, 1, TIMED_SECONDS).median
