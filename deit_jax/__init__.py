"""DeiT, data-efficient image transformers, in JAX and Flax.

Every name below is imported when it is first used, so `import deit_jax` alone loads nothing.
"""

import importlib

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
    "shard": "runtime.layout",
    "eval_image": "data.images",
    "UserError": "errors",
}
_MODULES = (
    "augment benchmark certify compare config convert data distill errors evaluate losses models optimizer plan "
    "predict report runtime student study train weights"
).split()

__all__ = sorted(_FROM)


def __getattr__(name: str):
    if name in _FROM:
        return getattr(importlib.import_module(f"deit_jax.{_FROM[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"deit_jax.{name}")
    raise AttributeError(f"module 'deit_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM, *_MODULES])
