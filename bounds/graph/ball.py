"""Arithmetic on tensors that carry their error: midpoint and radius in float64 (mid-rad interval arithmetic).

A `Ball` stands for a tensor of real numbers x with `|mid - x| <= radius`, elementwise. Each operation bounds its own
rounding by the standard model (Higham, Accuracy and Stability of Numerical Algorithms, section 2.2: relative error u
per operation plus underflow; section 3.1 for sums) and inflates the radius by more than the rounding of the few
operations that computed it. The guarantee is rigorous under round-to-nearest without flush-to-zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_U = 2.0**-53        # unit roundoff of float64
_TINY = 2.0**-900    # more than any underflow error, and far enough from it to keep slow subnormals away
_CHUNK = 2**22       # entries of a factor converted to float64 at a time


def _up(radius: Tensor, terms: int = 1) -> Tensor:
    """A radius computed from `terms`-fold sums of non-negative numbers, rounded up."""
    return radius * (1 + (terms + 16) * 4 * _U) + _TINY


@dataclass(frozen=True, eq=False)
class Ball:
    """`|mid - exact| <= radius`; mid any floating dtype, radius float64 or None for zero. Equal shapes."""

    mid: Tensor
    radius: Tensor | None = None

    def _radius(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.mid.device) if self.radius is None else self.radius

    def magnitude(self) -> Tensor:
        """A bound of `|exact|`."""
        return _up(self.mid.double().abs() + self._radius())

    def __add__(self, other: Ball) -> Ball:
        mid = self.mid.double() + other.mid.double()
        return Ball(mid, _up(self._radius() + other._radius() + _U * mid.abs()))

    def __neg__(self) -> Ball:
        return Ball(-self.mid, self.radius)

    def __sub__(self, other: Ball) -> Ball:
        return self + (-other)

    def __mul__(self, other: Ball) -> Ball:
        a, b = self.mid.double(), other.mid.double()
        mid = a * b
        spread = a.abs() * other._radius() + (b.abs() + other._radius()) * self._radius()
        return Ball(mid, _up(spread + _U * mid.abs()))

    def __truediv__(self, other: Ball) -> Ball:
        """Where the divisor's ball holds zero the radius is infinite."""
        a, b = self.mid.double(), other.mid.double()
        mid = a / b
        room = b.abs() - other._radius() * (1 + 4 * _U)
        spread = (self._radius() + (mid.abs() * (1 + 4 * _U) + _TINY) * other._radius()) / (room * (1 - 8 * _U))
        spread = torch.where(room > 0, spread, torch.full_like(spread, torch.inf))
        return Ball(mid, _up(spread + _U * mid.abs()))

    def sqrt(self) -> Ball:
        """Where the ball holds a number that is not positive the radius is infinite."""
        x = self.mid.double()
        mid = x.sqrt()
        low = (x - self._radius() * (1 + 4 * _U)) * (1 - 4 * _U)
        # |sqrt(x) - sqrt(y)| = |x - y| / (sqrt(x) + sqrt(y)) <= radius / sqrt(low)
        spread = self._radius() / (low.clamp(min=0).sqrt() * (1 - 4 * _U))
        spread = torch.where(low > 0, spread, torch.full_like(spread, torch.inf))
        return Ball(mid, _up(spread + _U * mid))

    def __matmul__(self, other: Ball) -> Ball:
        """self "o m", other "m i"; large left factors are converted to float64 a few rows at a time."""
        terms = other.mid.shape[0]
        b, b_radius = other.mid.double(), other.radius
        b_magnitude = b.abs()
        rows = max(1, _CHUNK // max(terms, 1))
        mids, radii = [], []
        for start in range(0, self.mid.shape[0], rows):
            a = self.mid[start:start + rows].double()
            a_magnitude = a.abs()
            # gamma_m = m u / (1 - m u) <= 2 m u covers any order of summation, with or without fused operations.
            spread = (2 * terms * _U) * (a_magnitude @ b_magnitude) + terms * _TINY
            if b_radius is not None:
                spread = spread + a_magnitude @ b_radius
            if self.radius is not None:
                total = b_magnitude if b_radius is None else _up(b_magnitude + b_radius)
                spread = spread + self.radius[start:start + rows] @ total
            mids.append(a @ b)
            radii.append(_up(spread, terms))
        return Ball(torch.cat(mids), torch.cat(radii))

    def map(self, function) -> Ball:  # type: ignore[no-untyped-def]
        """Apply one rearrangement (reshape, expand, index) to midpoint and radius."""
        return Ball(function(self.mid), None if self.radius is None else function(self.radius))

    def round(self, dtype: torch.dtype) -> Ball:
        """The midpoint rounded once to dtype, and the radius grown by that rounding; None where nothing was lost."""
        rounded = self.mid.to(dtype)
        lost = (rounded.double() - self.mid.double()).abs()
        if self.radius is None and not bool(lost.any()):
            return Ball(rounded)
        return Ball(rounded, _up(self._radius() + lost))
