"""The teacher, live or as stored labels, behind one call: (arrays, batch) → logits or hard labels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from deit_jax import models
from deit_jax.classes.match import match_classes
from deit_jax.config import Config
from deit_jax.data.batch import DeviceBatch
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES, TeacherOutput
from deit_jax.runtime import storage
from deit_jax.weights import Weights, fit_weights, load_weights, split_sources

TeacherFunction = Callable[[Any, DeviceBatch], TeacherOutput]  # (arrays, batch) → logits or hard labels


class TeacherModel(NamedTuple):
    """One model of a live teacher, without its arrays.

    Attributes:
        build: its constructor.
        size: input size in pixels; images of another size are resized for it.
        mean, std: its normalization statistics.
        outputs: per class of the data, the index of its logit; None: they are numbered alike.
        notes: what was changed to fit its weights to `build`, a line each.
    """

    build: functools.partial
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: Integer[np.ndarray, " data_classes"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def graphdef(self) -> nnx.GraphDef:
        return models.abstract(self.build)[0]


class Teacher(NamedTuple):
    """What a student is distilled from.

    Attributes:
        predict: (arrays, batch) → logits or hard labels; the batch holds the augmented, normalized images.
        arrays: of its models, an argument of the jitted step: a constant of their size would be compiled in.
        models: of a live teacher, one for each of `arrays`.
    """

    predict: TeacherFunction
    arrays: Sequence[Any] = ()
    models: Sequence[TeacherModel] = ()


def stored_labels(arrays: Any, batch: DeviceBatch) -> TeacherOutput:
    """The hard labels that came with the batch."""
    return batch["teacher"]


def stored_distribution(num_classes: int, tau: float) -> TeacherFunction:
    """The teacher of a top-k store: a function that returns logits (B, num_classes).

    The batch holds `teacher` (B, k) classes, likeliest first, and `teacher_probability` (B, k) at temperature `tau`.
    The remaining probability mass is distributed uniformly over the other classes, so the softmax of the logits at
    `tau` is that distribution; with k = num_classes it is the live teacher's. A class of probability 0 has logit -inf,
    which `distillation_loss` takes for 0 log 0 = 0.
    """

    def logits(arrays: Any, batch: DeviceBatch) -> Float[Array, "batch classes"]:
        index, known = batch["teacher"], batch["teacher_probability"].astype(jnp.float32)
        rest = jnp.maximum(1 - known.sum(-1, keepdims=True), 0) / max(num_classes - index.shape[-1], 1)
        rows = jnp.arange(len(index))[:, None]
        spread = jnp.broadcast_to(rest, (len(index), num_classes))
        return tau * jnp.log(spread.at[rows, index].set(known))

    return logits


def live_teacher(config: Config, members: Sequence[TeacherModel]) -> TeacherFunction:
    """A live teacher: it runs in the student's jit, in evaluation mode, on the student's augmented and mixed images.

    The returned function takes the models' arrays, [(params, batch_stats), …], so that none is a constant of the jitted
    code, and returns logits (B, classes of the data). Several models' predictions are averaged as probabilities.
    """
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    graphdefs = [member.graphdef for member in members]

    def logits(arrays: Sequence[Any], batch: DeviceBatch) -> Float[Array, "batch classes"]:
        images = jax.lax.stop_gradient(batch["image"])
        outputs = []
        for member, graphdef, (params, batch_stats) in zip(members, graphdefs, arrays, strict=True):
            view = images
            if (mean, std) != (member.mean, member.std):
                a, b, c, d = (jnp.asarray(x, images.dtype) for x in (std, mean, member.mean, member.std))
                view = (view * a + b - c) / d
            if view.shape[1] != member.size:
                view = jax.image.resize(view, (len(view), member.size, member.size, 3), "bicubic")
            output = nnx.merge(graphdef, params, batch_stats)(view)
            outputs.append(output if member.outputs is None else output[:, member.outputs])
        if len(outputs) == 1:
            return outputs[0]
        return jnp.log(jnp.stack([jax.nn.softmax(o) for o in outputs]).mean(0))

    return logits


def make_teacher(
    config: Config,
    init: str = "",
    *,
    img_size: int,
    num_classes: int,
    dtype: DTypeLike,
    class_names: Sequence[str] | None = None,
) -> Teacher:
    """The teacher that `config` (resolved, with an objective that has one) asks for, stored or live.

    Arguments and errors as `load_teacher`, which is called where the teacher is live.
    """
    if config.distill.labels:
        soft = OBJECTIVES[config.distill.kind].teacher == "logits"
        return Teacher(stored_distribution(num_classes, config.distill.tau) if soft else stored_labels)
    members, arrays = load_teacher(
        config, init, img_size=img_size, num_classes=num_classes, dtype=dtype, class_names=class_names
    )
    return Teacher(live_teacher(config, members), arrays, members)


def load_teacher(
    config: Config,
    init: str = "",
    *,
    img_size: int,
    num_classes: int,
    dtype: DTypeLike,
    class_names: Sequence[str] | None = None,
) -> tuple[list[TeacherModel], list[tuple[dict, dict]]]:
    """The models of the live teacher and their arrays, [(params, batch_stats), …] on the host.

    Args:
        config: resolved.
        init: weights of a teacher that was trained just before, where `teacher.init` is empty.
        img_size: the student's image size in pixels.
        num_classes, class_names: of the data. With names, the teacher's classes are matched by name and may be more
            than the data's; without, they must be as many, in the data's order.
        dtype: compute type.

    Raises UserError for missing weights, weights that lack a part of the model, or a teacher of other classes, before
    anything is compiled.
    """
    init = config.teacher.init or init
    if not init:
        raise UserError(
            f"teacher {config.teacher.name} has no weights: give --config.teacher.init= a hub name, file or workdir,"
            " or train it here with --config.teacher.epochs="
        )
    sources = split_sources(init)
    names = config.teacher.name.split(",") if config.teacher.name else [""] * len(sources)
    if len(sources) != len(names):
        raise UserError(
            f"teacher.name has {len(names)} entries, teacher.init {len(sources)}: give one each"
            " (commas separate them, also in a path that does not exist)"
        )
    size = config.teacher.img_size or img_size
    members, arrays = [], []
    for name, source in zip(names, sources, strict=True):
        weights = load_weights(source, name=name)
        outputs = match_outputs(weights, source, num_classes, class_names)
        options = {"num_classes": weights.num_classes, "img_size": size, "dtype": dtype}
        build = models.constructor(name, **options) if name else weights.architecture.constructor(**options)
        params, batch_stats, notes = fit_weights(weights, build, allow_new_parameters=False)
        arrays.append((params, batch_stats))
        mean, std = tuple(config.teacher.mean or weights.mean), tuple(config.teacher.std or weights.std)
        notes = tuple(f"teacher {source}: {note}" for note in notes)
        members.append(TeacherModel(build, size, mean, std, outputs, notes))
    return members, arrays


def match_outputs(
    weights: Weights, source: str, num_classes: int, class_names: Sequence[str] | None
) -> Integer[np.ndarray, " data_classes"] | None:
    """`TeacherModel.outputs` of a teacher's weights. Raises UserError where its classes are not the data's."""
    if class_names is None:
        if weights.num_classes != num_classes:
            raise UserError(
                f"teacher {source} has {weights.num_classes} classes, the data {num_classes}:"
                " give a teacher of these classes"
            )
        return None
    found = match_classes(class_names, weights.class_names, weights.num_classes, subset=True, model=f"teacher {source}")
    return None if found.is_identity else found.outputs


def teacher_models(config: Config, *, img_size: int, num_classes: int, dtype: DTypeLike) -> list[TeacherModel]:
    """The models that `teacher.name` lists, without weights; where no mean is set, they have the student's."""
    size = config.teacher.img_size or img_size
    options = {"num_classes": num_classes, "img_size": size, "dtype": dtype}
    mean, std = (tuple(config.teacher[k] or config.augment[k]) for k in ("mean", "std"))
    return [
        TeacherModel(models.constructor(name, **options), size, mean, std) for name in config.teacher.name.split(",")
    ]


def is_local(init: str) -> bool:
    """Whether every source that `teacher.init` lists is a file or folder of this machine."""
    return bool(init) and all(storage.as_path(source).exists() for source in split_sources(init))
