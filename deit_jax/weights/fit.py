"""Weights into a model they were not made for: another image size, other classes, with or without distillation."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from deit_jax import models
from deit_jax.classes.match import match_classes
from deit_jax.errors import UserError
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.models.pos_embed import resize_pos_embed
from deit_jax.models.vit import ViT
from deit_jax.weights.architecture import all_arguments, check_keys
from deit_jax.weights.load import Weights
from deit_jax.weights.metadata import given_size
from deit_jax.weights.names import HEADS

Path = tuple[str, ...]
POS, DIST = ("params", "pos_embed"), ("params", "dist_token")
TOKEN = ("dist_token", "head_dist")  # what only a distilled model has


Arrays = dict[Path, Any]  # numpy arrays, or their shapes


class Fitted(NamedTuple):
    """A step's result: arrays by path, the paths that must be initialized, and a note per change."""

    arrays: Arrays
    missing: set[Path]
    notes: list[str]


def fit_weights(
    weights: Weights,
    target: functools.partial | str,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    allow_new_parameters: bool = True,
) -> tuple[dict, dict, list[str]]:
    """Adapt weights to a model.

    Args:
        weights: from `load_weights`; not changed.
        target: a `models.constructor(…)`, or a model's name.
        num_classes, img_size: of a name (None: the weights' own classes, the name's size).
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
    if isinstance(target, str):
        size = given_size(img_size)
        target = models.constructor(target, num_classes=num_classes or weights.num_classes or None, img_size=size)
    graphdef, params, batch_stats = models.abstract(target)
    model = nnx.merge(graphdef, params, batch_stats)  # of shapes only
    needed = flatten({"params": params, "batch_stats": batch_stats})

    notes = check_computation(weights, model)
    fitted = fit_heads(flatten(weights.tree), needed, weights, model, class_names)
    if isinstance(model, ViT) and POS in fitted.arrays:
        fitted = fit_tokens(fitted, needed, weights, model)
    notes += fitted.notes
    if fitted.missing and not allow_new_parameters:
        raise UserError(f"{weights.source} does not fit: {'; '.join(notes)}: give the model these weights are of")
    check_shapes(fitted, needed, weights)
    tree = traverse_util.unflatten_dict(initialize_missing(fitted, needed, target, seed))
    return tree["params"], tree.get("batch_stats", {}), notes


def flatten(tree: dict) -> Arrays:
    """{path: array} of a nested dictionary."""
    return dict(traverse_util.flatten_dict(tree))


def check_computation(weights: Weights, model: nnx.Module) -> list[str]:
    """Raise UserError where the model is of another kind, or computes something else with arrays of the same shapes.

    Returns a note where its layer normalizations differ in their epsilon.
    """
    found = weights.architecture
    if not isinstance(model, found.module):
        raise UserError(f"{weights.source} holds {found.describe()}, the model is a {type(model).__name__}")
    config = all_arguments(found.module, found.config)
    if isinstance(model, EfficientNet) and model.tf_style != config["tf_style"]:
        own, other = ("TensorFlow's", "symmetric")[:: 1 if config["tf_style"] else -1]
        raise UserError(
            f"{weights.source} holds {found.describe()} of {own} padding, the model has {other} padding and another"
            f" batch-norm eps: use the model {found.name}"
        )
    if not isinstance(model, ViT):
        return []
    heads, eps = config["num_heads"], config["norm_eps"]
    if heads != model.num_heads and model.embed_dim == config["embed_dim"]:
        raise UserError(
            f"{weights.source} has {heads} attention heads, the model {model.num_heads}: use a model of {heads}"
            f" (num_heads={heads})"
        )
    return [] if eps == model.norm_eps else [f"norm_eps {model.norm_eps:g}, the model's: the weights have {eps:g}"]


def fit_heads(
    arrays: Arrays,
    needed: Arrays,
    weights: Weights,
    model: Any,
    class_names: Sequence[str] | None,
) -> Fitted:
    """The heads' outputs in the order of the data's classes; heads of other classes are dropped, to be initialized."""
    wanted, had = model.num_classes, weights.num_classes
    heads = [path for path in needed if path[1] in HEADS]
    reason = f"{had} classes" if had else "no head"
    if had == wanted:
        if class_names is None:
            return Fitted(dict(arrays), set(), [])
        try:
            matched = match_classes(class_names, weights.class_names, had, model=weights.source)
        except UserError as error:
            reason = f"as many, but other ones ({error})"
        else:
            if matched.is_identity:
                by_position = matched.how.startswith("position")
                return Fitted(dict(arrays), set(), [f"classes matched by {matched.how}"] if by_position else [])
            ordered = {path: array[..., matched.outputs] for path, array in arrays.items() if path[1] in HEADS}
            return Fitted(
                arrays | ordered, set(), [f"outputs put into the order of the data's classes ({matched.how})"]
            )
    names = " and ".join(sorted({path[1] for path in heads}))
    kept = {path: array for path, array in arrays.items() if path[1] not in HEADS}
    return Fitted(kept, set(heads), [f"{names} randomly initialized with {wanted} classes: the weights have {reason}"])


def fit_tokens(fitted: Fitted, needed: Arrays, weights: Weights, model: ViT) -> Fitted:
    """The position embedding on the model's grid, and the distillation token and head dropped or to be initialized."""
    arrays, missing, notes = dict(fitted.arrays), set(fitted.missing), list(fitted.notes)
    config = all_arguments(ViT, weights.architecture.config)
    pos, resized = fit_positions(arrays[POS], config, model)
    notes += resized
    if config["distilled"] and not model.distilled:
        pos = np.delete(pos, 1, axis=1)
        dropped = [path for path in arrays if path[1] in TOKEN]
        arrays = {path: array for path, array in arrays.items() if path not in dropped}
        names = ", ".join(sorted({path[1] for path in dropped}))
        notes.append(f"dropped {names} and pos_embed's second position: the model has no distillation token")
    lacking = {path for path in needed if path[1] in TOKEN} - set(arrays) - missing
    if model.distilled and not config["distilled"]:
        pos = np.insert(pos, 1, 0.0, axis=1)
        missing |= {path for path in needed if path[1] in TOKEN}
        notes.append(
            "randomly initialized dist_token, head_dist and pos_embed's second position: the weights have none"
        )
    elif lacking and not config["dist_head"]:
        missing |= lacking
        notes.append("randomly initialized head_dist: the weights have none, their class head alone predicts")
    return Fitted(arrays | {POS: pos}, missing, notes)


def fit_positions(pos: np.ndarray, config: dict[str, Any], model: ViT) -> tuple[np.ndarray, list[str]]:
    """The position embedding on the model's grid (rows, columns), and a note where that changes it.

    config: the arguments of the weights' own model.
    """
    size, patch = config["img_size"], config["patch_size"]
    height, width = (size, size) if isinstance(size, int) else size
    old, grid = (height // patch, width // patch), model.grid
    if old == grid or pos.shape[-1] != model.embed_dim:  # a model of another width is told by its shapes
        return pos, []
    resized = resize_pos_embed(jnp.asarray(pos), grid, prefix_tokens=1 + config["distilled"], old_grid=old)
    return np.asarray(resized), [f"pos_embed resized from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} patches"]


def check_shapes(fitted: Fitted, needed: Arrays, weights: Weights) -> None:
    """Raise UserError naming the arrays that are missing, unknown or of another shape, in dotted form."""
    dotted = lambda path: ".".join(path[1:])
    check_keys(
        {dotted(path): array.shape for path, array in fitted.arrays.items()}
        | {dotted(path): needed[path].shape for path in fitted.missing},
        {dotted(path): leaf.shape for path, leaf in needed.items()},
        f"{weights.source}, {weights.architecture.describe()},",
        "what the model needs",
    )


def initialize_missing(fitted: Fitted, needed: Arrays, build: functools.partial, seed: int) -> Arrays:
    """The arrays by path in the order of `needed`, the missing ones as a new model has them."""
    if not fitted.missing:
        return {path: fitted.arrays[path] for path in needed}
    with_token = DIST in fitted.missing  # its position is drawn too, the others' are not
    drawn = new_arrays(build, seed, fitted.missing | ({POS} if with_token else set()))
    if with_token:
        pos = fitted.arrays[POS]
        drawn[POS] = np.concatenate([pos[:, :1], drawn[POS][:, 1:2], pos[:, 2:]], axis=1)
    return {path: drawn[path] if path in drawn else fitted.arrays[path] for path in needed}


def new_arrays(build: functools.partial, seed: int, paths: set[Path]) -> Arrays:
    """The arrays at `paths` of a newly initialized model; no other is ever computed (the compiler drops them)."""

    @jax.jit
    def draw(key):
        params, batch_stats = models.init_arrays(build, key)
        arrays = flatten({"params": params, "batch_stats": batch_stats})
        return [arrays[path] for path in sorted(paths)]

    return {path: np.array(a) for path, a in zip(sorted(paths), draw(jax.random.key(seed)), strict=True)}
