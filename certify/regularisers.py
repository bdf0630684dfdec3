"""Penalties on intervals while the radius grows (Shi et al., arXiv:2103.17268).

For the intervals of the inputs of activation i, with centres c and radii, over neurons and examples:

    tightness:  mean_i relu(tau - E(radius of the inputs) / E(radius_i)) / tau
    balance:    mean_i (relu(tau - r(sum of c over active, sum of |c| over inactive neurons))
                      + relu(tau - r(sum of (c - E c)^2 over active, over inactive neurons))) / tau

with tau = 1/2 and r(a, b) = min(a / b, b / a). Active neurons have `lower > 0`, inactive ones `upper < 0`. The weight
falls with the radius, `lambda_0 (1 - eps / eps_target)`, so that nothing of it is left when the ramp ends. Where all
stable neurons of a layer are active, or all are inactive, r is 0 and has no slope; where none is stable, the layer has
no balance to speak of and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from certify.terms import Step

TAU = 0.5


def activations(graph: Graph, kinked: bool = False) -> list[int]:
    """The nodes that activations read, each once; `kinked`: those of activations that are linear on both sides of 0."""
    found = [n.inputs[0] for n in graph.nodes
             if isinstance(n.op, Elementwise) and (n.op.only_kink == 0.0 or not kinked)]
    return list(dict.fromkeys(found))


def strength(weight: float, step: Step) -> float:
    """The weight of the penalties at a step: `weight` at radius 0, none from the end of the ramp on. At radius 0 itself
    there are no radii to compare."""
    if not 0 < step.eps < step.target_eps:
        return 0.0
    return weight * (1 - step.eps / step.target_eps)


def tightness(graph: Graph, intervals: Sequence[Interval]) -> Tensor:
    """How much wider than the input intervals are, in [0, 1]: 0 where none is more than 1 / TAU times as wide."""
    start = intervals[0].radius.mean()
    tiny = torch.finfo(start.dtype).tiny
    terms = [(TAU - start / intervals[i].radius.mean().clamp(min=tiny)).relu() / TAU for i in activations(graph)]
    return torch.stack(terms).mean() if terms else torch.zeros_like(start)


def balance(graph: Graph, intervals: Sequence[Interval]) -> Tensor:
    """How unequal active and inactive neurons are, in [0, 2]."""
    terms = [_imbalance(intervals[i]) for i in activations(graph, kinked=True)]
    return torch.stack(terms).mean() if terms else torch.zeros_like(intervals[0].lower.sum())


def _imbalance(interval: Interval) -> Tensor:
    centre = interval.centre
    active, inactive = interval.lower > 0, interval.upper < 0
    spread = (centre - centre.mean()) ** 2
    size = _ratio((centre * active).sum(), -(centre * inactive).sum())
    variance = _ratio((spread * active).sum(), (spread * inactive).sum())
    penalty = ((TAU - size).relu() + (TAU - variance).relu()) / TAU
    return torch.where(active.any() | inactive.any(), penalty, torch.zeros_like(penalty))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """min(a / b, b / a) of numbers >= 0; 0 where one of them is."""
    return torch.minimum(a, b) / torch.maximum(a, b).clamp(min=torch.finfo(a.dtype).tiny)
