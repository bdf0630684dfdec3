"""The dual bound of the convex outer polytope (Wong and Kolter, arXiv:1711.00851), and its scaling (arXiv:1805.12514).

The margins are bounded by one backward pass through parallel lines (`bounds.backward.parallel`); with the lines of ReLU
that is the paper's dual network, and the bound is Fast-Lin's. The bounds l <= z <= u on which lines stand are rows of
the same kind, layer by layer, and gradients pass through them. Any graph works by traversal, skip connections included.

`projections = k > 0` estimates the neurons' bounds from k random projections (`certify.projections`): Cauchy for l_inf,
normal for the l_2 ball. Then the loss is an estimate, and says nothing certain of its examples; the margins' rows are
pulled back exactly, on estimated bounds. Evaluation uses exact bounds.

What is done differently:
- A neuron's bounds are met with plain interval arithmetic, which is tighter on some neurons and never looser.
- Rows run twice, without gradients and then, for neurons that remain undecided, with them. The lines of a decided
  neuron do not depend on its bounds, so no gradient is lost; at initialisation it is the larger part of the rows.
- Both sides of a neuron come from one pass, as in the paper: parallel lines have one slope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional

from bounds.backward import Backward, parallel
from bounds.graph import Graph
from bounds.ibp import exact_over_boxes, propagate
from bounds.intermediate import neurons, undecided
from bounds.interval import Interval
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.window import Owner
from certify.margins import least, linear_margins, robust_cross_entropy
from certify.method import Method
from certify.projections import estimate_neurons, shared_draws
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class WongKolter(Method):
    """projections: how many a layer's bounds are estimated from (0: exact). bounded: whether the input set is cut by
    the range of inputs."""

    projections: int = 0
    bounded: bool = True

    name: ClassVar[str] = "wong-kolter"
    paper: ClassVar[str] = "arXiv:1711.00851, arXiv:1805.12514"
    bounds_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.projections < 0:
            raise ValueError(f"projections must be >= 0, got {self.projections}")

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        natural = functional.cross_entropy(logits, step.y)
        sets = (step if self.bounded else replace(step, clip=None)).sets()
        if self.projections:
            engine = Backward(graph, sets, parallel, rounded=False)
            estimate_neurons(engine, self.projections, shared_draws(step))
        else:
            engine = dual_engine(graph, sets)
        margins = linear_margins(engine, step.y)
        robust = robust_cross_entropy(margins, step.y)
        total = step.natural * natural + (1 - step.natural) * robust
        known = None if self.projections else least(margins.detach(), step.y)
        return LossTerms(total, {"natural": natural.detach(), "robust": robust.detach()}, logits.detach(), known)


def dual_engine(graph: Graph, sets: InputSet) -> Backward:
    """An engine with parallel lines whose neurons are bounded by its own rows, differentiable throughout."""
    engine, scout = (Backward(graph, sets, parallel, rounded=False) for _ in range(2))
    plain = propagate(graph, sets, rounded=False)
    exact = exact_over_boxes(graph) if sets.is_box else frozenset()
    for i in graph.relaxed_inputs:
        x = plain[i]
        if i not in exact:
            # Two engines: what one keeps of its lines was made without gradients.
            with torch.no_grad():
                seen = _met_with_rows(scout, i, x, x)
            x = _met_with_rows(engine, i, seen, x)
        engine.enclose(i, x)
        scout.enclose(i, x.map(torch.Tensor.detach))
    return engine


def _met_with_rows(engine: Backward, i: int, seen: Interval, plain: Interval) -> Interval:
    """`seen`, where neurons that it leaves undecided have the better of `plain` and of the engine's rows."""
    domain, index = neurons(undecided(engine, i, seen))
    if not index.numel():
        return seen
    ones = plain.lower.new_ones(index.shape[0])
    low, high = engine.both_sides(i, Rows.unit(index, ones, Owner.of(engine.sets.batch, domain)))
    at = (domain, index)
    lower, upper = plain.lower.flatten(1)[at], plain.upper.flatten(1)[at]
    return Interval(seen.lower.flatten(1).index_put(at, torch.maximum(low, lower)).view_as(seen.lower),
                    seen.upper.flatten(1).index_put(at, torch.minimum(high, upper)).view_as(seen.upper))
