"""One tiny model for each ONNX operator and attribute, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.graph import Graph
from bounds.graph.from_onnx.table import ROWS
from tests.bounds.graph.models import (
    Weights,
    assert_equal_within_rounding,
    integers,
    model,
    node,
    number,
    random,
    replay,
)

ROUNDING = 2e-6  # float32: a few units in the last place, sums of at most some hundred terms


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    nodes: Sequence[onnx.NodeProto]
    shape: Sequence[int | str | None]
    weights: Weights = field(default_factory=dict)
    opset: int = 13


def one(name: str, op_type: str, inputs: str, shape: Sequence[int | str | None], weights: Weights | None = None,
        opset: int = 13, **attributes: object) -> Case:
    return Case(f"{op_type} {name}".strip(), [node(op_type, inputs, **attributes)], shape, weights or {}, opset)


W34, W43, B3, M = random(3, 4), random(4, 3), random(3), (1, 2, 6, 7)
K = random(4, 2, 3, 3)
NORM = {"s": random(2), "b": random(2, seed=1), "m": random(2, seed=2), "v": np.abs(random(2, seed=3)) + 0.1}


def conv(name: str, weight: np.ndarray, shape: Sequence[int], bias: bool = True, **attributes: object) -> Case:
    weights = {"w": weight} | ({"b": random(weight.shape[0])} if bias else {})
    return one(name, "Conv", "x w b" if bias else "x w", shape, weights, **attributes)


def transposed(name: str, weight: np.ndarray, shape: Sequence[int], **attributes: object) -> Case:
    outputs = weight.shape[1] * int(attributes.get("group", 1))  # type: ignore[call-overload]
    return one(name, "ConvTranspose", "x w b", shape, {"w": weight, "b": random(outputs)}, **attributes)


CASES = [
    # dense
    one("", "Gemm", "x w b", (1, 4), {"w": W43, "b": B3}),
    one("transB", "Gemm", "x w b", ("batch", 4), {"w": W34, "b": B3}, transB=1),
    one("without C", "Gemm", "x w", (1, 4), {"w": W43}),
    one("alpha, beta", "Gemm", "x w b", (1, 4), {"w": W43, "b": B3}, alpha=0.3, beta=1.7),
    one("scalar C", "Gemm", "x w b", (1, 4), {"w": W43, "b": number(0.7)}),
    one("C in a row", "Gemm", "x w b", (1, 4), {"w": W43, "b": random(1, 3)}),
    one("transA, no batch axis", "Gemm", "x w b", (4, 5), {"w": W43, "b": random(5, 3)}, transA=1),
    one("constant on the left", "Gemm", "w x b", (4, 5), {"w": W43, "b": random(3, 1)}, transA=1, alpha=0.5),
    one("constant on the left, transB", "Gemm", "w x", (5, 4), {"w": W34}, transB=1),
    Case("Gemm with C an activation", [node("Gemm", "x w", "h"), node("Gemm", "x w h", "y", beta=0.3)], (1, 4),
         {"w": W43}),
    one("", "MatMul", "x w", (1, 4), {"w": W43}),
    one("three axes", "MatMul", "x w", (1, 5, 4), {"w": W43}),
    one("constant on the left", "MatMul", "w x", (1, 4, 5), {"w": W34}),
    one("constant on the left of a matrix with one row", "MatMul", "w x", (1, 5), {"w": random(3, 1)}),
    one("constant vector", "MatMul", "x w", (1, 5, 4), {"w": random(4)}),
    one("constant vector on the left", "MatMul", "w x", (1, 4, 5), {"w": random(4)}),
    one("constant stack", "MatMul", "x w", (1, 3, 4), {"w": random(2, 4, 3)}),
    one("constant stack of one", "MatMul", "x w", (3, 4), {"w": random(1, 4, 3)}),
    one("stack on the left", "MatMul", "w x", (1, 2, 4, 3), {"w": random(2, 5, 4)}),
    one("vector input", "MatMul", "x w", (4,), {"w": W43}),
    # arithmetic
    one("constant", "Add", "x c", (1, 4), {"c": random(4)}),
    one("constant first", "Add", "c x", (1, 2, 3), {"c": random(1, 2, 1)}),
    one("constant that enlarges", "Add", "x c", (1, 1, 3), {"c": random(2, 1)}),
    one("constant of more axes", "Add", "x c", (1, 3), {"c": random(2, 4, 3)}),
    one("constant", "Sub", "x c", (1, 4), {"c": random(4)}),
    one("from a constant", "Sub", "c x", (1, 4), {"c": random(1, 4)}),
    one("constant", "Mul", "x c", (1, 3, 2), {"c": random(3, 1)}),
    one("constant first, enlarging", "Mul", "c x", (1, 1, 2), {"c": random(3, 1)}),
    one("constant", "Div", "x c", (1, 3), {"c": np.array([0.3081, -7.0, 3.0], dtype=np.float32)}),
    one("", "Neg", "x", (1, 3)),
    Case("Add activations", [node("Relu", "x", "r"), node("Add", "x r")], (1, 3)),
    Case("Sub activations, broadcast", [node("ReduceSum", "x a", "s"), node("Sub", "x s")], (1, 3, 2),
         {"a": integers(1)}),
    Case("Sum", [node("Relu", "x", "r"), node("Sum", "x r c r")], (1, 3), {"c": random(3)}),
    one("", "Identity", "x", (1, 3)),
    Case("Dropout", [node("Dropout", "x", "d mask"), node("Neg", "d")], (1, 3)),
    Case("Dropout of old operator sets", [node("Dropout", "x", "d", ratio=0.3), node("Neg", "d")], (1, 3), {}, 10),
    Case("Cast to double and back", [node("Cast", "x", "d", to=TensorProto.DOUBLE),
                                     node("Cast", "d", "y", to=TensorProto.FLOAT)], (1, 3)),
    Case("Where with a constant condition", [node("Where", "c x o")], (1, 3),
         {"c": np.ones((2, 1, 3), dtype=bool), "o": number(9)}),
    # convolutions
    conv("", K, M),
    conv("stride, pads", K, M, strides=[2, 3], pads=[1, 2, 1, 2]),
    conv("asymmetric pads", K, M, pads=[0, 1, 2, 0]),
    conv("dilation", K, M, dilations=[2, 3]),
    conv("groups", random(4, 1, 3, 3), M, group=2),
    conv("SAME_UPPER", K, M, auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("SAME_LOWER", K, M, auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("VALID", K, M, auto_pad="VALID", bias=False),
    conv("1d", random(3, 2, 4), (1, 2, 9), pads=[1, 2], strides=[2]),
    conv("3d", random(2, 1, 2, 2, 2), (1, 1, 3, 4, 3)),
    transposed("", random(2, 3, 3, 3), M),
    transposed("stride, pads", random(2, 3, 4, 4), M, strides=[2, 3], pads=[1, 2, 1, 2]),
    transposed("asymmetric pads", random(2, 3, 4, 4), M, strides=[2, 2], pads=[0, 1, 1, 2]),
    transposed("output_padding", random(2, 3, 3, 3), M, strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1]),
    transposed("output_shape", random(2, 3, 3, 3), M, strides=[2, 2], output_shape=[12, 14]),
    transposed("SAME_UPPER", random(2, 3, 3, 3), M, strides=[2, 2], auto_pad="SAME_UPPER"),
    transposed("SAME_LOWER", random(2, 3, 3, 3), M, strides=[2, 2], auto_pad="SAME_LOWER"),
    transposed("groups, dilation", random(2, 3, 3, 3), M, group=2, dilations=[2, 1]),
    transposed("1d", random(2, 3, 4), (1, 2, 5), strides=[3]),
    one("", "BatchNormalization", "x s b m v", M, NORM, epsilon=0.01),
    one("1d", "BatchNormalization", "x s b m v", (1, 2), NORM),
    # pooling
    one("", "AveragePool", "x", M, kernel_shape=[2, 3]),
    one("stride, pads", "AveragePool", "x", M, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1]),
    one("padding counted", "AveragePool", "x", M, kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1),
    one("ceil", "AveragePool", "x", M, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    one("ceil, pads", "AveragePool", "x", M, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1]),
    one("SAME_UPPER", "AveragePool", "x", M, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("1d", "AveragePool", "x", (1, 2, 7), kernel_shape=[3], strides=[2]),
    one("3d", "AveragePool", "x", (1, 2, 3, 4, 3), kernel_shape=[2, 2, 2]),
    one("", "GlobalAveragePool", "x", M),
    one("", "MaxPool", "x", M, kernel_shape=[2, 3]),
    one("stride, pads", "MaxPool", "x", M, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    one("dilation", "MaxPool", "x", M, kernel_shape=[2, 2], dilations=[2, 3]),
    one("ceil", "MaxPool", "x", M, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    one("1d", "MaxPool", "x", (1, 2, 7), kernel_shape=[3], strides=[2]),
    # activations
    one("", "Relu", "x", (1, 9)),
    one("", "LeakyRelu", "x", (1, 9)),
    one("alpha", "LeakyRelu", "x", (1, 9), alpha=0.3),
    one("one slope", "PRelu", "x s", (1, 2, 3), {"s": random(1)}),
    one("slope for each channel", "PRelu", "x s", M, {"s": random(2, 1, 1)}),
    one("slope with a batch axis", "PRelu", "x s", M, {"s": random(1, 2, 6, 7)}),
    one("", "Elu", "x", (1, 9)),
    one("alpha", "Elu", "x", (1, 9), alpha=0.5),
    one("", "Softplus", "x", (1, 9)),
    one("", "Sigmoid", "x", (1, 9)),
    one("", "Tanh", "x", (1, 9)),
    one("", "Sign", "x", (1, 9)),
    one("limits", "Clip", "x l h", (1, 9), {"l": number(-0.5), "h": number(0.25)}),
    one("lower limit left out", "Clip", "x - h", (1, 9), {"h": number(0.25)}),
    one("at zero", "Clip", "x l", (1, 9), {"l": number(0)}),
    one("without limits", "Clip", "x", (1, 9)),
    one("of old operator sets", "Clip", "x", (1, 9), {}, 6, min=-1.0, max=1.0),
    one("with a constant", "Max", "x c", (1, 9), {"c": number(0.1)}),
    one("with a constant", "Min", "c x", (1, 9), {"c": number(0.1)}),
    one("", "Softmax", "x", (1, 9)),
    one("axis", "Softmax", "x", (1, 3, 4), axis=1),
    one("of old operator sets", "Softmax", "x", (1, 3, 4), {}, 11, axis=1),
    # moves
    one("", "Flatten", "x", M),
    one("axis 0", "Flatten", "x", M, axis=0),
    one("axis 2", "Flatten", "x", M, axis=2),
    one("negative axis", "Flatten", "x", M, axis=-1),
    one("0 and -1", "Reshape", "x s", M, {"s": integers(0, -1, 7)}),
    one("to one axis", "Reshape", "x s", M, {"s": integers(-1)}),
    one("without batch axis", "Reshape", "x s", M, {"s": integers(4, 21)}),
    one("allowzero", "Reshape", "x s", M, {"s": integers(1, 84)}, 14, allowzero=1),
    one("axes", "Squeeze", "x a", (1, 3, 1, 2), {"a": integers(2)}),
    one("all", "Squeeze", "x", (1, 3, 1, 2)),
    one("the batch axis", "Squeeze", "x a", (1, 3), {"a": integers(0)}),
    one("of old operator sets", "Squeeze", "x", (1, 3, 1), {}, 11, axes=[2]),
    one("", "Unsqueeze", "x a", (1, 3), {"a": integers(1, -1)}),
    one("in front", "Unsqueeze", "x a", (1, 3), {"a": integers(0)}),
    one("of old operator sets", "Unsqueeze", "x", (1, 3), {}, 11, axes=[2]),
    one("", "Transpose", "x", (1, 3, 4, 2), perm=[0, 2, 3, 1]),
    one("default", "Transpose", "x", (1, 3, 4)),
    one("moving the batch axis", "Transpose", "x", (1, 3, 4), perm=[1, 0, 2]),
    one("", "Expand", "x s", (1, 1, 3), {"s": integers(1, 2, 3)}),
    one("both ways", "Expand", "x s", (1, 2, 1), {"s": integers(3, 1, 2)}),
    one("the batch axis", "Expand", "x s", (1, 3), {"s": integers(4, 3)}),
    Case("Concat", [node("Neg", "x", "n"), node("Concat", "x n x", axis=1)], (1, 2, 3)),
    Case("Concat along the batch axis", [node("Neg", "x", "n"), node("Concat", "x n", axis=0)], (1, 2, 3)),
    Case("Concat with constants", [node("Neg", "x", "n"), node("Concat", "c x d n c", axis=-1)], (1, 2),
         {"c": random(1, 1), "d": random(1, 3)}),
    one("one activation and a constant", "Concat", "x c", (1, 2), {"c": random(1, 3)}, axis=1),
    one("", "Slice", "x s e a t", (1, 5, 6), {"s": integers(1, -4), "e": integers(4, 2**63 - 1), "a": integers(1, -1),
                                              "t": integers(1, 2)}),
    one("backwards", "Slice", "x s e a t", (1, 5), {"s": integers(-1), "e": integers(-(2**63)), "a": integers(1),
                                                    "t": integers(-2)}),
    one("without axes", "Slice", "x s e", (1, 5), {"s": integers(0, 1), "e": integers(1, -1)}),
    one("of old operator sets", "Slice", "x", (1, 5), {}, 9, starts=[1], ends=[4], axes=[1]),
    Case("Split", [node("Split", "x s", "a b c", axis=1), node("Concat", "c a b", axis=1)], (1, 6),
         {"s": integers(1, 2, 3)}),
    Case("Split evenly", [node("Split", "x", "a b", axis=-1), node("Sub", "b a")], (1, 6)),
    Case("Split into outputs of which one is used", [node("Split", "x", "a y", axis=1)], (1, 6)),
    Case("Split unevenly", [node("Split", "x", "a b c", axis=1, num_outputs=3), node("Concat", "c b a", axis=1)],
         (1, 7), {}, 18),
    one("", "Gather", "x i", (1, 5, 2), {"i": integers(3, 0, 3)}, axis=1),
    one("scalar, negative", "Gather", "x i", (1, 5, 2), {"i": np.array(-1)}, axis=1),
    one("matrix of indices", "Gather", "x i", (1, 5), {"i": np.array([[0, 1], [4, 2]])}, axis=1),
    one("from the batch axis", "Gather", "x i", (1, 5), {"i": np.array(0)}, axis=0),
    one("", "Pad", "x p", M, {"p": integers(0, 0, 1, 2, 0, 1, 0, 3)}),
    one("value", "Pad", "x p v", M, {"p": integers(0, 0, 1, 2, 0, 0, 0, 3), "v": number(1.5)}),
    one("negative", "Pad", "x p", M, {"p": integers(0, 0, -1, 2, 0, 0, -2, -1)}),
    one("reflect", "Pad", "x p", M, {"p": integers(0, 0, 1, 2, 0, 0, 3, 1)}, mode="reflect"),
    one("edge", "Pad", "x p", M, {"p": integers(0, 0, 1, 2, 0, 1, 3, 1)}, mode="edge"),
    one("of old operator sets", "Pad", "x", M, {}, 10, pads=[0, 0, 1, 1, 0, 0, 1, 1], value=-1.0),
    one("axes", "Pad", "x p - a", M, {"p": integers(1, 2), "a": integers(-1)}, 18),
    one("", "ReduceSum", "x a", (1, 3, 4), {"a": integers(1)}, keepdims=0),
    one("all axes", "ReduceSum", "x", (1, 3, 4)),
    one("the batch axis too", "ReduceSum", "x a", (1, 3, 4), {"a": integers(0, 2)}, keepdims=0),
    one("nothing", "ReduceSum", "x", (1, 3), noop_with_empty_axes=1),
    one("of old operator sets", "ReduceSum", "x", (1, 3, 4), {}, 11, axes=[-1]),
    one("", "ReduceMean", "x", (1, 3, 4), axes=[2]),
    one("all axes to a scalar", "ReduceMean", "x", (1, 3, 4), keepdims=0),
    one("axes as input", "ReduceMean", "x a", (1, 3, 4), {"a": integers(1, 2)}, 18, keepdims=0),
    # constants
    Case("Constant", [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(random(3))),
                      node("Add", "x c")], (1, 3)),
    Case("Constant given as a number", [helper.make_node("Constant", [], ["c"], value_float=2.5), node("Mul", "x c")],
         (1, 3)),
    Case("ConstantOfShape", [node("ConstantOfShape", "s", "c", value=numpy_helper.from_array(random(1))),
                             node("Add", "x c")], (1, 3), {"s": integers(1, 3)}),
    Case("Shape", [node("Shape", "x", "s"), node("Gather", "s i", "n"), node("Unsqueeze", "n a", "m"),
                   node("Concat", "m q", "t", axis=0), node("Reshape", "x t")], ("batch", 3, 4),
         {"i": np.array(0), "a": integers(0), "q": integers(-1)}),
    Case("Shape in part", [node("Shape", "x", "s", start=1), node("Concat", "o s", "t", axis=0),
                           node("Expand", "x t")], (1, 3), {"o": integers(2)}, 15),
    Case("Size", [node("Size", "x", "n"), node("Cast", "n", "f", to=TensorProto.FLOAT), node("Div", "x f")], (1, 3, 4)),
    Case("constants of constants", [node("Transpose", "w", "t"), node("Mul", "t c", "u"), node("MatMul", "x u")],
         (1, 4), {"w": W34, "c": number(0.3)}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_graph_equals_onnxruntime(case: Case) -> None:
    data = model(case.nodes, case.shape, case.weights, opset=case.opset)
    graph = Graph.from_onnx(data)
    x = 2 * torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(1))
    expected = replay(data, graph, x)
    got = graph(x)
    assert tuple(got.shape[1:]) == graph.output_shape
    assert_equal_within_rounding(got.reshape(3, -1), expected, ROUNDING)
    assert_equal_within_rounding(graph.simplify()(x).reshape(3, -1), expected, ROUNDING)


def test_every_importer_row_has_a_case() -> None:
    covered = {n.op_type for case in CASES for n in case.nodes}
    assert set(ROWS) <= covered, f"no case for {set(ROWS) - covered}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_node_has_the_shape_it_states(case: Case) -> None:
    graph = Graph.from_onnx(model(case.nodes, case.shape, case.weights, opset=case.opset))
    values = graph.values(torch.zeros(2, *graph.input_shape))
    assert [tuple(v.shape[1:]) for v in values] == [n.shape for n in graph.nodes]
    simple = graph.simplify()
    values = simple.values(torch.zeros(2, *graph.input_shape))
    assert [tuple(v.shape[1:]) for v in values] == [n.shape for n in simple.nodes]


# ---------------------------------------------------------------------- batch axis


BATCH_AXIS = [
    ((1, 3), (3,), (1, 3)),
    (("n", 3), (3,), (1, 3)),
    ((None, 3), (3,), (1, 3)),
    ((0, 3), (3,), (1, 3)),
    ((2, 3), (2, 3), (2, 3)),
    ((3,), (3,), (3,)),
    ((1, 1, 3), (1, 3), (1, 1, 3)),
]


@pytest.mark.parametrize(("stored", "held", "replayed"), BATCH_AXIS)
def test_batch_axis_is_dropped_where_it_is_dynamic_or_one(
        stored: Sequence[int | str | None], held: tuple[int, ...], replayed: tuple[int, ...]) -> None:
    graph = Graph.from_onnx(model([node("Relu", "x")], stored))
    assert (graph.input_shape, graph.onnx_input_shape) == (held, replayed)


# ---------------------------------------------------------------------- names, order, storage


def test_nodes_are_named_after_onnx_tensors() -> None:
    data = model([node("MatMul", "x w", "product"), node("Add", "product b", "sum"), node("Relu", "sum")], (1, 4),
                 {"w": W43, "b": B3})
    assert [n.name for n in Graph.from_onnx(data).nodes] == ["x", "product", "sum", "y"]
    assert [n.name for n in Graph.from_onnx(data).simplify().nodes] == ["x", "sum", "y"]


def test_helper_nodes_are_named_after_their_tensor() -> None:
    graph = Graph.from_onnx(model([node("Conv", "x w", pads=[0, 0, 1, 1])], M, {"w": K}))
    assert [n.name for n in graph.nodes] == ["x", "y~0", "y"]


def test_initialisers_may_be_listed_as_inputs() -> None:
    proto = onnx.load_from_string(model([node("MatMul", "x w")], (1, 4), {"w": W43}))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W43.shape))
    assert Graph.from_onnx(proto.SerializeToString()).output_shape == (3,)


def test_nodes_that_the_output_does_not_need_are_left_out() -> None:
    data = model([node("Sin", "x", "unused"), node("Relu", "x")], (1, 3))
    assert [n.op.kind for n in Graph.from_onnx(data).nodes] == ["Input", "Relu"]


def test_double_precision_network_stays_double() -> None:
    data = model([node("MatMul", "x w")], (1, 4), {"w": W43.astype(np.float64)}, kind=TensorProto.DOUBLE)
    graph = Graph.from_onnx(data)
    assert graph.dtype == torch.float64
    x = torch.randn(2, 4, dtype=torch.float64)
    assert_equal_within_rounding(graph(x), replay(data, graph, x), 1e-15)


def test_double_precision_weights_behind_a_cast_are_not_rounded() -> None:
    weight = np.array([[1 + 2.0**-25], [-1.0]])
    data = model([node("Cast", "x", "d", to=TensorProto.DOUBLE), node("MatMul", "d w", "z"),
                  node("Cast", "z", to=TensorProto.FLOAT)], (1, 2), {"w": weight})
    graph = Graph.from_onnx(data)
    assert graph.dtype == torch.float64
    assert float(graph(torch.ones(1, 2, dtype=torch.float64))) == 2.0**-25


def test_scaling_by_alpha_and_beta_is_the_stored_function_not_a_rounded_one() -> None:
    """In float64 the graph equals alpha A B + beta C exactly, although 0.3 C is no float32 number."""
    beta = float(np.float32(0.3))
    data = model([node("Gemm", "x w c", alpha=0.7, beta=0.3)], (1, 4), {"w": W43, "c": B3})
    graph = Graph.from_onnx(data).to(dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = float(np.float32(0.7)) * (x @ torch.from_numpy(W43).double()) + beta * torch.from_numpy(B3).double()
    torch.testing.assert_close(graph(x), expected, atol=1e-15, rtol=1e-15)


def test_division_is_not_rounded_to_a_product() -> None:
    data = model([node("Div", "x c")], (1, 1), {"c": number(0.3081)})
    graph = Graph.from_onnx(data).to(dtype=torch.float64)
    assert float(graph(torch.ones(1, 1, dtype=torch.float64))) == 1 / float(np.float32(0.3081))


@pytest.fixture
def stored() -> Callable[[], bytes]:
    return lambda: model([node("MatMul", "x w")], (1, 4), {"w": W43})


def test_paths_bytes_and_gzip_give_one_network(stored: Callable[[], bytes], tmp_path) -> None:  # type: ignore[no-untyped-def]
    import gzip

    data = stored()
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(data)
    (tmp_path / "packed.onnx.gz").write_bytes(gzip.compress(data))
    sources = [data, gzip.compress(data), plain, str(plain), tmp_path / "packed.onnx", tmp_path / "packed.onnx.gz"]
    x = torch.randn(2, 4)
    for source in sources:
        assert torch.equal(Graph.from_onnx(source)(x), Graph.from_onnx(data)(x))


def test_weights_in_other_files_are_read(stored: Callable[[], bytes], tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = stored()
    onnx.save_model(onnx.load_from_string(data), str(tmp_path / "net.onnx"), save_as_external_data=True,
                    location="weights.bin", size_threshold=0)
    x = torch.randn(2, 4)
    assert torch.equal(Graph.from_onnx(tmp_path / "net.onnx")(x), Graph.from_onnx(data)(x))
