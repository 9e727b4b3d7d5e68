"""A run's train step as shapes only: student, teacher, state and batch of a config, nothing loaded or allocated."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from deit_jax import models
from deit_jax.config import IMAGENET_TRAIN_IMAGES, Config
from deit_jax.config.recipes import has_teacher
from deit_jax.data.batch import teacher_entries, train_entries
from deit_jax.distill.teacher import Teacher, TeacherModel, live_teacher, own_member, stored_teacher
from deit_jax.own import is_own
from deit_jax.runtime import sharding
from deit_jax.runtime.flops import count_flops
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.train.step import TrainState, make_program, model_spec


class Step(NamedTuple):
    """A jitted train step and the shapes of its arguments: step(state, batch, teacher's arrays)."""

    step: jax.stages.Wrapped
    state: TrainState
    batch: dict
    teacher_arrays: list


def abstract_teacher(config: Config, *, img_size: int, num_classes: int) -> Teacher | None:
    """The teacher that a resolved config asks for, with shapes in place of its arrays; no weights are read.

    img_size: the student's, in pixels. num_classes: of the data.
    """
    if not has_teacher(config):
        return None
    if config.distill.labels:
        return stored_teacher(config, num_classes)
    size, dtype = config.teacher.img_size or img_size, compute_dtype(config.teacher.dtype)
    options = {"num_classes": num_classes, "img_size": size, "dtype": dtype}
    mean, std = (tuple(config.teacher[k] or config.augment[k]) for k in ("mean", "std"))  # not known without weights
    members = [
        own_member(config, name, None)[0]
        if is_own(name)
        else TeacherModel(models.constructor(name, **options), size, mean, std)
        for name in config.teacher.name.split(",")
    ]
    return Teacher(live_teacher(config, members), [models.abstract(member.build)[1:] for member in members], members)


def abstract_step(config: Config, mesh: Mesh | None = None) -> Step:
    """The train step of a resolved config on ImageNet's schedule, with its arguments placed on a mesh.

    mesh: the devices it is compiled for; None: one device.
    """
    mesh, classes = mesh or sharding.make_mesh(jax.devices()[:1]), config.model.num_classes or 1000
    student = model_spec(config, classes)
    teacher = abstract_teacher(config, img_size=student.img_size, num_classes=classes)
    predict, arrays = (teacher.predict, list(teacher.arrays)) if teacher else (None, [])
    per_epoch = max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    program = make_program(student, predict, config, per_epoch, mesh)
    place = lambda tree, where: jax.tree.map(lambda x: x.update(sharding=where), tree)
    batch = train_entries(student.img_size, config.batch_size) | teacher_entries(config, config.batch_size)
    batch = place(batch, sharding.batch_sharding(mesh))
    return Step(program.step, program.abstract_state, batch, place(arrays, sharding.replicated(mesh)))


def step_flops(config: Config) -> int:
    """Arithmetic of one train step (forward, backward, teacher), without what remat computes again."""
    plain = config.copy_and_resolve_references()
    plain.model.remat, plain.model.attention = "none", "einsum"
    return count_flops(*abstract_step(plain))
