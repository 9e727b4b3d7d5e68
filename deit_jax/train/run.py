"""What a run is, and how it is opened: data, student, teacher, length, devices and folder, each opened once.

A command resolves its config into a `Run` and hands that on; nothing after it opens data again. Whatever can
be wrong with a run is found here, before anything is compiled or written.

    WORKDIR/config.json      the settings the run began with, and the fingerprints of its data
    WORKDIR/images.txt.gz    the image files it began with, to name those that are gone
    WORKDIR/checkpoints/     states (`train/checkpoint.py`)
    WORKDIR/log.jsonl        metrics (`train/log.py`), of which the report draws curves.png
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from deit_jax.config import Config, differences, flat, validate
from deit_jax.config.recipes import has_teacher, teacher_config, trains_teacher, without_token
from deit_jax.data import cache, device_crops, loader, sources
from deit_jax.data.base import Source, file_names, summary
from deit_jax.distill.label_reader import StoredLabels, open_stored_labels
from deit_jax.distill.teacher import Teacher, load_teacher, stored_teacher
from deit_jax.distill.unlabelled import label_by_teacher
from deit_jax.errors import UserError
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.processes import print_once
from deit_jax.train.optimizer import num_steps
from deit_jax.train.step import ModelSpec, Program, make_program, model_spec
from deit_jax.train.trackers import tracker_names
from deit_jax.weights.fit import fit_weights
from deit_jax.weights.load import load_weights
from deit_jax.weights.orbax import best_checkpoint

PLAIN_STUDENT = "student without a teacher"  # the title of that run


class Data(NamedTuple):
    """The images of a command, opened once for all of its runs."""

    train: Source
    evaluation: Source


class PixelStatistics(TypedDict):
    """Mean and standard deviation per channel of pixels in 0..1, by which images are normalized."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, resolved into what it means.

    Attributes:
        title: what the log calls the run.
        config: resolved and valid.
        folder: its workdir, which holds or will hold this run alone.
        data: training and evaluation images.
        model: what is trained: the student, or a teacher of it.
        steps_per_epoch, total_steps: its length.
        teacher: what the student is distilled from; None without distillation, or until its teacher is trained.
        stored_labels: the teacher's, by step, or None.
        init: weights it starts from, {"params", "batch_stats"} on the host; None where it resumes, or draws them.
        init_notes: what was changed to fit them, a line each.
    """

    title: str
    config: Config
    folder: Path
    data: Data
    model: ModelSpec
    steps_per_epoch: int
    total_steps: int
    teacher: Teacher | None = None
    stored_labels: StoredLabels | None = None
    init: dict | None = None
    init_notes: Sequence[str] = ()

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices it runs on."""
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def program(self) -> Program:
        """Its jitted functions, on these devices, made for `teacher`: to be asked for once that is set."""
        predict = self.teacher.predict if self.teacher else None
        return make_program(self.model, predict, self.config, self.steps_per_epoch, self.mesh)

    @property
    def pixel_statistics(self) -> PixelStatistics:
        """The normalization statistics of the student's inputs."""
        return PixelStatistics(mean=tuple(self.config.augment.mean), std=tuple(self.config.augment.std))

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON that describes the run in each of its checkpoints."""
        sizes = {"img_size": self.model.img_size, "num_classes": self.model.num_classes}
        return {
            "model": {"name": self.config.model.name, **sizes},
            "weights": {**self.pixel_statistics, "class_names": list(self.data.train.class_names)},
            "config": json.loads(self.config.to_json_best_effort()),
        }


def open_run(
    config: Config,
    workdir: str | Path,
    data: Data | None = None,
    *,
    title: str = "student",
    teacher_init: str = "",
) -> Run:
    """Resolve a config into a run, with everything that can be wrong with it found before anything is written.

    Args:
        workdir: folder of the run, claimed for it last.
        data: opened already; None opens it.
        title: of the run in its log.
        teacher_init: weights of a teacher that was trained just before.

    Raises UserError for bad input.
    """
    tracker_names(config)
    data = data or open_data(config)
    student = model_spec(config, data.train.num_classes)
    teacher = open_teacher(config, data.train.class_names, student, teacher_init)
    begun = best_checkpoint(workdir) is not None  # then it needs no weights to start from
    init, notes = (None, []) if begun else load_init(config, student, data.train.class_names)
    per_epoch = loader.steps_per_epoch(config, data.train)
    total = num_steps(config, per_epoch)
    labels = None
    if config.distill.labels and has_teacher(config):
        labels = open_stored_labels(config, data.train, student.img_size, total)
    folder = claim_workdir(workdir, config, data.train.fingerprint, data.evaluation.fingerprint, file_names(data.train))
    return Run(title, config, folder, data, student, per_epoch, total, teacher, labels, init, notes)


def open_teacher(config: Config, class_names: Sequence[str], student: ModelSpec, init: str = "") -> Teacher | None:
    """The teacher of a student; None without one, or where it is trained first.

    A teacher that was trained as a run is its best checkpoint on its evaluation images, without the EMA.

    class_names: of the data, by label. init: weights of a teacher that was trained just before. Raises UserError for
    bad input.
    """
    if not has_teacher(config):
        return None
    if trains_teacher(config) and not init:
        check_teacher_training(config, class_names)
        return None
    if config.distill.labels:
        return stored_teacher(config, student.num_classes)
    return load_teacher(config, class_names, student.img_size, init)


def open_data(config: Config) -> Data:
    """The training and evaluation images of a resolved config. Process 0 prints what they are.

    Raises UserError for missing data; on every process, where several of them see different images.
    """
    # `data.cache`; "auto" keeps what fits in RAM, and on accelerators small training images on the devices
    data = Data(*cache.keep_decoded(config, *sources.open_sources(config)))
    if config.data.layout == "unlabelled":
        data = Data(*label_by_teacher(config, *data))
    data = data._replace(train=device_crops.keep_on_devices(config, data.train))
    print_once("\n".join(summary(*data)))
    compare_processes("\n".join(x.fingerprint for x in data))
    return data


def compare_processes(fingerprint: str) -> None:
    """Raise UserError on every process where one of them sees other images than process 0."""
    digest = hashlib.sha256(fingerprint.encode()).digest()
    found = np.atleast_2d(multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)))
    others = np.flatnonzero((found != found[0]).any(-1)).tolist()
    if others:
        raise UserError(f"process {others[0]} of {len(found)} sees other images than process 0: use the same files")


def check_teacher_training(config: Config, class_names: Sequence[str]) -> None:
    """Raise UserError for a teacher that cannot be trained on the student's data, or from the weights it starts from.

    class_names: of the data, by label.
    """
    teacher = teacher_config(config)
    if "_distilled" in teacher.model.name:
        name = teacher.model.name
        raise UserError(f"teacher {name} would be trained without a teacher of its own: use {without_token(name)}")
    validate(teacher)
    load_init(teacher, model_spec(teacher, len(class_names)), class_names)


def load_init(
    config: Config, student: ModelSpec, class_names: Sequence[str] | None = None
) -> tuple[dict | None, list[str]]:
    """(the weights that `config.init` names, fitted to the student, or None; what was changed to fit, a line each).

    class_names: of the data, by label; the heads' outputs are brought into their order. Raises UserError where the
    weights do not fit.
    """
    if not config.init:
        return None, []
    weights = load_weights(config.init, name=config.model.name)
    params, batch_stats, notes = fit_weights(weights, student.build, class_names=class_names)
    ours = tuple(config.augment.mean), tuple(config.augment.std)
    if ours != (weights.mean, weights.std):
        notes.append(
            f"images are normalized with mean {ours[0]}, std {ours[1]}: the weights were trained with {weights.mean},"
            f" {weights.std} (--config.augment.mean=, --config.augment.std=)"
        )
    return {"params": params, "batch_stats": batch_stats}, notes


FILES = "images.txt.gz"


def claim_workdir(
    workdir: str | os.PathLike,
    config: Config,
    fingerprint: str,
    eval_fingerprint: str = "",
    files: Sequence[str] = (),
) -> Path:
    """Make the folder of a run, or check that the run it holds is this one. Returns its path.

    Args:
        fingerprint, eval_fingerprint: of the training and evaluation images ("": not compared).
        files: that the training images are read from; a later start names those that are gone.

    Raises UserError where it cannot be written, or holds a run of other settings or data; it is left unchanged then.
    """
    folder = storage.as_path(workdir)
    record = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if storage.is_bucket(folder):  # where it does not answer, `exists` is False for everything in it
            (folder / ".reached").write_text("deit_jax")
        has_begun = record.exists()
    except Exception as error:  # gcsfs has errors of its own
        raise atomic.write_error(folder, error) from error
    ours = json.loads(json.dumps(flat(config)))
    if has_begun:
        check_record(record, ours, fingerprint, eval_fingerprint, files)
    elif jax.process_index() == 0:
        if files:
            names = "\0".join(files).encode("utf-8", "surrogateescape")
            atomic.write_bytes(folder / FILES, gzip.compress(names, 1))
        fingerprints = {"data.fingerprint": fingerprint, "data.eval_fingerprint": eval_fingerprint}
        atomic.write_json(record, ours | fingerprints)
    return folder


def check_record(
    record: Path, ours: dict[str, Any], fingerprint: str, eval_fingerprint: str, files: Sequence[str]
) -> None:
    """Raise UserError where a run's config.json is of other settings or data than ours. Arguments: `claim_workdir`."""
    workdir = record.parent
    try:
        theirs = json.loads(record.read_text())
        seen, evaluated = theirs.pop("data.fingerprint"), theirs.pop("data.eval_fingerprint")
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"workdir {workdir} holds a config.json that is no run's: choose another --workdir") from None
    changed = differences(ours, theirs)
    if changed:
        shown = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} now" for k in changed[:4])
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        fix = "choose another --workdir"
        if not set(changed) - {"epochs", "steps"}:
            fix += f", and --config.init={workdir} to train on from these weights with a schedule of its own"
        raise UserError(f"workdir {workdir} holds a run of another config ({shown}{more}): {fix}")
    restore = "put back what it was, or begin a new folder with another --workdir"
    if seen != fingerprint:
        raise UserError(
            f"the training data changed since the run in {workdir} began{missing_files(workdir, files)}: {restore}"
        )
    same_limit = theirs.get("evaluate.limit") == ours["evaluate.limit"]
    if evaluated and eval_fingerprint and same_limit and evaluated != eval_fingerprint:
        raise UserError(f"the evaluation data changed since the run in {workdir} began: {restore}")


def missing_files(folder: Path, files: Sequence[str]) -> str:
    """The files a run began with that are gone, as part of a message: " (2 of its files are gone: a.png, b.png)".

    folder: the run's. files: those of today. "" where none is gone, or the run's are not recorded.
    """
    record = folder / FILES
    if not record.exists():
        return ""
    began = gzip.decompress(record.read_bytes()).decode("utf-8", "surrogateescape").split("\0")
    gone = sorted(set(began) - set(files))
    return f" ({len(gone)} of its files are gone: {', '.join(gone[:3])}{', …' * (len(gone) > 3)})" if gone else ""
