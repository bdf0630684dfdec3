"""Clipping a box by half-spaces: what a plane below a row proves safe is cut off (arXiv:2512.11087)."""

from __future__ import annotations

import torch
from torch import Tensor

# The cut is moved out by this share of the box's width and of the plane's size: rounding must not cut off a point.
SLACK = {torch.float64: 1e-9, torch.float32: 1e-4}
PASSES = 2  # a cut by one plane lets the others cut deeper


def clip(low: Tensor, high: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The box hull of {low <= x <= high, A x + b <= 0}: low, high "B n", A "B R n", b "B R".

    Ends that cross show that nothing is left. Where an entry of A is zero its feature is not cut.
    """
    slack = SLACK[low.dtype]
    for _ in range(PASSES):
        least = torch.where(A > 0, A * low.unsqueeze(1), A * high.unsqueeze(1))
        total = least.sum(2, keepdim=True) + b.unsqueeze(2)
        size = least.abs().sum(2, keepdim=True) + b.abs().unsqueeze(2)
        # x_j may move from its best end by (-total) / |A_j|: beyond, the plane is positive whatever the others do.
        room = (-total + slack * size) / A.abs().clamp(min=torch.finfo(A.dtype).tiny)
        width = (high - low).unsqueeze(1)
        room = room + slack * width
        inf = torch.full_like(room, torch.inf)
        up = torch.where(A > 0, low.unsqueeze(1) + room, inf).amin(1)
        down = torch.where(A < 0, high.unsqueeze(1) - room, -inf).amax(1)
        low, high = torch.maximum(low, down), torch.minimum(high, up)
    return low, high

