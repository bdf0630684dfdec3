"""The nearest point of a hyperplane inside a box, for every row of a batch, exactly up to rounding.

From a point of the box one looks for the least move z, in l_inf, l_2, l_1 or l_0, with <slope, z> = need and
low <= z <= high (Croce and Hein, arXiv:1907.02044). Each feature moves in its useful direction only, in l_inf and l_2
by `min(t * rate, room)` with one number t for all, and rate 1 (inf) or |slope| (2). What is gained grows with t, is
concave and piecewise linear: Newton's method from t = 0 goes upward only and ends at the root after finitely many steps
(some 3 to 8; sorting the break points costs several times as much). In l_1 the steepest features are used up in their
order, in l_0 those that can gain most.

Axis legend: P rows, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEWTON_STEPS = 100  # every one uses up at least one feature's room; the most seen with 3,072 features is below 20
ENDLESS = 1e9     # stands for an infinite room in the order of l_0: the steepest of them first
CHUNK_ENTRIES = 1 << 18  # rows are taken in chunks that stay in the cache
GPU_ENDLESS = 1e9     # stands for an infinite room in the order of l_0: the steepest of them first
CHUNK_ENTRIES = 1 << 26


def least_move(slope: Tensor, need: Tensor, low: Tensor, high: Tensor, norm: float) -> Tensor:
    """argmin ||z||_norm over <slope, z> = need, low <= z <= high: "P F".

    slope "P F", need "P", low <= 0 <= high "P F" (may be infinite). Where the hyperplane does not meet the box: a point
    of the box that comes nearest to it; where the slope is zero, no move.
    """
    rows = max(1, (CHUNK_ENTRIES if slope.device.type == "cpu" else GPU_CHUNK_ENTRIES) // max(1, slope.shape[1]))
    if slope.shape[0] <= rows:
        return _least_move(slope, need, low, high, norm)
    parts = zip(slope.split(rows), need.split(rows), low.split(rows), high.split(rows), strict=True)
    return torch.cat([_least_move(*part, norm) for part in parts])


def _least_move(slope: Tensor, need: Tensor, low: Tensor, high: Tensor, norm: float) -> Tensor:
    useful = torch.where(need < 0, -1.0, 1.0).to(slope).unsqueeze(1) * slope
    gain = useful.abs()
    room = torch.where(useful > 0, high, -low)
    room = torch.where(gain > 0, room, torch.zeros_like(room))
    if norm <= 1.0:
        size = _one_by_one(gain, room, need.abs(), gain if norm == 1.0 else gain * room.clamp(max=ENDLESS))
    else:
        size = _together(gain, torch.ones_like(gain) if norm == math.inf else gain, room, need.abs())
    return torch.copysign(size, useful)


def _together(gain: Tensor, rate: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(t * rate, room) with the least t at which sum(gain * that) = need."""
    speed, most = gain * rate, gain * room  # infinite where the room is: never used up
    t = torch.zeros_like(need)
    for _ in range(NEWTON_STEPS):
        moving = t.unsqueeze(1) * rate < room
        pace = torch.where(moving, speed, 0).sum(1)
        left = need - torch.where(moving, 0, most).sum(1)
        further = torch.where(pace > 0, left / pace, t)
        if not bool((further > t).any()):
            break
        t = torch.maximum(t, further)
    return torch.minimum(t.unsqueeze(1) * rate, room)


def _one_by_one(gain: Tensor, room: Tensor, need: Tensor, rank: Tensor) -> Tensor:
    """The rooms of features in falling order of `rank`, the last of them in part, until sum(gain * that) = need."""
    order = rank.argsort(dim=1, descending=True)
    gain, room = gain.gather(1, order), room.gather(1, order)
    used = (gain * room).cumsum(1).roll(1, 1)
    used[:, 0] = 0
    left = (need.unsqueeze(1) - used).clamp(min=0) / gain.clamp(min=torch.finfo(gain.dtype).tiny)
    return torch.zeros_like(room).scatter_(1, order, torch.minimum(left, room))
