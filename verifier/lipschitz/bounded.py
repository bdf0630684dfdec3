"""The range of a function of the outputs over any input set: bounds once, and ascent for what is seen.

For balls, and for boxes in which too many features move for a search (`verifier.lipschitz.range`). What is seen comes
from random points and from Frank-Wolfe steps towards the best point of the set along the gradient (Frank and Wolfe
1956), which stay in any convex set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.compute import METHODS, PRICED_METHODS
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.precision import full_precision
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from verifier.lipschitz.functions import OutputFunction
from verifier.lipschitz.parts import inner, linear_parts, values_at
from verifier.lipschitz.range import Range
from verifier.verdict import Evidence

SAMPLES, STARTS, STEPS = 64, 8, 20


@torch.no_grad()
@full_precision()
def bounded_range(graph: Graph, sets: InputSet, function: OutputFunction, *, error: float = 0.01, method: str = "crown",
                  generator: torch.Generator | None = None) -> Range:
    """The range over one set, as `verifier.lipschitz.range.output_range` states it, without a search.

    complete: whether both ends happen to meet within the error. Evidence ROUNDED in float64 with methods that account
    for rounding, else FLOAT.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if sets.batch != 1 or sets.shape != graph.input_shape:
        raise ValueError(f"expected one set of shape {graph.input_shape}, got {sets.batch} of shape {sets.shape}")
    C, c = (t.to(sets.lower) for t in function.rows(math.prod(graph.output_shape)))
    proved = function.enclosure(linear_parts(graph, sets, C, c, method)[0])
    rounded = method in PRICED_METHODS and is_priced(sets.dtype) and is_covered(graph)
    points = _points(graph, inner(sets), function, generator or torch.Generator(sets.device).manual_seed(0))
    value = _computed(graph, points, function)
    ends = points[[int(value.nan_to_num(nan=math.inf).argmin()), int(value.nan_to_num(nan=-math.inf).argmax())]]
    seen = values_at(graph, ends, function) if rounded else Interval(*2 * (_computed(graph, ends, function),))
    low, high = float(proved.lower.nan_to_num(nan=-math.inf)), float(proved.upper.nan_to_num(nan=math.inf))
    least, most = float(seen.upper[0].nan_to_num(nan=math.inf)), float(seen.lower[1].nan_to_num(nan=-math.inf))
    return Range(low, least, high, most, ends[0], ends[1], points.shape[0], 1,
                 Evidence.ROUNDED if rounded else Evidence.FLOAT, least - low <= error and high - most <= error)


def _computed(graph: Graph, x: Tensor, function: OutputFunction) -> Tensor:
    return function.value(graph(x).flatten(1))


def _points(graph: Graph, sets: InputSet, function: OutputFunction, generator: torch.Generator) -> Tensor:
    """Points of the set "P *shape" among which the least and the largest value are looked for."""
    x = torch.cat([sets.centre_point, sets.sample(SAMPLES, generator)[0]])
    value = _computed(graph, x, function).nan_to_num()
    found = [x]
    x = torch.cat([x[value.topk(STARTS, largest=False).indices], x[value.topk(STARTS).indices]])
    sign = torch.ones(2 * STARTS, *(1,) * len(sets.shape), dtype=x.dtype, device=x.device)
    sign[:STARTS] = -1
    none = torch.zeros(2 * STARTS, dtype=torch.long, device=x.device)
    for step in range(STEPS):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(_computed(graph, leaf, function).sum(), leaf)
        x = x + (sets.minimiser(-sign * slope.nan_to_num(), none).view_as(x) - x) * (2 / (step + 2))
        x = sets.project(x, none)
        found.append(x)
    return torch.cat(found)
