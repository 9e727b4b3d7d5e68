"""The registry: a model's name → the model. A new family is one file with a module class and a CONFIGS table, and one
line here."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from deit_jax.errors import UserError, nearest
from deit_jax.models import efficientnet, regnet, vit
from deit_jax.models.init_rngs import InitRngs
from deit_jax.models.inputs import ImgSize, image_size
from deit_jax.models.own_model import own_model
from deit_jax.own import is_own
from deit_jax.runtime.sharding import on_any_mesh

FAMILIES = {
    vit.ViT: vit.CONFIGS,
    regnet.RegNet: regnet.CONFIGS,
    efficientnet.EfficientNet: efficientnet.CONFIGS,
}
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def list_models() -> list[str]:
    """Every name `create_model` knows."""
    return sorted(name for configs in FAMILIES.values() for name in configs)


def find(name: str) -> tuple[type[nnx.Module], dict]:
    """(module class, its constructor's arguments) of a name; weights' tags (`….fb_in1k`) and a hub owner (`timm/…`)
    are ignored. `package.module:Class` is the user's own. Raises UserError naming the nearest known name."""
    if is_own(name):
        return own_model(name)
    bare = name.split("/")[-1].split(".")[0]
    for module, configs in FAMILIES.items():
        if bare in configs:
            return module, configs[bare]
    raise UserError(
        f"model '{name}' is not known{nearest(bare, list_models())}: see deit_jax.list_models(), or load weights with"
        " deit_jax.load_model"
    )


def constructor(
    name: str, *, num_classes: int | None = None, img_size: ImgSize | None = None, **overrides: Any
) -> functools.partial:
    """A callable of `rngs` that builds the named model; arguments left at None keep the name's own."""
    module, config = find(name)
    overrides |= {"num_classes": num_classes, "img_size": None if img_size is None else image_size(img_size)}
    return functools.partial(on_any_mesh(module), **(config | {k: v for k, v in overrides.items() if v is not None}))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    img_size: ImgSize | None = None,
    rngs: nnx.Rngs | int | PRNGKeyArray = 0,
    **overrides: Any,
) -> nnx.Module:
    """A model with new random weights.

    Args:
        name: one of `list_models()`, timm's names (`deit_base_distilled_patch16_224`, `regnety_160`), or
            `package.module:Class`, the user's own.
        num_classes: of each head; 0: none, the model returns what they would see, (batch, width).
        img_size: pixels, or (height, width); None: the name's.
        rngs: an nnx.Rngs, a seed, or a key (`jax.random.key(0)`).
        overrides: any other argument of the module (`drop_path_rate`, `dtype`, `depth`, …).

    Raises UserError for an unknown name, and for what has weights: a path, timm's `pretrained=True`.
    """
    is_path = name.endswith(WEIGHT_FILES) or ("/" in name and os.path.exists(os.path.expanduser(name)))
    if overrides.pop("pretrained", False) or is_path:
        source = name if is_path else f"timm/{name}.TAG"
        raise UserError(f"create_model makes random weights: use deit_jax.load_model('{source}') for trained ones")
    build = constructor(name, num_classes=num_classes, img_size=img_size, **overrides)
    return build(rngs=rngs if isinstance(rngs, nnx.Rngs) else InitRngs(rngs))


def abstract(build: functools.partial) -> tuple[nnx.GraphDef, dict, dict]:
    """(graph definition, parameter shapes, statistic shapes) of a `constructor(...)`, nothing allocated.

    The shapes are pure nested dictionaries of jax.ShapeDtypeStruct; `nnx.merge(graphdef, params, batch_stats)` makes a
    working model of arrays in the same form.
    """
    graphdef, params, batch_stats = traced(build.func, tuple(sorted(build.keywords.items())))
    return graphdef, jax.tree.map(lambda leaf: leaf, params), jax.tree.map(lambda leaf: leaf, batch_stats)


@functools.lru_cache(maxsize=32)
def traced(module: Callable[..., nnx.Module], arguments: tuple) -> tuple[nnx.GraphDef, dict, dict]:
    # kept: tracing a RegNet's constructor takes a second, and reading weights asks for it several times
    model = nnx.eval_shape(lambda: module(**dict(arguments), rngs=InitRngs(0)))
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def init_arrays(build: functools.partial, key: PRNGKeyArray) -> tuple[dict, dict]:
    """New (parameters, statistics) of a `constructor(...)` as pure dictionaries; works inside jit."""
    _, params, batch_stats = nnx.split(build(rngs=InitRngs(key)), nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
