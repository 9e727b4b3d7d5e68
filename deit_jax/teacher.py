"""The teacher, live or as stored labels, behind one call: (arrays, batch, images) → logits, decisions or None."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError


def no_teacher(arrays, batch: dict, images: jax.Array) -> None:
    """For the objectives that have none."""


def stored_teacher(arrays, batch: dict, images: jax.Array) -> jax.Array:
    """Labels that came with the batch: decisions (B,)."""
    return batch["teacher"]


def live_teacher(
    members: list[tuple[nnx.GraphDef, int]], ours: tuple[tuple, tuple], theirs: tuple[tuple, tuple]
) -> Callable:
    """A teacher that runs in the student's jit, in evaluation mode, on the student's augmented and mixed images.

    Args:
        members: (graph definition, input size) of each; their predictions are averaged.
        ours, theirs: (mean, std) the student's images are normalized with, and those the teacher knows.

    The returned function takes their arrays, [(params, stats), …], so that nothing is a constant of the jitted code.
    """
    (mean, std), (to_mean, to_std) = (tuple(jnp.asarray(x) for x in pair) for pair in (ours, theirs))
    same = ours == theirs

    def logits(arrays, batch, images):
        images = jax.lax.stop_gradient(images)
        if not same:
            images = (images * std + mean - to_mean) / to_std
        outputs = []
        for (graphdef, size), (params, stats) in zip(members, arrays, strict=True):
            view = images
            if images.shape[1] != size:
                view = jax.image.resize(images, (images.shape[0], size, size, 3), "bicubic")
            outputs.append(nnx.merge(graphdef, params, stats)(view))
        if len(outputs) == 1:
            return outputs[0]
        return jnp.log(jnp.stack([jax.nn.softmax(o) for o in outputs]).mean(0))

    return logits


def make_teacher(config, init: str = "", *, img_size: int, num_classes: int, dtype) -> tuple[Callable, list]:
    """(teacher, its arrays) that `config` (resolved) asks for; init: its weights where `teacher.init` is empty.

    Raises UserError for missing weights or a teacher of other classes, before anything is compiled.
    """
    if config.distill.kind in ("none", "second_cls"):
        return no_teacher, []
    if config.distill.labels:
        return stored_teacher, []
    from deit_jax.weights import fit_weights, load_weights  # here: stored labels need no weights' code

    init = config.teacher.init or init
    if not init:
        raise UserError(
            f"teacher {config.teacher.name} has no weights: give --config.teacher.init= a hub name, file or workdir,"
            " or train it here with --config.teacher.epochs="
        )
    members = teacher_members(config, img_size=img_size, num_classes=num_classes, dtype=dtype)
    given = init.split(",")
    if len(given) != len(members):
        raise UserError(f"teacher.name has {len(members)} entries, teacher.init {len(given)}: give one each")
    arrays = []
    for (build, _), source in zip(members, given, strict=True):
        weights = load_weights(source)
        if weights.num_classes != num_classes:
            raise UserError(
                f"teacher {source} has {weights.num_classes} classes, the data {num_classes}:"
                " give a teacher of these classes"
            )
        params, stats, _ = fit_weights(weights, build)
        arrays.append((params, stats))
    return teacher_of(config, members), arrays


def teacher_members(config, *, img_size: int, num_classes: int, dtype) -> list[tuple[Callable, int]]:
    """(constructor, input size) of each model that `teacher.name` lists."""
    size = config.teacher.img_size or img_size
    options = {"num_classes": num_classes, "img_size": size, "dtype": dtype}
    return [(models.constructor(name, **options), size) for name in config.teacher.name.split(",")]


def teacher_of(config, members: list[tuple[Callable, int]]) -> Callable:
    """The live teacher of these members, without its arrays."""
    ours = (tuple(config.augment.mean), tuple(config.augment.std))
    theirs = (tuple(config.teacher.mean), tuple(config.teacher.std))
    return live_teacher([(models.abstract(build)[0], size) for build, size in members], ours, theirs)
