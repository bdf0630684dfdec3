"""The linear parts z = C y + c of a function of the outputs: enclosed over sets, and at points.

Axis legend: B sets, K linear parts, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.bounds import Bounds, LinearRows
from bounds.compute import compute_bounds
from bounds.graph import Graph
from bounds.ibp import propagate, rows_over
from bounds.interval import Interval
from bounds.ops.round_off import SPARE
from bounds.sets import InputSet
from verifier.lipschitz.functions import OutputFunction


def rows_of_every(sets: InputSet, C: Tensor, c: Tensor | None = None) -> LinearRows:
    """The rows C "K m" with constants c "K" over each of the sets, one set's after the other."""
    owner = torch.arange(sets.batch, device=C.device).repeat_interleave(C.shape[0])
    return LinearRows(C.repeat(sets.batch, 1), owner, None, None if c is None else c.repeat(sets.batch))


def linear_parts(graph: Graph, sets: InputSet, C: Tensor, c: Tensor, method: str) -> tuple[Interval, Bounds]:
    """The parts z "B K", and the answer of the method to their rows below and above, "B 2 K" in this order."""
    answer = compute_bounds(graph, sets, rows_of_every(sets, torch.cat([C, -C]), torch.cat([c, -c])), method)
    value = answer.lower.view(sets.batch, 2, -1)
    return Interval(value[:, 0], -value[:, 1]).uncrossed(), answer


def values_at(graph: Graph, x: Tensor, function: OutputFunction) -> Interval:
    """Enclosures "P" of the function over the reals at points "P *shape", rounding included where that is known."""
    points = InputSet(x, x)
    C, c = (t.to(x) for t in function.rows(torch.Size(graph.output_shape).numel()))
    lower, upper = rows_over(graph, points, rows_of_every(points, C, c), propagate(graph, points))
    return function.enclosure(Interval(lower.view(x.shape[0], -1), upper.view(x.shape[0], -1)).uncrossed())


def inner(sets: InputSet) -> InputSet:
    """Balls smaller by so much that points which computing puts onto their edge lie inside the given ones, exactly."""
    if sets.centre is None or sets.radius is None or sets.scale is not None:
        return sets
    centre = sets.centre.flatten(1)
    size = centre.abs().amax(1) + sets.radius
    lost = 2 * (centre.shape[1] + SPARE) * torch.finfo(size.dtype).eps * size  # of all coordinates and their sum
    return InputSet(sets.lower, sets.upper, sets.centre, (sets.radius - lost).clamp(min=0), sets.p)
