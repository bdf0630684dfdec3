"""Bounds of what float32 makes of a network, node by node: they hold for every order of summation, where bounds over
the reals do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bounds import Graph
from bounds.bounds import LinearRows
from bounds.compute import METHODS, PRICED_METHODS, compute_bounds
from bounds.files import read_bytes
from bounds.graph import UnsupportedOperator
from bounds.ibp import propagate
from bounds.ops.avg_pool import AvgPool
from bounds.ops.base import Affine, Elementwise, Operator
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.reduce import Reduce
from bounds.ops.relu import Relu
from bounds.ops.round_off import gamma, unit
from bounds.sets import InputSet
from tests.bounds.networks import KINDS, GraphBuilder, random_box, random_graph, samples
from verifier.witness import OnnxReplayer

F32 = torch.float32


def in_any_order(op: Linear, x: Tensor, generator: torch.Generator) -> Tensor:
    """A dense layer in float32, its terms in a random order, with or without fused multiply-adds."""
    terms = x.shape[-1] + (op.bias is not None)
    order = torch.randperm(terms, generator=generator).tolist()
    fused = bool(torch.randint(2, (), generator=generator))
    total = torch.zeros(*x.shape[:-1], op.weight.shape[0], dtype=F32)
    for k in order:
        if k == x.shape[-1]:
            assert op.bias is not None
            total = total + op.bias
        elif fused:  # exact products, one rounding
            total = (total.double() + x[..., k:k + 1].double() * op.weight[:, k].double()).float()
        else:
            total = total + x[..., k:k + 1] * op.weight[:, k]
    return total


def at_its_worst(graph: Graph, i: int, inputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """A node with an error that its arithmetic may have, of random sign and of about the largest size, in float64."""
    node = graph.nodes[i]
    exact = node.op.to(dtype=torch.float64).forward(*inputs)
    sign = torch.randint(0, 2, exact.shape, generator=generator).double() * 2 - 1
    if isinstance(node.op, Elementwise):
        return exact + sign * node.op.ulps * 2 * unit(F32) * exact.abs().clamp(min=1)
    if not isinstance(node.op, Affine):
        return exact
    terms = node.op.terms(tuple(graph.nodes[j].shape for j in node.inputs), node.shape)
    if not terms:
        return exact
    wide = node.op.to(dtype=torch.float64)
    assert isinstance(wide, Affine)
    size = wide.magnitude(*(t.abs() for t in inputs))
    offset = wide.offset_size(tuple(graph.nodes[j].shape for j in node.inputs))
    size = size if offset is None else size + offset
    return exact + sign * gamma(terms, F32) * size


def values(graph: Graph, x: Tensor, how: Callable[[int, list[Tensor]], Tensor]) -> list[Tensor]:
    found = [x]
    for i, node in enumerate(graph.nodes[1:], 1):
        found.append(how(i, [found[j] for j in node.inputs]))
    return found


def evaluations(graph: Graph, x: Tensor, seed: int) -> list[list[Tensor]]:
    """Values "P *shape" of every node (float64) at float32 points x, as float32 may compute them."""
    generator = torch.Generator().manual_seed(seed)

    def plain(i: int, inputs: list[Tensor]) -> Tensor:
        op = graph.nodes[i].op
        return in_any_order(op, inputs[0], generator) if isinstance(op, Linear) else op.forward(*inputs)
    found = [values(graph, x, plain) for _ in range(3)]
    found += [values(graph, x.double(), lambda i, inputs: at_its_worst(graph, i, inputs, generator)) for _ in range(3)]
    return [[v.double() for v in one] for one in found]


def single_graph(seed: int, kind: str, activation: str) -> Graph:
    """A random graph all of whose numbers are float32 numbers."""
    graph = random_graph(seed, kind, activation, F32)

    def single(op: Operator) -> Operator:
        return replace(op, **{f.name: float(np.float32(getattr(op, f.name))) for f in fields(op)
                              if isinstance(getattr(op, f.name), float)})
    return replace(graph, nodes=tuple(replace(node, op=single(node.op)) for node in graph.nodes))


def as_evaluated(graph: Graph) -> Graph:
    """The graph with float32's noise, and parameters in float64."""
    return graph.evaluated_in(F32).to(dtype=torch.float64)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Softplus"])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_however_float32_evaluates(kind: str, activation: str) -> None:
    for seed in range(3):
        graph = single_graph(seed, kind, activation)
        box = random_box(graph, seed)
        wide = InputSet(box.lower.double(), box.upper.double())
        noisy = as_evaluated(graph)
        x = samples(box, 40, seed)[0]
        runs = evaluations(graph, x, seed)
        for i, interval in enumerate(propagate(noisy, wide)):
            for run in runs:
                assert bool(((interval.lower <= run[i]) & (run[i] <= interval.upper)).all()), (seed, i)
        C = torch.randn(4, noisy.nodes[noisy.output].shape[0], generator=torch.Generator().manual_seed(seed)).double()
        for method in PRICED_METHODS:
            lower = compute_bounds(noisy, wide, LinearRows(C), method).lower
            for run in runs:
                assert bool((run[-1] @ C.T >= lower).all()), (seed, method)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_point_bounds_over_the_reals_do_not_hold(kind: str) -> None:
    """Without the noise the same bounds are wrong: the tests above could fail."""
    missed = 0
    for seed in range(4):
        graph = single_graph(seed, kind, "LeakyRelu")
        x = samples(random_box(graph, seed), 8, seed)[0]
        noisy = as_evaluated(graph)
        point = InputSet(x.double(), x.double())
        for run in evaluations(graph, x, seed):
            over_reals = propagate(replace(noisy, arithmetic=None), point)[graph.output]
            missed += int(((run[-1] < over_reals.lower) | (run[-1] > over_reals.upper)).sum())
            inside = propagate(noisy, point)[graph.output]
            assert bool(((inside.lower <= run[-1]) & (run[-1] <= inside.upper)).all())
    assert missed > 0


def test_large_terms_that_cancel_are_all_noise() -> None:
    build = GraphBuilder((2,), F32)
    build.add(Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([2.0 ** 30, 0.0, 2.0 ** 30])))
    build.add(Relu())
    build.add(Linear(torch.tensor([[1.0, 1.0, -1.0]])))
    graph = build.graph()
    box = InputSet(torch.ones(1, 2, dtype=torch.float64), 2 * torch.ones(1, 2, dtype=torch.float64))
    noisy = as_evaluated(graph)
    row = LinearRows(torch.ones(1, 1, dtype=torch.float64))
    assert float(compute_bounds(replace(noisy, arithmetic=None), box, row, "crown").lower) > 1.9
    assert float(compute_bounds(noisy, box, row, "crown").lower) < 0.0, "float32 may give 1, or even less"
    assert float(graph(torch.ones(1, 2))) < 1.5


def test_what_may_overflow_is_not_bounded() -> None:
    build = GraphBuilder((1,), F32)
    build.add(Linear(torch.tensor([[2.0 ** 100]])))
    build.add(Linear(torch.tensor([[2.0 ** 27]])))
    build.add(Linear(torch.tensor([[2.0 ** -120]])))
    graph = build.graph()
    box = InputSet(torch.ones(1, 1, dtype=torch.float64), 2 * torch.ones(1, 1, dtype=torch.float64))
    row = LinearRows(torch.ones(1, 1, dtype=torch.float64))
    for method in PRICED_METHODS:
        assert not float(compute_bounds(as_evaluated(graph), box, row, method).lower) > -torch.inf, method


def test_batch_norm_is_noisy_in_each_of_its_parts() -> None:
    """Its mean may be as large as what it normalises: the difference is small, and its noise is not."""
    build = GraphBuilder((1, 2), F32)
    norm = BatchNorm(torch.ones(1), torch.zeros(1), torch.full((1,), 1000.25), torch.full((1,), 1e-4), 1e-5)
    build.add(norm)
    graph = build.graph()
    x = torch.tensor([[[1000.0, 1000.5]]])
    interval = propagate(as_evaluated(graph), InputSet(x.double(), x.double()))[1]
    other_order = x * norm._factor() + (norm.bias - norm.mean * norm._factor())
    for value in (graph(x), other_order):
        assert bool(((interval.lower <= value) & (value <= interval.upper)).all())
    assert float((graph(x) - other_order).abs().max()) > 0


def test_only_methods_that_pay_for_rounding_bound_it() -> None:
    noisy = as_evaluated(random_graph(0, "dense", "Relu", F32))
    box = random_box(noisy, 0)
    for method in set(METHODS) - set(PRICED_METHODS):
        with pytest.raises(ValueError, match="rounding"):
            compute_bounds(noisy, box, method=method)


def test_what_is_not_the_stored_network_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="slope"):
        random_graph(0, "dense", "LeakyRelu", F32).evaluated_in(F32)
    with pytest.raises(UnsupportedOperator, match="float64"):
        random_graph(0, "dense", "Relu", torch.float64).evaluated_in(F32)
    build = GraphBuilder((1, 3), F32)
    build.add(BatchNorm(torch.full((1,), 0.3), torch.zeros(1), torch.full((1,), 0.7), torch.ones(1)))
    build.add(Relu())
    folded = build.graph().simplify()
    assert folded.fold_errors
    with pytest.raises(UnsupportedOperator, match="folded"):
        folded.evaluated_in(F32)
    kept = build.graph().simplify(fold=False)
    assert not kept.fold_errors and isinstance(kept.nodes[1].op, BatchNorm)
    kept.evaluated_in(F32)


def constant_product(op_type: str) -> bytes:
    """y = x + op(A, B) with constants A, B."""
    a = numpy_helper.from_array(np.full((2, 2), 0.1, np.float32), "A")
    b = numpy_helper.from_array(np.full((2, 2), 0.7, np.float32), "B")
    nodes = [helper.make_node(op_type, ["A", "B"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])], [a, b])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def test_constants_that_a_runtime_computes_must_be_determined() -> None:
    Graph.from_onnx(constant_product("Mul")).evaluated_in(F32)
    with pytest.raises(UnsupportedOperator, match="'c'"):
        Graph.from_onnx(constant_product("MatMul")).evaluated_in(F32)


RUNTIME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Tanh": np.tanh,
    "Softplus": lambda v: np.logaddexp(0, v),
    "Elu": lambda v: np.where(v >= 0, v, np.expm1(np.minimum(v, 0))),
    "LeakyRelu": lambda v: np.where(v >= 0, v, float(np.float32(0.01)) * v),
    "Relu": lambda v: np.maximum(v, 0),
}


@pytest.mark.parametrize("name", RUNTIME)
def test_a_runtimes_activations_are_within_the_stated_units(name: str) -> None:
    nodes = [helper.make_node(name, ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 400_002])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 400_002])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    op = Graph.from_onnx(model.SerializeToString()).nodes[1].op
    assert isinstance(op, Elementwise)
    bits = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([np.where(np.isfinite(bits), bits, 0), np.linspace(-30, 30, 100_002, dtype=np.float32)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x.reshape(1, -1)})[0].reshape(-1).astype(np.float64)
    with np.errstate(over="ignore"):
        exact = RUNTIME[name](x.astype(np.float64))
    error = np.abs(y - exact) / np.maximum(1, np.abs(exact)) / (2 * unit(F32))
    assert error.max() <= op.ulps, f"{name}: {error.max()} units at {x[error.argmax()]}"


def test_the_fused_twin_of_a_file_lies_in_the_noise() -> None:
    """onnxruntime folds a normalisation into the convolution before it: what it then computes is covered."""
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(size=(4, 3, 3, 3)), "s": rng.uniform(0.5, 2, 4), "b": rng.normal(size=4) * 10,
               "m": rng.normal(size=4) * 10, "v": rng.uniform(0.01, 2, 4)}
    nodes = [helper.make_node("Conv", ["x", "W"], ["c"], kernel_shape=[3, 3]),
             helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
                              [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    onnx.checker.check_model(data)
    noisy = as_evaluated(Graph.from_onnx(data).simplify(fold=False))
    answers = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        x = rng.normal(size=(20, 1, 3, 6, 6)).astype(np.float32)
        for point in x:
            y = torch.from_numpy(session.run(None, {"x": point})[0]).double()
            wide = torch.from_numpy(point).double()
            interval = propagate(noisy, InputSet(wide, wide))[noisy.output]
            assert bool(((interval.lower <= y) & (y <= interval.upper)).all())
            real = propagate(replace(noisy, arithmetic=None), InputSet(wide, wide))[noisy.output]
            answers.append(bool(((real.lower <= y) & (y <= real.upper)).all()))
    assert not all(answers), "over the reals it lies elsewhere"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["acasxu", "cora", "cifar10_resnet_2021", "eran_2021", "mnist_fc", "oval21",
                                  "rl_benchmarks", "sat_relu", "sri_resnet_a", "tllverifybench", "verivital_2021"])
def test_a_runtime_stays_inside_the_noise_of_real_networks(name: str, shared: Path) -> None:
    """With and without its optimisations; over the reals its values lie elsewhere."""
    folder = shared / "vnncomp" / name
    path = min((p for p in (folder / "onnx").rglob("*") if p.name.endswith((".onnx", ".onnx.gz"))),
               key=lambda p: p.stat().st_size)
    data = read_bytes(path)
    graph = Graph.from_onnx(data).simplify(fold=False)
    noisy = as_evaluated(graph)
    x = torch.rand(3, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    inside = propagate(noisy, InputSet(x.double(), x.double()))[noisy.output].map(lambda t: t.flatten(1))
    real = propagate(replace(noisy, arithmetic=None), InputSet(x.double(), x.double()))[noisy.output]
    real = real.map(lambda t: t.flatten(1))
    outside = 0
    for optimised in (True, False):
        y = torch.from_numpy(OnnxReplayer(data, optimised=optimised).run(x.numpy())).double()
        assert bool(((inside.lower <= y) & (y <= inside.upper)).all())
        outside += int(((y < real.lower) | (y > real.upper)).sum())
    assert outside > 0


OVERFLOWING = [AvgPool((2, 2), (2, 2), (0, 0), (0, 0)), Reduce((1, 2), True, True),
               BatchNorm(torch.full((1,), 1e-8), None, torch.full((1,), -3e38), torch.ones(1)), LeakyRelu(2.0 ** 20)]


@pytest.mark.parametrize("op", OVERFLOWING, ids=lambda op: op.kind)
def test_what_overflows_on_the_way_to_a_modest_value_is_not_bounded(op: Operator) -> None:
    build = GraphBuilder((1, 2, 2), F32)
    build.add(op)
    graph = build.graph()
    x = torch.full((1, 1, 2, 2), -2e38 if isinstance(op, LeakyRelu) else 2e38)
    assert not bool(torch.isfinite(graph(x)).any()), "float32 overflows"
    wide = InputSet(x.double(), x.double())
    real = propagate(replace(as_evaluated(graph), arithmetic=None), wide)[1]
    assert bool(torch.isfinite(real.lower).all())
    row = LinearRows(torch.eye(torch.Size(graph.output_shape).numel(), dtype=torch.float64)[:1])
    for method in PRICED_METHODS:
        assert not float(compute_bounds(as_evaluated(graph), wide, row, method).lower) > -torch.inf, method
