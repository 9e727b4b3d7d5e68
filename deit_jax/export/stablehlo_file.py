"""A model as a .stablehlo file of `jax.export`, which runs where jax is, without this package and flax."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file, save_file

from deit_jax.export.exportable import DTYPES, Exportable, map_kernels

PLATFORMS = ("cpu", "cuda", "tpu")


def weights_file(path: Path) -> Path:
    """Where the weights of a file lie that does not hold them."""
    return path.with_name(f"{path.name}.safetensors")


def save_stablehlo(exportable: Exportable, path: Path, *, beside: bool = False) -> None:
    """Write a function of images with a free batch, for PLATFORMS.

    beside: its weights are its first argument, {name: array}, and lie in a .safetensors file beside it.
    """
    stored = map_kernels(exportable.weights.tree, lambda kernel: kernel.astype(DTYPES[exportable.form.dtype]))
    leaves, structure = jax.tree.flatten_with_path(stored)
    flat = {jax.tree_util.keystr(k, simple=True, separator="/"): np.ascontiguousarray(v) for k, v in leaves}
    names = list(flat)

    def call(flat, images):
        tree = jax.tree.unflatten(structure, [flat[name].astype(np.float32) for name in names])
        return exportable.outputs(tree, images)

    (batch,) = export.symbolic_shape("batch")
    images = exportable.images(batch)
    if beside:
        save_file(flat, weights_file(path))
        exported = export.export(jax.jit(call), platforms=PLATFORMS)(flat, images)
    else:
        exported = export.export(jax.jit(lambda images: call(flat, images)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def open_stablehlo(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The file's function on this process's default device: images → outputs by name."""
    run = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    weights = [load_file(weights_file(path))] if weights_file(path).exists() else []
    return lambda images: jax.device_get(run(*weights, images))
