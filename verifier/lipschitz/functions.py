"""Functions of the outputs whose range over a set of inputs is asked: logits, margins, confidences, distances.

Every function is `F(y) = G(C y + c)`: a linear part, which bound methods bound over boxes, and a simple G of K numbers
z, whose ends over intervals are known. Where G is a sum of convex functions of one number each, behind a monotone link,
planes below and above that sum are offered too: over small boxes they lose a term of second order where intervals of z
lose one of first order. Enclosures rest on `bounds.ops.enclose` and pay for their own rounding, in float64.

Left out: functions of the softmax at the end of a network, which is read without it (`verifier.logits`).

Axis legend: P points, B boxes, K linear parts, m outputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.jacobian.enclosure import dual, vector_norm_up
from bounds.ops import enclose
from bounds.ops.round_off import MORE, gamma, unit

ROOM = 4  # units of rounding that a result of two or three operations pays
NORMS = (math.inf, 2.0, 1.0)


class Planes(NamedTuple):
    """`below_slope z + below <= s(z) <= above_slope z + above` for all z in the box they were made for; slopes "B K",
    constants "B"; held bool "B": false where a number overflowed and nothing is said."""

    below_slope: Tensor
    below: Tensor
    above_slope: Tensor
    above: Tensor
    held: Tensor


class OutputFunction(ABC):
    """A function of flat outputs y "P m", `G(C y + c)`."""

    @abstractmethod
    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        """(C "K m", c "K"), float64. Raises ValueError where the network has other outputs than the function names."""

    @abstractmethod
    def of(self, z: Tensor) -> Tensor:
        """G as computed: "P K" -> "P"; differentiable."""

    @abstractmethod
    def enclosure(self, z: Interval) -> Interval:
        """`lower <= G(z) <= upper` over boxes "B K": "B"."""

    @abstractmethod
    def slopes(self, z: Interval) -> Interval:
        """An enclosure "B K" of the partial derivatives of G (Clarke's where it has kinks) over boxes "B K"."""

    @abstractmethod
    def lipschitz(self, outputs: int, norm: float) -> float:
        """`|F(y) - F(y')| <= L ||y - y'||_norm` for all outputs."""

    def steepness(self, z: Interval) -> Tensor:
        """`sum_k |dG / dz_k| <= S` at every point of boxes "B K": "B"."""
        steep = self.slopes(z)
        size = torch.maximum(steep.lower.abs(), steep.upper.abs())
        return size.sum(1) * (1 + MORE * gamma(size.shape[1], size.dtype))

    def planes(self, z: Interval) -> Planes | None:
        """Planes about the sum that `link` reads; None where G has no such form."""
        return None

    def link(self, s: Interval) -> Interval:
        """G from bounds "B" of the sum that `planes` enclose."""
        raise NotImplementedError(f"{type(self).__name__} offers no planes")

    def value(self, y: Tensor) -> Tensor:
        """F as computed: "P m" -> "P"."""
        C, c = (t.to(y) for t in self.rows(y.shape[1]))
        return self.of(y @ C.T + c)


def _check_norm(norm: float) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be inf, 2 or 1, got {norm}")


def _check_class(index: int, outputs: int) -> None:
    if not 0 <= index < outputs:
        raise ValueError(f"expected an output from 0 to {outputs - 1}, got {index}")


def dual_norm(row: Tensor, norm: float) -> float:
    """max of <row, v> over ||v||_norm <= 1, rounded up."""
    _check_norm(norm)
    return float(vector_norm_up(row.flatten(), dual(norm)))


@dataclass(frozen=True)
class Linear(OutputFunction):
    """`sum_i weights_i y_i + offset`."""

    weights: tuple[float, ...]
    offset: float = 0.0

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        if len(self.weights) != outputs:
            raise ValueError(f"the function has {len(self.weights)} weights, the network {outputs} outputs")
        return torch.tensor([self.weights], dtype=torch.float64), torch.tensor([self.offset], dtype=torch.float64)

    def of(self, z: Tensor) -> Tensor:
        return z.squeeze(1)

    def enclosure(self, z: Interval) -> Interval:
        return z.map(lambda t: t.squeeze(1))

    def slopes(self, z: Interval) -> Interval:
        return z.map(torch.ones_like)

    def lipschitz(self, outputs: int, norm: float) -> float:
        return dual_norm(self.rows(outputs)[0], norm)


@dataclass(frozen=True)
class Logit(Linear):
    """One output, or with `less` the difference of two: `y_index - y_less`."""

    weights: tuple[float, ...] = ()
    index: int = 0
    less: int | None = None

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        C = torch.zeros(1, outputs, dtype=torch.float64)
        for index, weight in ((self.index, 1.0), (self.less, -1.0)):
            if index is not None:
                _check_class(index, outputs)
                C[0, index] += weight
        return C, torch.tensor([self.offset], dtype=torch.float64)


def _differences(index: int, outputs: int, sign: float) -> tuple[Tensor, Tensor]:
    """The rows `sign (y_index - y_j)` of all other outputs."""
    _check_class(index, outputs)
    if outputs < 2:
        raise ValueError(f"expected at least 2 outputs, got {outputs}")
    eye = torch.eye(outputs, dtype=torch.float64)
    others = [j for j in range(outputs) if j != index]
    return sign * (eye[index] - eye[others]), torch.zeros(len(others), dtype=torch.float64)


@dataclass(frozen=True)
class Margin(OutputFunction):
    """The label's output less the best other one: above zero exactly where the label is strictly on top."""

    label: int

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        return _differences(self.label, outputs, 1.0)

    def of(self, z: Tensor) -> Tensor:
        return z.amin(1)

    def enclosure(self, z: Interval) -> Interval:
        return z.map(lambda t: t.amin(1))

    def slopes(self, z: Interval) -> Interval:
        """One where a difference is the least everywhere, zero where it is nowhere."""
        possible = z.lower <= z.upper.amin(1, keepdim=True)
        alone = possible & (possible.sum(1, keepdim=True) == 1)
        return Interval(alone.to(z.lower), possible.to(z.lower))

    def steepness(self, z: Interval) -> Tensor:
        """A least number's gradient is a convex combination of those of the numbers."""
        return torch.ones_like(z.lower[:, 0])

    def lipschitz(self, outputs: int, norm: float) -> float:
        return dual_norm(self.rows(outputs)[0][0], norm)


# ---------------------------------------------------------------------- sums of convex functions


def exponential(z: Tensor) -> Interval:
    """lower <= exp(z) <= upper; the upper end is infinite where the number would be too large."""
    _, falling = enclose.expm1_and_slope(-z.abs())
    spare = 2 * unit(z.dtype)
    return Interval(torch.where(z > 0, (1 - spare) / falling.upper, falling.lower),
                    torch.where(z > 0, (1 + spare) / falling.lower, falling.upper))


class Convex(ABC):
    """A convex function of one number."""

    @abstractmethod
    def at(self, z: Tensor) -> Interval:
        """An enclosure of its value."""

    @abstractmethod
    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(slope, constant) of a line that lies below it everywhere, near to it at t."""

    @abstractmethod
    def least_on(self, z: Interval) -> Tensor:
        """A lower bound over intervals."""

    @abstractmethod
    def gradient(self, z: Interval) -> Interval:
        """An enclosure of its derivative over intervals."""

    def most_on(self, z: Interval) -> Tensor:
        """An upper bound over intervals: convex functions are largest at an end."""
        return torch.maximum(self.at(z.lower).upper, self.at(z.upper).upper)

    def chord(self, z: Interval) -> tuple[Tensor, Tensor]:
        """(slope, constant) of a line that lies above it on the interval: at both ends, hence between them."""
        low, high = self.at(z.lower).upper, self.at(z.upper).upper
        width = z.upper - z.lower
        slope = torch.where(width > 0, (high - low) / width, torch.zeros_like(width))
        spare = ROOM * unit(z.lower.dtype)
        ends = [end - slope * at + spare * (end.abs() + (slope * at).abs())
                for end, at in ((low, z.lower), (high, z.upper))]
        return slope, torch.maximum(*ends)


class Exponential(Convex):
    def at(self, z: Tensor) -> Interval:
        return exponential(z)

    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`exp(z) - s z` is least at log s, where it is s (1 - log s); and log s is off from t by less than the
        enclosure of exp(t), which holds s, is wide relatively."""
        ends = exponential(t)
        s = ends.upper
        off = (ends.upper - ends.lower) / ends.lower * (1 + 2 * ROOM * unit(t.dtype))
        constant = s * (1 - t) - s * off - ROOM * unit(t.dtype) * s * (1 + t.abs())
        none = ends.lower == 0  # too small a number to enclose: exp(z) >= 0 is left
        return s.masked_fill(none, 0), constant.masked_fill(none, 0)

    def least_on(self, z: Interval) -> Tensor:
        return exponential(z.lower).lower

    def gradient(self, z: Interval) -> Interval:
        return Interval(exponential(z.lower).lower, exponential(z.upper).upper)


class Square(Convex):
    def at(self, z: Tensor) -> Interval:
        square, share = z * z, ROOM * unit(z.dtype)
        tiny = torch.finfo(z.dtype).tiny
        return Interval((square * (1 - share) - tiny).clamp(min=0), square * (1 + share) + tiny)

    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * t, -self.at(t).upper

    def least_on(self, z: Interval) -> Tensor:
        nearest = z.lower.clamp(min=0) + z.upper.clamp(max=0)
        return self.at(nearest).lower

    def gradient(self, z: Interval) -> Interval:
        return z.map(lambda t: 2 * t)


class Absolute(Convex):
    def at(self, z: Tensor) -> Interval:
        return Interval(z.abs(), z.abs())

    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.sign(), torch.zeros_like(t)

    def least_on(self, z: Interval) -> Tensor:
        return z.lower.clamp(min=0) - z.upper.clamp(max=0)

    def gradient(self, z: Interval) -> Interval:
        one = torch.ones_like(z.lower)
        return Interval(torch.where(z.lower >= 0, one, -one), torch.where(z.upper <= 0, -one, one))


def _sum_out(z: Interval) -> Interval:
    """The sum over the last axis, rounding included."""
    share = MORE * gamma(z.lower.shape[-1], z.lower.dtype)
    return Interval(z.lower.sum(-1) - share * z.lower.abs().sum(-1), z.upper.sum(-1) + share * z.upper.abs().sum(-1))


class SumOfConvex(OutputFunction):
    """`link(sum_k phi(z_k))` with a convex phi and a monotone link."""

    convex: Convex

    def total(self, z: Interval) -> Interval:
        """The sum over boxes "B K": "B"."""
        return _sum_out(Interval(self.convex.least_on(z), self.convex.most_on(z)))

    def enclosure(self, z: Interval) -> Interval:
        return self.link(self.total(z))

    def planes(self, z: Interval) -> Planes:
        slope, constant = self.convex.tangent(z.centre)
        above_slope, above = self.convex.chord(z)
        held = torch.isfinite(slope + constant + above_slope + above).all(1)
        mask = held.unsqueeze(1)
        slope, constant, above_slope, above = (torch.where(mask, t, torch.zeros_like(t))
                                               for t in (slope, constant, above_slope, above))
        return Planes(slope, _sum_out(Interval(constant, constant)).lower,
                      above_slope, _sum_out(Interval(above, above)).upper, held)


@dataclass(frozen=True)
class Confidence(SumOfConvex):
    """The softmax probability of a class, of the logits: `1 / (1 + sum_j exp(y_j - y_index))`."""

    index: int
    convex = Exponential()

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        return _differences(self.index, outputs, -1.0)

    def of(self, z: Tensor) -> Tensor:
        return torch.sigmoid(-torch.logsumexp(z, 1))

    def link(self, s: Interval) -> Interval:
        spare = ROOM * unit(s.lower.dtype)
        return Interval((1 - spare) / (1 + s.upper.clamp(min=0)),
                        ((1 + spare) / (1 + s.lower.clamp(min=0))).clamp(max=1))

    def slopes(self, z: Interval) -> Interval:
        """`dF / dz_k = -p exp(z_k) p`: less than 1/4 in size."""
        p, e = self.enclosure(z), self.convex.gradient(z)
        spare = ROOM * unit(z.lower.dtype)
        steep = (p.upper.square().unsqueeze(1) * e.upper * (1 + spare)).nan_to_num(nan=0.25).clamp(max=0.25)
        return Interval(-steep, -(p.lower.square().unsqueeze(1) * e.lower * (1 - spare)).nan_to_num(nan=0.0))

    def steepness(self, z: Interval) -> Tensor:
        """`p sum_k exp(z_k) p = p (1 - p)`, largest where p is nearest to 1/2."""
        p = self.enclosure(z)
        nearest = p.lower.clamp(min=0.5) + p.upper.clamp(max=0.5) - 0.5
        spare = ROOM * unit(z.lower.dtype)
        return (nearest * (1 - nearest) * (1 + spare) + torch.finfo(z.lower.dtype).eps).clamp(max=0.25)

    def lipschitz(self, outputs: int, norm: float) -> float:
        """The gradient is p (e_index - softmax): at most 2 p (1 - p) in l_1, sqrt(2) p (1 - p) in l_2."""
        _check_norm(norm)
        _check_class(self.index, outputs)
        return {math.inf: 0.5, 2.0: math.sqrt(2) / 4 * (1 + 2.0**-51), 1.0: 0.25}[norm]


@dataclass(frozen=True)
class Distance(SumOfConvex):
    """`||y - to||_norm`, norm 1 or 2; to: the given outputs (an empty tuple: zero)."""

    norm: float
    to: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.norm not in (1.0, 2.0):
            raise ValueError(f"norm must be 1 or 2 (`LargestDistance` is l_inf), got {self.norm}")

    @property
    def convex(self) -> Convex:  # type: ignore[override]
        return Absolute() if self.norm == 1.0 else Square()

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        return _from_point(self.to, outputs)

    def of(self, z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(z, ord=self.norm, dim=1)

    def link(self, s: Interval) -> Interval:
        s = s.map(lambda t: t.clamp(min=0))
        if self.norm == 1.0:
            return s
        spare = ROOM * unit(s.lower.dtype)
        return Interval(s.lower.sqrt() * (1 - spare), s.upper.sqrt() * (1 + spare))

    def slopes(self, z: Interval) -> Interval:
        if self.norm == 1.0:
            return self.convex.gradient(z)
        return Interval(-(z.lower < 0).to(z.lower), (z.upper > 0).to(z.lower))

    def lipschitz(self, outputs: int, norm: float) -> float:
        """`||v||_p <= m^(1/p - 1/q) ||v||_q` for p < q, and `||v||_p <= ||v||_q` otherwise."""
        _check_norm(norm)
        return max(1.0, outputs ** (1 / self.norm - 1 / norm) * (1 + 2.0**-50))


@dataclass(frozen=True)
class LargestDistance(OutputFunction):
    """`max_i |y_i - to_i|`."""

    to: tuple[float, ...] = ()

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        return _from_point(self.to, outputs)

    def of(self, z: Tensor) -> Tensor:
        return z.abs().amax(1)

    def enclosure(self, z: Interval) -> Interval:
        return Interval(Absolute().least_on(z).amax(1), Absolute().most_on(z).amax(1))

    def slopes(self, z: Interval) -> Interval:
        possible = Absolute().most_on(z) >= Absolute().least_on(z).amax(1, keepdim=True)
        ends = Absolute().gradient(z)
        only = possible & (possible.sum(1, keepdim=True) == 1)
        zero = torch.zeros_like(z.lower)
        return Interval(torch.where(only, ends.lower, torch.minimum(ends.lower, zero) * possible),
                        torch.where(only, ends.upper, torch.maximum(ends.upper, zero) * possible))

    def lipschitz(self, outputs: int, norm: float) -> float:
        _check_norm(norm)
        return 1.0


def _from_point(to: tuple[float, ...], outputs: int) -> tuple[Tensor, Tensor]:
    if to and len(to) != outputs:
        raise ValueError(f"the point has {len(to)} entries, the network {outputs} outputs")
    point = torch.tensor(to, dtype=torch.float64) if to else torch.zeros(outputs, dtype=torch.float64)
    return torch.eye(outputs, dtype=torch.float64), -point
