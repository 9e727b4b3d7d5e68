"""DeiT, data-efficient image transformers, in JAX and Flax.

Every name below is imported when it is first used, so `import deit_jax` alone loads nothing.
"""

import importlib
from typing import Any

_PUBLIC = {  # name: where it is
    "OwnTeacher": "distill.own_teacher",
    "UserError": "errors",
    "__version__": "version",
    "create_model": "models",
    "distillation_loss": "losses",
    "eval_image": "data.images",
    "fit_weights": "weights",
    "fuse": "models.vit",
    "list_models": "models",
    "load_model": "weights",
    "load_weights": "weights",
    "resize_pos_embed": "models.pos_embed",
    "shard": "runtime.sharding",
    "to_linen": "models.linen",
}
_ROOMS = (
    "augment benchmark certify config convert data distill errors evaluate losses models plan predict report runtime"
    " train weights"
).split()
_MODULES = {name: name for name in _ROOMS} | {"optimizer": "train.optimizer"}
__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"deit_jax.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"deit_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'deit_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_MODULES])
