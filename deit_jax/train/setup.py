"""What a run is before it begins: its data, student, teacher, length, devices and folder, each opened once.

A command resolves its config into a `Run` and hands that on; nothing after it opens data or weights again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import UInt8

from deit_jax.config import Config
from deit_jax.data import sources
from deit_jax.data.base import Source
from deit_jax.errors import UserError
from deit_jax.models.layout import Layout, make_layout
from deit_jax.runtime import sharding
from deit_jax.student import Student
from deit_jax.train.step import NO_TEACHER, Teacher
from deit_jax.weights import fit_weights, load_weights


class Data(NamedTuple):
    """The images of a command, opened once for all of its runs."""

    train: Source
    evaluation: Source


class Normalization(TypedDict):
    """Statistics that pixels are normalized with, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Init(NamedTuple):
    """Weights a run starts from, fitted to its student: {"params", "batch_stats"} on the host, None to draw them from
    the seed; and what was changed to fit, for people."""

    weights: dict | None = None
    notes: tuple[str, ...] = ()


NO_INIT = Init()


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, resolved into what it means.

    Attributes:
        title: what the log calls the run.
        config: resolved and valid.
        folder: its workdir, which holds or will hold this run alone.
        steps_per_epoch, total_steps: its length.
        teacher: what the student is distilled from; NO_TEACHER without distillation, or until its teacher is trained.
        labels: the teacher's stored labels (`deit_jax.distill.label_reader.BatchLabels`), or None.
        init: what it starts from where `folder` holds no checkpoint.
        lr_setting, command_folder: the setting of its learning rate and the --workdir (None: `folder`) in the command
            that started it, for messages.
    """

    title: str
    config: Config
    folder: Path
    data: Data
    student: Student
    steps_per_epoch: int
    total_steps: int
    teacher: Teacher = NO_TEACHER
    labels: Any = None
    init: Init = NO_INIT
    lr_setting: str = "optimizer.lr"
    command_folder: Path | None = None

    @functools.cached_property
    def layout(self) -> Layout:
        """The devices it runs on, and what is split over them."""
        return make_layout(sharding.make_mesh(**self.config.mesh))

    @property
    def mesh(self) -> Mesh:
        """The devices it runs on."""
        return self.layout.mesh

    @functools.cached_property
    def sharded_student(self) -> Student:
        """The student as it computes on all of these devices; `student` computes wherever its arrays are."""
        return self.student.on(self.layout)

    @property
    def workdir(self) -> Path:
        """The --workdir of the command that started the run."""
        return self.command_folder or self.folder

    @property
    def normalization(self) -> Normalization:
        """Of the student's images."""
        return Normalization(mean=tuple(self.config.augment.mean), std=tuple(self.config.augment.std))

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON that describes the run in each of its checkpoints."""
        sizes = {"img_size": self.student.img_size, "num_classes": self.student.num_classes}
        return {
            "model": {"name": self.config.model.name, **sizes},
            "weights": {**self.normalization, "class_names": list(self.data.train.class_names)},
            "config": json.loads(self.config.to_json_best_effort()),
        }


def open_data(config: Config) -> Data:
    """The training and evaluation images of a resolved config. Process 0 prints what they are.

    Raises UserError for what is missing, and on every process where several of them see different images.
    """
    data = Data(*sources.open_sources(config))
    if jax.process_index() == 0:
        print("\n".join(sources.summary(*data)), flush=True)
    check_same_on_all_processes(data)
    return data


def check_same_on_all_processes(data: Data) -> None:
    """Compare the fingerprints of all processes. Raises UserError on each of them that names those that differ."""
    if jax.process_count() == 1:
        return
    ours = [np.frombuffer(hashlib.sha256(x.fingerprint.encode()).digest(), np.uint8) for x in data]
    compare_fingerprints(np.asarray(multihost_utils.process_allgather(np.stack(ours))))


def compare_fingerprints(gathered: UInt8[np.ndarray, "processes 2 32"]) -> None:
    """gathered: digests of each process's training and evaluation images."""
    for which, name in enumerate(("training", "evaluation")):
        others = [str(p) for p in range(len(gathered)) if (gathered[p, which] != gathered[0, which]).any()]
        if others:
            raise UserError(
                f"process{'es' if len(others) > 1 else ''} {', '.join(others)} of {len(gathered)} see other {name}"
                " images than process 0: data.root must hold the same files on every host"
            )


def load_init(config: Config, student: Student, class_names: Sequence[str] | None = None) -> Init:
    """The weights `config.init` names, fitted to the student. Raises UserError where they do not fit.

    class_names: of the data by label; the heads' outputs are brought into their order.
    """
    if not config.init:
        return NO_INIT

    weights = load_weights(config.init, name=config.model.name)
    params, batch_stats, notes = fit_weights(weights, student.build, class_names=class_names)
    ours = tuple(config.augment.mean), tuple(config.augment.std)
    if ours != (weights.mean, weights.std):
        notes.append(
            f"images are normalized with mean {ours[0]}, std {ours[1]}: the weights were trained with {weights.mean},"
            f" {weights.std} (--config.augment.mean=, --config.augment.std=)"
        )
    return Init({"params": params, "batch_stats": batch_stats}, tuple(notes))
