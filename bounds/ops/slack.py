"""Outward slack for lines and values that rest on library functions (exp, tanh, log1p, ...).

A line around a smooth function is computed from its value and slope at a few points. Each is wrong
by a few units in the last place, and so is every product that follows. The slack moves the intercept
outward by more than all of these together:

    LIBRARY_ULPS * eps * (max |f| + |slope| * max |z|) + tiny

with eps the dtype's distance from 1 to the next number and tiny its smallest normal number (for results that
underflow). PyTorch's vectorised functions are within 2 ulp, and at most five values and products enter
an intercept; 8 leaves a margin. The line then holds exactly, as real numbers, for the slope and
intercept as stored; what a later sum of such lines loses is not covered here. Where all rounding is accounted for,
nothing rests on this: `Elementwise.intercepts` and `enclosed` compute lines and values anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval

LIBRARY_ULPS = 8


def slack(magnitude: Tensor) -> Tensor:
    """A bound on the error of values of this magnitude (>= 0)."""
    info = torch.finfo(magnitude.dtype)
    return torch.add(magnitude * (LIBRARY_ULPS * info.eps), info.tiny)


def widen(lower: Tensor, upper: Tensor) -> Interval:
    """[lower, upper] enlarged by the error of the library functions that gave its ends."""
    return Interval(lower - slack(lower.abs()), upper + slack(upper.abs()))
