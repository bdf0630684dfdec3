"""Where a function with its only kink at 0 stays near a line below it."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval


def near_kink(x: Interval, left: Tensor, slope: Tensor, intercept: Tensor | None, room: Tensor) -> Interval:
    """Bounds of all z in x with `f(z) <= slope z + intercept + room`, where f(z) = z for z >= 0 and left z below.

    Right of 0 the condition is `(1 - slope) z <= c` and left of it `(left - slope) z <= c`, with c = intercept + room;
    each bounds z on its own side only. Up to rounding.
    """
    c = room if intercept is None else intercept + room
    c = c.clamp(min=0)  # a line that lies below f has an intercept of at most 0, and 0 stays allowed
    tiny = torch.finfo(c.dtype).tiny
    up, down = 1 - slope, slope - left
    upper = torch.where(up > 0, c / up.clamp(min=tiny), torch.full_like(c, torch.inf))
    lower = torch.where(down > 0, -c / down.clamp(min=tiny), torch.full_like(c, -torch.inf))
    return Interval(torch.maximum(x.lower, lower), torch.minimum(x.upper, upper))
