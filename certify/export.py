"""Networks as ONNX files, written from their graph: what is proved about the graph is proved about the file.

One row an operator, each with the batch axis left free. The names of results are those of the module's layers. What has
no row is refused by name. (PyTorch's own exporter needs packages that are no dependency of this project.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bounds.graph import Graph, UnsupportedOperator
from bounds.ops.add import Add
from bounds.ops.avg_pool import AvgPool
from bounds.ops.base import Operator, Shape
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.conv import Conv
from bounds.ops.divide import Divide
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.reduce import Reduce
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.tanh import Tanh

OPSET, IR_VERSION = 13, 8
PRODUCER = "rmax"
ENDS = ("input", "logits")
TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}


def export_onnx(module: nn.Module, input_shape: Shape, path: str | Path, **settings: Any) -> None:
    """Write a module, as it is in evaluation mode, for inputs "B *input_shape". settings: those of `to_onnx`.

    Raises UnsupportedOperator for a layer without a row; the file is there whole or not at all.
    """
    path = Path(path)
    model = to_onnx(Graph.from_torch(module, input_shape), **{"name": path.stem} | settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(model.SerializeToString())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def to_onnx(graph: Graph, *, name: str = "network", ends: tuple[str, str] = ENDS, producer: str = PRODUCER
            ) -> onnx.ModelProto:
    """A graph as read, its parameters copied. ends: the names of input and output."""
    if graph.fold_errors:
        raise ValueError("a folded graph is not the stored network: export the graph as it was read")
    if graph.dtype not in TYPES or not graph.output:
        raise UnsupportedOperator(f"{graph.source}: expected a network of float32 or float64 that computes something, "
                                  f"got {graph.dtype} and {len(graph.nodes)} nodes")
    writer, kind = _Writer(graph, ends), TYPES[graph.dtype]
    body = helper.make_graph(
        writer.nodes, name,
        [helper.make_tensor_value_info(ends[0], kind, ["batch", *graph.input_shape])],
        [helper.make_tensor_value_info(ends[1], kind, ["batch", *graph.output_shape])], writer.weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                              producer_name=producer)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects the nodes and the weights of a file."""

    def __init__(self, graph: Graph, ends: tuple[str, str]) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._stored: dict[int, tuple[str, Tensor]] = {}
        self._names = set(ends)
        self.names = [ends[0]]
        for i, node in enumerate(graph.nodes[1:], 1):
            self.names.append(ends[1] if i == graph.output else self._fresh(_label(node.name)))
            self.node, self.name = node, self.names[i]
            self.shapes = [graph.nodes[j].shape for j in node.inputs]
            self.write(node.op, *(self.names[j] for j in node.inputs))

    def _fresh(self, name: str) -> str:
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    # ------------------------------------------------------------------ parts of rows

    def emit(self, kind: str, inputs: Sequence[str], *, result: str | None = None, **attributes: Any) -> str:
        result = result or self.name
        self.nodes.append(helper.make_node(kind, list(inputs), [result], f"{kind.lower()}_{result}", **attributes))
        return result

    def between(self, what: str) -> str:
        """A name for a value inside a row."""
        return self._fresh(f"{self.name}.{what}")

    def stored(self, tensor: Tensor, what: str) -> str:
        """The name of a stored tensor, each once. What broadcasts against a result without batch axis does so against
        it with one in front."""
        if id(tensor) not in self._stored:
            name = self._fresh(f"{self.name}.{what}")
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().cpu().numpy()), name))
            self._stored[id(tensor)] = (name, tensor)  # the tensor too, so that its id stays its own
        return self._stored[id(tensor)][0]

    def unsupported(self, why: str) -> UnsupportedOperator:
        return UnsupportedOperator(f"{self.node.op.kind} (node {self.node.name}): {why}")

    # ------------------------------------------------------------------ rows

    @singledispatchmethod
    def write(self, op: Operator, *inputs: str) -> None:
        raise self.unsupported("the ONNX writer has no row for this operator")

    @write.register
    def _(self, op: Linear, x: str) -> None:
        if len(self.node.shape) == 1:
            bias = [] if op.bias is None else [self.stored(op.bias, "bias")]
            self.emit("Gemm", [x, self.stored(op.weight, "weight"), *bias], transB=1)
            return
        product = self.name if op.bias is None else self.between("product")
        self.emit("MatMul", [x, self.stored(op.weight.t(), "weight")], result=product)
        if op.bias is not None:
            self.emit("Add", [product, self.stored(op.bias, "bias")])

    @write.register
    def _(self, op: Conv, x: str) -> None:
        bias = [] if op.bias is None else [self.stored(op.bias, "bias")]
        self.emit("Conv", [x, self.stored(op.weight, "weight"), *bias], kernel_shape=list(op.weight.shape[2:]),
                  strides=list(op.stride), pads=list(op.padding) * 2, dilations=list(op.dilation), group=op.groups)

    @write.register
    def _(self, op: BatchNorm, x: str) -> None:
        scale = torch.ones_like(op.mean) if op.weight is None else op.weight
        shift = torch.zeros_like(op.mean) if op.bias is None else op.bias
        named = ((scale, "scale"), (shift, "shift"), (op.mean, "mean"), (op.variance, "variance"))
        self.emit("BatchNormalization", [x, *(self.stored(t, what) for t, what in named)], epsilon=op.eps)

    @write.register
    def _(self, op: Add, first: str, second: str) -> None:
        if len({len(shape) for shape in self.shapes}) > 1:
            raise self.unsupported(f"a sum over shapes {self.shapes[0]} and {self.shapes[1]}, expected as many axes")
        self.emit("Add" if op.sign > 0 else "Sub", [first, second])

    @write.register
    def _(self, op: Scale, x: str) -> None:
        if op.factor is not None:
            x = self.emit("Mul", [x, self.stored(op.factor, "factor")],
                          result=None if op.shift is None else self.between("scaled"))
        if op.shift is not None:
            self.emit("Add", [x, self.stored(op.shift, "shift")])

    @write.register
    def _(self, op: Divide, x: str) -> None:
        self.emit("Div", [x, self.stored(op.divisor, "divisor")])

    @write.register
    def _(self, op: Reshape, x: str) -> None:
        if len(op.shape) == 1:
            self.emit("Flatten", [x], axis=1)
        else:
            self.emit("Reshape", [x, self.stored(torch.tensor([-1, *op.shape]), "shape")])

    @write.register
    def _(self, op: Reduce, x: str) -> None:
        axes = [a + 1 for a in op.axes]
        if op.mean:
            self.emit("ReduceMean", [x], axes=axes, keepdims=int(op.keep))
        else:  # its axes became an input earlier than those of the mean
            self.emit("ReduceSum", [x, self.stored(torch.tensor(axes), "axes")], keepdims=int(op.keep))

    @write.register
    def _(self, op: AvgPool, x: str) -> None:
        if op.kernel == self.shapes[0][1:] and not any(op.before + op.after):
            self.emit("GlobalAveragePool", [x])
        else:
            self.emit("AveragePool", [x], kernel_shape=list(op.kernel), strides=list(op.stride),
                      pads=[*op.before, *op.after], ceil_mode=int(op.ceil), count_include_pad=int(op.count_padding))

    @write.register
    def _(self, op: MaxPool, x: str) -> None:
        self.emit("MaxPool", [x], kernel_shape=list(op.kernel), strides=list(op.stride), pads=list(op.padding) * 2,
                  dilations=list(op.dilation), ceil_mode=int(op.ceil))

    @write.register
    def _(self, op: Relu, x: str) -> None:
        self.emit("Relu", [x])

    @write.register
    def _(self, op: LeakyRelu, x: str) -> None:
        self.emit("LeakyRelu", [x], alpha=op.slope)

    @write.register
    def _(self, op: Sigmoid, x: str) -> None:
        self.emit("Sigmoid", [x])

    @write.register
    def _(self, op: Tanh, x: str) -> None:
        self.emit("Tanh", [x])


def _label(name: str) -> str:
    """Layers of a Sequential are named by bare numbers."""
    return f"layer{name}" if name[:1].isdigit() else name


__all__ = ["ENDS", "export_onnx", "to_onnx"]
