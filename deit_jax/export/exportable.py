"""What leaves the package: a model with its weights, and the form of its inputs and outputs.

`Exportable.outputs` is the exported function in JAX. StableHLO is traced from it; an ONNX graph, which is written by
hand, is compared with it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Shaped
from ml_dtypes import bfloat16

from deit_jax import models
from deit_jax.arrays import AnyArray
from deit_jax.augment import normalize
from deit_jax.errors import UserError
from deit_jax.models.vit import ViT, fuse
from deit_jax.weights import Weights, load_weights

DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(bfloat16), "fp16": np.dtype(np.float16)}
Outputs = dict[str, Float[AnyArray, "batch ..."]]


@dataclasses.dataclass(frozen=True)
class Form:
    """Inputs and outputs of an exported model.

    Attributes:
        heads: "fused", or "both": also the class head's and the distillation head's outputs.
        layout: of the images, "nchw" or "nhwc".
        pixels: "float", normalized, and logits come out; or "uint8", and probabilities come out.
        attention: also the attention of the class and distillation token and its rollout.
        dtype: of the stored kernels, "fp32", "bf16" or "fp16"; they are computed with in float32.
    """

    heads: str = "fused"
    layout: str = "nchw"
    pixels: str = "float"
    attention: bool = False
    dtype: str = "fp32"

    def names(self) -> tuple[str, ...]:
        """Names of the class outputs: of the joint prediction, and with both heads of each."""
        what = "probabilities" if self.pixels == "uint8" else "logits"
        return (what, f"cls_{what}", f"dist_{what}")[: 3 if self.heads == "both" else 1]


@dataclasses.dataclass(frozen=True)
class Exportable:
    """Weights in a form. `weights.tree` holds the kernels rounded to the form's dtype, in float32."""

    weights: Weights
    form: Form

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        options = {"attention": "einsum"} if self.weights.architecture.module is ViT else {}
        return models.abstract(self.weights.architecture.constructor(**options))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        size = self.weights.architecture.img_size
        return size if isinstance(size, tuple) else (size, size)

    def images(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of so many images."""
        shape = (*self.size, 3) if self.form.layout == "nhwc" else (3, *self.size)
        return jax.ShapeDtypeStruct((batch, *shape), np.uint8 if self.form.pixels == "uint8" else np.float32)

    def model(self, tree: dict[str, Any] | None = None) -> Any:
        """The module, with the arrays of `tree` in place of its own."""
        tree = self.weights.tree if tree is None else tree
        return nnx.merge(self.graphdef, tree["params"], tree.get("batch_stats", {}))

    def outputs(self, tree: dict[str, Any], images: Shaped[AnyArray, "batch ..."]) -> Outputs:
        """Outputs by name. images: float32 or uint8, (batch, 3, height, width) or (batch, height, width, 3)."""
        model, form = self.model(tree), self.form
        images = jnp.asarray(images)
        if form.layout == "nchw":
            images = images.transpose(0, 2, 3, 1)
        if form.pixels == "uint8":
            images = normalize(images, self.weights.mean, self.weights.std)
        cls, dist = model.heads(images)
        heads = [fuse(cls, dist), cls] + ([] if dist is None else [dist])
        if form.pixels == "uint8":
            heads = [jax.nn.softmax(head) for head in heads]
        found: Outputs = dict(zip(form.names(), heads, strict=False))
        return found | (attention_outputs(model, images) if form.attention else {})

    @functools.cached_property
    def reference(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """images → `outputs` of the model's own weights, compiled, as NumPy arrays."""
        run = jax.jit(self.outputs)
        return lambda images: jax.device_get(run(self.weights.tree, images))


def load_exportable(source: str, form: Form, *, weights: str = "params") -> Exportable:
    """Weights of a file, folder or hub name in a form. Raises UserError where they do not have what it asks for."""
    loaded = load_weights(source, weights=weights)
    if not loaded.num_classes:
        raise UserError(f"{source} has no classification head: give weights that have one")
    found = Exportable(loaded, form)
    described = f"{source} is {loaded.architecture.describe()}"
    if form.heads == "both" and not getattr(found.model(), "two_heads", False):
        raise UserError(f"{described}, which has one head: leave out --heads=both")
    if form.attention and loaded.architecture.module is not ViT:
        raise UserError(f"{described}, which has no attention: leave out --attention")
    loaded.tree = map_kernels(loaded.tree, lambda kernel: kernel.astype(DTYPES[form.dtype]).astype(np.float32))
    return found


def map_kernels(tree: dict[str, Any], change: Any) -> dict[str, Any]:
    """The tree with its kernels, which are nearly all of its bytes, changed."""
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({k: change(v) if k[-1] == "kernel" else v for k, v in flat.items()})


def attention_outputs(model: ViT, images: Float[Array, "batch height width 3"]) -> Outputs:
    """What the class (and distillation) token attend to.

    Returns `attention` (batch, depth, heads, prefix, tokens) of each layer and head, and `rollout` (batch, depth,
    prefix, tokens): through all layers up to each, mean over heads, half of it the residual path (Abnar & Zuidema 2020,
    arXiv 2005.00928).
    """
    x = model.embed(images)
    _, (_, attention) = model.encode(x, inspect=x.shape[1])
    tokens, prefix = x.shape[1], model.prefix_tokens

    def step(rolled, layer):
        rolled = (layer.mean(1) @ rolled + rolled) / 2
        return rolled, rolled[:, :prefix]

    start = jnp.broadcast_to(jnp.eye(tokens), (x.shape[0], tokens, tokens))
    _, rollout = jax.lax.scan(step, start, attention)
    return {"attention": attention[:, :, :, :prefix].swapaxes(0, 1), "rollout": rollout.swapaxes(0, 1)}
