"""Runs and their teachers: a config and its data, checked and opened as a `Run` before anything is compiled."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from deit_jax.config import Config, validate
from deit_jax.config.derived import teacher_config, trains_teacher, without_token
from deit_jax.data import loader
from deit_jax.data.base import file_names
from deit_jax.distill.label_reader import open_labels
from deit_jax.distill.teacher import make_teacher
from deit_jax.errors import UserError
from deit_jax.runtime import storage
from deit_jax.student import Student, compute_dtype, make_student
from deit_jax.train.loop import train
from deit_jax.train.optimizer import num_steps
from deit_jax.train.setup import NO_INIT, Data, Init, Run, load_init, open_data
from deit_jax.train.step import NO_TEACHER, Teacher
from deit_jax.train.workdir import claim_workdir
from deit_jax.weights.orbax import find_step


class Models(NamedTuple):
    """What a config and its data make: NO_TEACHER where the teacher is trained first."""

    student: Student
    teacher: Teacher
    init: Init


def open_models(config: Config, data: Data, *, teacher_init: str = "", begun: bool = False) -> Models:
    """The student, its teacher and the weights it starts from.

    Args:
        config: resolved.
        data: decides the classes.
        teacher_init: weights of a teacher that was trained just before, where `teacher.init` names none.
        begun: the run is resumed, and needs no weights to start from.

    Raises UserError for a student, teacher or weights that cannot be.
    """
    student = make_student(config, data.train.num_classes)
    if trains_teacher(config) and not teacher_init:
        check_teacher_training(config, data.train.num_classes)
        teacher = NO_TEACHER
    else:
        teacher = open_teacher(config, student, data, teacher_init)
    return Models(student, teacher, NO_INIT if begun else load_init(config, student, data.train.class_names))


def open_teacher(config: Config, student: Student, data: Data, init: str = "") -> Teacher:
    """The teacher that `config` asks for; init: as `open_models`'s teacher_init."""
    return make_teacher(
        config,
        init,
        img_size=student.img_size,
        num_classes=student.num_classes,
        class_names=data.train.class_names,
        dtype=compute_dtype(config.teacher.dtype),
    )


def check_teacher_training(config: Config, num_classes: int) -> None:
    """Raise UserError for a teacher that cannot be trained here."""
    if config.teacher.init:
        raise UserError("teacher.init and teacher.epochs are both given: use the weights, or train the teacher here")
    teacher = teacher_config(config)
    if "_distilled" in teacher.model.name:
        raise UserError(
            f"teacher {teacher.model.name} would be trained without a teacher of its own:"
            f" use {without_token(teacher.model.name)}"
        )
    validate(teacher)
    make_student(teacher, num_classes)


def open_run(
    config: Config,
    workdir: str | Path,
    data: Data | None = None,
    *,
    title: str = "student",
    teacher_init: str = "",
    **more,
) -> Run:
    """Resolve a config into a run, with everything that can be wrong with it found before anything is written.

    Args:
        config: resolved and valid.
        workdir: folder of the run, claimed for it last.
        data: opened already; None opens it.
        title: of the run in its log.
        teacher_init: as `open_models`.
        more: other fields of `Run`.

    Raises UserError for bad input.
    """
    data = data or open_data(config)
    models = open_models(config, data, teacher_init=teacher_init, begun=find_step(storage.as_path(workdir)) is not None)
    per_epoch = loader.steps_per_epoch(config, data.train)
    total = num_steps(config, per_epoch)
    labels = open_labels(config, data.train, models.student, total)
    folder = claim_workdir(workdir, config, data.train.fingerprint, data.evaluation.fingerprint, file_names(data.train))
    return Run(
        title, config, folder, data, models.student, per_epoch, total, models.teacher, labels, models.init, **more
    )


def with_teacher(run: Run, folder: str) -> Run:
    """The run, taught by the teacher that was trained in `folder`; "": as it is."""
    if not folder:
        return run
    return dataclasses.replace(run, teacher=open_teacher(run.config, run.student, run.data, folder))


def train_run(config: Config, workdir: str | Path, data: Data | None = None, **options) -> dict[str, Any]:
    """Train one run of its own; arguments as `open_run`, result and errors as `train`."""
    return train(open_run(config, workdir, data, **options))


def train_teacher(config: Config, workdir: Path, data: Data | None = None) -> tuple[str, dict[str, Any] | None]:
    """(folder of the teacher's weights, its results), trained in WORKDIR/teacher; ("", None) where none is trained."""
    if not trains_teacher(config):
        return "", None
    folder = workdir / "teacher"
    options = {"title": "teacher", "lr_setting": "teacher.lr", "command_folder": workdir}
    return str(folder), train_run(teacher_config(config), folder, data, **options)
