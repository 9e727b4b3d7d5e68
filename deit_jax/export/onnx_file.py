"""A model as an .onnx file: our own graph, written by `onnx.helper`, and read again by ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from flax import nnx
from onnx import TensorProto, helper

from deit_jax.errors import UserError
from deit_jax.export.efficientnet_graph import efficientnet_graph
from deit_jax.export.exportable import DTYPES, Exportable
from deit_jax.export.graph import Graph
from deit_jax.export.regnet_graph import regnet_graph
from deit_jax.export.vit_graph import vit_graph
from deit_jax.models.efficientnet import EfficientNet
from deit_jax.models.regnet import RegNet
from deit_jax.models.vit import ViT
from deit_jax.version import __version__

LARGEST = 2**31 - 2**20  # bytes of weights in a protobuf message; more lie in a file beside it


def make_onnx(exportable: Exportable, opset: int = 17) -> onnx.ModelProto:
    """The graph. Raises UserError naming a part of the model that it cannot have."""
    model, form = exportable.model(), exportable.form
    graph = Graph(DTYPES[form.dtype])
    x = "images"
    if form.pixels == "uint8":
        x = graph.op("Cast", x, to=TensorProto.FLOAT)
    if form.layout == "nhwc":
        x = graph.op("Transpose", x, perm=[0, 3, 1, 2])
    if form.pixels == "uint8":
        mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (exportable.weights.mean, exportable.weights.std))
        x = graph.op("Sub", graph.op("Mul", x, np.float32(1 / (255 * std))), np.float32(mean / std))

    dist, others = None, {}
    if isinstance(model, ViT):
        cls, dist, others = vit_graph(graph, x, model, form.attention)
    elif isinstance(model, RegNet):
        cls = regnet_graph(graph, x, model, exportable.size)
    elif isinstance(model, EfficientNet):
        cls = efficientnet_graph(graph, x, model, exportable.size)
    else:
        raise UserError(
            f"{exportable.weights.source} is a model of your own, without an ONNX graph: export to .stablehlo"
        )
    check_complete(graph, model, exportable.weights.source)
    fused = cls if dist is None else graph.op("Mul", graph.op("Add", cls, dist), np.float32(0.5))
    outputs = dict(zip(form.names(), filter(None, (fused, cls, dist)), strict=False))
    if form.pixels == "uint8":
        outputs = {name: graph.op("Softmax", out, axis=-1) for name, out in outputs.items()}

    images = exportable.images("batch")
    shapes = jax.eval_shape(exportable.outputs, exportable.weights.tree, exportable.images(1))
    found = [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["batch", *v.shape[1:]]) for k, v in shapes.items()]
    for name, out in (outputs | others).items():
        graph.nodes.append(helper.make_node("Identity", [out], [name]))
    kind = TensorProto.UINT8 if form.pixels == "uint8" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("images", kind, images.shape)]
    made = helper.make_graph(graph.nodes, exportable.weights.name or "model", inputs, found, graph.weights)
    operators = [helper.make_opsetid("", opset)]
    # the oldest format that has these operators, so that older runtimes read the file
    version = helper.find_min_ir_version_for(operators)
    return helper.make_model(
        made, opset_imports=operators, ir_version=version, producer_name="deit_jax", producer_version=__version__
    )


def check_complete(graph: Graph, model: nnx.Module, source: str) -> None:
    """Raise UserError naming a part of the model whose numbers are not in the graph."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable) and id(node) not in graph.read:
            part = ".".join(map(str, path[:-1] or path))
            raise UserError(f"{source} has a part that ONNX export does not know, {part}: export to .stablehlo")


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write the file; weights too large for it go into NAME.onnx.data beside it."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=weights > LARGEST, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=weights <= LARGEST)  # shapes are inferred in memory, up to 2 GB


def open_onnx(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The file's model on this machine's CPU: images → outputs by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, Any]:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run
