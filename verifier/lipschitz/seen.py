"""How steep a function of the outputs is seen to be over a set: at sampled points, and between pairs of them.

Neither says what the steepest place is: the largest sampled gradient is an estimate of the constant, and the slope
between two points a proved lower bound of it.

Axis legend: P points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import dual, vector_norm_up
from bounds.precision import full_precision
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from verifier.lipschitz.functions import OutputFunction
from verifier.lipschitz.parts import inner, values_at
from verifier.verdict import Evidence

SAMPLES = 256
BATCH = 64
HALVINGS = 24  # of the step from a point: kinks cut long ones, rounding short ones


@dataclass(frozen=True, eq=False)
class Steepest:
    """gradient: the largest dual norm of a gradient at a sampled point (an estimate of the constant from below; at a
    kink automatic differentiation may give what is no gradient, so points are random ones). x, direction "*shape":
    where, and the unit step along which F rises by as much."""

    gradient: float
    x: Tensor
    direction: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """Two points "*shape" of the set with `|F(first) - F(second)| >= slope ||first - second||`; evidence ROUNDED where
    the values are enclosed with all rounding."""

    first: Tensor
    second: Tensor
    slope: float
    evidence: Evidence


@torch.no_grad()
@full_precision()
def steepest_sample(graph: Graph, sets: InputSet, function: OutputFunction, *, norm: float, samples: int = SAMPLES,
                    generator: torch.Generator | None = None) -> Steepest:
    """The steepest of random points of one set, for distances in `norm`; features that cannot move do not count."""
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    generator = generator or torch.Generator(sets.device).manual_seed(0)
    moves = sets.lower < sets.upper
    best: Steepest | None = None
    for first in range(0, samples, BATCH):
        x = sets.sample(min(BATCH, samples - first), generator)[0]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(function.value(graph(leaf).flatten(1)).sum(), leaf)
        slope = torch.where(moves, slope.nan_to_num(), torch.zeros_like(slope))
        length = torch.linalg.vector_norm(slope.flatten(1), ord=dual(norm), dim=1)
        k = int(length.argmax())
        if best is None or float(length[k]) > best.gradient:
            best = Steepest(float(length[k]), x[k], _steepest_step(slope[k], norm))
    assert best is not None
    return best


def _steepest_step(slope: Tensor, norm: float) -> Tensor:
    """A step of length 1 in `norm` along which a function of this slope rises most."""
    if norm == math.inf:
        return slope.sign()
    if norm == 2.0:
        return slope / torch.linalg.vector_norm(slope).clamp(min=torch.finfo(slope.dtype).tiny)
    step = torch.zeros_like(slope).flatten()
    k = int(slope.abs().argmax())
    step[k] = slope.flatten()[k].sign()
    return step.view_as(slope)


@torch.no_grad()
@full_precision()
def steepest_pair(graph: Graph, sets: InputSet, function: OutputFunction, at: Steepest, *, norm: float) -> Pair | None:
    """The steepest of pairs of points to both sides of a sampled one, nearer and nearer; None where no pair shows any
    slope."""
    width = float((sets.upper - sets.lower).max())
    if not width > 0:
        return None
    halves = torch.arange(1, HALVINGS + 1, dtype=at.x.dtype, device=at.x.device)
    steps = (width * 0.5 ** halves).view(-1, *(1,) * at.x.dim()) * at.direction
    owner = torch.zeros(2 * HALVINGS, dtype=torch.long, device=at.x.device)
    points = inner(sets).project(torch.cat([at.x - steps, at.x + steps]), owner)
    inside = sets.contains(points, owner)
    value = values_at(graph, points, function)
    first, second = points.chunk(2)
    low, high = (Interval(value.lower[half], value.upper[half]) for half in (slice(HALVINGS), slice(HALVINGS, None)))
    rise = torch.maximum(high.lower - low.upper, low.lower - high.upper)
    eps = torch.finfo(rise.dtype).eps
    # Differences round by half a unit, and so do those of coordinates and the quotient.
    slope = rise / (vector_norm_up((second - first).flatten(1), norm) * (1 + eps)) * (1 - 4 * eps)
    good = inside[:HALVINGS] & inside[HALVINGS:] & torch.isfinite(slope) & (slope > 0)
    if not bool(good.any()):
        return None
    k = int(slope.masked_fill(~good, -math.inf).argmax())
    rounded = is_priced(sets.dtype) and is_covered(graph)
    return Pair(first[k], second[k], float(slope[k]), Evidence.ROUNDED if rounded else Evidence.FLOAT)
