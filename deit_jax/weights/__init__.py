"""Weights of other libraries and of our own runs: read, checked, fitted into a model."""

from deit_jax.weights.fit import fit_weights, load_model
from deit_jax.weights.load import Weights, load_weights

__all__ = ["Weights", "fit_weights", "load_model", "load_weights"]
