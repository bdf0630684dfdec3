"""Proved bounds as rows of a programme: loosened by what their own rounding may amount to.

A bound is proved up to rounding in the dtype that it was computed in. As a row it must not cut off a point of the
network, and two bounds that contradict each other by rounding must not empty a domain. A bound of zero is exact: a
split, or a sign that was decided, set it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval

BOUND_ULPS = 16  # units in the last place of one and the bound


def ulps_of(dtype: torch.dtype) -> float:
    """BOUND_ULPS units in the last place of one."""
    return float(BOUND_ULPS * torch.finfo(dtype).eps)


def rounding(bound: Tensor, ulps: float) -> Tensor:
    """What bounds may be wrong by."""
    return ulps * (1 + bound.abs())


def loosened(x: Interval) -> Interval:
    """Both ends moved out, in float64, except where they are zero."""
    ulps = ulps_of(x.lower.dtype)
    lower, upper = x.lower.double(), x.upper.double()
    return Interval(torch.where(lower == 0, lower, lower - rounding(lower, ulps)),
                    torch.where(upper == 0, upper, upper + rounding(upper, ulps)))
