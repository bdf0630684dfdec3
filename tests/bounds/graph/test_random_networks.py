"""Random small ONNX networks against onnxruntime, as read, simplified, and with nodes in every shape of graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounds.graph import Graph
from bounds.graph.builder import held
from tests.bounds.graph.models import integers, model, node, replay

# Relative to the largest value in the network: sums of some hundred terms over at most ten layers.
ROUNDING = 5e-6
MAX_ENTRIES = 600

Shape = tuple[int, ...]


class Net:
    """A network being drawn: the tensors so far with their shapes."""

    def __init__(self, draw: Callable, shape: Shape) -> None:  # type: ignore[type-arg]
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.tensors: list[tuple[str, Shape]] = [("x", shape)]
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        self.weights[name] = (scale * self.rng.standard_normal(shape)).astype(np.float32)
        return name

    def indices(self, *values: int) -> str:
        name = f"i{len(self.weights)}"
        self.weights[name] = integers(*values)
        return name

    def add(self, op_type: str, inputs: str, shape: Shape, **attributes: object) -> None:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(op_type, inputs, name, **attributes))
        self.tensors.append((name, shape))


def dense(net: Net, x: str, shape: Shape) -> None:
    out = net.integer(1, 6)
    if len(shape) == 2 and net.draw(st.booleans()):
        net.add("Gemm", f"{x} {net.weight(out, shape[-1])} {net.weight(out)}", (shape[0], out), transB=1)
    else:
        net.add("MatMul", f"{x} {net.weight(shape[-1], out)}", (*shape[:-1], out))


def left_product(net: Net, x: str, shape: Shape) -> None:
    if len(shape) >= 2:
        out = net.integer(1, 5)
        net.add("MatMul", f"{net.weight(out, shape[-2])} {x}", (*shape[:-2], out, shape[-1]))


def constant(net: Net, x: str, shape: Shape) -> None:
    axes = net.integer(0, len(shape))
    c = tuple(n if net.draw(st.booleans()) else 1 for n in shape[len(shape) - axes:])
    op = net.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    name = net.weight(*c)
    if op == "Div":
        net.weights[name] = np.sign(net.weights[name]) * (np.abs(net.weights[name]) + np.float32(0.5))
        net.add(op, f"{x} {name}", shape)
    else:
        net.add(op, net.draw(st.sampled_from([f"{x} {name}", f"{name} {x}"])), shape)


def activation(net: Net, x: str, shape: Shape) -> None:
    net.add(net.draw(st.sampled_from(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Identity"])), x, shape)


def join(net: Net, x: str, shape: Shape) -> None:
    others = [name for name, s in net.tensors if s == shape]
    net.add(net.draw(st.sampled_from(["Add", "Sub"])), f"{x} {net.draw(st.sampled_from(others))}", shape)


def concat(net: Net, x: str, shape: Shape) -> None:
    axis = net.integer(0, len(shape) - 1)
    others = [name for name, s in net.tensors if s == shape]
    joined = tuple(2 * n if i == axis else n for i, n in enumerate(shape))
    net.add("Concat", f"{x} {net.draw(st.sampled_from(others))}", joined, axis=axis)


def conv(net: Net, x: str, shape: Shape) -> None:
    if len(shape) < 3 or shape[0] != 1:
        return
    axes, groups = len(shape) - 2, net.draw(st.sampled_from([g for g in (1, 2, 3) if shape[1] % g == 0]))
    out = groups * net.integer(1, 3)
    kernel = [net.integer(1, min(3, n)) for n in shape[2:]]
    stride = [net.integer(1, 3) for _ in kernel]
    pads = [net.integer(0, 1) for _ in range(2 * axes)]
    sizes = [(n + pads[i] + pads[i + axes] - kernel[i]) // stride[i] + 1 for i, n in enumerate(shape[2:])]
    net.add("Conv", f"{x} {net.weight(out, shape[1] // groups, *kernel)} {net.weight(out)}", (1, out, *sizes),
            group=groups, strides=stride, pads=pads)


def transposed_conv(net: Net, x: str, shape: Shape) -> None:
    if len(shape) < 3 or shape[0] != 1:
        return
    out = net.integer(1, 3)
    kernel, stride = [net.integer(1, 3) for _ in shape[2:]], [net.integer(1, 2) for _ in shape[2:]]
    sizes = [(n - 1) * s + k for n, s, k in zip(shape[2:], stride, kernel, strict=True)]
    net.add("ConvTranspose", f"{x} {net.weight(shape[1], out, *kernel)} {net.weight(out)}", (1, out, *sizes),
            strides=stride)


def normalise(net: Net, x: str, shape: Shape) -> None:
    if len(shape) < 2 or shape[0] != 1:
        return
    names = [net.weight(shape[1]) for _ in range(4)]
    net.weights[names[3]] = np.abs(net.weights[names[3]]) + np.float32(0.1)
    net.add("BatchNormalization", f"{x} {' '.join(names)}", shape, epsilon=1e-3)


def pool(net: Net, x: str, shape: Shape) -> None:
    if len(shape) < 3 or shape[0] != 1:
        return
    kernel = [net.integer(1, min(3, n)) for n in shape[2:]]
    sizes = [(n - k) // 2 + 1 for n, k in zip(shape[2:], kernel, strict=True)]
    net.add(net.draw(st.sampled_from(["AveragePool", "MaxPool"])), x, (*shape[:2], *sizes), kernel_shape=kernel,
            strides=[2] * len(kernel))


def transpose(net: Net, x: str, shape: Shape) -> None:
    perm = net.draw(st.permutations(range(len(shape))))
    net.add("Transpose", x, tuple(shape[p] for p in perm), perm=perm)


def reshape(net: Net, x: str, shape: Shape) -> None:
    total = math.prod(shape)
    first = net.draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
    new = net.draw(st.sampled_from([(total,), (1, total), (first, total // first), (1, first, total // first),
                                    (1, first, 1, total // first)]))
    net.add("Reshape", f"{x} {net.indices(*new)}", new)


def select(net: Net, x: str, shape: Shape) -> None:
    axis = net.integer(0, len(shape) - 1)
    chosen = net.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=4))
    net.add("Gather", f"{x} {net.indices(*chosen)}", (*shape[:axis], len(chosen), *shape[axis + 1:]), axis=axis)


def cut(net: Net, x: str, shape: Shape) -> None:
    axis = net.integer(0, len(shape) - 1)
    start = net.integer(0, shape[axis] - 1)
    stop = net.integer(start + 1, shape[axis])
    step = net.integer(1, 2)
    size = len(range(start, stop, step))
    net.add("Slice", f"{x} {net.indices(start)} {net.indices(stop)} {net.indices(axis)} {net.indices(step)}",
            (*shape[:axis], size, *shape[axis + 1:]))


def reduce(net: Net, x: str, shape: Shape) -> None:
    axis, keep = net.integer(0, len(shape) - 1), net.draw(st.booleans())
    if len(shape) > 1:
        rest = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1:])
        net.add("ReduceMean", x, rest, axes=[axis], keepdims=int(keep))


def pad(net: Net, x: str, shape: Shape) -> None:
    pads = [net.integer(0, 1) for _ in range(2 * len(shape))]
    grown = tuple(n + pads[i] + pads[i + len(shape)] for i, n in enumerate(shape))
    net.add("Pad", f"{x} {net.indices(*pads)}", grown)


STEPS = [dense, left_product, constant, activation, join, concat, conv, transposed_conv, normalise, pool, transpose,
         reshape, select, cut, reduce, pad]
SHAPES: list[Shape] = [(1, 4), (1, 2, 5), (1, 2, 5, 4), (1, 4, 4, 3), (3, 4), (1, 1, 6), (4,)]


@st.composite
def networks(draw: Callable) -> bytes:  # type: ignore[type-arg]
    net = Net(draw, draw(st.sampled_from(SHAPES)))
    for _ in range(draw(st.integers(4, 12))):
        small = [t for t in net.tensors if math.prod(t[1]) <= MAX_ENTRIES]
        # mostly a chain, at times a branch
        x, shape = small[-1] if draw(st.booleans()) else draw(st.sampled_from(small))
        draw(st.sampled_from(STEPS))(net, x, shape)
    net.nodes.append(node("Identity", net.tensors[-1][0]))
    return model(net.nodes, net.tensors[0][1], net.weights)


@given(networks())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_network_equals_onnxruntime(data: bytes) -> None:
    graph = Graph.from_onnx(data)
    x = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    values = graph.values(x)
    assert [tuple(v.shape[1:]) for v in values] == [n.shape for n in graph.nodes]
    scale = max(float(v.abs().max()) for v in values)
    expected = replay(data, graph, x)
    for twin in (graph, graph.simplify()):
        assert len(twin.nodes) <= len(graph.nodes)
        torch.testing.assert_close(twin(x).reshape(2, -1), expected, atol=ROUNDING * scale, rtol=0)


@given(networks())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_network_pulls_back_to_its_gradient(data: bytes) -> None:
    """Through the affine operators of a random graph, chained pull-backs are reverse-mode differentiation."""
    from bounds.ops.base import Affine, Input

    graph = Graph.from_onnx(data).to(dtype=torch.float64).simplify()
    for i, n in enumerate(graph.nodes):
        if isinstance(n.op, Input) or not isinstance(n.op, Affine):
            continue
        shapes = tuple(graph.nodes[j].shape for j in n.inputs)
        xs = [torch.randn(2, *s, dtype=torch.float64, requires_grad=True) for s in shapes]
        y = n.op.forward(*xs)
        A = torch.randn_like(y)
        wanted = torch.autograd.grad(y, xs, A, materialize_grads=True)
        for got, want in zip(n.op.pull_back(A, shapes), wanted, strict=True):
            torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10, msg=lambda m, i=i: f"node {i}: {m}")


def test_held_drops_only_a_leading_one() -> None:
    assert [held(s) for s in [(), (1,), (5,), (1, 5), (5, 1), (1, 1), (2, 1, 3)]] == \
        [(1,), (1,), (5,), (5,), (5, 1), (1,), (2, 1, 3)]
