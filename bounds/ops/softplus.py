"""Softplus: log(1 + exp(beta z)) / beta, convex and increasing. Chord above, tangent below.

(Tangent and chord of a convex activation: CROWN, arXiv:1811.00866, section 3.2.) PyTorch's module
returns z itself beyond `threshold / beta` and so drops by `jump` = log(1 + exp(-threshold)) / beta there; the stored
function is then not quite convex, and where that point can be inside, both lines move out by `jump`.
Intercepts carry the slack of `bounds.ops.slack`, which trusts the library's functions; where all rounding is accounted
for, `intercepts` computes them anew from enclosures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.interval import Interval
from bounds.ops import enclose
from bounds.ops.base import Elementwise
from bounds.ops.proved_lines import margin, tangent_rise, within
from bounds.ops.round_off import SPARE, unit
from bounds.ops.slack import slack
from bounds.relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Softplus(Elementwise):
    """y = log(1 + exp(beta x)) / beta, and x where beta x > threshold."""

    beta: float = 1.0
    threshold: float = 20.0
    kind: ClassVar[str] = "Softplus"
    rounding_known: ClassVar[bool] = True
    needs_proof: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"Softplus needs beta > 0, got {self.beta}")

    @property
    def jump(self) -> float:
        """By how much the stored function drops at threshold / beta."""
        return (math.log1p(math.exp(-abs(self.threshold))) + max(-self.threshold, 0.0)) / self.beta

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.softplus(inputs[0], self.beta, self.threshold)

    def _outward(self, x: Interval, magnitude: Tensor) -> Tensor:
        return slack(magnitude) + self.jump * (x.upper * self.beta > self.threshold)

    def _value_error(self, z: Tensor, value: Tensor) -> Tensor:
        """Magnitude of the error of `value`. Rounding beta z moves it by f'(z) |z| ulp: that is at most f where
        z > 0, and f |beta z| where z < 0."""
        return value if self.beta == 1 else value * (2 + (-self.beta * z).clamp(min=0))

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        low, high = self.forward(x.lower), self.forward(x.upper)
        return Interval(low - self._outward(x, self._value_error(x.lower, low)),
                        high + self._outward(x, self._value_error(x.upper, high)))

    def _chord(self, x: Interval) -> tuple[Tensor, Tensor]:
        low, high = self.forward(x.lower), self.forward(x.upper)
        width = x.upper - x.lower
        slope = ((high - low) / torch.where(width > 0, width, torch.ones_like(width))).clamp(0, 1)
        size = torch.maximum(x.lower.abs(), x.upper.abs())
        magnitude = self._value_error(x.upper, high) + slope * size
        intercept = torch.maximum(low - slope * x.lower, high - slope * x.upper)
        return slope, intercept + self._outward(x, magnitude)

    def _tangent(self, x: Interval, d: Tensor) -> tuple[Tensor, Tensor]:
        slope, value = torch.sigmoid(d * self.beta), self.forward(d)
        size = torch.maximum(x.lower.abs(), x.upper.abs())
        magnitude = self._value_error(d, value) + slope * size
        return slope, value - slope * d - self._outward(x, magnitude)

    def relax(self, x: Interval) -> Relaxation:
        # The tangent with the smallest area touches in the middle, where it is highest.
        return Relaxation(*self._tangent(x, x.centre), *self._chord(x))

    def relax_parallel(self, x: Interval) -> Relaxation:
        slope, above = self._chord(x)
        info = torch.finfo(slope.dtype)
        d = torch.logit(slope.clamp(info.tiny, 1 - info.eps)) / self.beta
        d = torch.minimum(torch.maximum(d, x.lower), x.upper)
        steeper, intercept = self._tangent(x, d)
        # The tangent has not quite the chord's slope: turn it about the end where that is valid.
        turn = steeper - slope
        intercept = intercept + torch.minimum(turn * x.lower, turn * x.upper)
        size = torch.maximum(x.lower.abs(), x.upper.abs())
        return Relaxation(slope, intercept - slack(turn.abs() * size), slope, above)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """The tangent point of the lower line, anywhere in [l, u]."""
        return x.centre.unsqueeze(0), x.lower.unsqueeze(0), x.upper.unsqueeze(0)

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        return Relaxation(*self._tangent(x, params[0]), *self._chord(x))

    # ------------------------------------------------------------------ rounding included

    def _enclosed(self, z: Tensor) -> tuple[Interval, Interval]:
        """Ends of log(1 + exp(beta z)) / beta and of its derivative."""
        if self.beta == 1:
            return enclose.softplus_and_slope(z)
        info = torch.finfo(z.dtype)
        spare = SPARE * unit(z.dtype)
        scaled = z * self.beta
        error = scaled.abs() * spare + info.tiny
        low, high = enclose.softplus_and_slope(scaled - error), enclose.softplus_and_slope(scaled + error)
        value = Interval(low[0].lower / self.beta, high[0].upper / self.beta)
        return (Interval(value.lower * (1 - spare) - info.tiny, value.upper * (1 + spare) + info.tiny),
                Interval(low[1].lower, high[1].upper))

    def derivative(self, x: Interval) -> Interval:
        """sigmoid(beta z), which grows; 1 beyond the threshold, at which the function drops."""
        spare = SPARE * unit(x.lower.dtype)
        first, last = x.lower * self.beta, x.upper * self.beta
        reaches, beyond = last + spare * last.abs() >= self.threshold, first - spare * first.abs() > self.threshold
        one = torch.ones_like(first)
        low, high = self._enclosed(x.lower)[1].lower, self._enclosed(x.upper)[1].upper
        low = torch.where(beyond, one, torch.where(reaches, -torch.inf, low))
        return Interval(low, torch.where(reaches, one, high))

    def _drop(self, x: Interval) -> Tensor:
        """How far the stored function may lie below log(1 + exp(beta z)) / beta on x."""
        exact = torch.tensor(-self.threshold, dtype=torch.float64)  # log(1 + exp(-threshold))
        most = float(enclose.softplus_and_slope(exact)[0].upper) / self.beta * (1 + 1e-6)
        scaled = x.upper * self.beta
        reaches = scaled + SPARE * unit(scaled.dtype) * scaled.abs() >= self.threshold
        return torch.where(reaches, torch.full_like(scaled, most), torch.zeros_like(scaled))

    def enclosed(self, x: Interval) -> Interval:
        lower = self._enclosed(x.lower)[0].lower - self._drop(x)
        return Interval(lower - SPARE * unit(lower.dtype) * lower.abs(), self._enclosed(x.upper)[0].upper)

    def known(self, x: Interval) -> tuple[Tensor, ...]:
        """The function's upper ends at both ends."""
        return self._enclosed(x.lower)[0].upper, self._enclosed(x.upper)[0].upper

    def intercepts(self, lower_slope: Tensor, upper_slope: Tensor, x: Interval, known: tuple[Tensor, ...]
                   ) -> tuple[Tensor, Tensor]:
        reach = torch.maximum(x.lower.abs(), x.upper.abs())
        above = torch.maximum(known[0] - upper_slope * x.lower, known[1] - upper_slope * x.upper)
        above = above + margin(known[1] + upper_slope.abs() * reach, upper_slope)
        s = lower_slope
        p = within(torch.logit(s.clamp(0, 1)) / self.beta, x)
        value, slope = self._enclosed(p)
        rise = tangent_rise(Interval(-slope.upper, -slope.lower), -s, p, x.lower, x.upper)  # of -f, which is concave
        below = value.lower - s * p - rise
        drop = self._drop(x)
        return below - drop - margin(known[1] + s.abs() * reach + rise.abs() + drop, s), above
