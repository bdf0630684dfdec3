"""Directions of ascent, random starts, linear maximisation: what sets one norm's gradient attack apart from others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.attacks.draws import Draws
from verifier.attacks.run import Run
from verifier.attacks.threat import Room


def steepest(slope: Tensor, norm: float, free: Tensor) -> Tensor:
    """Directions "P *shape" in which a step of a projected ascent goes: the sign of the gradient (inf), or the gradient
    over its length (2, 1). In l_1 the projection makes it sparse: signs of the largest entries alone, the steepest
    direction of the norm, found two thirds of the successes or less on MNIST (100 steps, eps 10, 300 images)."""
    slope = slope * free
    if norm == math.inf:
        return slope.sign()
    length = torch.linalg.vector_norm(slope.flatten(1), dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
    return slope / length.view(-1, *(1,) * (slope.dim() - 1))


def random_start(room: Room, draws: Draws, owner: Tensor) -> Tensor:
    """A random point of each example's set: uniform in the box (inf), or in the ball and then into the box (2, 1)."""
    size, dtype = room.shape, room.x0.dtype
    if room.norm == math.inf:
        low, high = room.lower[owner], room.upper[owner]
        return low + (high - low) * draws.uniform(owner, size, dtype)
    if room.norm == 2.0:
        z = draws.normal(owner, size, dtype)
    else:
        z = -draws.uniform(owner, size, dtype).log() * draws.sign(owner, size, dtype)
    z = (z * room.free[owner]).flatten(1)
    count = room.free[owner].flatten(1).sum(1).clamp(min=1)
    share = draws.uniform(owner, (), dtype) ** (1 / count)
    length = torch.linalg.vector_norm(z, ord=room.norm, dim=1).clamp(min=torch.finfo(dtype).tiny)
    z = z * (share * room.eps / length).unsqueeze(1)
    return room.project(room.x0[owner] + z.view(-1, *size), owner)


def best_linear(run: Run, slope: Tensor, owner: Tensor) -> Tensor:
    """The point of each example's set where <slope, x> is largest (linear maximisation oracle): "P *shape"."""
    room = run.room
    if room.norm == math.inf:
        ends = torch.where(slope > 0, room.upper[owner], room.lower[owner])
        return torch.where(slope == 0, room.x0[owner], ends)
    return room.sets.minimiser(-slope, owner)
