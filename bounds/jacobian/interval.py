"""Gradients by interval arithmetic, from the outputs back to the inputs.

Fast-Lip (Weng et al., arXiv:1804.09699, section 3.3) for graphs: an enclosure of the gradient with respect to a node's
output is multiplied by the interval of its derivative, and pulled back through affine operators as centre and radius,
`W^T c` and `|W|^T r`. Where every derivative is one number the result is the gradient. In float64 every sum is moved
outward by its rounding error (`bounds.ops.round_off`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from bounds.bounds import LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian
from bounds.jacobian.question import Question
from bounds.ops.base import Affine
from bounds.ops.max_pool import MaxPool
from bounds.ops.round_off import MORE, gamma, underflow, unit
from bounds.precision import full_precision
from bounds.rounding import magnitude
from bounds.sets import InputSet

Tighten = Callable[[int, Interval, Mapping[int, Interval]], Interval]
"""(node, enclosure of the gradient by its output "N *shape", those of all nodes behind it) -> a better enclosure."""


@torch.no_grad()
@full_precision()
def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None) -> Jacobian:
    """`lower <= g <= upper` for all generalised gradients g of row n over its set; rounding included in float64.

    given: proved enclosures of nodes, "B *shape" (those that are missing are computed by CROWN)."""
    question = Question.of(graph, sets, rows, given)
    found = gradients(question)[0]
    return Jacobian(found.lower, found.upper, question.rounded)


def gradients(question: Question, tighten: Tighten | None = None) -> dict[int, Interval]:
    """Enclosures "N *shape" of the gradient with respect to every node on which the output depends; node 0 always."""
    graph = question.graph
    C = question.C
    found = {graph.output: Interval(C, C)}
    for i in sorted(graph.ancestors | {0}, reverse=True):
        if i not in found:  # the output does not depend on the input
            zeros = C.new_zeros(C.shape[0], *graph.nodes[i].shape)
            found[i] = Interval(zeros, zeros)
        if tighten is not None:
            found[i] = tighten(i, found[i], found)
        for j, part in zip(graph.nodes[i].inputs, pulled(question, i, found[i]), strict=True):
            found[j] = part if j not in found else _sum(found[j], part, question.rounded)
    return found


def pulled(question: Question, i: int, g: Interval) -> tuple[Interval, ...]:
    """What node i, whose gradients lie in g "N *shape", adds to those of its inputs, one "N *in" each."""
    node = question.graph.nodes[i]
    if not node.inputs:
        return ()
    if isinstance(node.op, Affine):
        return _pulled_affine(question, i, g)
    if isinstance(node.op, MaxPool):
        return (_pulled_max(question, i, g),)
    return (product(question.derivative(i), g, question.rounded),)


def product(s: Interval, g: Interval, rounded: bool) -> Interval:
    """All products of a number of s and one of g; where that is not determined (0 times infinity), everything."""
    ends = torch.stack(torch.broadcast_tensors(s.lower * g.lower, s.lower * g.upper, s.upper * g.lower,
                                               s.upper * g.upper))
    low, high = ends.amin(0), ends.amax(0)
    if rounded:
        # Products that underflow lose less than the smallest normal number, but never their sign.
        matters = ((magnitude(s) != 0) & (magnitude(g) != 0)).to(low.dtype)
        info = torch.finfo(low.dtype)
        below = low - (low.abs() * info.eps + info.tiny * matters)
        above = high + (high.abs() * info.eps + info.tiny * matters)
        positive = ((s.lower >= 0) & (g.lower >= 0)) | ((s.upper <= 0) & (g.upper <= 0))
        negative = ((s.lower >= 0) & (g.upper <= 0)) | ((s.upper <= 0) & (g.lower >= 0))
        low = torch.where(positive, below.clamp(min=0), below)
        high = torch.where(negative, above.clamp(max=0), above)
    return everything_where_nan(Interval(low, high))


def everything_where_nan(x: Interval) -> Interval:
    """Ends that are not numbers, as of infinity less infinity, say nothing."""
    inf = torch.inf
    return Interval(x.lower.nan_to_num(nan=-inf, posinf=inf, neginf=-inf),
                    x.upper.nan_to_num(nan=inf, posinf=inf, neginf=-inf))


def _sum(a: Interval, b: Interval, rounded: bool) -> Interval:
    low, high = a.lower + b.lower, a.upper + b.upper
    if rounded:
        eps = torch.finfo(low.dtype).eps
        low, high = low - low.abs() * eps, high + high.abs() * eps
    return everything_where_nan(Interval(low, high))


def _pulled_affine(question: Question, i: int, g: Interval) -> tuple[Interval, ...]:
    graph = question.graph
    node = graph.nodes[i]
    op = node.op
    assert isinstance(op, Affine)
    shapes = tuple(graph.nodes[j].shape for j in node.inputs)
    terms = op.terms(shapes, node.shape)
    if terms == 0:  # numbers are moved
        return tuple(Interval(a, b) for a, b in
                     zip(op.pull_back(g.lower, shapes), op.pull_back(g.upper, shapes), strict=True))
    if not question.rounded and torch.equal(g.lower, g.upper):
        return tuple(Interval(a, a) for a in op.pull_back(g.lower, shapes))
    centre = g.centre
    radius = torch.maximum(g.upper - centre, centre - g.lower)
    lost = 0.0
    if question.rounded:
        # Twice: for the sum of centres, and for that of radii with the last sum and difference.
        radius = radius + magnitude(g) * (2 * MORE * gamma(terms, centre.dtype))
        lost = 2 * underflow(terms, centre.dtype)
    middles = op.pull_back(centre, shapes)
    reaches = op.absolute().pull_back(radius, shapes)
    fold = graph.fold_errors.get(i)
    if question.rounded and fold is not None:
        off = fold.operator(op).pull_back(magnitude(g) * MORE, shapes)
        reaches = tuple((a + b) * (1 + 4 * unit(a.dtype)) for a, b in zip(reaches, off, strict=True))
    return tuple(everything_where_nan(Interval(c - r - lost, c + r + lost))
                 for c, r in zip(middles, reaches, strict=True))


def _pulled_max(question: Question, i: int, g: Interval) -> Interval:
    """The gradient of a maximum is a convex combination of those of the inputs that can be the largest."""
    (source,) = question.graph.nodes[i].inputs
    op = question.graph.nodes[i].op
    assert isinstance(op, MaxPool)
    contenders = question.owner.rows(question.contenders[i])
    alone = contenders & (contenders.sum(-1, keepdim=True) == 1)
    low, high = g.lower.flatten(2).unsqueeze(-1), g.upper.flatten(2).unsqueeze(-1)
    shares = torch.where(alone, low, low.clamp(max=0) * contenders), torch.where(alone, high,
                                                                                 high.clamp(min=0) * contenders)
    shape = (g.lower.shape[0], *question.graph.nodes[source].shape)
    low, high = (op.spread(share, shape) for share in shares)
    if question.rounded:
        size = op.spread(torch.maximum(shares[0].abs(), shares[1].abs()), shape)
        error = size * (MORE * gamma(contenders.shape[-1] * contenders.shape[-2], size.dtype))
        low, high = low - error, high + error
    return everything_where_nan(Interval(low, high))
