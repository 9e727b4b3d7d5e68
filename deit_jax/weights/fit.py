"""Weights into a model they were not made for: another image size, other classes, with or without distillation."""

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from deit_jax import models
from deit_jax.classes.match import match_classes
from deit_jax.errors import UserError, printable
from deit_jax.models.own_model import OwnNetwork
from deit_jax.models.pos_embed import resize_pos_embed
from deit_jax.models.vit import ViT
from deit_jax.weights.architecture import all_arguments, check_keys, positions_before_patches
from deit_jax.weights.load import Weights, load_weights
from deit_jax.weights.metadata import given_size
from deit_jax.weights.names import HEADS, PROJECTION

log = logging.getLogger("deit_jax")
Path = tuple[str, ...]
POS, DIST = ("params", "pos_embed"), ("params", "dist_token")
TOKEN = ("dist_token", "head_dist")  # what only a distilled model has
Arrays = dict[Path, Any]  # numpy arrays, or their shapes


@dataclasses.dataclass
class Fit:
    """Arrays by path on their way into a model: what must be initialized, and a note per change."""

    arrays: Arrays
    missing: set[Path] = dataclasses.field(default_factory=set)
    notes: list[str] = dataclasses.field(default_factory=list)


def fit_weights(
    weights: Weights,
    build: functools.partial,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    allow_new_parameters: bool = True,
) -> tuple[dict, dict, list[str]]:
    """Adapt weights to a model.

    Args:
        weights: from `load_weights`; not changed.
        build: the model's `models.constructor(…)`.
        class_names: of the data by label. The heads' outputs are brought into this order by name; weights of as many
            classes but other names get new heads. None: outputs stay as they are.
        seed: of randomly initialized arrays.
        allow_new_parameters: False refuses to initialize any (for teachers and evaluation).

    Returns:
        (parameters, batch statistics, notes): pure nested dictionaries of float32 numpy arrays as `models.abstract`
        describes them, and one line for everything resized, reordered, dropped or randomly initialized.

    Raises:
        UserError: naming every array that is missing, unknown or of another shape, and for a model that computes
            something else with the same shapes.
    """
    graphdef, params, batch_stats = models.abstract(build)
    model = nnx.merge(graphdef, params, batch_stats)  # of shapes only
    needed = flatten({"params": params, "batch_stats": batch_stats})

    fit, found = Fit(flatten(weights.tree)), weights.architecture
    if not isinstance(model, found.module):
        raise UserError(f"{weights.source} holds {found.describe()}, the model is a {type(model).__name__}")
    fit_heads(fit, needed, weights, model, class_names)
    if projection := {path for path in needed if path[1] == PROJECTION}:
        fit.missing |= projection
        fit.notes.append(f"{PROJECTION}, for feature distillation, randomly initialized")
    if isinstance(model, ViT) and POS in fit.arrays:
        fit_tokens(fit, needed, weights, model)
    if fit.missing and not allow_new_parameters:
        raise UserError(f"{weights.source} does not fit: {'; '.join(fit.notes)}: give the model these weights are of")
    dotted = lambda path: ".".join(map(str, path[1:]))
    shapes = {dotted(path): needed[path].shape for path in fit.missing}
    shapes |= {dotted(path): array.shape for path, array in fit.arrays.items()}
    wanted = {dotted(path): leaf.shape for path, leaf in needed.items()}
    check_keys(shapes, wanted, f"{weights.source}, {found.describe()},", "what the model needs")
    fit.notes += check_computation(weights, model)
    tree = traverse_util.unflatten_dict(initialize_missing(fit, needed, build, seed))
    return tree["params"], tree.get("batch_stats", {}), fit.notes


def flatten(tree: dict) -> Arrays:
    """{path: array} of a nested dictionary."""
    return dict(traverse_util.flatten_dict(tree))


def check_computation(weights: Weights, model: nnx.Module) -> list[str]:
    """Raise UserError where the model computes something else with arrays of the same shapes; a note where only the
    epsilon of its layer normalizations differs."""
    found = weights.architecture
    config = all_arguments(found.module, found.config)
    for key in ("num_heads", "tf_style"):
        wanted = getattr(model, key, None)
        own = config.get(key, wanted)
        if own != wanted:
            raise UserError(
                f"{weights.source} holds {found.describe()} of {key}={own}, the model has {key}={wanted}: use a model"
                f" of {key}={own}"
            )
    wanted = getattr(model, "norm_eps", None)
    eps = config.get("norm_eps", wanted)
    return [] if eps == wanted else [f"norm_eps {wanted:g}, the model's: the weights have {eps:g}"]


def fit_heads(fit: Fit, needed: Arrays, weights: Weights, model: Any, class_names: Sequence[str] | None) -> None:
    """Put the heads' outputs into the order of the data's classes; drop heads of other classes, to be initialized."""
    wanted, had = model.num_classes, weights.num_classes
    heads = {path for path in needed if path[1] in HEADS}
    reason = f"{had} classes" if had else "no head"
    if had == wanted:
        if class_names is None:
            return
        try:
            matched = match_classes(class_names, weights.class_names, had, model=weights.source)
        except UserError as error:
            reason = f"as many, but other ones ({error})"
        else:
            if not matched.is_identity:
                if isinstance(model, OwnNetwork):
                    raise UserError(
                        f"{weights.source} has the data's classes in another order, and which arrays of"
                        f" {weights.architecture.describe()} follow it is not known: name the classes as they were"
                    )
                fit.arrays |= {p: array[..., matched.outputs] for p, array in fit.arrays.items() if p[1] in HEADS}
                fit.notes.append(f"outputs put into the order of the data's classes ({matched.how})")
            elif matched.how.startswith("position"):
                fit.notes.append(f"classes matched by {matched.how}")
            return
    fit.arrays = {path: array for path, array in fit.arrays.items() if path[1] not in HEADS}
    fit.missing |= heads
    names = " and ".join(sorted({path[1] for path in heads}))
    new = f"{names} randomly initialized with {wanted} classes" if wanted else "no head is kept"
    fit.notes.append(f"{new}: the weights have {reason}")


def fit_tokens(fit: Fit, needed: Arrays, weights: Weights, model: ViT) -> None:
    """Put the position embedding on the model's grid; drop or mark for initialization what only distilled models have:
    distillation token, its position and head."""
    config = all_arguments(ViT, weights.architecture.config)
    pos, has_position = fit_positions(fit, config, model), not config["no_embed_class"]
    position = " and pos_embed's second position" if has_position else ""
    token = {path for path in needed if path[1] in TOKEN}
    if config["distilled"] and not model.distilled:
        pos = np.delete(pos, 1, axis=1) if has_position else pos
        dropped = sorted({path[1] for path in fit.arrays if path[1] in TOKEN})
        fit.arrays = {path: array for path, array in fit.arrays.items() if path[1] not in TOKEN}
        fit.notes.append(f"dropped {', '.join(dropped)}{position}: the model has no distillation token")
    elif model.distilled and not config["distilled"]:
        pos = np.insert(pos, 1, 0.0, axis=1) if has_position else pos
        fit.missing |= token
        fit.notes.append(f"randomly initialized dist_token, head_dist{position}: the weights have none")
    elif not config["two_heads"] and (lacking := token - set(fit.arrays) - fit.missing):
        fit.missing |= lacking
        fit.notes.append("randomly initialized head_dist: the weights have none, their class head alone predicts")
    fit.arrays[POS] = pos


def fit_positions(fit: Fit, config: dict[str, Any], model: ViT) -> np.ndarray:
    """The position embedding on the model's grid of patches. config: the arguments of the weights' own model."""
    pos, size, patch = fit.arrays[POS], config["img_size"], config["patch_size"]
    height, width = (size, size) if isinstance(size, int) else size
    old, grid = (height // patch, width // patch), model.grid
    if old == grid or pos.shape[-1] != model.embed_dim:  # a model of another width is told by its shapes
        return pos
    fit.notes.append(f"pos_embed resized from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} patches")
    options = {"antialias": model.pos_antialias, "offset": model.pos_offset}
    prefix = positions_before_patches(config)
    return np.asarray(resize_pos_embed(jnp.asarray(pos), grid, prefix_tokens=prefix, old_grid=old, **options))


def initialize_missing(fit: Fit, needed: Arrays, build: functools.partial, seed: int) -> Arrays:
    """The arrays by path in the order of `needed`, the missing ones as a new model has them."""
    if not fit.missing:
        return {path: fit.arrays[path] for path in needed}
    # the distillation token's position is drawn too, the others' are not
    with_token = DIST in fit.missing and not build.keywords.get("no_embed_class")

    @jax.jit
    def draw(key):  # no array but the missing ones is ever computed: the compiler drops them
        arrays = flatten(dict(zip(("params", "batch_stats"), models.init_arrays(build, key), strict=True)))
        return {path: arrays[path] for path in fit.missing | ({POS} if with_token else set())}

    drawn = jax.device_get(draw(jax.random.key(seed)))
    if with_token:
        pos = fit.arrays[POS]
        drawn[POS] = np.concatenate([pos[:, :1], drawn[POS][:, 1:2], pos[:, 2:]], axis=1)
    return {path: drawn[path] if path in drawn else fit.arrays[path] for path in needed}


def load_model(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    weights: str = "params",
    rngs: int = 0,
    **overrides: Any,
) -> nnx.Module:
    """A model with its weights, in evaluation form: `model(images)`, `model.heads(images)`.

    Args:
        source: hub name, .safetensors or .pth file, or Orbax folder (see `load_weights`).
        name: load into this model instead of what the weights are: `deit_tiny_patch16_224` takes the transformer of a
            distilled one; what is dropped or randomly initialized is logged. Also the model of weights of which nothing
            else says what they are.
        num_classes: other than the weights' own: new heads are initialized, and logged. 0: no heads, the model returns
            what they would see, (batch, width).
        img_size: pixels, or (height, width), other than the weights' own: the position embedding is resized. Also the
            size of weights of which nothing else says it.
        weights: "params", or "ema" of a training checkpoint.
        rngs: seed of whatever is randomly initialized.
        overrides: any other argument of the module (`dtype`, `num_heads`, `drop_path_rate`, `remat`, …).

    Raises:
        UserError: for whatever cannot be found, read or fitted.
    """
    img_size = given_size(img_size)
    loaded = load_weights(source, name=name or "", img_size=img_size, weights=weights)
    given = {key: overrides[key] for key in ("num_heads", "norm_eps") if key in overrides}  # they show in no shape
    loaded.architecture.config.update(given)
    num_classes = (loaded.num_classes or None) if num_classes is None else num_classes
    if num_classes is None:
        raise UserError(
            f"{source} has no classification head: give num_classes=, and a new one is initialized (0: none)"
        )
    overrides |= {"num_classes": num_classes, "img_size": img_size}
    build = models.constructor(name, **overrides) if name else loaded.architecture.constructor(**overrides)
    params, batch_stats, notes = fit_weights(loaded, build, seed=rngs)
    for note in notes:
        log.warning("%s: %s", printable(source), printable(note))
    return nnx.merge(models.abstract(build)[0], *jax.tree.map(jnp.asarray, (params, batch_stats)))
