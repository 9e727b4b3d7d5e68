"""A teacher of one's own: `teacher.name=package.module:function`, a function that returns an `OwnTeacher`.

The module is imported from the working directory or where Python finds it, by the command whose settings name it and by
no other: a run or a store that merely records the name loads nothing. See examples/own_teacher.py.
"""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deit_jax.errors import UserError, first_line, nearest


@dataclasses.dataclass(frozen=True, eq=False)
class OwnTeacher:
    """What the function that `teacher.name` names returns.

    Attributes:
        predict: (arrays, images) → logits (batch, classes). The images are float32 (batch, size, size, 3), normalized
            with `mean` and `std`.
        arrays: a pytree of arrays, which every device holds; () for a function without any.
        size: of its images, in pixels per side.
        mean, std: normalization statistics per channel of pixels in 0..1.
        class_names: by logit; None: not known, and matched as for weights without names.
        version: changes when its predictions do; needed where `arrays` do not tell.
        host: `predict` is run by another library (PyTorch, ONNX Runtime), for `--mode=label` alone. The images are then
            a jax.Array on one device: `np.asarray(images)` or `torch.from_dlpack(images)`, without a copy on CPU. The
            logits are anything that `np.asarray` takes. Of `arrays` a hash is made, and they are handed back.
    """

    predict: Callable[[Any, Any], Any]
    arrays: Any
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str] | None = None
    version: str = ""
    host: bool = False


class OwnModel(nnx.Module):
    """An `OwnTeacher` with the methods of this package's models; its parameters are the leaves of its arrays."""

    def __init__(self, own: OwnTeacher, *, rngs: nnx.Rngs | None = None):
        leaves, self.structure = jax.tree.flatten(own.arrays)
        self.leaves = nnx.List([nnx.Param(leaf) for leaf in leaves])
        self.predict = own.predict

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Any:
        arrays = jax.tree.unflatten(self.structure, [leaf.get_value() for leaf in self.leaves])
        return jnp.asarray(self.predict(arrays, images)).astype(jnp.float32)

    def heads(self, images: Float[Array, "batch height width 3"]) -> tuple[Any, None]:
        """(logits, None), as a model with one head."""
        return self(images), None


def is_own(name: str) -> bool:
    """Whether an entry of `teacher.name` is a function rather than a registered model."""
    return ":" in name


@functools.cache  # plans trace it more than once
def open_own(name: str) -> tuple[OwnTeacher, int]:
    """The teacher that `module:function` returns, and its number of classes, found by running it on two images.

    Raises UserError for a function that is not there, and for a teacher that does not work.
    """
    own = call_function(name)
    if not (isinstance(own.size, int) and own.size > 0 and len(own.mean) == len(own.std) == 3):
        raise UserError(
            f"teacher {name} has size {own.size}, mean {own.mean}, std {own.std}: give pixels per side, and three"
            " numbers each"
        )
    leaves = jax.tree.leaves(own.arrays)
    if not leaves and not own.version:
        raise UserError(
            f"teacher {name} has neither arrays nor a version to tell it from others: return a version, which changes"
            " when its predictions do"
        )
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves if has_numbers(leaf)):
        raise UserError(f"teacher {name} has arrays that are not finite: check its weights")
    images = jnp.zeros((2, own.size, own.size, 3), jnp.float32)
    try:
        predict = own.predict if own.host else jax.jit(own.predict)
        logits = np.asarray(predict(own.arrays, images), np.float32)
    except Exception as error:  # of another's code, or of its library
        raise UserError(
            f"teacher {name} does not take images float32{list(images.shape)}: {type(error).__name__}:"
            f" {first_line(error)}"
        ) from error
    if logits.ndim != 2 or len(logits) != 2:
        raise UserError(f"teacher {name} returns shape {list(logits.shape)} for 2 images: it must be [2, classes]")
    if not np.isfinite(logits).all():
        raise UserError(f"the logits of teacher {name} are not finite: check its weights, mean and std")
    return own, logits.shape[1]


def has_numbers(leaf: Any) -> bool:
    """Whether a leaf holds numbers: random keys, as dropout's, are none."""
    return not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def call_function(name: str) -> OwnTeacher:
    """What the function returns that `module:function` names; a tuple stands for the fields in their order."""
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name, None)
        own = function() if callable(function) else None
    except ImportError as error:
        raise UserError(f"teacher {name} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)
    if not callable(function):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"teacher {name}: {module_name} has no function '{function_name}'{nearest(function_name, names)}"
        )
    if isinstance(own, tuple) and 5 <= len(own) <= len(dataclasses.fields(OwnTeacher)):
        own = OwnTeacher(*own)
    if not isinstance(own, OwnTeacher):
        raise UserError(f"teacher {name} returns {type(own).__name__}: return a deit_jax.OwnTeacher")
    return own
