"""Fewer changed features: what attacks in l_0 do with a success and the steps they have left.

In l_0 a feature that has moved may move on for nothing. From the best point one feature is dropped, the one whose
move does least to first order, and the others are led to where they do most; where that fails, the next one is dropped
instead. A greedy search by gradients, heuristic, of our own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attacks.losses import Loss
from verifier.attacks.run import Run

TRIES = 3  # gradients spent on one set of features: further ones found next to nothing


def prune(run: Run, left: Tensor, loss: Loss) -> None:
    """Spend up to `left` (long "B") gradients of each example on dropping features of its best point."""
    i = (run.success & ~run.closed & (run.key > 1) & (left > 1)).nonzero().flatten()
    if not i.numel():
        return
    x = run.x[i]
    best, base = x, torch.zeros_like(x)  # the point with fewest features, the gradient there
    rank, tries = torch.zeros_like(i), torch.full_like(i, TRIES)
    for k in range(int(left[i].max())):
        point = run.gradient(x, i, loss)
        x0, shaped = run.x0[i], run.room.per_example
        better = point.met & ((point.x != x0).flatten(1).sum(1) <= (best != x0).flatten(1).sum(1))
        best = torch.where(shaped(better), point.x, best)
        base = torch.where(shaped(better), point.slope, base)
        rank, tries = torch.where(better, 0, rank), torch.where(better, 0, tries + 1)
        spent = tries >= TRIES
        rank, tries = torch.where(spent, rank + 1, rank), torch.where(spent, 0, tries)
        restart = better | spent
        # Dropped: the feature of the best point whose move does least; else go on from here.
        moved = best != x0
        worth = torch.where(moved, (base * (best - x0)).abs(), torch.inf).flatten(1)
        which = worth.argsort(dim=1, stable=True).gather(1, rank.unsqueeze(1))
        dropped = best.flatten(1).scatter(1, which, x0.flatten(1).gather(1, which)).view_as(x)
        x = torch.where(shaped(restart), dropped, point.x)
        slope = torch.where(shaped(restart), base, point.slope)
        share = torch.where(restart, 1.0, 0.5 ** tries).to(x)
        x = _led(run, x, slope * (x != x0), i, shaped(share), point.margin)
        going = (rank + 1 < moved.flatten(1).sum(1)) & (left[i] > k + 1) & ~run.closed[i]
        if not bool(going.all()):
            i, x, best, base, rank, tries = (t[going] for t in (i, x, best, base, rank, tries))
        if not i.numel() or run.deadline.passed():
            return


def _led(run: Run, x: Tensor, slope: Tensor, i: Tensor, share: Tensor, margin: Tensor) -> Tensor:
    """x with the features of non-zero `slope` a share of the way to the end of their range; where there is none,
    twice as far as the margin asks for to first order."""
    end = torch.where(slope > 0, run.room.upper[i], run.room.lower[i])
    end = torch.where(slope == 0, x, end)
    if run.room.bounded:
        return x + share * (end - x)
    length = slope.flatten(1).square().sum(1).clamp(min=torch.finfo(x.dtype).tiny)
    step = slope * run.room.per_example(2 * margin.abs() / length)
    return torch.where(torch.isfinite(end), x + share * (end - x), x + step)
