"""Tiny ONNX files and VNN-LIB texts for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_network(path: Path, layers: list[tuple[np.ndarray, np.ndarray]], *, last: str | None = None) -> Path:
    """A dense ReLU network "1 n -> 1 m" (no ReLU after the last layer); `last` appends one more operator."""
    nodes, weights, current = [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        weights += [numpy_helper.from_array(np.asarray(weight, np.float32), f"W{i}"),
                    numpy_helper.from_array(np.asarray(bias, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [current, f"W{i}", f"b{i}"], [f"z{i}"], f"gemm{i}", transB=1))
        current = f"z{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [current], [f"a{i}"], f"relu{i}"))
            current = f"a{i}"
    if last:
        nodes.append(helper.make_node(last, [current], ["last"], f"the_{last}"))
        current = "last"
    inputs, outputs = np.shape(layers[0][0])[1], np.shape(layers[-1][0])[0]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, [1, outputs])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def absolute_value(path: Path) -> Path:
    """Y_0 = |X_0|, Y_1 = 1: two ReLUs, and an exact answer for every interval."""
    return save_network(path, [(np.array([[1.0], [-1.0]]), np.zeros(2)),
                               (np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0.0, 1.0]))])


def spec(box: list[tuple[float, float]], outputs: int, *asserts: str) -> str:
    """A VNN-LIB text: a box over the inputs and assertions over the outputs."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(box):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    return "\n".join([*lines, *(f"(assert {a})" for a in asserts)]) + "\n"
