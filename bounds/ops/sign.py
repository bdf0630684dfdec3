"""Sign: -1, 0 or 1. A jump, where a bound's own rounding decides what a value is worth.

A sign is taken as known only where the interval keeps away from zero by more than its ends may be wrong by
(`SLACK_ULPS` units in the last place of one and the end); nearer to zero both -1 and 1 are possible. Lines: below, any
line through (slack, -1) up to the one that reaches (u, 1); above, the same through (-slack, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.relaxation import Relaxation

SLACK_ULPS = 16
WIDTH = 0.1      # of the stand-in's slope, in mean sizes of a layer's values: of 0.03 to 3 the one with which PGD found
#                  most counterexamples of binarised networks; wide ones move neurons that cannot flip


class _StraightThrough(torch.autograd.Function):
    """sign, whose gradient is a stand-in: the true one is zero, and a search by gradients would see nothing.

    The slope falls off with the distance from the jump, measured against the mean size of a layer's values, as
    straight-through estimators do (Bengio, Leonard and Courville, arXiv:1308.3432).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        size = x.abs().flatten(1).mean(1).clamp(min=torch.finfo(x.dtype).tiny).view(-1, *(1,) * (x.dim() - 1))
        return slopes[0] / (1 + (x / (WIDTH * size)).square()) / (WIDTH * size)


@dataclass(frozen=True, eq=False)
class Sign(Elementwise):
    """y = -1 where z < 0, 0 where z = 0, 1 where z > 0."""

    kind: ClassVar[str] = "Sign"
    rounding_known: ClassVar[bool] = True
    ulps: ClassVar[int] = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = _StraightThrough.apply(inputs[0]) if inputs[0].requires_grad else inputs[0].sign()
        return y

    @staticmethod
    def slack(x: Interval) -> Tensor:
        """How near to zero a value's sign is in doubt, "B *shape"."""
        return SLACK_ULPS * torch.finfo(x.lower.dtype).eps * (1 + torch.maximum(x.lower.abs(), x.upper.abs()))

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        one, slack = torch.ones_like(x.lower), self.slack(x)
        return Interval(torch.where(x.lower > slack, one, -one), torch.where(x.upper < -slack, -one, one))

    def is_linear_on(self, x: Interval) -> Tensor:
        slack = self.slack(x)
        return (x.lower > slack) | (x.upper < -slack)

    def split_points(self, x: Interval, side: Tensor) -> Tensor:
        middle = x.centre
        return torch.where((x.lower < 0) & (x.upper > 0), torch.zeros_like(middle), middle)

    def _steepest(self, x: Interval) -> tuple[Tensor, Tensor]:
        """Slopes of the lines below and above that touch the far end; 0 where the sign is known or there is no room."""
        slack, known = self.slack(x), self.is_linear_on(x)
        runs = (x.upper - slack, -slack - x.lower)
        below, above = (torch.where((run > slack) & ~known, 2 / torch.where(run > slack, run, 1), 0) for run in runs)
        return below, above

    def _lines(self, x: Interval, below: Tensor, above: Tensor) -> Relaxation:
        y, slack = self.interval(x), self.slack(x)
        return Relaxation(below, y.lower - below * slack, above, y.upper + above * slack)

    def _adaptive(self, x: Interval) -> tuple[Tensor, Tensor]:
        below, above = self._steepest(x)
        return below * (x.centre > 0), above * (x.centre < 0)

    def relax(self, x: Interval) -> Relaxation:
        return self._lines(x, *self._adaptive(x))

    def relax_parallel(self, x: Interval) -> Relaxation:
        """The gap does not depend on the slope."""
        slope = torch.minimum(*self._steepest(x))
        return self._lines(x, slope, slope)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """(slope below, slope above)."""
        high = torch.stack(self._steepest(x))
        return torch.stack(self._adaptive(x)), torch.zeros_like(high), high

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        return self._lines(x, params[0], params[1])
