"""A teacher of one's own: `teacher.name=package.module:function`, a function that returns an `OwnTeacher`.

See examples/own_teacher.py, and deit_jax/own.py for where it is imported from.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deit_jax.errors import UserError
from deit_jax.own import own_part


@dataclasses.dataclass(frozen=True, eq=False)
class OwnTeacher:
    """What the function that `teacher.name` names returns.

    Attributes:
        predict: (arrays, images) → logits (batch, classes), or for feature distillation features (batch, width) or
            (batch, 1 + patches, width), the class token's before those of the patches row by row. The images are
            float32 (batch, size, size, 3), normalized with `mean` and `std`.
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
        self.predict, self.prefix_tokens = own.predict, 1

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Any:
        arrays = jax.tree.unflatten(self.structure, [leaf.get_value() for leaf in self.leaves])
        return jnp.asarray(self.predict(arrays, images)).astype(jnp.float32)

    def heads(self, images: Float[Array, "batch height width 3"]) -> tuple[Any, None]:
        """(logits, None), as a model with one head."""
        return self(images), None

    def features(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens dim"]:
        """The class token's features and the patches', as a ViT's."""
        found = self(images)
        return found[:, None] if found.ndim == 2 else found


@functools.cache  # plans trace it more than once
def open_own(name: str, features: bool = False) -> tuple[OwnTeacher, tuple[int, ...]]:
    """The teacher that `module:function` returns, and the shape of its answer to an image, found by asking it for two.

    features: whether that answer is features, (tokens, width), or logits, (classes,). Raises UserError for a function
    that is not there, and for a teacher that does not work.
    """
    own = call_function(name)
    if not jax.tree.leaves(own.arrays) and not own.version:
        raise UserError(
            f"teacher {name} has neither arrays nor a version: return one that changes with its predictions"
        )
    images = jnp.zeros((2, own.size, own.size, 3), jnp.float32)
    try:
        predict = own.predict if own.host else jax.jit(own.predict)
        found = np.asarray(predict(own.arrays, images), np.float32)
    except Exception as error:  # of another's code, or of its library
        raise UserError(f"teacher {name} does not take images float32{list(images.shape)}: {error!r:.160}") from error
    if found.ndim not in ((2, 3) if features else (2,)) or len(found) != 2:
        right = "[2, width] or [2, 1 + patches, width]" if features else "[2, classes]"
        raise UserError(f"teacher {name} returns shape {list(found.shape)} for 2 images: it must be {right}")
    if not np.isfinite(found).all():
        raise UserError(
            f"teacher {name} returns {'features' if features else 'logits'} that are not finite: check its weights"
        )
    return own, found.shape[1:] if found.ndim == 3 or not features else (1, *found.shape[1:])


def call_function(name: str) -> OwnTeacher:
    """What the function returns that `module:function` names; a tuple stands for the fields in their order."""
    with own_part("teacher", name) as function:
        own = function() if callable(function) else function
    if isinstance(own, tuple) and 5 <= len(own) <= len(dataclasses.fields(OwnTeacher)):
        own = OwnTeacher(*own)
    if not isinstance(own, OwnTeacher):
        raise UserError(f"teacher {name} returns {type(own).__name__}: return a deit_jax.OwnTeacher")
    return own
