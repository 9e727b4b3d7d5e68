"""The config of `--mode=evaluate` where none is given: the defaults. A run's checkpoint brings its own settings."""

from deit_jax.config.settings import default_config


def get_config():
    """All settings at their defaults."""
    return default_config()
