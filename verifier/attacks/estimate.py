"""Gradients estimated from values: finite differences along given directions, weighted and summed.

With directions whose second moment is the identity (standard normal, random signs, or a basis scaled to that) the
estimate's mean is the gradient: of linear functions always, of quadratic ones with central differences, of others of a
smoothed function (Nesterov and Spokoiny 2017, doi:10.1007/s10208-015-9296-2).

Axis legend: P points, one an example; K directions or coordinates; F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.attacks.losses import Loss
from verifier.attacks.run import Run

Values = Callable[[Tensor], Tensor]  # points "P M *shape" -> values "P M"
Visits = Callable[[Tensor], tuple[Tensor, Tensor]]  # points "P M F" -> values "P M", where they were taken "P M F"


def slope_of(f: Values, x: Tensor, directions: Tensor, width: Tensor, value: Tensor | None = None) -> Tensor:
    """mean_k of (f(x + width u_k) - f(x)) / width * u_k, or with f(x - width u_k) and twice the width: "P *shape".

    x "P *shape", directions u "P K *shape", width "P". With value "P", which is f at x, forward differences: K values a
    point; without, central ones: 2 K. Differences that are not finite count as none.
    """
    count = directions.shape[1]
    move = directions * width.view(-1, *(1,) * (directions.dim() - 1))
    here = x.unsqueeze(1)
    points = here + move if value is not None else torch.cat([here + move, here - move], 1)
    found = f(points)
    change = found - value.unsqueeze(1) if value is not None else (found[:, :count] - found[:, count:]) / 2
    weight = torch.nan_to_num(change / width.unsqueeze(1), nan=0.0, posinf=0.0, neginf=0.0)
    return (weight.unsqueeze(1) @ directions.flatten(2)).view_as(x) / count


def estimated_slope(run: Run, x: Tensor, owner: Tensor, directions: Tensor, width: Tensor, loss: Loss,
                    value: Tensor | None = None) -> Tensor:
    """`slope_of` a loss under attack; owner "P" (distinct). Queries are counted; points are moved into their room
    first; those that were not evaluated, or gave no finite value, count as no difference."""
    def f(points: Tensor) -> Tensor:
        who = owner.repeat_interleave(points.shape[1])
        seen = run.evaluate(points.flatten(0, 1), who)
        return loss(seen.y, seen.x, who).view(len(owner), -1)
    return slope_of(f, x, directions, width, value)


def coordinate_slopes(f: Visits, x: Tensor, at: Tensor, width: float) -> Tensor:
    """Central differences of f at x "P F" along coordinates `at` "P K", over the distance between the points where f
    was taken, which may be others than asked for; zero where there is none: "P K"."""
    moves = torch.zeros(*at.shape, x.shape[1], dtype=x.dtype, device=x.device)
    moves.scatter_(2, at.unsqueeze(2), width)
    value, points = f(torch.cat([x.unsqueeze(1) + moves, x.unsqueeze(1) - moves], 1))
    reached = points.gather(2, torch.cat([at, at], 1).unsqueeze(2)).squeeze(2)
    count = at.shape[1]
    gone = reached[:, :count] - reached[:, count:]
    return torch.nan_to_num((value[:, :count] - value[:, count:]) / gone, nan=0.0, posinf=0.0, neginf=0.0)


def feature_size(run: Run, owner: Tensor, share: float) -> Tensor:
    """How far every free feature moves when they all move alike and the norm is this share of eps: "P"."""
    room = run.room
    if room.norm == math.inf:
        return room.x0.new_full((owner.numel(),), share * room.eps)
    free = room.free[owner].flatten(1).sum(1).clamp(min=1)
    return share * room.eps / free.to(room.x0) ** (1 / room.norm)
