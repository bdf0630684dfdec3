"""Clip: min(max(z, low), high), the S-shaped piecewise-linear function (HardTanh, ReLU6, Clip).

Lines (the two-kink form of CROWN's adaptive lines, arXiv:1811.00866). Above: through the upper pivot
p = min(u, high) with any slope in [0, s], s the slope from (l, f(l)) to (p, f(p)); where the upper kink
is not inside, slope s is the best and the only one offered. Below: the same through q = max(l, low).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.slack import slack
from bounds.relaxation import Relaxation


def _slope(rise: Tensor, run: Tensor) -> Tensor:
    """rise / run in [0, 1], and 0 where there is no run (there rise is 0 as well)."""
    return (rise / torch.where(run > 0, run, torch.ones_like(run))).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Clip(Elementwise):
    """y = min(max(z, low), high); either end may be infinite."""

    low: float = -math.inf
    high: float = math.inf
    kind: ClassVar[str] = "Clip"
    rounding_known: ClassVar[bool] = True
    ulps: ClassVar[int] = 0
    exact_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Clip needs low <= high, got low {self.low} and high {self.high}")

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(self.low, self.high)

    def is_linear_on(self, x: Interval) -> Tensor:
        if self.low == self.high:
            return torch.ones_like(x.lower, dtype=torch.bool)
        inside = (x.lower >= self.low) & (x.upper <= self.high)
        return inside | (x.upper <= self.low) | (x.lower >= self.high) | (x.lower == x.upper)

    def derivative(self, x: Interval) -> Interval:
        flat = (x.lower <= self.low) | (x.upper >= self.high)
        steep = (x.upper >= self.low) & (x.lower <= self.high) & (self.low < self.high)
        return Interval((~flat & steep).to(x.lower.dtype), steep.to(x.lower.dtype))

    def split_points(self, x: Interval, side: Tensor) -> Tensor:
        """The kink inside; of two the one nearer to the middle."""
        middle = x.centre
        low, high = torch.full_like(middle, self.low), torch.full_like(middle, self.high)
        has_low, has_high = (x.lower < low) & (low < x.upper), (x.lower < high) & (high < x.upper)
        take_low = has_low & ~(has_high & ((high - middle).abs() < (middle - low).abs()))
        return torch.where(take_low, low, torch.where(has_high, high, middle))

    def _steepest(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The steepest slopes offered (above, below): between the pivots and the far ends."""
        p, q = x.upper.clamp(max=self.high), x.lower.clamp(min=self.low)
        return (_slope(self.forward(p) - self.forward(x.lower), p - x.lower),
                _slope(self.forward(x.upper) - self.forward(q), x.upper - q))

    def _lines(self, x: Interval, upper_slope: Tensor, lower_slope: Tensor) -> Relaxation:
        """Through the pivots, moved out by the rounding of slopes and intercepts where the slope is not 0 or 1."""
        p, q = x.upper.clamp(max=self.high), x.lower.clamp(min=self.low)
        below, above = self.forward(q), self.forward(p)
        reach = torch.maximum(x.lower.abs(), x.upper.abs())

        def out(slope: Tensor, value: Tensor) -> Tensor:
            bent = (slope > 0) & ~self.is_linear_on(x)
            return torch.where(bent, slack(value.abs() + 2 * slope * reach), torch.zeros_like(value))
        return Relaxation(lower_slope, below - lower_slope * q - out(lower_slope, below),
                          upper_slope, above - upper_slope * p + out(upper_slope, above))

    def _adaptive(self, x: Interval, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Of the slopes offered, those with the smaller area: at the middle of [l, u] the upper line
        should be low and the lower line high."""
        middle = x.centre
        steep_above = (x.upper <= self.high) | (middle < self.high)
        steep_below = (x.lower >= self.low) | (middle > self.low)
        return upper * steep_above, lower * steep_below

    def relax(self, x: Interval) -> Relaxation:
        upper, lower = self._steepest(x)
        upper_slope, lower_slope = self._adaptive(x, upper, lower)
        return self._lines(x, upper_slope, lower_slope)

    def relax_parallel(self, x: Interval) -> Relaxation:
        """With both kinks inside the gap is (high - low)(1 - s) while both lines keep their pivots, and
        grows again once the slope is too steep for one of them: the smaller of both slopes is optimal."""
        upper, lower = self._steepest(x)
        slope = torch.minimum(upper, lower)
        return self._lines(x, slope, slope)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """(slope below, slope above)."""
        upper, lower = self._steepest(x)
        upper_slope, lower_slope = self._adaptive(x, upper, lower)
        high = torch.stack((lower, upper))
        low = torch.stack((lower * (x.lower >= self.low), upper * (x.upper <= self.high)))
        return torch.stack((lower_slope, upper_slope)), low, high

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        return self._lines(x, params[1], params[0])
