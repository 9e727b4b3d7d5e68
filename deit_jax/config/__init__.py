"""Settings, recipes, checks, and configs derived from others."""

from deit_jax.config.checks import check_config_file, check_override, validate
from deit_jax.config.files import arguments, deit, model_of
from deit_jax.config.recipes import RECIPES, recipe_differences, resolve
from deit_jax.config.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IMAGENET_TRAIN_IMAGES,
    INTERPOLATIONS,
    RENAMED,
    SETTINGS,
    Config,
    Setting,
    default_config,
    describe,
    differences,
    flat,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGENET_TRAIN_IMAGES",
    "INTERPOLATIONS",
    "RECIPES",
    "RENAMED",
    "SETTINGS",
    "Config",
    "Setting",
    "arguments",
    "check_config_file",
    "check_override",
    "default_config",
    "deit",
    "describe",
    "differences",
    "flat",
    "model_of",
    "recipe_differences",
    "resolve",
    "validate",
]
