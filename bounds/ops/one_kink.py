"""Two lines that meet at 0: `f(z) = z` for z >= 0 and `a z` for z < 0 (LeakyReLU, PReLU).

f(z) = a z + (1 - a) max(z, 0), so its lines are ReLU's, sheared: the chord on one side, and on the
other any line through the origin with a slope between a and 1 (for ReLU: CROWN, arXiv:1811.00866).
With a <= 1 the function is convex and the chord lies above; with a > 1 it is concave and the chord
lies below. A negative a is allowed: then f is not monotone, and the same lines hold.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.near_kink import near_kink
from bounds.relaxation import Relaxation


class OneKink(Elementwise):
    """y = z where z >= 0, else left_slope * z."""

    rounding_known: ClassVar[bool] = True
    ulps: ClassVar[int] = 1
    increasing: ClassVar[bool] = False  # a negative left slope is allowed, so intervals are our own
    only_kink: ClassVar[float | None] = 0.0

    def left_slope(self, x: Tensor) -> Tensor:
        """The slope below 0, broadcastable against x "B *shape"."""
        raise NotImplementedError(f"{self.kind} has no left slope")

    def convex(self) -> bool | Tensor:
        """Where the left slope is at most 1: one bool, or a tensor broadcastable against "B *shape"."""
        raise NotImplementedError(f"{self.kind} does not say whether it is convex")

    def forward(self, *inputs: Tensor) -> Tensor:
        (z,) = inputs
        return torch.where(z >= 0, z, self.left_slope(z) * z)

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        first, second = self.forward(x.lower), self.forward(x.upper)
        # Where the kink lies inside, its value 0 counts too (it decides for a negative left slope).
        inside = (x.lower < 0) & (x.upper > 0)
        lower, upper = torch.minimum(first, second), torch.maximum(first, second)
        return Interval(torch.where(inside, lower.clamp(max=0), lower), torch.where(inside, upper.clamp(min=0), upper))

    def is_linear_on(self, x: Interval) -> Tensor:
        return (x.lower >= 0) | (x.upper <= 0) | (self.left_slope(x.lower) == 1)

    def derivative(self, x: Interval) -> Interval:
        one = torch.ones_like(x.lower)
        a = self.left_slope(one).expand_as(one)
        left, right = torch.where(x.lower <= 0, a, one), torch.where(x.upper >= 0, one, a)
        return Interval(torch.minimum(left, right), torch.maximum(left, right))

    def _chord(self, x: Interval) -> tuple[Tensor, Tensor]:
        """Slope and intercept of the chord; on a stable neuron the function's own line."""
        low, high = x.lower.clamp(max=0), x.upper.clamp(min=0)
        width = high - low
        share = high / torch.where(width > 0, width, torch.ones_like(width))  # ReLU's chord slope
        a = self.left_slope(share)
        # lerp is exact at share 0 and 1, so that stable neurons get exactly slope a or 1.
        a, share = torch.broadcast_tensors(a, share)
        slope = torch.lerp(a, torch.ones_like(share), share)
        # The slope is rounded: of the intercepts that reach the two ends the outer one, moved out by its own rounding.
        ends = low * (a - slope), high * (1 - slope)
        out = 1 + 2 * torch.finfo(low.dtype).eps
        above, below = torch.maximum(*ends).clamp(min=0) * out, torch.minimum(*ends).clamp(max=0) * out
        convex = self.convex()
        if isinstance(convex, bool):
            return slope, above if convex else below
        return slope, torch.where(convex, above, below)

    def _adaptive(self, x: Interval) -> Tensor:
        """The slope through the origin with the smaller area: 1 where u > -l, else a."""
        return torch.where(x.upper + x.lower > 0, torch.ones_like(x.lower), self.left_slope(x.lower))

    def _lines(self, chord: tuple[Tensor, Tensor], free: Tensor, free_intercept: Tensor | None = None) -> Relaxation:
        """The chord above and the free line below, or the other way where the function is concave."""
        slope, intercept = chord
        convex = self.convex()
        if isinstance(convex, bool):
            if convex:
                return Relaxation(free, free_intercept, slope, intercept)
            return Relaxation(slope, intercept, free, free_intercept)
        other = torch.zeros_like(intercept) if free_intercept is None else free_intercept
        return Relaxation(torch.where(convex, free, slope), torch.where(convex, other, intercept),
                          torch.where(convex, slope, free), torch.where(convex, intercept, other))

    def relax(self, x: Interval) -> Relaxation:
        return self._lines(self._chord(x), self._adaptive(x))

    def relax_parallel(self, x: Interval) -> Relaxation:
        chord = self._chord(x)
        lines = self._lines(chord, chord[0])
        return Relaxation(chord[0], lines.lower_intercept, chord[0], lines.upper_intercept)

    def near(self, x: Interval, slope: Tensor, intercept: Tensor | None, room: Tensor) -> Interval:
        return near_kink(x, self.left_slope(slope), slope, intercept, room)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """The slope of the line through the origin: between a and 1, fixed where the neuron is stable."""
        a = self.left_slope(x.lower)
        one = torch.ones_like(x.lower)
        dead, active = x.upper <= 0, (x.lower >= 0) & (x.upper > 0)
        low = torch.where(active, one, torch.where(dead, a, a.clamp(max=1)))
        high = torch.where(active, one, torch.where(dead, a, a.clamp(min=1)))
        return self._adaptive(x).unsqueeze(0), low.unsqueeze(0), high.unsqueeze(0)

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        return self._lines(self._chord(x), params[0])
