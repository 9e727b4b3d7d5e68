"""The teacher, live or as stored labels, behind one call: (arrays, batch) → logits, hard labels or features."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer

from deit_jax import models
from deit_jax.classes.match import match_classes
from deit_jax.config import Config
from deit_jax.data.batch import DeviceBatch
from deit_jax.distill.own_teacher import OwnModel, open_own
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES, Features, TeacherOutput
from deit_jax.models.vit import ViT
from deit_jax.own import is_own
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.weights import fit_weights, load_weights

TeacherFunction = Callable[[Any, DeviceBatch], TeacherOutput]  # (arrays, batch) → logits, hard labels or features


class TeacherModel(NamedTuple):
    """One model of a live teacher, without its arrays.

    Attributes:
        build: its constructor.
        size: input size in pixels; images of another size are resized for it.
        mean, std: its normalization statistics.
        outputs: per class of the data, the index of its logit; None: they are numbered alike.
        class_names: by logit; their numbers where it has none.
        notes: what was changed to fit its weights to `build`, a line each.
        own: of an `OwnTeacher`, its name and version; else "".
        host: whether another library runs it, outside of jit.
    """

    build: functools.partial
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: Integer[np.ndarray, " data_classes"] | None = None
    class_names: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    own: str = ""
    host: bool = False

    @property
    def graphdef(self) -> nnx.GraphDef:
        return models.abstract(self.build)[0]


class Teacher(NamedTuple):
    """What a student is distilled from.

    Attributes:
        predict: (arrays, batch) → logits, hard labels or features; the batch has the augmented, normalized images.
        arrays: of its models, an argument of the jitted step: a constant of their size would be compiled in.
        models: of a live teacher, one for each of `arrays`.
    """

    predict: TeacherFunction
    arrays: Sequence[Any] = ()
    models: Sequence[TeacherModel] = ()

    @property
    def host(self) -> bool:
        """Whether one of its models is run by another library, outside of jit."""
        return any(model.host for model in self.models)


def stored_logits(num_classes: int) -> TeacherFunction:
    """The teacher of a top-k store: a function that returns logits (B, num_classes).

    The batch holds `teacher` (B, k) classes, likeliest first, and `teacher_logit` (B, k + 1): their logits, and last
    that of each other class, with which the k classes have the live teacher's probabilities at the store's temperature.
    With k = num_classes the logits are the live teacher's. A class of probability 0 has logit -inf, which
    `distillation_loss` takes for 0 log 0 = 0.
    """

    def logits(arrays: Any, batch: DeviceBatch) -> Float[Array, "batch classes"]:
        index, known = batch["teacher"], batch["teacher_logit"].astype(jnp.float32)
        spread = jnp.broadcast_to(known[:, -1:], (len(index), num_classes))
        return spread.at[jnp.arange(len(index))[:, None], index].set(known[:, :-1])

    return logits


def live_teacher(config: Config, members: Sequence[TeacherModel]) -> TeacherFunction:
    """A live teacher: it runs in the student's jit, in evaluation mode, on the student's augmented and mixed images.

    The returned function takes the models' arrays, [(params, batch_stats), …], so that none is a constant of the jitted
    code, and returns logits (B, classes of the data), or features where the objective learns these. Several models'
    predictions are averaged as probabilities.
    """
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    graphdefs = [member.graphdef for member in members]

    def output(arrays: Sequence[Any], batch: DeviceBatch) -> Float[Array, "batch classes"] | Features:
        images = jax.lax.stop_gradient(batch["image"])
        logits, as_array = [], functools.partial(jnp.asarray, dtype=images.dtype)
        for member, graphdef, (params, batch_stats) in zip(members, graphdefs, arrays, strict=True):
            view = images
            if (mean, std) != (member.mean, member.std):
                view = (view * as_array(std) + as_array(mean) - as_array(member.mean)) / as_array(member.std)
            if view.shape[1] != member.size:
                view = jax.image.resize(view, (len(view), member.size, member.size, 3), "bicubic")
            model = nnx.merge(graphdef, params, batch_stats)
            if learns_features(config):
                return token_features(model, view, config.distill.tokens)
            found = model(view)
            logits.append(found if member.outputs is None else found[:, member.outputs])
        if len(logits) == 1:
            return logits[0]
        return jnp.log(jnp.stack([jax.nn.softmax(x) for x in logits]).mean(0))

    return output


def token_features(model: Any, images: Float[Array, "batch height width 3"], tokens: str) -> Features:
    """The features of a ViT's or an own teacher's class token, patches or both, float32."""
    by_kind = ViT.by_kind(model, model.features(images).astype(jnp.float32))
    return {kind: found for kind, found in by_kind.items() if tokens in (kind, "both")}


def feature_width(config: Config, img_size: int, grid: int) -> int:
    """The width of the features that a student of `img_size` pixels and grid x grid patches learns from its teacher.

    Raises UserError for a teacher without tokens, several, or one whose patches are not those of the student.
    """
    name, size = config.teacher.name, config.teacher.img_size or img_size
    if is_own(name):
        (tokens, width), fix = open_own(name, features=True)[1], "return as many"
        patches = tokens - 1
    else:
        module, defaults = models.find(name) if name and "," not in name else (None, {})
        if module is not ViT:
            raise UserError(f"teacher.name is '{name}': distill.kind {config.distill.kind} needs one ViT, or function")
        patch, width = defaults.get("patch_size", 16), defaults["embed_dim"]
        patches, fix = (size // patch) ** 2, f"give --config.teacher.img_size={grid * patch}"
    if config.distill.tokens != "class" and patches != grid**2:
        raise UserError(f"teacher {name} has {patches} patches, the student {grid**2}: {fix}, or distill.tokens=class")
    return width


def stored_teacher(config: Config, num_classes: int) -> Teacher:
    """The teacher whose labels `distill.labels` stores: their logits, or the hard labels that came with the batch."""
    if OBJECTIVES[config.distill.kind].teacher == "logits":
        return Teacher(stored_logits(num_classes))
    return Teacher(lambda arrays, batch: batch["teacher"])


def load_teacher(
    config: Config, class_names: Sequence[str] | None, img_size: int, init: str = "", *, host: bool = False
) -> Teacher:
    """The live teacher of a resolved config, with its arrays on the host.

    Args:
        config: resolved.
        class_names: of the data, by label. The teacher may have more classes, in any order; where its weights name
            none, it must have as many. None: those of the first model.
        img_size: the student's image size in pixels.
        init: weights of a teacher that was trained just before, from those of `teacher.init` where it names some.
        host: whether another library may run it, as for its labels; the train step cannot.

    Raises UserError for missing weights, weights that lack a part of the model, or a teacher of other classes, before
    anything is compiled.
    """
    sources = [init] if init else config.teacher.init.split(",") if config.teacher.init else []
    names = config.teacher.name.split(",") if config.teacher.name else [""] * max(len(sources), 1)
    registered = [name for name in names if not is_own(name)]
    if registered and not sources:
        raise UserError(
            f"teacher {','.join(registered)} has no weights: give --config.teacher.init=, or, with labelled images,"
            " teacher.epochs"
        )
    if len(sources) != len(registered):
        raise UserError(
            f"teacher.name has {len(registered)} models that need weights, teacher.init {len(sources)}: give one each"
            " (commas separate them, so that no path may hold one)"
        )
    members: list[TeacherModel] = []
    arrays, left = [], iter(sources)
    for name in names:
        known = class_names or (members[0].class_names if members else None)
        if is_own(name):
            member, of_member = own_member(config, name, known, host=host)
        else:
            member, of_member = loaded_member(config, name, next(left), known, img_size)
        members.append(member)
        arrays.append(of_member)
    return Teacher(live_teacher(config, members), arrays, members)


def loaded_member(
    config: Config, name: str, source: str, class_names: Sequence[str] | None, img_size: int
) -> tuple[TeacherModel, tuple[dict, dict]]:
    """A model of the registry with the weights of `source`, and its arrays. Arguments and errors: `load_teacher`."""
    weights, title = load_weights(source, name=name), f"teacher {source}"
    outputs = match_outputs(config, class_names, weights.class_names, weights.num_classes, title)
    size, dtype = config.teacher.img_size or img_size, compute_dtype(config.teacher.dtype)
    options = {"num_classes": weights.num_classes or 1, "img_size": size, "dtype": dtype}
    build = models.constructor(name, **options) if name else weights.architecture.constructor(**options)
    headless = learns_features(config) and not weights.num_classes  # then a head that nothing reads is made
    params, batch_stats, notes = fit_weights(weights, build, allow_new_parameters=headless)
    mean, std = tuple(config.teacher.mean or weights.mean), tuple(config.teacher.std or weights.std)
    names = weights.class_names or list(map(str, range(weights.num_classes)))
    notes = tuple(f"{title}: {note}" for note in notes)
    return TeacherModel(build, size, mean, std, outputs, names, notes), (params, batch_stats)


def learns_features(config: Config) -> bool:
    """Whether the objective needs a teacher's features, not its logits."""
    return OBJECTIVES[config.distill.kind].teacher == "features"


def match_outputs(
    config: Config, class_names: Sequence[str] | None, theirs: Sequence[str] | None, count: int, title: str
) -> Integer[np.ndarray, " data_classes"] | None:
    """`TeacherModel.outputs` of a teacher with `count` classes, named `theirs`. Raises UserError for other classes."""
    if class_names is None or learns_features(config):
        return None
    found = match_classes(class_names, theirs, count, subset=True, model=title)
    return None if found.is_identity else found.outputs


def own_member(
    config: Config, name: str, class_names: Sequence[str] | None, *, host: bool = False
) -> tuple[TeacherModel, tuple[dict, dict]]:
    """A teacher of one's own, and its arrays. Arguments and errors: `load_teacher`, `open_own`."""
    own, (*_, count) = open_own(name, learns_features(config))
    if own.host and not host:
        raise UserError(f"teacher {name} is run by another library: store its labels first, by --mode=label")
    theirs = None if own.class_names is None else list(own.class_names)
    outputs = match_outputs(config, class_names, theirs, count, f"teacher {name}")
    mean, std = (tuple(map(float, x)) for x in (config.teacher.mean or own.mean, config.teacher.std or own.std))
    build = functools.partial(OwnModel, own=own)
    title = f"{name} version '{own.version}' size {own.size}"
    params, batch_stats = nnx.split(build(), nnx.Param, ...)[1:]
    names = theirs or list(map(str, range(count)))
    member = TeacherModel(build, own.size, mean, std, outputs, names, own=title, host=own.host)
    return member, (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))
