"""`python -m deit_jax.config`: the table of settings."""

from deit_jax.config.settings import describe

print(describe())
