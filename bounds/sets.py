"""Input sets: a batch of boxes, or of l_p balls cut by boxes, and exact linear optimisation over them.

One struct serves all: the set is `box ∩ ball`. An l_inf ball is folded into its box, so the pure
box (centre is None) is the common fast case. The same exact linear optimisation serves
concretisation, Frank-Wolfe steps and stationarity gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class InputSet:
    """B sets: {x : lower <= x <= upper} and, with a centre, ||(x - centre)||_p <= radius.

    lower, upper "B *shape"; centre "B *shape" or None; radius "B"; p 1.0 or 2.0 (inf is a box).
    The centre of a ball need not lie in the box, but box ∩ ball must not be empty.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor | None = None
    radius: Tensor | None = None
    p: float = math.inf

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower and upper must have one shape, got {tuple(self.lower.shape)} "
                             f"and {tuple(self.upper.shape)}")
        if not bool((self.lower <= self.upper).all()):  # false for NaN too
            raise ValueError("lower must not exceed upper, and neither may be NaN")
        if not (bool(torch.isfinite(self.lower).all()) and bool(torch.isfinite(self.upper).all())):
            raise ValueError("the input set must be bounded")

    @property
    def batch(self) -> int:
        return self.lower.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lower.shape[1:])

    @property
    def is_box(self) -> bool:
        return self.centre is None
