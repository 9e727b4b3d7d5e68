"""An ONNX graph under construction: nodes, weights, and the layers that the model families share."""

from typing import Any

import numpy as np
from flax import nnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and weights in the order in which they are added; each method returns the name of its output.

    Attributes:
        nodes, weights: of the graph.
        dtype: in which kernels are stored.
        read: identities of the variables whose values went in.
    """

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.read: set[int] = set()

    def value(self, variable: Any, layer: int | None = None) -> np.ndarray:
        """A variable's numbers in float32; of one layer, where it holds those of all."""
        self.read.add(id(variable))
        return np.asarray(variable[...] if layer is None else variable[layer], np.float32)

    def constant(self, value: Any) -> str:
        name = f"weight_{len(self.weights)}"
        # ascontiguousarray would make a vector of a scalar
        self.weights.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node of one or more `outputs`. inputs: names, or arrays, which become constants."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        out = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, out, **attributes))
        return out[0] if outputs == 1 else out

    def reshape(self, x: str, *shape: int) -> str:
        """0 in `shape` keeps the axis, so that the batch stays free."""
        return self.op("Reshape", x, np.array(shape, np.int64))

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", x, *(np.array([value], np.int64) for value in (start, stop, axis)))

    def kernel(self, kernel: np.ndarray, scale: Any = 1.0) -> str:
        """`kernel` x `scale`. In half precision the kernel is stored as it was rounded; runtimes compute the constant
        product when they load it."""
        if self.dtype == np.float32:
            return self.constant((kernel.astype(np.float64) * scale).astype(np.float32))
        stored = self.op("Cast", kernel.astype(self.dtype), to=TensorProto.FLOAT)
        return stored if np.all(np.equal(scale, 1)) else self.op("Mul", stored, np.float32(scale))

    def linear(self, x: str, dense: nnx.Linear, layer: int | None = None, scale: Any = 1.0) -> str:
        """A product over the last axis; its outputs are multiplied by `scale`."""
        y = self.op("MatMul", x, self.kernel(self.value(dense.kernel, layer), scale))
        return self.op("Add", y, np.float32(self.value(dense.bias, layer) * scale))

    def layer_norm(self, x: str, norm: nnx.LayerNorm, layer: int | None = None) -> str:
        scale, bias = self.value(norm.scale, layer), self.value(norm.bias, layer)
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=norm.epsilon)

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Mul", x, np.float32(0.5**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, np.float32(1))), np.float32(0.5))

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, np.float32(0), np.float32(6))

    def conv(
        self, x: str, conv: nnx.Conv, size: tuple[int, int], norm: nnx.BatchNorm | None = None
    ) -> tuple[str, tuple[int, int]]:
        """(output, its height and width) of a convolution of `size` pixels, batch normalization folded into it.

        The padding is written in numbers, TensorFlow's "SAME" too: they follow from the size.
        """
        kernel, bias, scale = self.value(conv.kernel), 0.0, np.ones(conv.out_features)
        if conv.use_bias:
            bias = self.value(conv.bias)
        if norm is not None:
            scale = self.value(norm.scale) / np.sqrt(self.value(norm.var).astype(np.float64) + norm.epsilon)
            bias = self.value(norm.bias) + (bias - self.value(norm.mean).astype(np.float64)) * scale
        stride, window = np.broadcast_to(np.array(conv.strides), 2), np.array(conv.kernel_size)
        low = high = np.zeros(2, int)
        if conv.padding == "SAME":
            total = np.maximum((-(-np.array(size) // stride) - 1) * stride + window - size, 0)
            low, high = total // 2, total - total // 2
        elif conv.padding != "VALID":
            low, high = np.array(conv.padding).T
        height, width = ((np.array(size) + low + high - window) // stride + 1).tolist()
        y = self.op(
            "Conv",
            x,
            self.kernel(kernel.transpose(3, 2, 0, 1), scale[:, None, None, None]),  # HWIO → OIHW
            np.float32(bias + np.zeros(conv.out_features)),
            kernel_shape=window.tolist(),
            strides=stride.tolist(),
            group=conv.feature_group_count,
            pads=[*low.tolist(), *high.tolist()],
        )
        return y, (height, width)

    def squeeze_excite(self, x: str, reduce: nnx.Conv, expand: nnx.Conv, activation: Any) -> str:
        """Channels weighted by sigmoid(expand(activation(reduce(mean over pixels))))."""
        y, _ = self.conv(self.op("GlobalAveragePool", x), reduce, (1, 1))
        y, _ = self.conv(activation(y), expand, (1, 1))
        return self.op("Mul", x, self.op("Sigmoid", y))
