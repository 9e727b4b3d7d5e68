"""Weights into a model they were not made for: another image size, other classes, with or without distillation."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.models.pos_embed import resize_pos_embed
from deit_jax.weights.load import Weights, load_weights
from deit_jax.weights.names import HEADS
from deit_jax.weights.recognise import check_keys

POS, DIST = ("params", "pos_embed"), ("params", "dist_token")
log = logging.getLogger("deit_jax")


def load_model(
    source,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    weights: str = "params",
    rngs: int = 0,
    **overrides,
) -> nnx.Module:
    """A model with its weights, in evaluation form: `model(images)`, `model.heads(images)`.

    Args:
        source: hub name, .safetensors or .pth file, or Orbax folder (see `load_weights`).
        name: load into this model instead of what the weights are: `deit_tiny_patch16_224` takes the transformer of a
            distilled one; what is dropped or newly made is logged.
        num_classes: other than the weights' own: new heads are made, and logged.
        img_size: pixels, or (height, width), other than the weights' own: the position embedding is resized.
        weights: "params", or "ema" of a training checkpoint.
        rngs: seed of whatever is newly made.
        overrides: any other argument of the module (`dtype`, `drop_path_rate`, `remat`, …).

    Raises UserError for whatever cannot be found, read or fitted.
    """
    loaded = load_weights(source, weights=weights)
    if not loaded.name and not name:
        log.warning("%s: %s, of no known model's sizes", source, loaded.architecture.describe())
    overrides |= {"num_classes": num_classes or loaded.num_classes or None, "img_size": img_size}
    if overrides["num_classes"] is None:
        raise UserError(f"{source} has no classification head: give num_classes=, and a new one is made")
    build = models.constructor(name, **overrides) if name else loaded.architecture.constructor(**overrides)
    model, notes = build_model(loaded, build, seed=rngs)
    for note in notes:
        log.warning("%s: %s", source, note)
    return model


def build_model(weights: Weights, build: functools.partial, *, seed: int = 0) -> tuple[nnx.Module, list[str]]:
    """(model, notes of `fit_weights`); uses `weights` up, so that the arrays are not there twice."""
    params, batch_stats, notes = fit_weights(weights, build, seed=seed)
    weights.tree.clear()
    graphdef, _, _ = models.abstract(build)
    return nnx.merge(graphdef, to_device(params), to_device(batch_stats)), notes


def to_device(tree: dict) -> dict:
    """The arrays as JAX's, the old ones let go one at a time."""
    for key, value in tree.items():
        tree[key] = to_device(value) if isinstance(value, dict) else jnp.asarray(value)
    return tree


def fit_weights(
    weights: Weights,
    target: functools.partial | str,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    new_parts: bool = True,
) -> tuple[dict, dict, list[str]]:
    """Adapt weights to a model.

    Args:
        weights: from `load_weights`; not changed.
        target: a `models.constructor(…)`, or a model's name.
        num_classes, img_size: of a name (None: the weights' own classes, the name's size).
        seed: of newly made arrays.
        new_parts: False refuses to make anything anew (for evaluation).

    Returns (parameters, statistics, notes): pure nested dictionaries of float32 numpy arrays as `models.abstract`
    describes them, and one line for everything resized, dropped or newly made. Raises UserError naming every array
    that is missing, unknown or of another shape.
    """
    if isinstance(target, str):
        target = models.constructor(target, num_classes=num_classes or weights.num_classes or None, img_size=img_size)
    graphdef, params, batch_stats = models.abstract(target)
    model = nnx.merge(graphdef, params, batch_stats)  # of shapes only
    if not isinstance(model, weights.architecture.module):
        raise UserError(
            f"{weights.source} holds {weights.architecture.describe()}, the model is a {type(model).__name__}"
        )
    check_style(weights, model)
    needed = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    arrays = traverse_util.flatten_dict(weights.tree)
    notes: list[str] = []

    fresh = new_heads(arrays, needed, weights, model.num_classes, notes)
    if POS in arrays and POS in needed:
        fit_tokens(arrays, needed, weights, model, fresh, notes)
    dotted = lambda path: ".".join(path[1:])  # noqa: E731
    if fresh and not new_parts:
        raise UserError(f"{weights.source} does not fit: {'; '.join(notes)}: give the model these weights are of")
    check_keys(
        {dotted(path): array.shape for path, array in arrays.items()}
        | {dotted(path): needed[path].shape for path in fresh},
        {dotted(path): leaf.shape for path, leaf in needed.items()},
        f"{weights.source}, {weights.architecture.describe()},",
        "what the model needs",
    )
    made = new_arrays(target, seed, fresh | ({POS} if DIST in fresh else set())) if fresh else {}
    if DIST in fresh:  # the distillation token's position is new, the others' are not
        arrays[POS] = np.concatenate([arrays[POS][:, :1], made.pop(POS)[:, 1:2], arrays[POS][:, 2:]], axis=1)
    tree = traverse_util.unflatten_dict({path: made.get(path, arrays.get(path)) for path in needed})
    return tree["params"], tree.get("batch_stats", {}), notes


def check_style(weights: Weights, model: nnx.Module) -> None:
    """Raise UserError where weights that are known to be of an `efficientnet_…` go into a `tf_efficientnet_…`, or the
    other way round: every tensor would fit, and every logit be off."""
    found = weights.architecture
    if isinstance(model, EfficientNet) and not found.guessed and model.tf_style != found.config["tf_style"]:
        own, other = ("TensorFlow's", "symmetric")[:: 1 if found.config["tf_style"] else -1]
        raise UserError(
            f"{weights.source} holds {found.describe()} of {own} padding, the model has {other} padding and another"
            f" batch-norm eps: use the model {found.name}"
        )


def new_heads(arrays: dict, needed: dict, weights: Weights, num_classes: int, notes: list[str]) -> set:
    """Drop heads of other classes from `arrays`; the paths that must be made anew."""
    if weights.num_classes == num_classes:
        return set()
    gone = [path for path in arrays if path[1] in HEADS]
    for path in gone:
        del arrays[path]
    fresh = {path for path in needed if path[1] in HEADS}
    names = " and ".join(sorted({path[1] for path in fresh}))
    had = f"{weights.num_classes} classes" if weights.num_classes else "no head"
    notes.append(f"{names} newly made with {num_classes} classes: the weights have {had}")
    return fresh


def fit_tokens(arrays: dict, needed: dict, weights: Weights, model, fresh: set, notes: list[str]) -> None:
    """Bring the position embedding in `arrays` to the model's grid and tokens, and drop or announce (in `fresh`) the
    distillation token and head."""
    config, pos = weights.architecture.config, arrays[POS]
    size, patch, prefix = config["img_size"], config["patch_size"], 1 + config["distilled"]
    wanted = model.grid[0] * model.grid[1]
    if size is None and wanted != pos.shape[1] - prefix:
        raise UserError(
            f"{weights.source}: pos_embed has {pos.shape[1] - prefix} patch positions, which are no square: load them "
            f"into a model of their own img_size=(height, width), not {model.img_size[0]}x{model.img_size[1]}"
        )
    if size is not None and pos.shape[-1] == model.embed_dim:
        height, width = (size, size) if isinstance(size, int) else size
        old = (height // patch, width // patch)
        if old != model.grid:
            pos = np.asarray(resize_pos_embed(pos, model.grid, prefix_tokens=prefix, old_grid=old))
            notes.append(f"pos_embed resized from {old[0]}x{old[1]} to {model.grid[0]}x{model.grid[1]} patches")
    distillation = [path for path in {**arrays, **needed} if path[1] in ("dist_token", "head_dist")]
    if config["distilled"] and not model.distilled:
        pos = np.delete(pos, 1, axis=1)
        dropped = [path for path in distillation if arrays.pop(path, None) is not None]
        names = sorted({path[1] for path in dropped})
        notes.append(f"dropped {', '.join(names)} and pos_embed's second position: the model has no distillation token")
    if model.distilled and not config["distilled"]:
        pos = np.insert(pos, 1, 0.0, axis=1)
        fresh |= set(distillation)
        notes.append("newly made dist_token, head_dist and pos_embed's second position: the weights have none")
    arrays[POS] = pos


def new_arrays(build: functools.partial, seed: int, paths: set) -> dict:
    """The arrays at `paths` of a newly initialized model; no other is ever computed (the compiler drops them)."""

    @jax.jit
    def make(key):
        params, batch_stats = models.init_arrays(build, key)
        arrays = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
        return [arrays[path] for path in sorted(paths)]

    return {path: np.array(a) for path, a in zip(sorted(paths), make(jax.random.key(seed)), strict=True)}
