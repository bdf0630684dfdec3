"""Intercepts that are proved: how far lines of given slopes must be moved so that they hold over the reals.

The maximum of f(z) - s z over [a, b] is, where f is convex, its value at one of the ends. Where f is concave, it lies
below its tangent at any p in [a, b],

    f(z) - s z <= f(p) - s p + (f'(p) - s) (z - p),

which is linear in z, hence largest at a or b, and exact where f'(p) = s or where p is the end towards which f(z) - s z
grows. Nothing rests on p: it may come from any library. f(p) and f'(p) are needed as enclosures (`bounds.ops.enclose`)
and s is the slope as stored. Minima are maxima of -f.

What the few operations that follow may lose is paid by `margin`: at most six roundings of any term, where `TERM_UNITS`
are paid, and the smallest normal number for each product that underflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.round_off import unit

TERM_UNITS = 8


def tangent_rise(slope: Interval, s: Tensor, p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """At least (f'(p) - s) (z - p) for all z in [a, b], up to rounding, where f'(p) lies in `slope` and a <= p <= b."""
    return torch.maximum((slope.lower - s) * (a - p), (slope.upper - s) * (b - p))


def margin(size: Tensor, s: Tensor) -> Tensor:
    """What a sum of terms f(p), s p and `tangent_rise` may be off by; size: their sizes, added up."""
    info = torch.finfo(size.dtype)
    return size * (TERM_UNITS * unit(size.dtype)) + (s.abs() + 1) * (TERM_UNITS * info.tiny)


def within(p: Tensor, x: Interval) -> Tensor:
    """p, or the end of x nearest to it (the upper one where p is no number)."""
    return torch.fmax(torch.fmin(p, x.upper), torch.minimum(x.lower, x.upper))
