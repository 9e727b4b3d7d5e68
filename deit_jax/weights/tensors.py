"""An opened weight file: every name and shape at once, each array when it is asked for."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from deit_jax.errors import UserError

# what wrappers of a model put before its tensors' names: DataParallel, torch.compile, a trainer's attribute, timm's
# model inside transformers
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "timm_model.")
# tensors that take no part in classification: their ends, and what they are
UNUSED_TENSORS = {
    "pooler.dense.weight": "the pooler",
    "pooler.dense.bias": "the pooler",
    "embeddings.mask_token": "the mask token",
    "n_averaged": "the counter of averaged weights",
}


@dataclasses.dataclass
class Tensors:
    """What a file holds.

    Attributes:
        shapes: by name.
        read: one array by its name, as numpy's; a second read of the same name may fail.
        header: of a safetensors file.
        name: a model's name that the file holds beside its tensors, or "".
        notes: what was chosen or left out, a line each.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    header: dict[str, str] | None = None
    name: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def unwrap(tensors: Tensors, path: Any) -> Tensors:
    """The same tensors without wrappers' prefixes and without those that take no part in classification.

    Raises UserError where two names become one.
    """
    original: dict[str, str] = {}
    for key in tensors.shapes:
        bare = key
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), ""):
            bare = bare.removeprefix(prefix)
        if bare in original:
            raise UserError(f"{path} holds {bare} twice, as {original[bare]} and as {key}: keep one of the two models")
        original[bare] = key
    unused = {
        bare: what
        for bare in original
        for end, what in UNUSED_TENSORS.items()
        if re.search(rf"(^|\.){re.escape(end)}$", bare)
    }
    notes = (
        [f"left out {', '.join(sorted(set(unused.values())))}: it takes no part in classification"] if unused else []
    )
    return dataclasses.replace(
        tensors,
        shapes={bare: tensors.shapes[key] for bare, key in original.items() if bare not in unused},
        read=lambda bare: tensors.read(original[bare]),
        notes=tensors.notes + notes,
    )
