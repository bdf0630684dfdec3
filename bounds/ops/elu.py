"""ELU: z for z > 0, alpha (exp(z) - 1) below. Convex for alpha <= 1; beyond that the kink at 0 is concave.

Both lines are parameterised by slope, because at the kink one point has many tangents, and the
intercept is computed so that *any* slope t gives a valid line:

- below: min of f(z) - t z. On the exponential part the minimum lies where f' = t (closed form), on the
  straight part at its ends;
- above: max of f(z) - t z. Both parts are convex, so it lies at an end or at 0.

The slope boxes hold those slopes that are not beaten everywhere by another. For alpha <= 1: chord above, tangents
below (CROWN, arXiv:1811.00866, section 3.2). For alpha > 1 and l < 0 < u: above, the chord or, where the graph
pokes through it at 0, a line through the origin; below, tangents up to the one through (u, u), whose slope t* maximises
(u - f(d)) / (u - d) (Dinkelbach's iteration, quadratic). Intercepts carry the slack of `bounds.ops.slack`,
except where the line is z itself on [l, u] >= 0. That trusts the library's functions; where all rounding is accounted
for, `intercepts` computes them anew from enclosures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.interval import Interval
from bounds.ops import enclose
from bounds.ops.base import Elementwise
from bounds.ops.least_area import least_area_point
from bounds.ops.proved_lines import margin, tangent_rise, within
from bounds.ops.round_off import SPARE, unit
from bounds.ops.slack import slack
from bounds.relaxation import Relaxation

DINKELBACH_STEPS = 4  # from d = l; any other result is sound, only a little less tight


@dataclass(frozen=True, eq=False)
class Elu(Elementwise):
    """y = x for x > 0, else alpha (exp(x) - 1); alpha >= 0."""

    alpha: float = 1.0
    kind: ClassVar[str] = "Elu"
    rounding_known: ClassVar[bool] = True
    needs_proof: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"Elu needs alpha >= 0, got {self.alpha}")

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.elu(inputs[0], self.alpha)

    def is_linear_on(self, x: Interval) -> Tensor:
        return (x.lower >= 0) | (x.lower == x.upper)

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        low, high = self.forward(x.lower), self.forward(x.upper)
        return Interval(torch.where(x.lower < 0, low - slack(low.abs()), low),
                        torch.where(x.upper < 0, high + slack(high.abs()), high))

    # ------------------------------------------------------------------ slopes

    def _derivative(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, torch.ones_like(z), self.alpha * z.clamp(max=0).exp())

    def _chord_slope(self, x: Interval) -> Tensor:
        width = x.upper - x.lower
        rise = self.forward(x.upper) - self.forward(x.lower)
        slope = (rise / torch.where(width > 0, width, torch.ones_like(width))).clamp(0, max(1.0, self.alpha))
        return torch.where(x.lower >= 0, torch.ones_like(slope), slope)

    @torch.no_grad()
    def _steepest_lower(self, x: Interval) -> Tensor:
        """t*: the largest slope of a lower line worth having."""
        if self.alpha <= 1:
            return torch.where(x.lower >= 0, torch.ones_like(x.upper), self._derivative(x.upper))
        straddles = (x.lower < 0) & (x.upper > 0)
        low, u = x.lower.clamp(max=0), x.upper.clamp(min=0)
        d, slope = low, torch.zeros_like(low)
        for _ in range(DINKELBACH_STEPS):
            run = u - d
            slope = (u - self.forward(d)) / torch.where(run > 0, run, torch.ones_like(run))
            d = torch.maximum((slope / self.alpha).clamp(min=torch.finfo(slope.dtype).tiny).log(), low).clamp(max=0)
        stable = torch.where(x.lower >= 0, torch.ones_like(u), self._derivative(x.upper))
        return torch.where(straddles, slope.clamp(0, self.alpha), stable)

    def _lower_slopes(self, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """(default, low, high): the tangent in the middle has the smallest area."""
        high = self._steepest_lower(x)
        at_lower = torch.where(x.lower >= 0, torch.ones_like(high), self._derivative(x.lower))
        low = torch.minimum(at_lower, high)
        middle = self.alpha * x.centre.clamp(max=0).exp() if self.alpha > 1 else self._derivative(x.centre)
        return torch.minimum(torch.maximum(middle, low), high), low, high

    def _upper_slopes(self, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """(default, low, high): the chord, or for alpha > 1 lines through the origin where it fails."""
        chord = self._chord_slope(x)
        if self.alpha <= 1:
            return chord, chord, chord
        low = torch.where(x.lower < 0, x.lower, -torch.ones_like(x.lower))
        secant = self.forward(low) / low  # from the origin to (l, f(l))
        through_origin = (x.lower < 0) & (x.upper > 0) & (secant > 1)
        high = torch.where(through_origin, secant, chord)
        low_slope = torch.where(through_origin, torch.ones_like(chord), chord)
        return torch.where(x.centre > 0, low_slope, high), low_slope, high

    # ------------------------------------------------------------------ intercepts, valid for any slope

    def _below(self, x: Interval, slope: Tensor) -> Tensor:
        low, high = x.lower.clamp(max=0), x.upper.clamp(max=0)  # the exponential part
        floor = torch.finfo(slope.dtype).tiny
        touch = (slope / self.alpha).clamp(min=floor).log() if self.alpha > 0 else torch.zeros_like(slope)
        d = torch.minimum(torch.maximum(touch, low), high)
        tangent = self.alpha * d.exp()
        turn = tangent - slope  # of a rounding error, or where d was clipped: then exact at the clipped end
        curve = self.alpha * torch.expm1(d) - tangent * d + torch.minimum(turn * low, turn * high)
        intercept = torch.minimum(curve, self.forward(x.upper) - slope * x.upper)
        return intercept - self._slack(x, slope, torch.maximum(slope.abs(), tangent))

    def _above(self, x: Interval, slope: Tensor) -> Tensor:
        kink = torch.minimum(x.lower.clamp(min=0), x.upper)  # 0, or the end nearest to it
        ends = torch.maximum(self.forward(x.lower) - slope * x.lower, self.forward(x.upper) - slope * x.upper)
        return torch.maximum(ends, self.forward(kink) - slope * kink) + self._slack(x, slope, slope.abs())

    def _slack(self, x: Interval, slope: Tensor, steepest: Tensor) -> Tensor:
        """Zero where the line is z itself; `steepest` is the largest slope that entered the intercept."""
        value = torch.maximum(self.forward(x.lower).abs(), self.forward(x.upper).abs())
        error = slack(value + steepest * torch.maximum(x.lower.abs(), x.upper.abs()))
        return torch.where((x.lower >= 0) & (slope == 1), torch.zeros_like(error), error)

    # ------------------------------------------------------------------ the contract

    def _lines(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        return Relaxation(lower_slope, self._below(x, lower_slope), upper_slope, self._above(x, upper_slope))

    def split_points(self, x: Interval, side: Tensor) -> Tensor:
        """As always, and the kink at 0 is a candidate."""
        return least_area_point(self, x, side, special=(0.0,))

    def relax(self, x: Interval) -> Relaxation:
        return self._lines(x, self._lower_slopes(x)[0], self._upper_slopes(x)[0])

    def relax_parallel(self, x: Interval) -> Relaxation:
        """alpha <= 1: the chord's slope. Else the smaller of the steepest useful slopes of both lines, where the gap,
        convex in the slope, changes from falling to rising."""
        slope = self._chord_slope(x)
        if self.alpha > 1:
            slope = torch.minimum(self._steepest_lower(x), self._upper_slopes(x)[2])
        return self._lines(x, slope, slope)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """The slope below; for alpha > 1 also the slope above."""
        below = self._lower_slopes(x)
        if self.alpha <= 1:
            return below[0].unsqueeze(0), below[1].unsqueeze(0), below[2].unsqueeze(0)
        above = self._upper_slopes(x)
        initial, low, high = (torch.stack(pair) for pair in zip(below, above, strict=True))
        return initial, low, high

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        upper = self._chord_slope(x) if self.alpha <= 1 else params[1]
        return self._lines(x, params[0], upper)

    # ------------------------------------------------------------------ rounding included

    def _times_alpha(self, x: Interval) -> Interval:
        spare, tiny = SPARE * unit(x.lower.dtype), torch.finfo(x.lower.dtype).tiny
        low, high = x.lower * self.alpha, x.upper * self.alpha
        return Interval(low - low.abs() * spare - tiny, high + high.abs() * spare + tiny)

    def _enclosed(self, z: Tensor) -> Interval:
        curve = self._times_alpha(enclose.expm1(z))
        return Interval(torch.where(z < 0, curve.lower, z), torch.where(z < 0, curve.upper, z))

    def derivative(self, x: Interval) -> Interval:
        """alpha exp(z), which grows, left of the kink, and 1 right of it."""
        one = torch.ones_like(x.lower)
        low = self._times_alpha(enclose.expm1_and_slope(x.lower)[1]).lower.clamp(min=0)
        high = self._times_alpha(enclose.expm1_and_slope(x.upper)[1]).upper  # alpha, where the kink is inside
        left, right = x.lower <= 0, x.upper >= 0
        low = torch.where(left, torch.where(right, low.clamp(max=1), low), one)
        return Interval(low, torch.where(left, torch.where(right, high.clamp(min=1), high), one))

    def enclosed(self, x: Interval) -> Interval:
        return Interval(self._enclosed(x.lower).lower, self._enclosed(x.upper).upper)

    def known(self, x: Interval) -> tuple[Tensor, ...]:
        """The function's upper ends at both ends."""
        return self._enclosed(x.lower).upper, self._enclosed(x.upper).upper

    def intercepts(self, lower_slope: Tensor, upper_slope: Tensor, x: Interval, known: tuple[Tensor, ...]
                   ) -> tuple[Tensor, Tensor]:
        reach = torch.maximum(x.lower.abs(), x.upper.abs())
        straight = torch.maximum(x.lower, torch.zeros_like(x.lower)), x.upper  # the ends of the part where f(z) = z
        nothing = torch.full_like(reach, -torch.inf)
        # Above: both parts are convex, so f(z) - t z is largest at an end or at 0.
        t = upper_slope
        left = torch.where(x.lower < 0, known[0] - t * x.lower, (1 - t) * straight[0])
        right = torch.where(x.upper < 0, known[1] - t * x.upper, (1 - t) * x.upper)
        kink = torch.where((x.lower < 0) & (x.upper > 0), torch.zeros_like(reach), nothing)
        above = torch.maximum(torch.maximum(left, right), kink)
        size = torch.where(x.lower < 0, torch.maximum(known[0].abs(), known[1].abs()) + t.abs() * reach,
                           (1 - t).abs() * reach)
        above = above + margin(size, t)
        # Below: the largest of -f(z) + s z on the exponential part, which is concave, and at the ends of the other.
        s = lower_slope
        curve = Interval(x.lower.clamp(max=0), x.upper.clamp(max=0))
        p = within((s.clamp(min=0) / self.alpha).log() if self.alpha > 0 else torch.zeros_like(s), curve)
        value, slope = (self._times_alpha(y) for y in enclose.expm1_and_slope(p))
        rise = tangent_rise(Interval(-slope.upper, -slope.lower), -s, p, curve.lower, curve.upper)
        bent = torch.where(x.lower < 0, s * p - value.lower + rise, nothing)
        ends = torch.maximum((s - 1) * straight[0], (s - 1) * straight[1])
        below = torch.maximum(bent, torch.where(x.upper >= 0, ends, nothing))
        largest = torch.maximum(known[0].abs(), known[1].abs()) + rise.abs()
        size = torch.where(x.lower < 0, largest + s.abs() * reach, (s - 1).abs() * reach)
        return -(below + margin(size, s)), above
