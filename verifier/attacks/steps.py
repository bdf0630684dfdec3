"""Directions of steepest ascent and random starts: what distinguishes one norm's gradient attack from another's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.attacks.run import Run

SPARSE_SHARE = 0.05  # of the features that one l_1 step moves


def steepest(slope: Tensor, norm: float, free: Tensor, *, share: float = SPARSE_SHARE) -> Tensor:
    """Points "P *shape" of norm 1 (or 0) along which a linear function rises fastest, on features that may move.

    inf: the sign; 2: the gradient over its length; 1: the sign of the `share` of features with the largest gradient,
    shared out evenly (Tramer and Boneh, arXiv:1904.13000), since a single feature a step goes nowhere.
    """
    slope = slope * free
    if norm == math.inf:
        return slope.sign()
    shaped = (-1, *(1,) * (slope.dim() - 1))
    flat = slope.flatten(1)
    if norm == 2.0:
        length = torch.linalg.vector_norm(flat, dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
        return slope / length.view(shaped)
    count = max(1, round(share * flat.shape[1]))
    threshold = flat.abs().topk(count, dim=1).values[:, -1:]
    chosen = flat.sign() * (flat.abs() >= threshold)
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp(min=1)).view_as(slope)


def can_rise(slope: Tensor, x: Tensor, run: Run, owner: Tensor) -> Tensor:
    """bool "P *shape": features that may move and are not at the end of the box that the gradient points to."""
    lower, upper = run.room.lower[owner], run.room.upper[owner]
    return torch.where(slope > 0, x < upper, x > lower) & run.room.free[owner]


def random_start(run: Run, owner: Tensor) -> Tensor:
    """A random point of each example's set: uniform in the box (inf), or in the ball and then into the box (2, 1)."""
    room = run.room
    size, dtype = room.shape, room.x0.dtype
    if room.norm == math.inf:
        low, high = room.lower[owner], room.upper[owner]
        return low + (high - low) * run.draws.uniform(owner, size, dtype)
    if room.norm == 2.0:
        z = run.draws.normal(owner, size, dtype)
    else:
        z = -run.draws.uniform(owner, size, dtype).log() * run.draws.sign(owner, size, dtype)
    z = (z * room.free[owner]).flatten(1)
    count = room.free[owner].flatten(1).sum(1).clamp(min=1)
    share = run.draws.uniform(owner, (), dtype) ** (1 / count)
    length = torch.linalg.vector_norm(z, ord=room.norm, dim=1).clamp(min=torch.finfo(dtype).tiny)
    z = z * (share * room.eps / length).unsqueeze(1)
    return room.project(room.x0[owner] + z.view(-1, *size), owner)
