"""Interval enclosures of gradients, layer by layer made tighter by linear bounds of their single entries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian
from bounds.jacobian.functionals import BLOCK_COEFFICIENTS, Functionals, UpperLine
from bounds.jacobian.interval import gradients
from bounds.jacobian.question import Question
from bounds.ops.max_pool import MaxPool
from bounds.precision import full_precision
from bounds.sets import InputSet


def tightened(question: Question, upper_line: UpperLine) -> tuple[dict[int, Interval], Functionals]:
    """(enclosures "N *shape" of the gradient with respect to every node, inside those of interval arithmetic on the
    same way; the functionals that gave them). Entries whose sign a product with an uncertain derivative leaves open are
    bounded, and at the input all those of features that can move."""
    functionals = Functionals(question, upper_line)

    def tighten(i: int, g: Interval, found: Mapping[int, Interval]) -> Interval:
        chosen = _open_entries(question, i, g)
        return g if chosen is None else _at(functionals, found, i, g, chosen)

    return gradients(question, tighten), functionals


@torch.no_grad()
@full_precision()
def bound_by(upper_line: UpperLine, graph: Graph, sets: InputSet, rows: LinearRows,
             given: Mapping[int, Interval] | None) -> Jacobian:
    """As `bounds.jacobian.interval.bound`, with these lines around products; rounding included in float64."""
    question = Question.of(graph, sets, rows, given)
    found = tightened(question, upper_line)[0][0]
    return Jacobian(found.lower, found.upper, question.rounded)


def _open_entries(question: Question, i: int, g: Interval) -> Tensor | None:
    """bool "N *shape": the entries of node i whose enclosure is worth a bound of its own; None: none is."""
    if i == 0:
        return (g.lower < g.upper) & question.owner.rows(question.moves)
    undecided = (g.lower < 0) & (g.upper > 0)
    if i in question.derivatives:
        s = question.derivative(i)
        return undecided & (s.lower < s.upper)
    return undecided if isinstance(question.graph.nodes[i].op, MaxPool) else None


def _at(functionals: Functionals, found: Mapping[int, Interval], i: int, g: Interval, chosen: Tensor) -> Interval:
    row, entry = chosen.flatten(1).nonzero(as_tuple=True)
    lower, upper = g.lower.flatten(1).clone(), g.upper.flatten(1).clone()
    widest = max(torch.Size(node.shape).numel() for node in functionals.question.graph.nodes)
    size = max(16, BLOCK_COEFFICIENTS // widest // 2)
    for first in range(0, len(row), size):
        n, k = row[first:first + size], entry[first:first + size]
        unit = lower.new_zeros(len(n), lower.shape[1])
        unit[torch.arange(len(n), device=n.device), k] = 1
        high, negative_low = functionals.both_sides({**found, i: g}, i, unit.view(-1, *g.lower.shape[1:]), n)
        lower[n, k] = torch.maximum(lower[n, k], -negative_low)
        upper[n, k] = torch.minimum(upper[n, k], high)
    return Interval(lower.view_as(g.lower), upper.view_as(g.upper)).uncrossed()
