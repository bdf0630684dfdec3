"""Tiny random graphs for tests: dense, convolutional, residual, pooled, with every activation.

They are small on purpose (at most 6 inputs, a few dozen neurons), so that dense sampling and
enumeration are oracles. The same (seed, kind, activation, dtype) always gives the same graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import method_named
from bounds.graph import Graph, Node
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.base import Elementwise, Input, Operator, Shape
from bounds.ops.clip import Clip
from bounds.ops.conv import conv_of
from bounds.ops.elu import Elu
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.prelu import PRelu
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.softplus import Softplus
from bounds.ops.tanh import Tanh
from bounds.sets import InputSet

Random = Callable[..., Tensor]

# One row an activation: (random "*shape" -> tensor, shape of the neurons) -> operator.
ACTIVATIONS: dict[str, Callable[[Random, Shape], Elementwise]] = {
    "Relu": lambda random, shape: Relu(),
    "LeakyRelu": lambda random, shape: LeakyRelu(float(random(1)) * 0.3),
    "PRelu": lambda random, shape: PRelu(random(shape[0], *(1,) * (len(shape) - 1)) * 0.7),
    "Clip": lambda random, shape: Clip(-1.0 + float(random(1)) * 0.3, 1.0),
    "Relu6": lambda random, shape: Clip(0.0, 2.0),
    "Elu": lambda random, shape: Elu(1.0),
    "SteepElu": lambda random, shape: Elu(1.8),
    "Softplus": lambda random, shape: Softplus(2.0),
    "Sigmoid": lambda random, shape: Sigmoid(),
    "Tanh": lambda random, shape: Tanh(),
}


class GraphBuilder:
    """Collects nodes; shapes come from running each operator on zeros."""

    def __init__(self, input_shape: Shape, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes = [Node("x", Input(), (), input_shape)]

    def add(self, op: Operator, *inputs: int) -> int:
        """Append the operator (reading the last node unless told); its index."""
        sources = inputs or (len(self.nodes) - 1,)
        zeros = (torch.zeros(1, *self.nodes[i].shape, dtype=self.dtype) for i in sources)
        self.nodes.append(Node(f"{op.kind}_{len(self.nodes)}", op, sources, tuple(op.forward(*zeros).shape[1:])))
        return len(self.nodes) - 1

    @property
    def shape(self) -> Shape:
        return self.nodes[-1].shape

    def graph(self, source: str = "graph") -> Graph:
        return Graph(tuple(self.nodes), len(self.nodes) - 1, source=source)


class _Layers:
    """Random layers on top of a builder."""

    def __init__(self, seed: int, activation: str, input_shape: Shape, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.activation_name = activation
        self.build = GraphBuilder(input_shape, dtype)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.build.dtype)

    def choice(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def flatten(self) -> None:
        if len(self.build.shape) > 1:
            self.build.add(Reshape((torch.Size(self.build.shape).numel(),)))

    def dense(self, width: int) -> int:
        fan_in = self.build.shape[-1]
        return self.build.add(Linear(self.random(width, fan_in) * (2 / fan_in) ** 0.5, self.random(width) * 0.5))

    def conv(self, channels: int, **settings: Any) -> int:
        shape = self.build.shape
        weight = self.random(channels, shape[0] // settings.get("groups", 1), *(2,) * (len(shape) - 1))
        bias = self.random(channels) * 0.3 if self.choice(0, 1) else None
        return self.build.add(conv_of(weight * (2 / weight[0].numel()) ** 0.5, bias, **settings))

    def activation(self) -> int:
        names = sorted(ACTIVATIONS)
        name = names[self.choice(0, len(names) - 1)] if self.activation_name == "mixed" else self.activation_name
        return self.build.add(ACTIVATIONS[name](self.random, self.build.shape))


def _dense(net: _Layers) -> None:
    for _ in range(net.choice(1, 3)):
        net.dense(net.choice(2, 5))
        net.activation()
    net.dense(net.choice(1, 3))


def _conv(net: _Layers) -> None:
    net.conv(2, padding=(1, 1), stride=(net.choice(1, 2),) * 2)
    net.activation()
    net.conv(2, groups=net.choice(1, 2), dilation=(1, net.choice(1, 2)), padding=(1, 1))
    net.activation()
    net.flatten()
    net.dense(net.choice(1, 3))


def _residual(net: _Layers) -> None:
    """A dense block y = f(x) + s*x, one y = f(x) - g(x), and a node that is read three times."""
    width = net.choice(2, 4)
    net.dense(width)
    skip = net.activation()
    net.dense(width)
    net.activation()
    block = net.dense(width)
    scaled = net.build.add(Scale(net.random(width), net.random(width)), skip)
    joined = net.build.add(Add(1), block, scaled)
    first = net.activation()
    net.build.add(Linear(net.random(width, width) * 0.5, None), joined)
    second = net.activation()
    net.build.add(Add(-1), first, second)
    net.build.add(Add(1), len(net.build.nodes) - 1, skip)
    net.dense(net.choice(1, 3))


def _pooling(net: _Layers) -> None:
    net.conv(2, padding=(1, 1))
    net.activation()
    kernel = (net.choice(2, 3), 2)
    net.build.add(MaxPool(kernel, (net.choice(1, 2), 2), (1, net.choice(0, 1)), (1, 1), bool(net.choice(0, 1))))
    net.flatten()
    net.dense(net.choice(2, 4))
    net.activation()
    net.dense(net.choice(1, 3))


_KINDS: dict[str, tuple[Shape, Callable[[_Layers], None]]] = {
    "dense": ((3,), _dense),
    "conv": ((1, 2, 3), _conv),
    "residual": ((3,), _residual),
    "pooling": ((1, 2, 3), _pooling),
}
KINDS = tuple(_KINDS)


def random_graph(seed: int, kind: str = "dense", activation: str = "Relu",
                 dtype: torch.dtype = torch.float64) -> Graph:
    """A tiny graph of one of KINDS; `activation` is a row of ACTIVATIONS or "mixed" (one drawn a layer)."""
    input_shape, make = _KINDS[kind]
    net = _Layers(seed, activation, input_shape, dtype)
    make(net)
    return net.build.graph(f"{kind}/{activation}/{seed}")


def random_box(graph: Graph, seed: int, batch: int = 1, radius: float = 0.5) -> InputSet:
    """Boxes around random centres with a random radius a feature, up to `radius`; about a quarter of the
    features are fixed (lower = upper), though never all of them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *graph.input_shape)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64)
    width = torch.rand(shape, generator=generator, dtype=torch.float64) * radius
    moves = torch.rand(graph.input_shape, generator=generator) > 0.25
    moves.view(-1)[0] = True
    width = width * moves
    return InputSet((centre - width).to(graph.dtype), (centre + width).to(graph.dtype))


def samples(sets: InputSet, count: int, seed: int = 0) -> Tensor:
    """Points of the boxes, "B count *shape": all corners of the box where these are few (a random choice of
    them otherwise), the centre, and uniform points."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = sets.lower.flatten(1), sets.upper.flatten(1)
    features = lower.shape[1]
    if features <= 8:
        corner = (torch.arange(2**features)[:, None] >> torch.arange(features)) & 1
    else:
        corner = torch.randint(0, 2, (256, features), generator=generator)
    weight = torch.cat([corner.to(torch.float64), torch.full((1, features), 0.5, dtype=torch.float64),
                        torch.rand((count, features), generator=generator, dtype=torch.float64)])
    x = torch.lerp(lower[:, None].double(), upper[:, None].double(), weight).to(lower.dtype)
    x = torch.minimum(torch.maximum(x, lower[:, None]), upper[:, None])
    return x.reshape(x.shape[0], -1, *sets.shape)


def graphs(kinds: tuple[str, ...] = KINDS, activations: tuple[str, ...] | None = None,
           dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Graph]:
    """Hypothesis strategy: tiny graphs of the given kinds and activations ("mixed" included by default)."""
    names = activations or (*ACTIVATIONS, "mixed")
    return st.builds(random_graph, st.integers(0, 2**31 - 1), st.sampled_from(kinds), st.sampled_from(names),
                     st.just(dtype))


def graphs_with_boxes(kinds: tuple[str, ...] = KINDS, activations: tuple[str, ...] | None = None,
                      dtype: torch.dtype = torch.float64, batch: int = 2) -> st.SearchStrategy[tuple[Graph, InputSet]]:
    """Hypothesis strategy: a graph and a batch of input boxes for it."""
    return st.tuples(graphs(kinds, activations, dtype), st.integers(0, 2**31 - 1),
                     st.sampled_from((0.01, 0.3, 2.0))).map(
        lambda drawn: (drawn[0], random_box(drawn[0], drawn[1], batch, drawn[2])))


def intervals_by(method: str, graph: Graph, sets: InputSet) -> dict[int, Interval]:
    """The intermediate bounds that a method proves on its way to the output."""
    size = torch.Size(graph.output_shape).numel()
    rows = LinearRows(torch.eye(size, dtype=graph.dtype).repeat(sets.batch, 1),
                      torch.arange(sets.batch).repeat_interleave(size))
    return method_named(method).bound(graph, sets, rows).intervals
