"""DeiT, data-efficient image transformers, in JAX and Flax.

Every name below is imported when it is first used, so `import deit_jax` alone loads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what static tools see; at run time __getattr__ imports the same
    from deit_jax.data.images import eval_image
    from deit_jax.errors import UserError
    from deit_jax.losses import distillation_loss
    from deit_jax.models import create_model, list_models
    from deit_jax.models.layout import shard
    from deit_jax.models.linen import to_linen
    from deit_jax.models.pos_embed import resize_pos_embed
    from deit_jax.models.vit import fuse
    from deit_jax.version import __version__
    from deit_jax.weights import fit_weights, load_model, load_weights

_FROM = {
    "create_model": "models",
    "list_models": "models",
    "load_model": "weights",
    "load_weights": "weights",
    "fit_weights": "weights",
    "to_linen": "models.linen",
    "resize_pos_embed": "models.pos_embed",
    "distillation_loss": "losses",
    "fuse": "models.vit",
    "shard": "models.layout",
    "eval_image": "data.images",
    "UserError": "errors",
    "__version__": "version",
}
_MODULES = (
    "augment benchmark certify compare config convert data distill errors evaluate losses models optimizer plan "
    "predict report runtime student study train weights"
).split()

__all__ = [
    "UserError",
    "__version__",
    "create_model",
    "distillation_loss",
    "eval_image",
    "fit_weights",
    "fuse",
    "list_models",
    "load_model",
    "load_weights",
    "resize_pos_embed",
    "shard",
    "to_linen",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"deit_jax.{_FROM[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"deit_jax.{name}")
    raise AttributeError(f"module 'deit_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM, *_MODULES])
