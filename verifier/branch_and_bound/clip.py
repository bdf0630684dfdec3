"""Clipping a box by half-spaces: what a plane below a row proves safe is cut off (arXiv:2512.11087)."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.ops.round_off import MORE, SPARE, gamma

# The cut is moved out by this share of the box's width and of the plane's size, or by as much as sums of that length
# may be wrong by, if that is more: rounding must not cut off a point.
SLACK = {torch.float64: 1e-9, torch.float32: 1e-4}
PASSES = 2  # a cut by one plane lets the others cut deeper


def slack_of(terms: int, dtype: torch.dtype) -> float:
    """What a cut is moved out by, as a share of the sizes of a sum of so many products."""
    return max(SLACK[dtype], 2 * MORE * gamma(terms, dtype))


def ends_slack(low: Tensor, high: Tensor, slack: float) -> Tensor:
    """What the ends of a box are moved out by: a share of its width, and the rounding of sums with the ends."""
    return slack * (high - low) + SPARE * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())


def clip(low: Tensor, high: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The box hull of {low <= x <= high, A x + b <= 0}: low, high "B n", A "B R n", b "B R".

    Ends that cross show that nothing is left. Where an entry of A is zero its feature is not cut.
    """
    slack = slack_of(low.shape[1], low.dtype)
    for _ in range(PASSES):
        least = torch.where(A > 0, A * low.unsqueeze(1), A * high.unsqueeze(1))
        total = least.sum(2, keepdim=True) + b.unsqueeze(2)
        size = least.abs().sum(2, keepdim=True) + b.abs().unsqueeze(2)
        # x_j may move from its best end by (-total) / |A_j|: beyond, the plane is positive whatever the others do.
        room = (-total + slack * size) / A.abs().clamp(min=torch.finfo(A.dtype).tiny)
        room = room + ends_slack(low, high, slack).unsqueeze(1)
        inf = torch.full_like(room, torch.inf)
        room = torch.where(room.isnan(), inf, room)  # a plane that overflowed cuts nothing
        up = torch.where(A > 0, low.unsqueeze(1) + room, inf).amin(1)
        down = torch.where(A < 0, high.unsqueeze(1) - room, -inf).amax(1)
        low, high = torch.maximum(low, down), torch.minimum(high, up)
    return low, high

