"""Linear relaxations of elementwise operators: one line below and one above the graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Two lines around an elementwise function f on [lower, upper]:

    `lower_slope * z + lower_intercept <= f(z) <= upper_slope * z + upper_intercept`.

    All "B *shape" (or with a row axis in place of B). An intercept of `None` is zero everywhere,
    which saves the work of adding it.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor | None
