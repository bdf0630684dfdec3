"""An optional ability of operators that are not elementwise: one linear map with a constant gap around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from bounds.interval import Interval


@runtime_checkable
class ParallelBounds(Protocol):
    """Operators of one input that a zonotope passes without losing all correlation."""

    def parallel_bounds(self, x: Interval) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
        """(linear, low, high) with `linear(z) + low <= forward(z) <= linear(z) + high` for all z in x.

        `linear` maps "B R *in" to "B R *out", row by row; low and high are "B *out".
        """
        ...
