"""The teacher, live or as stored labels, behind one call: (arrays, batch, images) → logits, decisions or None."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError


class TeacherModel(NamedTuple):
    """One model of a teacher: its constructor, its input size and the pixels it knows."""

    build: Callable
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def no_teacher(arrays, batch: dict, images: jax.Array) -> None:
    """For the objectives that have none."""


def stored_teacher(arrays, batch: dict, images: jax.Array) -> jax.Array:
    """Labels that came with the batch: decisions (B,), or logits."""
    return batch["teacher"]


def stored_distribution(num_classes: int, tau: float) -> Callable:
    """The teacher of a top-k store, whose batches hold `teacher` (B, k) classes, likeliest first, and
    `teacher_probability` (B, k) at temperature tau.

    What the k classes leave of the probability is spread evenly over the others: the mass at `tau` is then exact, and
    with k = num_classes the teacher is the live one. The function returns logits (B, num_classes) whose softmax at
    `tau` is that distribution; a class of probability 0 has -inf, which `distillation_loss` takes for 0 log 0 = 0.
    """

    def logits(arrays, batch, images):
        index, known = batch["teacher"], batch["teacher_probability"].astype(jnp.float32)
        rest = jnp.maximum(1 - known.sum(-1, keepdims=True), 0) / max(num_classes - index.shape[-1], 1)
        rows = jnp.arange(len(index))[:, None]
        spread = jnp.broadcast_to(rest, (len(index), num_classes))
        return tau * jnp.log(spread.at[rows, index].set(known))

    return logits


def live_teacher(
    members: list[tuple[nnx.GraphDef, int, tuple, tuple]], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable:
    """A teacher that runs in the student's jit, in evaluation mode, on the student's augmented and mixed images.

    Args:
        members: (graph definition, input size, pixel mean, pixel deviation) of each; their predictions are averaged.
        mean, std: the student's images are normalized with.

    The returned function takes their arrays, [(params, batch_stats), …]: nothing is a constant of the jitted code.
    """

    def logits(arrays, batch, images):
        images = jax.lax.stop_gradient(images)
        outputs = []
        for (graphdef, size, to_mean, to_std), (params, batch_stats) in zip(members, arrays, strict=True):
            view = images
            if (mean, std) != (to_mean, to_std):
                a, b, c, d = (jnp.asarray(x, images.dtype) for x in (std, mean, to_mean, to_std))
                view = (view * a + b - c) / d
            if view.shape[1] != size:
                view = jax.image.resize(view, (len(view), size, size, 3), "bicubic")
            outputs.append(nnx.merge(graphdef, params, batch_stats)(view))
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
        if config.distill.kind == "soft":
            return stored_distribution(num_classes, config.distill.tau), []
        return stored_teacher, []
    members, arrays = load_teacher(config, init, img_size=img_size, num_classes=num_classes, dtype=dtype)
    return teacher_of(config, members), arrays


def load_teacher(config, init: str = "", *, img_size: int, num_classes: int, dtype) -> tuple[list[TeacherModel], list]:
    """The models of the live teacher and their arrays, [(params, batch_stats), …] on the host. As `make_teacher`."""
    from deit_jax.weights import fit_weights, load_weights  # here: stored labels need no weights' code

    init = config.teacher.init or init
    if not init:
        raise UserError(
            f"teacher {config.teacher.name} has no weights: give --config.teacher.init= a hub name, file or workdir,"
            " or train it here with --config.teacher.epochs="
        )
    sources = init.split(",")
    names = config.teacher.name.split(",") if config.teacher.name else [""] * len(sources)
    if len(sources) != len(names):
        raise UserError(f"teacher.name has {len(names)} entries, teacher.init {len(sources)}: give one each")
    size = config.teacher.img_size or img_size
    options = {"num_classes": num_classes, "img_size": size, "dtype": dtype}
    members, arrays = [], []
    for name, source in zip(names, sources, strict=True):
        weights = load_weights(source)
        if weights.num_classes != num_classes:
            raise UserError(
                f"teacher {source} has {weights.num_classes} classes, the data {num_classes}:"
                " give a teacher of these classes"
            )
        build = models.constructor(name, **options) if name else weights.architecture.constructor(**options)
        params, batch_stats, _ = fit_weights(weights, build)
        arrays.append((params, batch_stats))
        mean, std = tuple(config.teacher.mean or weights.mean), tuple(config.teacher.std or weights.std)
        members.append(TeacherModel(build, size, mean, std))
    return members, arrays


def teacher_models(config, *, img_size: int, num_classes: int, dtype) -> list[TeacherModel]:
    """The models that `teacher.name` lists, without weights: where no mean is set, they know the student's pixels."""
    size = config.teacher.img_size or img_size
    options = {"num_classes": num_classes, "img_size": size, "dtype": dtype}
    mean, std = (tuple(config.teacher[k] or config.augment[k]) for k in ("mean", "std"))
    return [
        TeacherModel(models.constructor(name, **options), size, mean, std) for name in config.teacher.name.split(",")
    ]


def teacher_of(config, members: list[TeacherModel]) -> Callable:
    """The live teacher of these members, without its arrays."""
    known = [(models.abstract(m.build)[0], m.size, m.mean, m.std) for m in members]
    return live_teacher(known, tuple(config.augment.mean), tuple(config.augment.std))


def is_local(init: str) -> bool:
    """Whether every source that `teacher.init` lists is a file or folder of this machine."""
    return bool(init) and all(Path(source).expanduser().exists() for source in init.split(","))
