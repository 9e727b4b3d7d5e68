"""The teacher, live or as stored labels, behind one call: (arrays, batch) → logits or hard labels."""

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
from deit_jax.weights import fit_weights, load_weights, split_sources

TeacherFunction = Callable[[Any, DeviceBatch], TeacherOutput]  # (arrays, batch) → logits, hard labels or features


class TeacherModel(NamedTuple):
    """One model of a live teacher, without its arrays.

    Attributes:
        build: its constructor.
        size: input size in pixels; images of another size are resized for it.
        mean, std: its normalization statistics.
        outputs: per class of the data, the index of its logit; None: they are numbered alike.
        notes: what was changed to fit its weights to `build`, a line each.
        own: of an `OwnTeacher`, its name and version; else "".
        host: whether another library runs it, outside of jit.
    """

    build: functools.partial
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: Integer[np.ndarray, " data_classes"] | None = None
    notes: tuple[str, ...] = ()
    own: str = ""
    host: bool = False

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

    @property
    def host(self) -> bool:
        """Whether one of its models is run by another library, outside of jit."""
        return any(model.host for model in self.models)


def stored_labels(arrays: Any, batch: DeviceBatch) -> TeacherOutput:
    """The hard labels that came with the batch."""
    return batch["teacher"]


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

    learns_features = OBJECTIVES[config.distill.kind].teacher == "features"

    def output(arrays: Sequence[Any], batch: DeviceBatch) -> Float[Array, "batch classes"] | Features:
        images = jax.lax.stop_gradient(batch["image"])
        outputs = []
        for member, graphdef, (params, batch_stats) in zip(members, graphdefs, arrays, strict=True):
            view = images
            if (mean, std) != (member.mean, member.std):
                a, b, c, d = (jnp.asarray(x, images.dtype) for x in (std, mean, member.mean, member.std))
                view = (view * a + b - c) / d
            if view.shape[1] != member.size:
                view = jax.image.resize(view, (len(view), member.size, member.size, 3), "bicubic")
            model = nnx.merge(graphdef, params, batch_stats)
            if learns_features:
                return token_features(model, view, config.distill.tokens)
            found = model(view)
            outputs.append(found if member.outputs is None else found[:, member.outputs])
        if len(outputs) == 1:
            return outputs[0]
        return jnp.log(jnp.stack([jax.nn.softmax(o) for o in outputs]).mean(0))

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
        raise UserError(
            f"teacher {name} has features of {patches} patches, the student {grid**2}: {fix}, or"
            " --config.distill.tokens=class"
        )
    return width


def stored_teacher(config: Config, num_classes: int) -> Teacher:
    """The teacher whose labels `distill.labels` stores: what the objective needs of it."""
    if OBJECTIVES[config.distill.kind].teacher == "logits":
        return Teacher(stored_logits(num_classes))
    return Teacher(stored_labels)


def load_teacher(
    config: Config, class_names: Sequence[str], img_size: int, init: str = "", *, host: bool = False
) -> Teacher:
    """The live teacher of a resolved config, with its arrays on the host.

    Args:
        config: resolved.
        class_names: of the data, by label. The teacher may have more classes, in any order; where its weights name
            none, it must have as many.
        img_size: the student's image size in pixels.
        init: weights of a teacher that was trained just before, from those of `teacher.init` where it names some.
        host: whether another library may run it, as for its labels; the train step cannot.

    Raises UserError for missing weights, weights that lack a part of the model, or a teacher of other classes, before
    anything is compiled.
    """
    init = init or config.teacher.init
    sources = split_sources(init) if init else []
    names = config.teacher.name.split(",") if config.teacher.name else [""] * max(len(sources), 1)
    registered = [name for name in names if not is_own(name)]
    if registered and not init:
        raise UserError(
            f"teacher {','.join(registered)} has no weights: give --config.teacher.init= a hub name, file or workdir,"
            " or train it here with --config.teacher.epochs="
        )
    if len(sources) != len(registered):
        without = " without functions, which bring their arrays" if len(registered) < len(names) else ""
        raise UserError(
            f"teacher.name has {len(registered)} entries{without}, teacher.init {len(sources)}: give one each"
            " (commas separate them, also in a path that does not exist)"
        )
    size, dtype = config.teacher.img_size or img_size, compute_dtype(config.teacher.dtype)
    features = OBJECTIVES[config.distill.kind].teacher == "features"
    members, arrays, left = [], [], iter(sources)
    for name in names:
        if is_own(name):
            member, of_member = own_member(config, name, class_names, host=host)
            members.append(member)
            arrays.append(of_member)
            continue
        source, outputs = next(left), None
        weights, title = load_weights(source, name=name), f"teacher {source}"
        if not features:
            found = match_classes(class_names, weights.class_names, weights.num_classes, subset=True, model=title)
            outputs = None if found.is_identity else found.outputs
        options = {"num_classes": weights.num_classes or 1, "img_size": size, "dtype": dtype}
        build = models.constructor(name, **options) if name else weights.architecture.constructor(**options)
        headless = features and not weights.num_classes  # then a head that nothing reads is made
        params, batch_stats, notes = fit_weights(weights, build, allow_new_parameters=headless)
        arrays.append((params, batch_stats))
        mean, std = tuple(config.teacher.mean or weights.mean), tuple(config.teacher.std or weights.std)
        notes = tuple(f"{title}: {note}" for note in notes)
        members.append(TeacherModel(build, size, mean, std, outputs, notes))
    return Teacher(live_teacher(config, members), arrays, members)


def own_member(
    config: Config, name: str, class_names: Sequence[str] | None, *, host: bool = False
) -> tuple[TeacherModel, tuple[dict, dict]]:
    """A teacher of one's own, and its arrays. class_names: None leaves its outputs as they are; host: see above.

    Errors as of `open_own`, and for other classes than the data's.
    """
    features = OBJECTIVES[config.distill.kind].teacher == "features"
    own, (*_, outputs_made) = open_own(name, features)
    if own.host and not host:
        raise UserError(
            f"teacher {name} is run by another library, which the train step cannot do: store its labels with"
            " --mode=label, and train with --config.distill.labels="
        )
    outputs = None
    if class_names is not None and not features:
        names = None if own.class_names is None else list(own.class_names)
        found = match_classes(class_names, names, outputs_made, subset=True, model=f"teacher {name}")
        outputs = None if found.is_identity else found.outputs
    mean, std = (tuple(map(float, x)) for x in (config.teacher.mean or own.mean, config.teacher.std or own.std))
    build = functools.partial(OwnModel, own=own)
    title = f"{name} version '{own.version}' size {own.size}"
    params, batch_stats = nnx.split(build(), nnx.Param, ...)[1:]
    member = TeacherModel(build, own.size, mean, std, outputs, own=title, host=own.host)
    return member, (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))


def teacher_models(config: Config, num_classes: int, img_size: int) -> list[TeacherModel]:
    """The models that `teacher.name` lists, without weights; where no mean is set, they have the student's."""
    size = config.teacher.img_size or img_size
    options = {"num_classes": num_classes, "img_size": size, "dtype": compute_dtype(config.teacher.dtype)}
    mean, std = (tuple(config.teacher[k] or config.augment[k]) for k in ("mean", "std"))
    return [
        own_member(config, name, None)[0]
        if is_own(name)
        else TeacherModel(models.constructor(name, **options), size, mean, std)
        for name in config.teacher.name.split(",")
    ]
