"""EfficientNet as an ONNX graph."""

from typing import Any, cast

import jax
from flax import nnx

from deit_jax.export.graph import Graph
from deit_jax.models.efficientnet import EfficientNet


def efficientnet_graph(graph: Graph, x: str, model: EfficientNet, size: tuple[int, int]) -> str:
    """Add the model; x: images (batch, 3, *size). Returns its logits."""

    def active(x: str, conv: Any, norm: Any, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        x, size = graph.conv(x, conv, size, norm)
        return graph.relu6(x) if lite else graph.silu(x), size

    def excited(x: str, block: Any) -> str:
        se = block.se
        return graph.squeeze_excite(x, se.conv_reduce, se.conv_expand, graph.silu) if se else x

    lite = model.act is jax.nn.relu6

    x, size = active(x, model.conv_stem, model.bn1, size)
    stages: Any = model.blocks
    for block in [block for stage in stages for block in stage]:
        *layers, (project, last) = block.layers()
        y = x
        for conv, norm in layers:
            y, size = active(y, conv, norm, size)
        y, _ = graph.conv(excited(y, block), project, size, last)
        x = graph.op("Add", x, y) if block.has_shortcut else y
    x, _ = active(x, model.conv_head, model.bn2, size)
    return graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", x)), cast(nnx.Linear, model.classifier))
