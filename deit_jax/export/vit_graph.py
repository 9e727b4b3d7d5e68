"""ViT and DeiT as an ONNX graph."""

from typing import Any, cast

import numpy as np
from flax import nnx

from deit_jax.export.graph import Graph
from deit_jax.models.vit import LayerScale, ViT


def vit_graph(graph: Graph, x: str, model: ViT, attention: bool) -> tuple[str, str | None, dict[str, str]]:
    """Add the model; x: images (batch, 3, height, width). Returns (class head's logits, distillation head's, other
    outputs by name)."""
    prefix, dim = model.prefix_tokens, model.embed_dim
    x, (rows, columns) = graph.conv(x, model.patch_embed, model.img_size)
    x = graph.op("Transpose", graph.reshape(x, 0, dim, rows * columns), perm=[0, 2, 1])
    # a row of zeros per token before the patches; the tokens themselves are added with their positions
    names = ("cls_token", "dist_token", "reg_token")
    tokens = np.concatenate([graph.value(getattr(model, name)) for name in names if hasattr(model, name)], axis=1)
    positions = graph.value(model.pos_embed)
    without = rows * columns + prefix - positions.shape[1]  # tokens without a position: none, or all of them
    embedding = np.pad(positions, ((0, 0), (without, 0), (0, 0)))
    embedding[:, :prefix] += tokens
    x = graph.op("Add", graph.op("Pad", x, np.array([0, prefix, 0, 0, 0, 0])), embedding)

    seen: list[str] = []
    for layer in range(model.depth):
        x = block(graph, x, model, layer, seen)
    x = graph.layer_norm(graph.slice(x, 0, prefix, axis=1), model.norm)
    token = lambda i: graph.op("Gather", x, np.array(i), axis=1)
    cls = graph.linear(token(0), cast(nnx.Linear, model.head))
    dist = graph.linear(token(1), cast(nnx.Linear, model.head_dist)) if model.two_heads else None
    if not attention:
        return cls, dist, {}
    return cls, dist, attention_nodes(graph, seen, model.num_heads, rows * columns + prefix, prefix)


def block(graph: Graph, x: str, model: ViT, layer: int, seen: list[str]) -> str:
    """One block. seen: gets the name of its attention, (batch, heads, tokens, tokens)."""
    part: Any = model.blocks
    heads, dim = model.num_heads, model.embed_dim
    scale = np.repeat([(dim // heads) ** -0.5, 1.0, 1.0], dim)  # of the queries
    y = graph.linear(graph.layer_norm(x, part.norm1, layer), part.attn.qkv, layer, scale)
    q, k, v = graph.op("Split", y, np.array([dim] * 3), outputs=3, axis=-1)
    split = lambda x, perm: graph.op("Transpose", graph.reshape(x, 0, -1, heads, dim // heads), perm=perm)
    q, k, v = split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]), split(v, [0, 2, 1, 3])
    weights = graph.op("Softmax", graph.op("MatMul", q, k), axis=-1)
    seen.append(weights)
    y = graph.op("Transpose", graph.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = graph.reshape(y, 0, -1, dim)
    x = graph.op("Add", x, graph.linear(y, part.attn.proj, layer, layer_scale(graph, part.ls1, layer)))
    y = graph.gelu(graph.linear(graph.layer_norm(x, part.norm2, layer), part.mlp.fc1, layer))
    return graph.op("Add", x, graph.linear(y, part.mlp.fc2, layer, layer_scale(graph, part.ls2, layer)))


def layer_scale(graph: Graph, scale: LayerScale, layer: int) -> Any:
    """The factors of a branch's channels, which go into its last layer."""
    return 1.0 if scale.gamma is None else graph.value(scale.gamma, layer)


def attention_nodes(graph: Graph, seen: list[str], heads: int, tokens: int, prefix: int) -> dict[str, str]:
    """`exportable.attention_outputs` of the layers' attention."""
    rolled, rollout = graph.constant(np.eye(tokens, dtype=np.float32)), []
    for weights in seen:
        mean = graph.op("Mul", graph.op("ReduceSum", weights, np.array([1])), np.float32(1 / heads))
        rolled = graph.op("Mul", graph.op("Add", graph.op("MatMul", mean, rolled), rolled), np.float32(0.5))
        rollout.append(graph.slice(rolled, 0, prefix, axis=2))
    rows = [graph.op("Unsqueeze", graph.slice(weights, 0, prefix, axis=2), np.array([1])) for weights in seen]
    return {"attention": graph.op("Concat", *rows, axis=1), "rollout": graph.op("Concat", *rollout, axis=1)}
