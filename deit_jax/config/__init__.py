"""Settings, recipes, checks, and configs derived from others."""

from deit_jax.config.checks import validate as validate
from deit_jax.config.files import arguments as arguments
from deit_jax.config.files import deit as deit
from deit_jax.config.files import model_of as model_of
from deit_jax.config.recipes import RECIPES as RECIPES
from deit_jax.config.recipes import resolve as resolve
from deit_jax.config.settings import IMAGENET_MEAN as IMAGENET_MEAN
from deit_jax.config.settings import IMAGENET_STD as IMAGENET_STD
from deit_jax.config.settings import IMAGENET_TRAIN_IMAGES as IMAGENET_TRAIN_IMAGES
from deit_jax.config.settings import SETTINGS as SETTINGS
from deit_jax.config.settings import Config as Config
from deit_jax.config.settings import default_config as default_config
from deit_jax.config.settings import differences as differences
from deit_jax.config.settings import flat as flat
from deit_jax.config.settings import settings_table as settings_table
