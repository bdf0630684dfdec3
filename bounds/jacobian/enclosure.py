"""The answer of every method: an enclosure of gradients, and what follows for their norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.interval import Interval


@dataclass(frozen=True, eq=False)
class Jacobian:
    """`lower <= g <= upper`, both "N *input", for every generalised gradient g of row n at every point of its set.
    rounded: whether all rounding is accounted for; else the bounds hold up to it."""

    lower: Tensor
    upper: Tensor
    rounded: bool

    @property
    def interval(self) -> Interval:
        return Interval(self.lower, self.upper)

    @property
    def magnitude(self) -> Tensor:
        """"N *input": the largest size that each entry may have."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


def dual(norm: float) -> float:
    """The q with 1 / norm + 1 / q = 1."""
    if norm not in (1.0, 2.0, math.inf):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm}")
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[norm]


def vector_norm_up(x: Tensor, q: float, dim: int = -1) -> Tensor:
    """`||x||_q` along an axis, q in {1, 2, inf}, rounded up; sizes that overflow when squared give infinity."""
    length = torch.linalg.vector_norm(x, ord=q, dim=dim)
    if q == math.inf:
        return length
    info = torch.finfo(x.dtype)
    lost = math.sqrt(info.tiny) if q == 2 else 0.0  # squares that underflow
    n = x.shape[dim]
    return length * (1 + (n + 8) * info.eps) + lost * n * (x != 0).any(dim).to(x.dtype)


def sup_norm(found: Jacobian, q: float, moves: Tensor | None = None) -> Tensor:
    """"N": at least `||g||_q` for all gradients g of the enclosure, rounded up; features outside `moves` (bool,
    broadcastable to "N *input") do not count."""
    if q not in (1.0, 2.0, math.inf):
        raise ValueError(f"q must be 1, 2 or inf, got {q}")
    size = found.magnitude
    if moves is not None:
        size = torch.where(moves, size, torch.zeros_like(size))
    return vector_norm_up(size.flatten(1), q)
