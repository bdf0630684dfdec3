"""RecurJac (Zhang, Zhang and Hsieh, arXiv:1810.11783), for graphs and for derivatives of any sign.

Where the sign of a gradient g is known, the product with a derivative s in [a, b] lies between a g and b g, which stay
linear in g, so that the bound goes on through the operators behind; else only the interval of all products is known.
The intermediate gradients are bounded in the same way, from the output on. Never looser than interval arithmetic on
the same enclosures of nodes: every enclosure is met with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian
from bounds.jacobian.functionals import steepest
from bounds.jacobian.tighten import bound_by
from bounds.sets import InputSet


def upper_line(s: Interval, g: Interval) -> tuple[Tensor, Tensor]:
    """The upper line where it goes through the origin, a constant elsewhere."""
    slope, through_origin = steepest(s, g)
    level = torch.maximum(s.lower * g.lower, s.upper * g.upper)
    zero = torch.zeros_like(slope)
    return torch.where(through_origin, slope, zero), torch.where(through_origin, zero, level)


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None) -> Jacobian:
    """As `bounds.jacobian.interval.bound`; rounding included in float64."""
    return bound_by(upper_line, graph, sets, rows, given)
