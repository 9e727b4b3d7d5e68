"""RegNetY as an ONNX graph."""

from typing import cast

from flax import nnx

from deit_jax.export.graph import Graph
from deit_jax.models.regnet import ConvNorm, RegNet


def regnet_graph(graph: Graph, x: str, model: RegNet, size: tuple[int, int]) -> str:
    """Add the model; x: images (batch, 3, *size). Returns its logits."""

    def conv_norm(x: str, layer: ConvNorm, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        x, size = graph.conv(x, layer.conv, size, layer.bn)
        return graph.relu(x) if layer.act else x, size

    x, size = conv_norm(x, model.stem, size)
    stages = [getattr(model, f"s{i}") for i in range(1, model.stages + 1)]
    for block in [getattr(stage, f"b{i}") for stage in stages for i in range(1, stage.depth + 1)]:
        shortcut = x if block.downsample is None else conv_norm(x, block.downsample, size)[0]
        y, size = conv_norm(conv_norm(x, block.conv1, size)[0], block.conv2, size)
        y = graph.squeeze_excite(y, block.se.fc1, block.se.fc2, graph.relu)
        x = graph.relu(graph.op("Add", shortcut, conv_norm(y, block.conv3, size)[0]))
    return graph.linear(graph.op("Flatten", graph.op("GlobalAveragePool", x)), cast(nnx.Linear, model.head.fc))
