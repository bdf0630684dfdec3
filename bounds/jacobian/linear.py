"""Linear bound propagation on the Clarke Jacobian (Shi et al., arXiv:2210.07394).

As RecurJac, with the best lines for the product of a derivative s in [a, b] and a gradient g whose sign is open: over
all s, `s g <= max(a g, b g)`, which is convex in g, so that its chord is the least line above (and that of the minimum
the greatest below). Intermediate gradients, too, are met with interval arithmetic.

Left out: derivatives of smooth operators are known as intervals only, not as functions of the input.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian, sup_norm
from bounds.jacobian.functionals import LINE_ULPS, Functionals, steepest
from bounds.jacobian.question import Question
from bounds.jacobian.tighten import bound_by, tightened
from bounds.ops.round_off import MORE, gamma
from bounds.precision import full_precision
from bounds.rounding import magnitude
from bounds.sets import InputSet


def upper_line(s: Interval, g: Interval) -> tuple[Tensor, Tensor]:
    """The chord of max(a g, b g) over g."""
    slope, through_origin = steepest(s, g)
    width = g.upper - g.lower
    width = torch.where(width > 0, width, torch.ones_like(width))
    chord = (s.upper * g.upper - s.lower * g.lower) / width
    # The larger of what both ends need, since the slope is rounded.
    level = torch.maximum((s.upper - chord) * g.upper, (s.lower - chord) * g.lower)
    return torch.where(through_origin, slope, chord), torch.where(through_origin, torch.zeros_like(level), level)


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None) -> Jacobian:
    """As `bounds.jacobian.interval.bound`; rounding included in float64."""
    return bound_by(upper_line, graph, sets, rows, given)


@torch.no_grad()
@full_precision()
def bound_with_norm(graph: Graph, sets: InputSet, rows: LinearRows, q: float, *,
                    given: Mapping[int, Interval] | None = None) -> tuple[Jacobian, Tensor]:
    """(`bound`, "N": at least `||g||_q` over the features that can move, for all gradients g of a row).

    The sum of |g_k| (q = 1) or of g_k^2 (q = 2) is bounded as one function, each term by its chord over the interval of
    g_k, so that gradients which cannot be largest together do not add up."""
    question = Question.of(graph, sets, rows, given)
    found, functionals = tightened(question, upper_line)
    answer = Jacobian(found[0].lower, found[0].upper, question.rounded)
    moves = question.owner.rows(question.moves)
    norm = sup_norm(answer, q, moves)
    if q == 1:
        norm = torch.minimum(norm, _sum_of_chords(functionals, found, moves, *_chords_of_sizes(found[0])))
    elif q == 2:
        squares = _sum_of_chords(functionals, found, moves, *_chords_of_squares(found[0]))
        norm = torch.minimum(norm, squares.clamp(min=0).sqrt() * (1 + 2 * torch.finfo(norm.dtype).eps))
    return answer, norm


def _chords_of_sizes(g: Interval) -> tuple[Tensor, Tensor]:
    """(slope, level): |t| <= slope t + level on every interval."""
    one = torch.ones_like(g.lower)
    return upper_line(Interval(-one, one), g)


def _chords_of_squares(g: Interval) -> tuple[Tensor, Tensor]:
    """(slope, level): t^2 <= (l + u) t - l u on every [l, u]."""
    return g.lower + g.upper, -g.lower * g.upper


def _sum_of_chords(functionals: Functionals, found: Mapping[int, Interval], moves: Tensor, slope: Tensor,
                   level: Tensor) -> Tensor:
    """"N": at least the sum of `slope g + level` over the features that can move, for all gradients of a row."""
    slope, level = (torch.where(moves, t, torch.zeros_like(t)) for t in (slope, level))
    row = torch.arange(len(slope), device=slope.device)
    total = functionals.upper(found, 0, slope, row)
    levels = level.flatten(1).sum(1)
    if functionals.question.rounded:
        info = torch.finfo(level.dtype)
        n = level[0].numel()
        sizes = (level.abs() + slope.abs() * magnitude(found[0])).flatten(1).sum(1)
        levels = levels + sizes * (MORE * gamma(n + LINE_ULPS, level.dtype)) + n * LINE_ULPS * info.tiny
        levels = levels + (total.abs() + levels.abs()) * (2 * info.eps)
    return (total + levels).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
