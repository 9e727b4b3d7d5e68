"""Weights of other libraries and of our own runs: read, recognised, checked, fitted into a model."""

from deit_jax.weights.fit import build_model, fit_weights, load_model
from deit_jax.weights.load import Weights, load_weights

__all__ = ["Weights", "build_model", "fit_weights", "load_model", "load_weights"]
