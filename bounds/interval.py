"""Intervals: the elementwise enclosure `lower <= x <= upper`, batched over domains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Interval:
    """Elementwise bounds `lower <= x <= upper`; both "B *shape", equal in shape."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower and upper must have one shape, got {tuple(self.lower.shape)} "
                             f"and {tuple(self.upper.shape)}")

    @property
    def centre(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    def meet(self, other: Interval) -> Interval:
        """The tighter of both, elementwise: valid when both are."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def map(self, function) -> Interval:  # type: ignore[no-untyped-def]
        """Apply one shape-only (or increasing) function to both ends."""
        return Interval(function(self.lower), function(self.upper))
