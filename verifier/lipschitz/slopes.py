"""Between which two slopes an activation runs: for all a < b, `lower (b - a) <= f(b) - f(a) <= upper (b - a)`.

Left out: the drop of PyTorch's softplus at its threshold (2e-9), a jump over which no slope is finite; constants of
networks with it are those of the function without the drop, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.ops.base import Elementwise, Operator
from bounds.ops.clip import Clip
from bounds.ops.elu import Elu
from bounds.ops.one_kink import OneKink
from bounds.ops.relu import Relu
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.softplus import Softplus
from bounds.ops.tanh import Tanh
from milp.problem import Floats

SMALLEST_DROP = 1e-30  # of ONNX's softplus, which has no threshold: below it the two are one function


@dataclass(frozen=True, eq=False)
class Slopes:
    """lower, upper "n" float64: the range of each neuron's slopes. exact: the stored function keeps to it (not where a
    drop of softplus was left out)."""

    lower: Floats
    upper: Floats
    exact: bool = True

    @property
    def steepest(self) -> Floats:
        """"n": max |slope|."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))


def _left(op: Elementwise) -> tuple[float | Floats, float | Floats]:
    assert isinstance(op, OneKink)
    left = op.left_slope(torch.zeros((), dtype=torch.float64)).detach().double().cpu().numpy()
    return np.minimum(left, 1.0), np.maximum(left, 1.0)


RANGES: dict[type[Operator], Callable[[Elementwise], tuple[float | Floats, float | Floats]]] = {
    Relu: lambda op: (0.0, 1.0), OneKink: _left, Clip: lambda op: (0.0, 1.0), Tanh: lambda op: (0.0, 1.0),
    Sigmoid: lambda op: (0.0, 0.25), Softplus: lambda op: (0.0, 1.0),
    Elu: lambda op: (0.0, max(1.0, op.alpha))}  # type: ignore[attr-defined]


def slopes(graph: Graph, node: Node) -> Slopes:
    """The slopes of an elementwise node. Raises UnsupportedOperator by name where they have no known bounds."""
    for kind, found in RANGES.items():
        if isinstance(node.op, kind):
            assert isinstance(node.op, Elementwise)
            lower, upper = (np.broadcast_to(end, node.shape).reshape(-1).astype(np.float64) for end in found(node.op))
            return Slopes(lower, upper, not (isinstance(node.op, Softplus) and node.op.jump > SMALLEST_DROP))
    raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) has no bounded slope here")
