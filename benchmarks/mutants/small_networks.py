"""Small networks that between them use every operator that rmax reads: what real small files leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

Weights = dict[str, np.ndarray]


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """`inputs` and outputs separated by blanks; `-` is an input left out."""
    return helper.make_node(op_type, ["" if i == "-" else i for i in inputs.split()], output.split(), **attributes)


def model(nodes: Sequence[NodeProto], shape: Sequence[int], weights: Weights, opset: int = 13) -> bytes:
    graph = helper.make_graph(
        list(nodes), "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = proto.SerializeToString()
    return data


def normal(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) / 2).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def dense() -> bytes:
    return model([node("Gemm", "x w b", "h", transB=1, alpha=0.5), node("Relu", "h", "r"), node("MatMul", "r v", "m"),
                  node("Add", "m c", "a"), node("Sub", "a d", "y")], (1, 4),
                 {"w": normal(6, 4), "b": normal(6), "v": normal(6, 3), "c": normal(3), "d": normal(1, 3)})


def convolutional() -> bytes:
    return model([node("Conv", "x w b", "h", pads=[1, 1, 1, 1], strides=[2, 2], dilations=[1, 1], group=1,
                       kernel_shape=[3, 3]), node("BatchNormalization", "h s o m v", "n", epsilon=1e-3),
                  node("Relu", "n", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[1, 1]),
                  node("AveragePool", "p", "q", kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1),
                  node("Flatten", "q", "f", axis=1), node("Gemm", "f g", "y")], (1, 2, 6, 6),
                 {"w": normal(3, 2, 3, 3), "b": normal(3), "s": normal(3), "o": normal(3), "m": normal(3),
                  "v": np.abs(normal(3)) + 1, "g": normal(12, 2)})


def transposed() -> bytes:
    return model([node("Gemm", "x w", "h"), node("Reshape", "h shape", "t"),
                  node("ConvTranspose", "t k b", "u", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1],
                       group=1, auto_pad="NOTSET"), node("LeakyRelu", "u", "l", alpha=0.1),
                  node("GlobalAveragePool", "l", "a"), node("Squeeze", "a axes", "y")], (1, 3),
                 {"w": normal(3, 8), "shape": ints(1, 2, 2, 2), "k": normal(2, 2, 3, 3), "b": normal(2),
                  "axes": ints(2, 3)})


def moved() -> bytes:
    return model([node("Transpose", "x", "t", perm=[0, 2, 1]), node("Split", "t sizes", "a b", axis=1),
                  node("Concat", "b a", "c", axis=2), node("Slice", "c s e ax st", "l"),
                  node("Gather", "l i", "g", axis=2),
                  node("Pad", "g pads fill", "p", mode="constant"), node("Relu", "p", "r"),
                  node("ReduceSum", "r one", "u", keepdims=0), node("Unsqueeze", "u one", "v"),
                  node("ReduceMean", "v", "w", axes=[1], keepdims=0), node("Expand", "w wide", "y")], (1, 3, 4),
                 {"sizes": ints(2, 2), "s": ints(0), "e": ints(5), "ax": ints(2), "st": ints(2), "i": ints(0, 2, 1),
                  "pads": ints(0, 0, 1, 0, 0, 1), "fill": number(0.5), "one": ints(1), "wide": ints(1, 1)})


def smooth() -> bytes:
    return model([node("Gemm", "x w", "h"), node("Sigmoid", "h", "s"), node("Tanh", "s", "t"),
                  node("Elu", "t", "e", alpha=0.5),
                  node("Softplus", "e", "p"), node("Mul", "p f", "m"), node("Div", "m d", "q"), node("Neg", "q", "n"),
                  node("Dropout", "n ratio", "o"), node("Cast", "o", "c", to=1),
                  node("Softmax", "c", "y", axis=-1)],
                 (1, 3), {"w": normal(3, 4), "f": normal(4), "d": np.abs(normal(4)) + 1, "ratio": number(0.5)})


def clipped() -> bytes:
    return model([node("Gemm", "x w", "h"), node("Clip", "h low high", "c"), node("PRelu", "c s", "p"),
                  node("Max", "p zero", "m"), node("Min", "m one", "n"), node("Sign", "h", "g"),
                  node("Sum", "n g h", "u"), node("Where", "yes u h", "v"), node("Identity", "v", "y")], (1, 3),
                 {"w": normal(3, 3), "low": number(-1), "high": number(1), "s": np.abs(normal(3)), "zero": number(0),
                  "one": number(0.7), "yes": np.array([True])})


def folded() -> bytes:
    """Shape arithmetic, as exporters write it."""
    return model([node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n first", "k"),
                  node("Concat", "k minus", "shape", axis=0), node("Reshape", "x shape", "f"),
                  node("ConstantOfShape", "length", "ones", value=numpy_helper.from_array(np.ones(1, np.float32))),
                  node("Mul", "ones half", "c"), node("Add", "f c", "a"), node("Relu", "a", "r"),
                  node("Constant", "", "w", value=numpy_helper.from_array(normal(6, 2))), node("MatMul", "r w", "y")],
                 (1, 2, 3), {"zero": np.array(0, np.int64), "first": ints(0), "minus": ints(-1), "length": ints(6),
                             "half": number(0.5)})


def residual() -> bytes:
    return model([node("Conv", "x w", "h", pads=[1, 1]), node("Relu", "h", "r"), node("Conv", "r w", "g", pads=[1, 1]),
                  node("Add", "g x", "a"), node("Relu", "a", "b"), node("Reshape", "b shape", "f"),
                  node("Gemm", "f m c", "y", beta=2.0)], (1, 2, 5),
                 {"w": normal(2, 2, 3), "shape": ints(0, -1), "m": normal(10, 2), "c": normal(2)})


def old() -> bytes:
    """Operator set 9: pads, slices and limits as attributes, a softmax over all later axes."""
    return model([node("Slice", "x", "s", axes=[1], starts=[0], ends=[3]), node("Pad", "s", "p", pads=[0, 1, 0, 0],
                                                                                      value=0.5),
                  node("Mul", "p f", "m"), node("Add", "m f", "a"), node("Clip", "a", "c", min=-1.0, max=1.0),
                  node("Dropout", "c", "d", ratio=0.5), node("Reshape", "d shape", "e"), node("Gemm", "e w b", "g"),
                  node("Softmax", "g", "y", axis=1)], (1, 4),
                 {"f": normal(4), "shape": ints(1, 4), "w": normal(4, 2), "b": normal(2)}, opset=9)


SMALL: tuple[Callable[[], bytes], ...] = (dense, convolutional, transposed, moved, smooth, clipped, folded, residual,
                                          old)
ORDERED = (smooth, old)  # end in a softmax, of which only the order of the outputs can be asked about
