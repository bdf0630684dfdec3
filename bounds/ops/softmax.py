"""Softmax: forward and interval only.

Where a property merely compares outputs a final softmax is dropped, since it keeps their order. A linear
relaxation in the middle of a network is not offered, and asking for one is an error with that advice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Relaxed
from bounds.ops.slack import LIBRARY_ULPS
from bounds.window import Owner


@dataclass(frozen=True, eq=False)
class Softmax(Relaxed):
    """y_i = exp(x_i) / sum_j exp(x_j) along `axis`, counted from the end (negative)."""

    axis: int = -1
    kind: ClassVar[str] = "Softmax"

    def __post_init__(self) -> None:
        if self.axis >= 0:
            raise ValueError(f"Softmax counts its axis from the end, got {self.axis}")

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.softmax(inputs[0], self.axis)

    def interval(self, *inputs: Interval) -> Interval:
        """Exact up to rounding: y_i = 1 / (1 + sum_{j != i} exp(x_j - x_i)) grows in x_i and falls in the others."""
        (x,) = inputs
        lower, upper = x.lower.movedim(self.axis, -1), x.upper.movedim(self.axis, -1)
        info = torch.finfo(lower.dtype)
        # Beside exp and the quotient: a sum of n terms, and rounded differences, whose error exp multiplies by up to
        # their size; one beyond log(max) makes exp overflow or underflow, which is outward as well.
        error = (LIBRARY_ULPS + lower.shape[-1] + math.log(info.max)) * info.eps
        least = self._value(lower, upper) * (1 - error)
        most = self._value(upper, lower) * (1 + error) + info.tiny
        return Interval(least.movedim(-1, self.axis), most.clamp(max=1).movedim(-1, self.axis))

    @staticmethod
    def _value(own: Tensor, others: Tensor) -> Tensor:
        """y_i at x_i = own_i and x_j = others_j, for every i; both "... n"."""
        differences = others.unsqueeze(-2) - own.unsqueeze(-1)
        same = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
        return 1 / (1 + differences.exp().masked_fill(same, 0).sum(-1))

    def pull_back_relaxed(self, A: Tensor, owner: Owner, inputs: tuple[Interval, ...]
                          ) -> tuple[tuple[Tensor, ...], Tensor]:
        from bounds.graph import UnsupportedOperator
        raise UnsupportedOperator("Softmax: no linear relaxation; it is accepted only as the last operator of a "
                                  "property that compares outputs (use the network without its final softmax)")
