"""Settings, recipes, checks, and configs derived from others."""

from deit_jax.config.checks import validate
from deit_jax.config.files import arguments, deit, finetune_config, model_of
from deit_jax.config.recipes import RECIPES, recipe_differences, resolve
from deit_jax.config.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IMAGENET_TRAIN_IMAGES,
    INTERPOLATIONS,
    SETTINGS,
    Config,
    Setting,
    default_config,
    differences,
    flat,
    settings_table,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGENET_TRAIN_IMAGES",
    "INTERPOLATIONS",
    "RECIPES",
    "SETTINGS",
    "Config",
    "Setting",
    "arguments",
    "default_config",
    "deit",
    "differences",
    "finetune_config",
    "flat",
    "model_of",
    "recipe_differences",
    "resolve",
    "settings_table",
    "validate",
]
