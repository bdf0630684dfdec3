"""Where to split an interval so that the lines around both halves lie close.

The line above encloses the area (u - l) * line(middle) less the integral of the function, which no split changes, so a
candidate costs two relaxations. (GenBaB, arXiv:2405.21063, section 3.2, tabulates the best points for both lines
together.) Rows that meet a neuron with one sign use one of its lines only, and the other one can be left out then.
The candidates are evenly spaced and keep a distance from the ends, so that repeated splits narrow both halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.interval import Interval

if TYPE_CHECKING:
    from bounds.ops.base import Elementwise

PARTS = 32     # candidates lie between such parts of the interval
TIE_ULPS = 64  # areas that differ by rounding alone are equal


def area(op: Elementwise, x: Interval, side: Tensor) -> Tensor:
    """Up to what no split changes, the area between the default lines (side 0), or between the function and the line
    below (1) or above (-1), on every interval."""
    lines, middle = op.relax(x), x.centre
    upper, lower = lines.upper_slope * middle, lines.lower_slope * middle
    if lines.upper_intercept is not None:
        upper = upper + lines.upper_intercept
    if lines.lower_intercept is not None:
        lower = lower + lines.lower_intercept
    zero = torch.zeros_like(middle)
    return (torch.where(side <= 0, upper, zero) - torch.where(side >= 0, lower, zero)) * (x.upper - x.lower)


def least_area_point(op: Elementwise, x: Interval, side: Tensor, special: tuple[float, ...] = ()) -> Tensor:
    """Of the grid and the `special` points inside the interval, the split that leaves the least area, "B *shape"."""
    share = torch.arange(1, PARTS, dtype=x.lower.dtype, device=x.lower.device) / PARTS
    share = share.view(-1, *(1,) * x.lower.dim())
    candidates = torch.lerp(x.lower, x.upper, share)
    if special:
        points = x.lower.new_tensor(special).view(-1, *(1,) * x.lower.dim()).expand(-1, *x.lower.shape)
        inside = (points > x.lower) & (points < x.upper)
        candidates = torch.cat([candidates, torch.where(inside, points, x.centre)])
    # The relaxation sees one leading axis of domains.
    low, high, sides = (t.expand_as(candidates).flatten(0, 1) for t in (x.lower, x.upper, side))
    flat = candidates.flatten(0, 1)
    left, right = area(op, Interval(low, flat), sides), area(op, Interval(flat, high), sides)
    total = (left + right).view_as(candidates)
    rounding = TIE_ULPS * torch.finfo(total.dtype).eps * (left.abs() + right.abs()).view_as(candidates).amin(0)
    # The middle wins a tie.
    order = (candidates - x.centre).abs()
    tied = total <= total.amin(0) + rounding
    chosen = torch.where(tied, order, torch.full_like(order, torch.inf)).argmin(0, keepdim=True)
    found = candidates.gather(0, chosen).squeeze(0)
    # An interval of a few numbers has its ends among the rounded candidates.
    first, last = torch.nextafter(x.lower, x.upper), torch.nextafter(x.upper, x.lower)
    return torch.maximum(torch.minimum(found, last), torch.minimum(first, last))
