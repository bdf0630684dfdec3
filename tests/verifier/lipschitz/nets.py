"""Small networks for tests of ranges: two inputs over [0, 10]^2, dense or convolutional, and a spike."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.base import Elementwise
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.tanh import Tanh
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder

ACTIVATIONS: dict[str, type[Elementwise]] = {"relu": Relu, "sigmoid": Sigmoid, "tanh": Tanh}


def dense(seed: int, *, activation: str = "relu", inputs: int = 2, widths: tuple[int, ...] = (8, 8), outputs: int = 3,
          dtype: torch.dtype = torch.float64) -> Graph:
    random = torch.Generator().manual_seed(seed)
    build = GraphBuilder((inputs,), dtype)
    for width in (*widths, outputs):
        weight = torch.randn(width, build.shape[0], generator=random, dtype=torch.float64) * build.shape[0] ** -0.5
        build.add(Linear(weight.to(dtype), torch.randn(width, generator=random, dtype=torch.float64).to(dtype)))
        build.add(ACTIVATIONS[activation]())
    nodes = tuple(build.nodes[:-1])
    return Graph(nodes, len(nodes) - 1)


def conv(seed: int) -> Graph:
    """Two channels of a 1 x 2 x 2 picture, of which tests move two pixels."""
    random = torch.Generator().manual_seed(seed)
    build = GraphBuilder((1, 2, 2), torch.float64)
    build.add(conv_of(torch.randn(2, 1, 2, 2, generator=random, dtype=torch.float64) * 0.3,
                      torch.randn(2, generator=random, dtype=torch.float64), padding=(1, 1)))
    build.add(Relu())
    build.add(Reshape((torch.Size(build.shape).numel(),)))
    build.add(Linear(torch.randn(3, build.shape[0], generator=random, dtype=torch.float64) * 0.3, None))
    return build.graph()


def spike(at: float = 3.21, *, slope: float = 2000.0, inputs: int = 1) -> Graph:
    """max(0, 1 - slope * sum_i |x_i - at|): zero but for a peak of height one."""
    build = GraphBuilder((inputs,), torch.float64)
    eye = torch.eye(inputs, dtype=torch.float64)
    build.add(Linear(torch.cat([eye, -eye]), torch.cat([-at * torch.ones(inputs), at * torch.ones(inputs)]).double()))
    build.add(Relu())
    build.add(Linear(-slope * torch.ones(1, 2 * inputs, dtype=torch.float64), torch.ones(1, dtype=torch.float64)))
    build.add(Relu())
    return build.graph()


def square(graph: Graph, low: float = 0.0, high: float = 10.0, *, moving: tuple[int, ...] = (0, 1), fixed: float = 1.0
           ) -> InputSet:
    """The box where some features move over [low, high] and the others stay."""
    ends = []
    for end in (low, high):
        flat = torch.full((torch.Size(graph.input_shape).numel(),), fixed, dtype=graph.dtype)
        flat[list(moving)] = end
        ends.append(flat.view(1, *graph.input_shape))
    return InputSet(ends[0], ends[1])


def grid(box: InputSet, count: int = 201) -> Tensor:
    """All points of an even grid over the two features that move, ends included: "P *shape"."""
    free = (box.lower < box.upper).flatten().nonzero().flatten()
    axes = [torch.linspace(float(box.lower.flatten()[i]), float(box.upper.flatten()[i]), count, dtype=box.dtype)
            for i in free]
    points = box.lower.flatten().repeat(count ** len(axes), 1)
    points[:, free] = torch.cartesian_prod(*axes).view(-1, len(axes))
    return points.view(-1, *box.shape)
