"""`--mode=evaluate`: any weights on any data sets, as one table.

    python main.py --mode=evaluate --workdir=RUN
    python main.py --mode=evaluate --checkpoint=A --checkpoint=B --data=val=/data/imagenet/val --data=v2=/data/v2

See docs/evaluation.md.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax.config import default_config, flat, resolve, validate
from deit_jax.data import sources
from deit_jax.data.base import Subset
from deit_jax.errors import UserError, printable
from deit_jax.evaluate import tables
from deit_jax.evaluate.class_report import Outcomes, write_class_report
from deit_jax.evaluate.classifier import (
    WEIGHT_SETS,
    Classifier,
    evaluate_classifier,
    evaluation_rows,
    make_classifier,
    weight_sets,
)
from deit_jax.evaluate.inference import head_logits
from deit_jax.evaluate.test_sets import EvalSet, match_source, open_eval_sets
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.runtime.processes import from_process_0, print_once
from deit_jax.weights import Weights, split_sources
from deit_jax.weights.orbax import find_step, read_meta

BATCH_SIZE = 256
# the settings of a run that its evaluation takes over
INHERITED_SETTINGS = ("data.", "evaluate.", "model.img_size", "model.dtype", "recipe", "seed")
TIMED_SECONDS, TIMED_CALLS = 2.0, 30  # of the forward pass: until the first is used up, at most so many calls
OUTPUTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "evaluation.md": tables.evaluation_markdown,
    "evaluation.json": lambda found: json.dumps(found, indent=1) + "\n",
    "evaluation.csv": tables.evaluation_csv,
}


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
        checkpoints: weights, as `load_weights` takes them; empty: the workdir's.
        data: as `open_eval_sets` takes them; empty: what `config` or the run's checkpoint names.
        kind: "params" or "ema" of a training checkpoint; "": both where both are there.
        workdir: a run's folder, or "".
        output: a folder for the results, or "".
    """

    checkpoints: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    kind: str = ""
    workdir: str = ""
    output: str = ""


class EvalTarget(NamedTuple):
    """One set of weights to evaluate: where it is, and its settings."""

    source: str
    config: Any


def evaluate_command(config, explicit: dict[str, Any], request: Request) -> dict[str, Any]:
    """`--mode=evaluate`: evaluate, print the tables, write them to `request.output`.

    Args:
        config: of the command line, not resolved.
        explicit: the settings among it that were given, {"data.crop": 0.9}; others are the run's or the weights' own.
        request: everything else.

    Returns the report: {"rows": …, "data": {name: one line}, "device": …}. Raises UserError for bad input, before
    anything is compiled where it can be known.
    """
    if request.kind not in ("", *WEIGHT_SETS):
        raise UserError(f"--weights {request.kind} is not known: use params or ema")
    check_output(request.output)
    targets = [EvalTarget(source, target_settings(config, explicit, source)) for source in named_sources(request)]
    data = open_requested_sets(targets, explicit, request)
    for target in targets[1:]:  # the first is checked when it is loaded
        check_classes(target, data, request.kind)
    found = {"rows": [], "data": {}, "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
    mesh = sharding.make_mesh()
    try:
        for target in targets:
            found["rows"] += evaluate_target(
                target, explicit, data, mesh, request.kind, found["data"], class_report_folder(targets, data, request)
            )
    finally:  # a failure does not cost the results before it
        if found["rows"] and jax.process_index() == 0:
            print(f"\n{tables.evaluation_markdown(found)}", end="")
            write_outputs(request.output, found)
    return found


def named_sources(request: Request) -> list[str]:
    """The weights to evaluate, in the order given. Raises UserError where there are none."""
    names = [name for part in request.checkpoints for name in split_sources(part) if name]
    if names:
        return list(dict.fromkeys(names))
    if not request.workdir:
        raise UserError("nothing to evaluate: give --workdir=RUN or --checkpoint=WEIGHTS")
    if find_step(storage.as_path(request.workdir)) is None:  # else its name might be taken for a hub's
        raise UserError(f"workdir {request.workdir} holds no checkpoint: train there first, or give --checkpoint=")
    return [request.workdir]


def target_settings(config, explicit: dict[str, Any], source: str) -> Any:
    """The resolved settings for one set of weights: its run's where it is a run's checkpoint, else `config`'s, and over
    both what is explicit."""
    step = run_step(source)
    recorded = read_meta(step).get("config") if step else None
    if recorded is None:
        own: Any = config
    else:
        own, known = default_config(), flat(default_config())
        used = {key: v for key, v in flat(recorded).items() if key in known and key.startswith(INHERITED_SETTINGS)}
        own.update_from_flattened_dict(used)
        own.update_from_flattened_dict(explicit)
    own = resolve(own)
    own.batch_size = own.data.eval_batch_size or (own.batch_size if "batch_size" in explicit else BATCH_SIZE)
    own.accumulate, own.data.eval_batch_size = 1, 0
    validate(own)
    return own


def run_step(source: str) -> Path | None:
    """The checkpoint of a run that `source` stands for, or None: a file, a hub name."""
    path = storage.as_path(source)
    return find_step(path) if path.is_dir() else None


def open_requested_sets(targets: Sequence[EvalTarget], explicit: dict[str, Any], request: Request) -> list[EvalSet]:
    """The data sets to evaluate on. Raises UserError where none is named, or two alike."""
    if request.data:
        sets = [one for text in request.data for one in open_eval_sets(text)]
    else:
        run = next((target for target in targets if run_step(target.source)), None)
        if run is None and not {"data.root", "data.name"} & explicit.keys():
            raise UserError("no data: give --data=NAME=FOLDER, see docs/evaluation.md")
        sets = [default_eval_set((run or targets[0]).config, targets)]
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--data names two sets '{twice}': give them names of their own, as --data=a=FOLDER")
    return sets


def default_eval_set(config, targets: Sequence[EvalTarget]) -> EvalSet:
    """The evaluation images that a config names.

    Where they would be held out of the training images, that is done only for the runs that were trained on the rest;
    other weights are evaluated on every image.
    """
    name = Path(config.data.root).name if config.data.root else config.data.name
    train, held_out = sources.find_sources(config)
    if not (isinstance(train, Subset) and isinstance(held_out, Subset) and train.source is held_out.source):
        return EvalSet(name, held_out)
    for target in targets:
        if is_trained_on_rest(target.source, config):
            return EvalSet(name, held_out, "held out of the run's training images")
    config = config.copy_and_resolve_references()
    config.data.holdout = 1.0
    return EvalSet(name, sources.find_sources(config)[1])


def is_trained_on_rest(source: str, config) -> bool:
    """Whether `source` is of a run that was trained on the images that `config` leaves for training."""
    step = run_step(source)
    record = step.parent.parent / "config.json" if step else None
    if step is None or record is None or not record.is_file():
        return False
    try:
        train = sources.open_sources(config)[0]
    except UserError:  # of other classes
        return False
    return train.fingerprint == json.loads(record.read_text()).get("data.fingerprint")


def check_classes(target: EvalTarget, data: Sequence[EvalSet], kind: str) -> None:
    """Raise UserError where a set's classes are not the weights'."""
    weights = next(iter(weight_sets(target.source, kind).values()))
    for one in data:
        match_weights(weights, one)


def match_weights(weights: Weights, data: EvalSet, limit: int = 0):
    """`match_source` of a data set and weights."""
    if not weights.num_classes:
        raise UserError(f"{weights.source} has no classification head: it cannot be evaluated")
    return match_source(
        data.source, weights.class_names, weights.num_classes, limit=limit, data=data.name, model=weights.source
    )


def evaluate_target(
    target: EvalTarget,
    explicit: dict[str, Any],
    data: Sequence[EvalSet],
    mesh: Mesh,
    kind: str,
    descriptions: dict[str, str],
    class_folder: Path | None = None,
) -> list[dict[str, Any]]:
    """A row of the report per set of weights.

    Args:
        target: the weights.
        explicit: as `evaluate_command`.
        data: the data sets.
        mesh: the devices.
        kind: "params", "ema" or "" for both.
        descriptions: gets a line per data set.
        class_folder: folder for the report on single classes and images; None writes none.
    """
    config, sets = target.config, weight_sets(target.source, kind)
    matched = {one.name: match_weights(next(iter(sets.values())), one, config.evaluate.limit) for one in data}
    own = {key: explicit[f"data.{key}"] for key in ("crop", "interpolation") if f"data.{key}" in explicit}
    classifier = make_classifier(
        sets, mesh, img_size=config.model.img_size, dtype=compute_dtype(config.model.dtype), **own
    )
    print_once(f"{target.source}: {classifier.name or 'a model without a name'}, {classifier.view.size} px")
    for note in classifier.notes:
        print_once(f"  {note}")
    results: dict[str, dict[str, Any]] = {name: {} for name in sets}
    for one in data:
        classes, images = matched[one.name]
        about = f"{len(images):,} images of {classes.describe()}" + (f"; {one.note}" if one.note else "")
        descriptions.setdefault(one.name, about)
        print_once(f"  {one.name}: {about}")
        outcomes = None
        if class_folder and not classes.is_subset and not images.several_labels:
            outcomes = Outcomes([str(name) for name in classifier.class_names or images.class_names])
        counted = evaluate_classifier(
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
        about_classes = {"classes": len(classes.outputs), "outputs": classes.num_outputs, "matched_by": classes.how}
        for name, result in counted.items():
            results[name][one.name] = result | about_classes
            print_once(f"  {one.name}: top-1 {result['top1']:.2f} %, {tables.WEIGHT_LABELS[name]} weights")
        if broken := next(iter(counted.values()))["unreadable"]:
            treated = "left out" if config.data.eval_broken == "skip" else "counted as wrong"
            print_once(f"  {one.name}: {len(broken)} images cannot be read and are {treated}: {'; '.join(broken[:3])}")
        if class_folder and outcomes:
            section = write_class_report(class_folder, outcomes)
            title = printable(classifier.name or "model")
            atomic.write_text(class_folder / "classes.md", f"# {title}\n\n{section}\n")
            print_once(f"  classes, calibration and mistakes: {class_folder / 'classes.md'}")
    most_images = max(len(images) for _, images in matched.values())
    rows = evaluation_rows(config.batch_size, most_images, mesh.devices.size)
    view = classifier.view
    row = {
        "model": classifier.name,
        "source": target.source,
        "parameters": classifier.parameters(),
        "img_size": view.size,
        "crop": view.crop,
        "interpolation": view.interpolation,
        "flops": classifier.flops(),
        "batch_size": rows,
        "images_per_second": rows / forward_seconds(classifier, rows, mesh),
    }
    return [row | {"kind": name, "results": result} for name, result in results.items()]


def class_report_folder(targets: Sequence[EvalTarget], data: Sequence[EvalSet], request: Request) -> Path | None:
    """Where classes and images are reported: of one set of weights on one data set, evaluated by one process."""
    alone = len(targets) == len(data) == jax.process_count() == 1
    return storage.as_path(request.output) if request.output and alone else None


def forward_seconds(classifier: Classifier, rows: int, mesh: Mesh) -> float:
    """The median time of a forward pass over `rows` images that are on the devices already, compiled and warm."""
    view, local = classifier.view, rows // jax.process_count()
    images = sharding.place_batch({"image": np.zeros((local, view.size, view.size, 3), np.uint8)}, mesh)["image"]
    weights = next(iter(classifier.sets.values()))

    def time_once() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(head_logits(classifier.graphdef, weights, images, view.mean, view.std))
        return time.perf_counter() - begun

    first = time_once()
    # by one clock: a process that made another call would wait for the others, which are gone, and fail
    more = from_process_0(lambda: min(TIMED_CALLS - 1, int(TIMED_SECONDS / first)))
    return statistics.median([first, *(time_once() for _ in range(more))])


def check_output(folder: str) -> None:
    """Raise UserError where the results would overwrite others, or cannot be written."""
    if not folder:
        return
    there = next((name for name in OUTPUTS if (storage.as_path(folder) / name).exists()), None)
    if there:
        raise UserError(f"--output {folder} holds {there} of an earlier evaluation: choose another folder")
    try:
        storage.as_path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made ({error.strerror}): choose another folder") from error


def write_outputs(folder: str, found: dict[str, Any]) -> None:
    """evaluation.md, .json and .csv in `folder`; nothing where it is ""."""
    if not folder:
        return
    paths = {name: storage.as_path(folder) / name for name in OUTPUTS}
    for name, render in OUTPUTS.items():
        atomic.write_text(paths[name], render(found))
    print(f"\nwrote {', '.join(map(str, paths.values()))}")
