"""Intervals: the elementwise enclosure `lower <= x <= upper`, batched over domains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CROSSING_RTOL = 1e-3  # two proved bounds that meet may cross by rounding; more than this is numerical trouble


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

    def uncrossed(self) -> Interval:
        """Where rounding crossed the ends, the interval between them. Ends that cross by more than rounding stay as
        they are: one of them is wrong, and whoever reads the bounds is to see it."""
        if not bool((self.lower > self.upper).any()):
            return self
        slack = CROSSING_RTOL * (1 + torch.minimum(self.lower.abs(), self.upper.abs()))
        little = (self.lower - self.upper) <= slack
        return Interval(torch.where(little, torch.minimum(self.lower, self.upper), self.lower),
                        torch.where(little, torch.maximum(self.lower, self.upper), self.upper))

    def map(self, function) -> Interval:  # type: ignore[no-untyped-def]
        """Apply one shape-only (or increasing) function to both ends."""
        return Interval(function(self.lower), function(self.upper))
