"""Training on CROWN-IBP (Zhang et al., arXiv:1906.06316): intervals for the neurons, one backward pass for the margins.

The margins are `beta * CROWN-IBP + (1 - beta) * IBP`, a convex combination of two lower bounds. While the radius grows
from 0 to its target, beta moves with it from `beta_start` to `beta_end`: from 1 to 0 the run starts on the tighter
bound and ends on IBP; with both ends 1 it stays on CROWN-IBP.

Loss fusion (Xu et al., arXiv:2002.12920) pulls back one row an example in place of m - 1. With d_j = y_j - y_label the
cross-entropy is `log(1 + sum_j exp(d_j))`. Over an interval l_j <= d_j <= u_j the chord lies above the exponential,

    exp(d_j) <= s_j (d_j - u_j) + exp(u_j),   s_j = (exp(u_j) - exp(l_j)) / (u_j - l_j),

so that the sum is at most a constant plus `sum_j s_j d_j`, whose upper bound one backward pass gives; the logarithm is
increasing. Intervals of d_j come from IBP. Bounds of the sum are mixed by beta, that of IBP being `1 + sum exp(u_j)`.
Every chord is kept in units of exp(max(0, max_j u_j)), so that nothing overflows. Without the fusion the bound is
cross-entropy of m - 1 worst margins, each attained at a point of its own; with it, the chords are what is lost.

The margins that the loss reports are those of IBP where fusion leaves the others unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bounds.backward import Backward, adaptive
from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.ibp import margin_bounds, propagate
from bounds.interval import Interval
from bounds.sets import InputSet
from certify.margins import by_class, least, linear_margins, lower_bounds, margin_rows, robust_cross_entropy
from certify.method import Method
from certify.terms import LossTerms, Step

SMALL_WIDTH = 1e-4  # below it the series is exact to 1e-12, and its gradient finite


@dataclass(frozen=True)
class CrownIbp(Method):
    """beta_start, beta_end: the weight of CROWN-IBP beside IBP, before the radius grows and once it has grown. fusion:
    one row an example."""

    beta_start: float = 1.0
    beta_end: float = 0.0
    fusion: bool = False

    name: ClassVar[str] = "crown-ibp"
    paper: ClassVar[str] = "arXiv:1906.06316"
    bounds_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for beta in (self.beta_start, self.beta_end):
            if not 0 <= beta <= 1:
                raise ValueError(f"beta_start and beta_end must lie in [0, 1], got {beta}")

    def beta(self, step: Step) -> float:
        """The weight at the radius of this step."""
        share = min(1.0, step.eps / step.target_eps) if step.target_eps > 0 else 1.0
        return self.beta_start + (self.beta_end - self.beta_start) * share

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        natural = functional.cross_entropy(logits, step.y)
        beta, sets = self.beta(step), step.sets()
        intervals = propagate(graph, sets, rounded=False)
        rows = margin_rows(step.y, step.model.classes, sets.lower)
        margins = by_class(margin_bounds(graph, sets, rows, intervals), step.y, step.model.classes)
        if self.fusion and beta > 0:
            robust = fused_loss(graph, sets, step.y, intervals, margins, beta).mean()
        else:
            if beta > 0:
                tight = linear_margins(_engine(graph, sets, intervals), step.y)
                margins = tight if beta == 1 else beta * tight + (1 - beta) * margins
            robust = robust_cross_entropy(margins, step.y)
        total = step.natural * natural + (1 - step.natural) * robust
        return LossTerms(total, {"natural": natural.detach(), "robust": robust.detach()}, logits.detach(),
                         least(margins.detach(), step.y))


def _engine(graph: Graph, sets: InputSet, intervals: list[Interval]) -> Backward:
    """CROWN's lines on intervals of every node."""
    engine = Backward(graph, sets, adaptive, rounded=False)
    for i in graph.relaxed_inputs:
        engine.enclose(i, intervals[i])
    return engine


def fused_loss(graph: Graph, sets: InputSet, y: Tensor, intervals: list[Interval], margins: Tensor, beta: float
               ) -> Tensor:
    """Upper bounds "B" of the cross-entropy over each set by loss fusion; margins: those of IBP, "B m"."""
    classes = margins.shape[1]
    rows = margin_rows(y, classes, sets.lower)
    upper = -margins  # of the differences d_j; 0 at the label
    low = by_class(margin_bounds(graph, sets, LinearRows(-rows.C, rows.owner), intervals), y, classes)
    low = torch.minimum(low, upper)  # two sums in different order may cross
    unit = upper.detach().amax(1)    # at least the label's 0: nothing overflows. A constant of the formula
    top = (upper - unit.unsqueeze(1)).exp()
    slope = top * chord_slope(upper - low)
    label = functional.one_hot(y, classes).to(slope)
    slope = slope * (1 - label)
    # The bound of -sum_j s_j d_j from below, by one row: d_j = y_j - y_label.
    row = slope.sum(1, keepdim=True) * label - slope
    linear = -lower_bounds(_engine(graph, sets, intervals), LinearRows(row, torch.arange(len(y), device=y.device)))
    total = linear + (top - slope * upper).sum(1)  # the label's term is exp(0), in units
    by_ibp = top.sum(1)
    # Rounding alone could bring the sum below what exp(d_j) >= exp(l_j) leaves of it.
    least_sum = (low - unit.unsqueeze(1)).exp().sum(1)
    return unit + torch.maximum(beta * total + (1 - beta) * by_ibp, least_sum).log()


def chord_slope(width: Tensor) -> Tensor:
    """`(1 - exp(-w)) / w`, 1 at w = 0: the slope of the exponential's chord in units of its upper end. w >= 0."""
    small = width < SMALL_WIDTH
    safe = torch.where(small, torch.ones_like(width), width)
    return torch.where(small, 1 - width / 2 + width.square() / 6, -torch.expm1(-safe) / safe)
