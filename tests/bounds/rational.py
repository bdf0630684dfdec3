"""Tiny networks over the rationals, and such that fall along every input: their least value is known exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder


def exact(t: Tensor) -> np.ndarray:
    """The numbers as rationals."""
    flat = [Fraction(v) for v in t.double().flatten().tolist()]
    return np.array(flat, dtype=object).reshape(t.shape)


def values(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """Every node's value at one point, exactly: dense layers and ReLUs, one after the other."""
    found = [x]
    for node in graph.nodes[1:]:
        (before,) = (found[j] for j in node.inputs)
        if isinstance(node.op, Relu):
            found.append(np.array([max(v, Fraction(0)) for v in before], dtype=object))
        else:
            assert isinstance(node.op, Linear) and node.op.bias is not None
            found.append(exact(node.op.weight) @ before + exact(node.op.bias))
    return found


def outward(low: np.ndarray, high: np.ndarray) -> Interval:
    """Rationals as an enclosure "1 n" in float64."""
    def rounded(numbers: np.ndarray, side: int) -> Tensor:
        out = []
        for v in numbers:
            near = float(v)
            while (Fraction(near) - v) * side < 0:
                near = math.nextafter(near, side * math.inf)
            out.append(near)
        return torch.tensor([out], dtype=torch.float64)
    return Interval(rounded(low, -1), rounded(high, 1))


class Rising:
    """A network whose layers rise with every input over a box far from zero, where they cancel: `-network` is least at
    the box's upper end, chords and planes are tight there, and every neuron's exact range is known. Before the first
    undecided layer stands one that is active throughout (`folds`); `layers` more follow."""

    def __init__(self, seed: int, layers: int, *, folds: bool, width: int = 3, inputs: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)

        def positive(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
        low = 1e6 * positive(1, inputs)
        self.sets = InputSet(low, low + positive(1, inputs))
        self.low, self.high = exact(self.sets.lower[0]), exact(self.sets.upper[0])
        build = GraphBuilder((inputs,), torch.float64)
        if folds:
            build.add(Linear(positive(inputs + 1, inputs), positive(inputs + 1)))
            build.add(Relu())
        for k in range(layers):
            weight = positive(width, build.shape[0])
            so_far = build.graph("so far")
            below, above = (float_of(exact(weight) @ values(so_far, x)[-1]) for x in (self.low, self.high))
            # Inactive over most of the range: the lower line of slope 0 is the one that is chosen, and it is tight.
            build.add(Linear(weight, -(below + (0.6 + 0.1 * k) * (above - below))))
            build.add(Relu())
        build.add(Linear(positive(2, width), positive(2)))
        self.graph = build.graph("rising")
        self.ends = ends = values(self.graph, self.low), values(self.graph, self.high)
        self.known = {i: outward(ends[0][i], ends[1][i]) for i in self.graph.relaxed_inputs}
        self.C = -positive(4, 2)
        self.D = -positive(4, inputs)
        self.offset = positive(4) - self.D @ low[0]
        top = exact(self.C) @ ends[1][-1] + exact(self.D) @ self.high + exact(self.offset)
        self.least = [Fraction(v) for v in top]

    def above(self, lower: Tensor, rows: slice = slice(None)) -> int:
        """How many of these lower bounds of the rows exceed their least values."""
        return sum(Fraction(v) > m for v, m in zip(lower.tolist(), self.least[rows], strict=True))


def float_of(numbers: np.ndarray) -> Tensor:
    return torch.tensor([float(v) for v in numbers], dtype=torch.float64)
