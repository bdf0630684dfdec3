"""Tiny ONNX models for tests, and their values by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bounds.graph import Graph

Weights = dict[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """`inputs` and `outputs` separated by blanks; `-` is an input left out."""
    return helper.make_node(op_type, ["" if i == "-" else i for i in inputs.split()], outputs.split(), **attributes)


def model(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str | None] | None, weights: Weights | None = None, *,
          opset: int = 13, outputs: Sequence[str] = ("y",), inputs: Sequence[str] = ("x",),
          kind: int = TensorProto.FLOAT) -> bytes:
    declared = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
    results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "test", declared, results, stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 8
    return proto.SerializeToString()


def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Fused kernels round differently; the unoptimised graph is the stored function, node by node.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def replay(data: bytes, graph: Graph, x: Tensor) -> Tensor:
    """onnxruntime's values at x "B *shape", one by one at the stored input shape: "B m"."""
    runtime = session(data)
    assert graph.onnx_input_shape is not None, "graphs from ONNX know the stored shape"
    name = runtime.get_inputs()[0].name
    rows = [runtime.run(None, {name: row.numpy().reshape(graph.onnx_input_shape)})[0] for row in x]
    return torch.from_numpy(np.stack([np.asarray(r).reshape(-1) for r in rows]))


def assert_equal_within_rounding(got: Tensor, expected: Tensor, relative: float) -> None:
    """`|got - expected| <= relative * max|expected|`: sums in another order err in proportion to the largest terms, not
    to each result."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} against {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-6)
    error = float((got - expected).abs().max())
    assert error <= relative * scale, f"differs by {error:.2e}, largest value {scale:.2e}"
