"""A run's train step as shapes only: student, teacher, state and batch of a config, nothing loaded or allocated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from deit_jax import models
from deit_jax.config import IMAGENET_TRAIN_IMAGES, Config
from deit_jax.config.recipes import has_teacher
from deit_jax.data import batch
from deit_jax.distill.teacher import Teacher, live_teacher, stored_teacher, teacher_models
from deit_jax.runtime.flops import count_flops
from deit_jax.train.step import TrainState, create_state, make_student, make_train_step


class Step(NamedTuple):
    """A train step and the shapes of its arguments: step(state, batch, teacher's arrays)."""

    step: Callable
    state: TrainState
    batch: dict
    teacher_arrays: list


def abstract_batch(config: Config, img_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch of a resolved config."""
    return batch.abstract(batch.train_entries(img_size) | batch.teacher_entries(config), config.batch_size)


def abstract_teacher(config: Config, *, img_size: int, num_classes: int) -> Teacher | None:
    """The teacher that a resolved config asks for, with shapes in place of its arrays; no weights are read.

    Args:
        img_size: the student's, in pixels.
        num_classes: of the data.
    """
    if not has_teacher(config):
        return None
    if config.distill.labels:
        return stored_teacher(config, num_classes)
    members = teacher_models(config, num_classes, img_size)
    return Teacher(live_teacher(config, members), [models.abstract(member.build)[1:] for member in members], members)


def abstract_step(config: Config, mesh: Mesh | None = None) -> Step:
    """The train step of a resolved config on ImageNet's schedule.

    mesh: the devices it is compiled for; None: one device.
    """
    classes = config.model.num_classes or 1000
    student = make_student(config, classes)
    student = student if mesh is None else student.on(mesh)
    teacher = abstract_teacher(config, img_size=student.img_size, num_classes=classes)
    per_epoch = max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    predict = teacher.predict if teacher else None
    step = make_train_step(student, predict, config, per_epoch)
    state = jax.eval_shape(lambda: create_state(student, config))
    return Step(step, state, abstract_batch(config, student.img_size), list(teacher.arrays) if teacher else [])


def step_flops(config: Config) -> int:
    """Arithmetic of one train step (forward, backward, teacher), without what remat computes again."""
    plain = config.copy_and_resolve_references()
    plain.model.remat, plain.model.attention = "none", "einsum"
    return count_flops(*abstract_step(plain))
