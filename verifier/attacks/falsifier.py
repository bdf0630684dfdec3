"""Projected gradient descent on the property itself (PGD, arXiv:1706.06083), batched over branches and restarts.

Each point descends the margin of one branch inside that branch's region. Half of the starts step by
sign (the steepest direction of a box) and half by Adam (arXiv:1412.6980) on coordinates scaled to the
box; over l_1 and l_2 balls the first half takes Frank-Wolfe steps towards the minimiser of the
gradient and the second normalised gradient steps with projection. Half of each descends the largest
violation, half the sum of the positive ones.

Before the descent points are sampled (every corner where there are few free inputs) and the best
become starts; after it the best points are snapped to nearby corners and faces of the box, where
closed thresholds of piecewise-linear networks are met exactly, and coordinates are switched between
their ends one at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.property_search import Problem, PropertyAttack

FIRST_STEP, LAST_STEP = 0.5, 0.01  # in half widths of the box (or radii), falling geometrically
BETA1, BETA2 = 0.9, 0.99           # Adam; a short memory, since runs are short
CORNER_INPUTS = 9                  # up to so many free inputs all 2^n corners are starts
SNAP_LEVELS = (0.0, 0.5, 0.9)      # coordinates beyond this share of the half width go to the end
POLISHED = 4                       # points of a round that are snapped
SWITCHED_INPUTS = 256              # with more free inputs single coordinates are not tried
SWITCH_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Falsifier(PropertyAttack):
    """A short round over all branches from the centre and a few samples, so that easy properties fall
    at once, then `rounds` rounds of `restarts` starts a branch and `steps` steps over `branches` of
    them: half the most promising ones, half in turn.

    samples: points evaluated (not differentiated) a region before a round, to choose starts from.
    The defaults are a brief attack; more rounds and a larger `time_limit_s` make it a thorough one.
    """

    name: ClassVar[str] = "falsifier"
    time_limit_s: float = 2.0
    restarts: int = 24
    steps: int = 40
    rounds: int = 2
    branches: int = 8
    samples: int = 512

    def __post_init__(self) -> None:
        for setting in ("restarts", "steps", "rounds", "branches"):
            if getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be >= 1, got {getattr(self, setting)}")
        if self.samples < 0:
            raise ValueError(f"samples must be >= 0, got {self.samples}")

    def search(self, problem: Problem) -> None:
        everything = torch.arange(problem.tensors.branches, device=problem.branch_margin.device)
        self._round(problem, everything, restarts=min(4, self.restarts), steps=min(12, self.steps), first=True)
        for k in range(self.rounds):
            if problem.finished:
                return
            self._round(problem, self._chosen(problem, k), restarts=self.restarts, steps=self.steps, first=False)

    def _chosen(self, problem: Problem, k: int) -> Tensor:
        """The branches of round k, most promising first."""
        order = torch.argsort(problem.branch_margin, stable=True)
        if order.numel() <= self.branches:
            return order
        best = (self.branches + 1) // 2
        rest = order[best:].sort().values
        turn = (torch.arange(self.branches - best, device=order.device) + k * (self.branches - best)) % rest.numel()
        return torch.cat([order[:best], rest[turn]])

    def _round(self, problem: Problem, branches: Tensor, *, restarts: int, steps: int, first: bool) -> None:
        """Attack these branches in batches that fit the memory."""
        at_once = max(1, problem.points_at_once() // restarts)
        for i in range(0, branches.numel(), at_once):
            if problem.finished:
                return
            chosen = branches[i : i + at_once]
            x, branch = self._starts(problem, chosen, min(restarts, problem.points_at_once()), first)
            if problem.finished:
                return
            x, margin = self._descend(problem, x, branch, steps)
            if problem.sets.is_box and not problem.finished:
                polish(problem, x, branch, margin)

    # ------------------------------------------------------------------ starts

    def _starts(self, problem: Problem, branches: Tensor, restarts: int, first: bool) -> tuple[Tensor, Tensor]:
        """(points "P *shape", branch "P"), P = branches x restarts: centre, best samples, plain samples."""
        sets = problem.sets
        region = problem.region_of(branches)
        size = max(restarts, min(self.samples, problem.points_at_once() * 8 // branches.numel()))
        if first:
            size = min(size, 4 * restarts)
        pool = sets.index(region).sample(size, problem.generator)  # "K S *shape"
        if first:
            pool[:, 0] = sets.centre_point[region]
            corners = _corners(sets.lower[region], sets.upper[region]) if sets.is_box else None
            if corners is not None and corners.shape[1] * branches.numel() <= 8 * problem.points_at_once():
                pool = torch.cat([pool, corners], 1)
        count = pool.shape[1]
        best = max(1, restarts // 2)
        if count > restarts:
            owner = branches.repeat_interleave(count)
            points, margin = problem.evaluate(pool.flatten(0, 1), owner)
            pool = points.reshape(pool.shape)
            good = margin.reshape(-1, count).topk(best, largest=False).indices
            rest = torch.arange(restarts - best, device=good.device).expand(branches.numel(), -1)
            index = torch.cat([good, rest], 1)  # the first plain entries hold the centre in the first round
            pool = pool[torch.arange(branches.numel(), device=index.device).unsqueeze(1), index]
        return pool.flatten(0, 1), branches.repeat_interleave(restarts)

    # ------------------------------------------------------------------ descent

    def _descend(self, problem: Problem, x: Tensor, branch: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Run all points; returns for each the best point it visited and its margin."""
        sets, region = problem.sets, problem.region_of(branch)
        rank = torch.arange(x.shape[0], device=x.device)
        plain, summed = rank % 2 == 0, (rank // 2) % 2 == 1  # sign or Frank-Wolfe; the loss
        shaped = plain.view(-1, *(1,) * (x.dim() - 1))
        reach = (sets.upper - sets.lower)[region] / 2
        x = sets.project(x, region)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        best_x, best = x.clone(), torch.full((x.shape[0],), math.inf, dtype=x.dtype, device=x.device)
        for k in range(steps):
            margin, slope = problem.gradient(x, branch, summed)
            better = margin < best
            best = torch.where(better, margin, best)
            best_x = torch.where(better.view_as(shaped), x, best_x)
            if problem.finished:
                return best_x, best
            step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (k / max(1, steps - 1))
            if sets.is_box:
                scaled = slope * reach
                largest = scaled.abs().flatten(1).amax(1).clamp(min=torch.finfo(x.dtype).tiny).view_as(shaped)
                scaled = scaled / largest
                mean = BETA1 * mean + (1 - BETA1) * scaled
                square = BETA2 * square + (1 - BETA2) * scaled.square()
                adam = mean / (1 - BETA1 ** (k + 1)) / ((square / (1 - BETA2 ** (k + 1))).sqrt() + 1e-8)
                following = x - step * reach * torch.where(shaped, scaled.sign(), adam)
            else:
                corner = sets.minimiser(slope, region)
                length = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny).view_as(shaped)
                radius = reach.flatten(1).amax(1).view_as(shaped)
                following = torch.where(shaped, x + step * (corner - x), x - step * radius * slope / length)
            x = sets.project(following, region)
        x, margin = problem.evaluate(x, branch)
        better = margin < best
        return torch.where(better.view_as(shaped), x, best_x), torch.where(better, margin, best)


def _corners(lower: Tensor, upper: Tensor) -> Tensor | None:
    """All corners over the free inputs: "K *shape" -> "K 2^n *shape", or None where n is large or differs."""
    free = (lower < upper).flatten(1)
    if not bool((free == free[0]).all()) or int(free[0].sum()) > CORNER_INPUTS:
        return None
    index = free[0].nonzero().flatten()
    bits = torch.arange(1 << index.numel(), device=lower.device)
    choice = ((bits.unsqueeze(1) >> torch.arange(index.numel(), device=lower.device)) & 1).bool()  # "2^n n"
    points = lower.flatten(1).unsqueeze(1).repeat(1, bits.numel(), 1)
    points[:, :, index] = torch.where(choice, upper.flatten(1)[:, None, index], lower.flatten(1)[:, None, index])
    return points.reshape(lower.shape[0], bits.numel(), *lower.shape[1:])


def polish(problem: Problem, x: Tensor, branch: Tensor, margin: Tensor) -> None:
    """Snap the best points to corners and faces, then switch single inputs between their ends while that helps."""
    sets = problem.sets
    count = min(POLISHED, x.shape[0])
    best = margin.topk(count, largest=False).indices
    x, branch = x[best], branch[best]
    region = problem.region_of(branch)
    lower, upper = sets.lower[region], sets.upper[region]
    position = (x - lower) * 2 - (upper - lower)          # in [-w, w], w the width
    width = upper - lower
    snapped = [torch.where(position.abs() >= level * width, torch.where(position > 0, upper, lower), x)
               for level in SNAP_LEVELS]
    points, value = problem.evaluate(torch.cat([x, *snapped]), branch.repeat(1 + len(snapped)))
    if problem.finished:
        return
    free = (width > 0).flatten(1).any(0).nonzero().flatten()
    if free.numel() > SWITCHED_INPUTS:
        return
    # The corners nearest to the best points are where switching starts.
    corner = points[count : 2 * count]
    value = value[count : 2 * count]
    _switch(problem, corner, branch, value, free)


def _switch(problem: Problem, x: Tensor, branch: Tensor, value: Tensor, free: Tensor) -> None:
    """Local search over corners: of all single switches take the best, as long as one improves."""
    lower, upper = (problem.sets.lower[problem.region_of(branch)].flatten(1),
                    problem.sets.upper[problem.region_of(branch)].flatten(1))
    shape, count, n = x.shape[1:], x.shape[0], free.numel()
    for _ in range(SWITCH_ROUNDS if n else 0):
        flat = x.flatten(1).unsqueeze(1).repeat(1, n, 1)  # "T n F"
        rows = torch.arange(n, device=x.device)
        old = flat[:, rows, free]
        flat[:, rows, free] = torch.where(old == upper[:, free], lower[:, free], upper[:, free])
        points, tried = problem.evaluate(flat.reshape(-1, *shape), branch.repeat_interleave(n))
        if problem.finished:
            return
        least, at = tried.reshape(count, n).min(1)
        improved = least < value
        if not bool(improved.any()):
            return
        chosen = points.reshape(count, n, *shape)[torch.arange(count, device=x.device), at]
        x = torch.where(improved.view(-1, *(1,) * len(shape)), chosen, x)
        value = torch.minimum(value, least)
