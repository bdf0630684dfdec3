"""Enclosures of tanh, sigmoid, softplus and expm1 that rest on +, -, *, / alone: no library is trusted.

For a >= 0 write a = k log 2 + r with k the integer nearest to a / log 2, so that |r| < 0.35, and w = 2^-k. Lambert's
continued fraction of tanh(r / 2), cut off, gives two polynomials (the diagonal Padé approximant of exp) with

    tanh(r / 2) ~ N / D,    exp(-a) ~ small / big,    big = D + N,    small = w (D - N),

and with Q = big + small, P = (1 - w) D + (1 + w) N (which is big - small, without its cancellation)

    sigmoid(a) = big / Q,   sigmoid(-a) = small / Q,   tanh(a / 2) = P / Q,   1 - exp(-a) = P / big,
    tanh'(a / 2) = 4 (big / Q) (small / Q),   log(1 + exp(-a)) = 2 artanh(q),   q = small / (2 big + small) <= 1/3.

P is 2 N where k = 0, so that tanh and expm1 keep their relative accuracy at zero. The coefficients of both polynomials
and of the series of artanh are positive. Counted term by term (docs/rounding.md) each value is off by less than 20 u of
itself, u the unit roundoff, and by less than the smallest normal number where it is smaller than that; `outward` pays
24 u and twice that number. (Higham, Functions of Matrices, 2008, section 10.3, has the approximants; Muller, Elementary
Functions, 2016, chapter 11, the reduction of a.)

Everything is elementwise, "*shape" -> "*shape", in float32 or float64, on any device; nothing is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.round_off import unit

VALUE_UNITS = 24  # unit roundoffs of each value that its ends pay; what is computed is off by less than 20
LOG_2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680")


@dataclass(frozen=True)
class _Format:
    """What depends on the dtype. most: exp(-a) is computed up to there; high, low: log 2 in two parts, the first so
    short that k high is exact; above, below: coefficients in r^2 of N / r and of D, highest first; artanh: those of
    artanh(q) / q in q^2, highest first; whole, bias, mantissa: how 2^-k is written as bits."""

    most: float
    high: float
    low: float
    above: tuple[float, ...]
    below: tuple[float, ...]
    artanh: tuple[float, ...]
    whole: torch.dtype
    bias: int
    mantissa: int


def _parts_of_log_2(bits: int) -> tuple[float, float]:
    high = Fraction(int(LOG_2 * 2**bits), 2**bits)
    return float(high), float(LOG_2 - high)


def _artanh(terms: int) -> tuple[float, ...]:
    return tuple(1 / (2 * n + 1) for n in reversed(range(terms)))


_FORMATS = {
    torch.float64: _Format(700.0, *_parts_of_log_2(42), (42, 10080, 332640), (1, 840, 75600, 665280), _artanh(17),
                           torch.int64, 1023, 52),
    torch.float32: _Format(86.0, *_parts_of_log_2(16), (1, 60), (12, 120), _artanh(8), torch.int32, 127, 23),
}


class _Parts:
    """D, N, big, small, w and Q of all a >= 0; beyond: where a was cut, so that values fall further than computed."""

    def __init__(self, a: Tensor) -> None:
        form = self.form = _FORMATS[a.dtype]
        self.beyond = a > form.most
        a = a.clamp(max=form.most)
        k = torch.mul(a, 1 / float(LOG_2)).round_()
        r = torch.sub(a, k, alpha=form.high).sub_(k, alpha=form.low)
        self.w = ((form.bias - k.to(form.whole)) << form.mantissa).view(a.dtype)
        square = r * r
        self.D = _horner(form.below, square)
        self.N = _horner(form.above, square).mul_(r)
        self.big = self.D + self.N
        self.small = (self.D - self.N).mul_(self.w)
        self.Q = self.big + self.small

    @property
    def P(self) -> Tensor:
        return (1 - self.w).mul_(self.D).add_((1 + self.w).mul_(self.N))

    def falling(self, value: Tensor) -> Interval:
        """Ends of a positive value that falls to zero as a grows."""
        ends = outward(value)
        return Interval(ends.lower.clamp_(min=0).masked_fill_(self.beyond, 0), ends.upper)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = x * coefficients[0]
    for c in coefficients[1:-1]:
        total.add_(c).mul_(x)
    return total.add_(coefficients[-1])


def outward(value: Tensor) -> Interval:
    """[value - error, value + error], where value is off by less than 20 u of its size, and by less than the smallest
    normal number besides."""
    error = value.abs().mul_(VALUE_UNITS * unit(value.dtype)).add_(2 * torch.finfo(value.dtype).tiny)
    return Interval(value - error, error.add_(value))


@torch.no_grad()
def tanh(z: Tensor) -> Interval:
    """lower <= tanh(z) <= upper; upper - lower is at most 49 u |tanh(z)|, u = 2^-53 or 2^-24, and a few tiny."""
    parts = _Parts(2 * z.abs())
    ends = outward(torch.copysign(parts.P / parts.Q, z))
    return Interval(ends.lower.clamp_(min=-1), ends.upper.clamp_(max=1))


@torch.no_grad()
def tanh_and_slope(z: Tensor) -> tuple[Interval, Interval]:
    """(`tanh`, lower <= tanh'(z) <= upper), both relatively narrow wherever the dtype can tell the value from zero."""
    parts = _Parts(2 * z.abs())
    value = outward(torch.copysign(parts.P / parts.Q, z))
    slope = parts.falling((parts.big / parts.Q).mul_(parts.small / parts.Q).mul_(4))
    return (Interval(value.lower.clamp_(min=-1), value.upper.clamp_(max=1)),
            Interval(slope.lower, slope.upper.clamp_(max=1)))


@torch.no_grad()
def sigmoid(z: Tensor) -> Interval:
    """lower <= 1 / (1 + exp(-z)) <= upper, relatively narrow down to exp(-700) (in float32 exp(-86))."""
    return _sigmoid(_Parts(z.abs()), z)


def _sigmoid(parts: _Parts, z: Tensor) -> Interval:
    left, right = parts.falling(parts.small / parts.Q), outward(parts.big / parts.Q)
    return Interval(torch.where(z < 0, left.lower, right.lower),
                    torch.where(z < 0, left.upper, right.upper.clamp_(max=1)))


@torch.no_grad()
def expm1(z: Tensor) -> Interval:
    """lower <= exp(z) - 1 <= upper for z <= 0 (at 0 otherwise)."""
    parts = _Parts(-z.clamp(max=0))
    return _expm1(parts)


def _expm1(parts: _Parts) -> Interval:
    ends = outward(parts.P.div_(parts.big).neg_())
    return Interval(ends.lower.clamp_(min=-1), ends.upper.clamp_(max=0))


@torch.no_grad()
def expm1_and_slope(z: Tensor) -> tuple[Interval, Interval]:
    """(`expm1`, lower <= exp(z) <= upper) for z <= 0 (at 0 otherwise)."""
    parts = _Parts(-z.clamp(max=0))
    slope = parts.falling(parts.small / parts.big)
    return _expm1(parts), Interval(slope.lower, slope.upper.clamp_(max=1))


@torch.no_grad()
def softplus_and_slope(z: Tensor) -> tuple[Interval, Interval]:
    """(lower <= log(1 + exp(z)) <= upper, `sigmoid`)."""
    parts = _Parts(z.abs())
    q = parts.small / torch.add(parts.small, parts.big, alpha=2)
    log = _horner(parts.form.artanh, q * q).mul_(q).mul_(2)
    left, right = parts.falling(log), outward(log + z.clamp(min=0))
    value = Interval(torch.where(z < 0, left.lower, right.lower), torch.where(z < 0, left.upper, right.upper))
    return value, _sigmoid(parts, z)
