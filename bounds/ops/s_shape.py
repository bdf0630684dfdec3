"""Lines around tanh, from which those of sigmoid follow: sigmoid(z) = 1/2 + tanh(z / 2) / 2.

tanh is odd, convex below 0 and concave above, so the lower line on [l, u] is the mirrored upper line
on [-u, -l]; both are computed at once, stacked on a leading axis of two (row 0 mirrored).

The upper line on [L, U]:

- chord, where the function is convex (U <= 0) or where the chord is no steeper than the function at U
  (then a tangent through (L, f(L)) would touch beyond U);
- else the tangent at a point d >= max(L, 0). On [0, U] a tangent at d >= 0 lies above by concavity. On
  [L, 0] the function minus any line is convex, hence largest at an end. So with slope f'(d) the intercept
  max(f(d) - f'(d) d, f(L) - f'(d) L) is valid for *every* d >= 0: no search has to be exact.

The useful d lie in [d*, U], d* the point whose tangent passes through (L, f(L)): there the line is exact
at L, at d = U it is exact at U. The default is the d in this range whose line is lowest in the middle of [L, U],
hence of the smallest area. (CROWN, arXiv:1811.00866, uses d* itself; the parameterised tangents are those of
auto_LiRPA and alpha-CROWN, arXiv:2011.13824.)

d* maximises the slope c(d) of the line from (L, f(L)) to (d, f(d)). Dinkelbach's iteration d <- f'^-1(c(d))
converges quadratically from anywhere and never from below. With x = -L, log(1 + x + x^2 / (1 + x)) / 2 is right to
first order for small and for large x, so few steps do.

Derivatives are 1 / cosh^2, not 1 - tanh^2: a slope must keep its relative accuracy in the tails, where it
meets arguments of 1e8. Intercepts carry the slack of `bounds.ops.slack`, which trusts the library's functions; where
all rounding is accounted for, `intercepts` computes them anew from enclosures: for any slope the line above is highest
over f at L, or at U <= 0, or on [max(L, 0), U], where f is concave (`bounds.ops.proved_lines`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops import enclose
from bounds.ops.base import Elementwise
from bounds.ops.least_area import least_area_point
from bounds.ops.proved_lines import margin, tangent_rise, within
from bounds.ops.slack import slack
from bounds.relaxation import Relaxation

DINKELBACH_STEPS = 2  # relative distance from d*: 5.7e-2 at the start, 5.3e-4 after one, 4.7e-8 after two
COSH_RANGE = 44.0     # 1 / cosh(44)^2 = 2.4e-38: still normal in float32, and cosh does not overflow


def derivative(z: Tensor) -> Tensor:
    """tanh'(z) = 1 / cosh(z)^2, relatively accurate; at most 3e-38 too large beyond |z| = 44."""
    return torch.cosh(z.clamp(-COSH_RANGE, COSH_RANGE)).reciprocal().square()


def inverse_derivative(slope: Tensor) -> Tensor:
    """The d >= 0 with tanh'(d) = slope, for slope in (0, 1]: arsech(sqrt(slope))."""
    return torch.log1p((1 - slope).clamp(min=0).sqrt()) - 0.5 * slope.log()


def _touching(slope: Tensor) -> Tensor:
    """As `inverse_derivative`, for any slope, in fewer steps; absolutely accurate, not relatively."""
    slope = slope.clamp(torch.finfo(slope.dtype).tiny, 1)
    return (1 - slope).sqrt_().add_(1).mul_(slope.rsqrt_()).log_()


def _stack(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack((first, second))


@dataclass(frozen=True, eq=False)
class _Ends:
    """[L, U] of both rows and what is known there: "2 B *shape" (row 0 mirrored), size "B *shape"."""

    lower: Tensor
    upper: Tensor
    at_lower: Tensor
    at_upper: Tensor
    chord: Tensor
    steepest: Tensor    # f'(U)
    use_chord: Tensor
    magnitude: Tensor   # max |z|, "B *shape"
    value: Tensor       # max |f|, "B *shape"

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> _Ends:
        at_lower, at_upper = torch.tanh(lower), torch.tanh(upper)
        width = upper - lower
        # Clamped: the rise over a width of few ulp is rounding. Any slope is sound here, a small one is kinder.
        chord = ((at_upper - at_lower) / torch.where(width > 0, width, torch.ones_like(width))).clamp(0, 1)
        L, U = _stack(-upper, lower), _stack(-lower, upper)
        steepest = derivative(U)
        return _Ends(L, U, _stack(-at_upper, at_lower), _stack(-at_lower, at_upper), chord, steepest,
                     (U <= 0) | (chord <= steepest), torch.maximum(lower.abs(), upper.abs()),
                     torch.maximum(at_lower.abs(), at_upper.abs()))

    @torch.no_grad()
    def lowest_tangent(self) -> Tensor:
        """max(L, d*): about the smallest useful tangent point, clipped to U; U where the chord is used."""
        far = -self.lower.clamp(max=0)
        d = torch.log1p(far + far * (far / (1 + far))) * 0.5
        value = torch.tanh(d)
        tiny = torch.finfo(d.dtype).tiny
        for _ in range(DINKELBACH_STEPS):
            slope = ((value - self.at_lower) / (d + far).clamp(min=tiny)).clamp(tiny, 1)
            value = (1 - slope).sqrt()  # tanh where tanh' is the slope
            d = torch.log1p(value) - 0.5 * slope.log()
        d = torch.where(self.lower < 0, d, self.lower)
        return torch.where(self.use_chord, self.upper, torch.minimum(d, self.upper))

    def upper_line(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept, "2 ...", of a valid upper line for any tangent points d "2 ..."."""
        d = d.clamp(min=0)
        slope = torch.where(self.use_chord, self.chord, derivative(d))
        touch = torch.where(self.use_chord, self.upper, d)
        value = torch.where(self.use_chord, self.at_upper, torch.tanh(d))
        intercept = torch.maximum(value - slope * touch, self.at_lower - slope * self.lower)
        return slope, intercept

    def intercept_of(self, slope: Tensor) -> Tensor:
        """The smallest intercept, "2 ...", of an upper line of this slope "B *shape" <= that of `upper_line`."""
        d = inverse_derivative(slope.detach().clamp(torch.finfo(slope.dtype).tiny, 1))
        d = torch.minimum(torch.maximum(d, self.lower.clamp(min=0)), self.upper)
        steeper = derivative(d)
        # The tangent at d, turned to `slope` about the end where that costs nothing: valid for any d >= 0.
        turn = steeper - slope
        tangent = torch.tanh(d) - steeper * d + torch.maximum(turn * self.lower, turn * self.upper)
        ends = torch.maximum(self.at_lower - slope * self.lower, self.at_upper - slope * self.upper)
        return torch.where(self.upper <= 0, ends, torch.maximum(tangent, ends))


class SShape(Elementwise):
    """f(z) = offset + height * tanh(stretch * z): tanh (0, 1, 1) and sigmoid (1/2, 1/2, 1/2).

    All three are powers of two or zero, so that scaling adds no rounding error of its own.
    """

    rounding_known: ClassVar[bool] = True
    needs_proof: ClassVar[bool] = True
    offset: ClassVar[float]
    height: ClassVar[float]
    stretch: ClassVar[float]

    def _ends(self, x: Interval) -> _Ends:
        if self.stretch == 1:
            return _Ends.of(x.lower, x.upper)
        return _Ends.of(x.lower * self.stretch, x.upper * self.stretch)

    def _lines(self, ends: _Ends, slope: Tensor, intercept: Tensor) -> Relaxation:
        """Undo mirror and scaling. slope "2 ..." or "B *shape" (one for both lines)."""
        # `offset` enters the slack because adding it rounds.
        intercept = intercept + slack(ends.magnitude * slope + (ends.value + self.offset))
        slope = slope * (self.height * self.stretch)
        if self.offset or self.height != 1:
            lower = self.offset - self.height * intercept[0]
            upper = self.offset + self.height * intercept[1]
        else:
            lower, upper = -intercept[0], intercept[1]
        if slope.dim() < intercept.dim():
            return Relaxation(slope, lower, slope, upper)
        return Relaxation(slope[0], lower, slope[1], upper)

    def _initial(self, ends: _Ends) -> tuple[Tensor, Tensor]:
        """(default tangent points, smallest useful ones), mirrored, "2 B *shape"."""
        low = ends.lowest_tangent()
        middle = (ends.lower + ends.upper) * 0.5
        return torch.maximum(low, middle), low

    def derivative(self, x: Interval) -> Interval:
        """height * stretch * tanh'(stretch z), which falls with |z|."""
        near = torch.maximum(x.lower, -x.upper).clamp(min=0)
        far = torch.maximum(-x.lower, x.upper)
        steepest = self.height * self.stretch
        low, high = (enclose.tanh_and_slope(z * self.stretch)[1] for z in (far, near))
        tiny = torch.finfo(near.dtype).tiny  # of a product that underflows
        return Interval(low.lower * steepest, (high.upper * steepest + tiny).clamp(max=steepest))

    def split_points(self, x: Interval, side: Tensor) -> Tensor:
        """As always, and the inflection at 0 is a candidate."""
        return least_area_point(self, x, side, special=(0.0,))

    def relax(self, x: Interval) -> Relaxation:
        ends = self._ends(x)
        return self._lines(ends, *ends.upper_line(self._initial(ends)[0]))

    def relax_parallel(self, x: Interval) -> Relaxation:
        """The smaller slope of the two default lines. While both lines keep touching beyond the inflection the gap
        falls with the slope, and it grows once one of them turns about its far end: near-optimal.
        (DeepZ takes min(f'(l), f'(u)), which is far flatter on wide intervals.)"""
        ends = self._ends(x)
        slopes = ends.upper_line(ends.lowest_tangent())[0]
        slope = torch.minimum(slopes[0], slopes[1])
        return self._lines(ends, slope, ends.intercept_of(slope))

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """Tangent points (of the lower line, of the upper line), each between the tangent through the far
        end of the graph and the tangent at the near end; where the chord is used they have no effect."""
        ends = self._ends(x)
        initial, low = self._initial(ends)
        initial, low, high = (t * (1 / self.stretch) for t in (initial, low, ends.upper))
        return (_stack(-initial[0], initial[1]), _stack(-high[0], low[1]), _stack(-low[0], high[1]))

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        ends = self._ends(x)
        d = params * self.stretch
        return self._lines(ends, *ends.upper_line(_stack(-d[0], d[1])))

    # ------------------------------------------------------------------ rounding included

    @torch.no_grad()
    def known(self, x: Interval) -> tuple[Tensor, ...]:
        """What `_Ends` has, from enclosures and stacked on the second axis, "B 2 ...": L, U, the upper ends of tanh
        there, the sizes of what does not depend on slopes, the chord's slope, and where it is used."""
        low, high = x.lower * self.stretch, x.upper * self.stretch
        (at_low, slope_low), (at_high, slope_high) = enclose.tanh_and_slope(low), enclose.tanh_and_slope(high)
        at_lower = torch.stack((-at_high.lower, at_low.upper), 1)
        at_upper = torch.stack((-at_low.lower, at_high.upper), 1)
        U = torch.stack((-low, high), 1)
        width = high - low
        chord = ((at_high.upper - at_low.upper) / torch.where(width > 0, width, torch.ones_like(width))).clamp(0, 1)
        chord = chord.unsqueeze(1).expand_as(U)
        use_chord = (U <= 0) | (chord <= torch.stack((slope_low.upper, slope_high.upper), 1))
        size = torch.maximum(at_lower.abs(), at_upper.abs()) + self.offset / self.height  # that is added in the end
        return torch.stack((-high, low), 1), U, at_lower, at_upper, size, chord, use_chord

    def intercepts(self, lower_slope: Tensor, upper_slope: Tensor, x: Interval, known: tuple[Tensor, ...]
                   ) -> tuple[Tensor, Tensor]:
        s = torch.stack(torch.broadcast_tensors(lower_slope, upper_slope), 1)
        s = s.mul_(1 / (self.height * self.stretch))  # slopes of tanh: a power of two
        p = within(_touching(s), Interval(known[0].clamp(min=0), known[1].clamp(min=0)))
        return self._unscaled(_top(s, p, *enclose.tanh_and_slope(p), known)[0])

    def _unscaled(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Intercepts of both lines from those of tanh's upper lines."""
        top = top * self.height
        return self.offset - top[:, 0], self.offset + top[:, 1]

    def relax_proved(self, x: Interval, params: Tensor, known: tuple[Tensor, ...]) -> Relaxation:
        if x.lower.requires_grad or x.upper.requires_grad:
            return super().relax_proved(x, params, known)
        return Relaxation(*_Tangents.apply(params, self, known))


def _top(s: Tensor, p: Tensor, value: Interval, slope: Interval, known: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(proved intercepts of tanh's upper lines of slopes s, all "N 2 ...", where these lines are near tanh). p lies in
    [max(L, 0), max(U, 0)], `value` and `slope` hold tanh and its derivative there."""
    L, U, at_lower, at_upper, size, *_ = known
    rise = tangent_rise(slope, s, p, L.clamp(min=0), U.clamp(min=0))
    right = torch.where(U > 0, (value.upper - s * p).add_(rise), at_upper - s * U)
    left = at_lower - s * L
    steepness = s.abs()
    sizes = torch.addcmul(size, steepness, torch.maximum(L.abs(), U.abs())).add_(rise.abs_())
    near = torch.where(left > right, L, torch.where(U > 0, p, U))
    return torch.maximum(left, right).add_(margin(sizes, steepness)), near


class _Tangents(torch.autograd.Function):
    """Tangent points "2 N ..." -> (lower slope, lower intercept, upper slope, upper intercept), proved. An intercept
    is the maximum of f(z) - s z, whose derivative in s is -z at the point that attains it."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, op: SShape, known: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        L, U, *_, chord, use_chord = known
        d = torch.stack((-params[0], params[1]), 1).mul_(op.stretch)
        concave = Interval(L.clamp(min=0), U.clamp(min=0))
        p = torch.where(use_chord, concave.upper, within(d, concave))
        value, slope = enclose.tanh_and_slope(p)
        s = torch.where(use_chord, chord, (slope.lower + slope.upper) * 0.5)
        top, near = _top(s, p, value, slope, known)
        low, high = op._unscaled(top)
        if ctx.needs_input_grad[0]:
            # Slopes turn with d where it is the point of touch: f'' = -2 f f'.
            turn = torch.where(use_chord | (p != d), torch.zeros_like(s), value.upper * s * (-2 * op.stretch))
            ctx.save_for_backward(turn, near)
            ctx.op = op
        slopes = s * (op.height * op.stretch)
        return slopes[:, 0], low, slopes[:, 1], high

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        turn, near = ctx.saved_tensors
        op: SShape = ctx.op
        scale = op.height * op.stretch
        below = (grads[0] * scale + grads[1] * near[:, 0] * op.height) * turn[:, 0]
        above = (grads[2] * scale - grads[3] * near[:, 1] * op.height) * turn[:, 1]
        return _stack(-below, above), None, None
