"""Between which two slopes an activation runs: for all a < b, `lower (b - a) <= f(b) - f(a) <= upper (b - a)`.

Left out: the drop of PyTorch's softplus at its threshold (2e-9), a jump over which no slope is finite; constants of
networks with it are those of the function without the drop, and say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.softplus import Softplus
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


def slopes(graph: Graph, node: Node) -> Slopes:
    """The slopes of an elementwise node: of its derivative everywhere, by the mean value theorem. Raises
    UnsupportedOperator by name where they have no known bounds."""
    assert isinstance(node.op, Elementwise)
    named = f"{graph.source}: {node.op.kind} ({node.name}) has no bounded slope"
    try:
        found = _everywhere(node.op, node.shape)
    except UnsupportedOperator as error:
        raise UnsupportedOperator(named) from error
    if not bool(torch.isfinite(found.lower).all() and torch.isfinite(found.upper).all()):
        raise UnsupportedOperator(named)
    lower, upper = (end.detach().cpu().numpy().reshape(-1) for end in (found.lower, found.upper))
    return Slopes(lower, upper, not (isinstance(node.op, Softplus) and node.op.jump > SMALLEST_DROP))


def _everywhere(op: Elementwise, shape: tuple[int, ...]) -> Interval:
    """The derivative over all numbers, "1 *shape"."""
    ends = torch.full((1, *shape), math.inf, dtype=torch.float64)
    if isinstance(op, Softplus):  # without its drop: a sigmoid
        return Interval(torch.zeros_like(ends), torch.ones_like(ends))
    return op.derivative(Interval(-ends, ends))
