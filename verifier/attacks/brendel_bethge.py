"""The attack of Brendel, Rauber, Kuemmerer, Ustyuzhaninov and Bethge (arXiv:1907.01003): a walk along the boundary.

From a success near the boundary every step goes to the point nearest to the original, in the norm, on the linearised
boundary inside the box and a trust region,

    minimise ||u - x0||_p   over   lower <= u <= upper,  ||u - x||_2 <= radius,  <slope, u - x> = need.

With a multiplier for the trust region this is a proximal step: for a given amount of shrinking (`_shrunk`: clipping in
l_inf, scaling in l_2, soft and hard thresholds in l_1 and l_0) and a multiplier `pull` of the hyperplane it separates
into features. The hyperplane is met by a guarded Newton method on `pull`, the trust region by bisection on the
shrinking, for all examples at once. In l_0 it is a heuristic, hard thresholds being neither convex nor continuous.

Other than in the paper
- the start is no image of another class but a success that is known already, or the first of least moves onto the
  linearised boundary, as in DeepFool, in the norm of the attack;
- the trust region is a share of the distance to the original, and shrinks geometrically;
- a step aims beyond the boundary, for only successes count: by as much as recent steps fell short of their aim, since
  a boundary that bends away is missed again and again (with a fixed aim not one of six walks in l_2 had another success
  before the trust region was small).

Axis legend: P examples, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.hyperplane import least_move
from verifier.attacks.run import Run

SHRINKINGS = 12    # halvings of the shrinking: the trust region is used to a thousandth or so
# First and last radius by norm, best of a few tried with 100 steps on two MNIST networks. In l_0 whole features come
# and go: with (0.3, 0.003) the median was 144 features on one of them, 8 with these.
REGION = {math.inf: (0.3, 0.003), 2.0: (0.3, 0.003), 1.0: (1.0, 0.003), 0.0: (2.0, 0.03)}
PULLS = 8          # Newton steps for each of them, the root of the one before being the start


@dataclass(frozen=True, kw_only=True)
class BrendelBethge(Attack):
    """steps: gradients, the start included. region: the first and the last radius of the trust region, as shares of the
    point's l_2 distance to its original (by default those of `REGION`). beyond: the least that a step aims beyond the
    boundary, as a share of the radius; farthest: the most. forget: what is left of the latest shortfalls from step to
    step. eta: how far the moves of the start go beyond the hyperplane, 1 is onto it."""

    name: ClassVar[str] = "bb"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0, 0.0)
    minimum_norm: ClassVar[bool] = True
    walks_on: ClassVar[bool] = True

    steps: int = 100
    region: tuple[float, float] | None = None
    beyond: float = 0.02
    farthest: float = 0.5
    forget: float = 0.8
    eta: float = 1.2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.region is not None and not 0 < self.region[1] <= self.region[0] < math.inf:
            raise ValueError(f"region must be two positive shares, the first not smaller, got {self.region}")
        if not (0 <= self.beyond <= self.farthest and 0 <= self.forget < 1 and self.eta >= 1):
            raise ValueError("beyond must lie between 0 and farthest, forget in [0, 1), eta above 1, got "
                             f"{self.beyond}, {self.farthest}, {self.forget} and {self.eta}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss("margin")
        first, last = REGION[run.room.norm] if self.region is None else self.region
        x = torch.where(run.room.per_example(run.success)[i], run.x[i], run.x0[i])
        aim, shortfall = (x.new_zeros(i.numel()) for _ in range(2))
        for k in range(self.steps):
            going = ~run.closed[i] & (run.queries_left(i) > 0)
            if not bool(going.all()):
                i, x, aim, shortfall = i[going], x[going], aim[going], shortfall[going]
            if not i.numel() or run.deadline.passed():
                return
            at = run.gradient(x, i, loss)
            share = first * (last / first) ** (k / max(1, self.steps - 1))
            slope = at.slope * run.room.free[i]
            steep = torch.linalg.vector_norm(slope.flatten(1), dim=1)
            radius = share * torch.linalg.vector_norm((at.x - run.x0[i]).flatten(1), dim=1)
            shortfall = torch.maximum(self.forget * shortfall, torch.where(run.success[i], aim - at.value, 0))
            aim = torch.minimum(self.beyond * radius * steep + shortfall, self.farthest * radius * steep)
            x = self._next(run, i, at.x, at.value, slope, radius, aim)
        run.evaluate(x, i)

    def _next(self, run: Run, i: Tensor, x: Tensor, value: Tensor, slope: Tensor, radius: Tensor,
              aim: Tensor) -> Tensor:
        shape = x.shape
        x, x0, slope, lower, upper = (t.flatten(1) for t in (x, run.x0[i], slope, run.room.lower[i], run.room.upper[i]))
        # The start goes to the boundary by the shortest way.
        u = x + self.eta * least_move(slope, -value, lower - x, upper - x, run.room.norm)
        walks = run.success[i].nonzero().flatten()
        if walks.numel():
            x, x0, slope, lower, upper = (t[walks] for t in (x, x0, slope, lower, upper))
            u[walks] = boundary_step(x, x0, slope, (aim - value)[walks], lower, upper, radius[walks], run.room.norm)
        return u.view(shape)


def boundary_step(x: Tensor, x0: Tensor, slope: Tensor, need: Tensor, lower: Tensor, upper: Tensor, radius: Tensor,
                  norm: float) -> Tensor:
    """The u "P F" of the walk's problem (see the module), to a thousandth or so of the radius; x, x0 lie in the box.

    Where the hyperplane does not meet box and trust region: as far towards it as the trust region allows.
    """
    straight = x + least_move(slope, need, lower - x, upper - x, 2.0)
    length = torch.linalg.vector_norm(straight - x, dim=1)
    best = torch.lerp(x, straight, (radius / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1).unsqueeze(1))
    walks = (length < radius).nonzero().flatten()
    if not walks.numel():
        return best
    x, x0, slope, lower, upper, need, radius = (t[walks] for t in (x, x0, slope, lower, upper, need, radius))
    # Hard thresholds jump past the hyperplane: any point beyond it will do there, of those tried the nearest.
    near = 1e-3 * (need.abs() + radius * torch.linalg.vector_norm(slope, dim=1))
    tolerance = torch.full_like(near, torch.finfo(near.dtype).max) if norm == 0.0 else near
    u, pull = best[walks], torch.zeros_like(need)
    small, large = torch.zeros_like(need), torch.ones_like(need)
    for _ in range(SHRINKINGS):
        middle = (small + large) / 2
        tried, root, missed = _onto(x, x0, slope, need, lower, upper, middle, pull, norm)
        fits = (torch.linalg.vector_norm(tried - x, dim=1) <= radius) & (missed <= tolerance)
        u = torch.where(fits.unsqueeze(1), tried, u)
        pull = torch.where(fits, root, pull)
        small, large = torch.where(fits, middle, small), torch.where(fits, large, middle)
    best[walks] = u
    return best


def _onto(x: Tensor, x0: Tensor, slope: Tensor, need: Tensor, lower: Tensor, upper: Tensor, amount: Tensor,
          pull: Tensor, norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """(u "P F", pull "P", |<slope, u - x> - need| "P"): the pull at which the shrunk point meets the hyperplane.

    In l_0 only points on its far side count; the miss is infinite where there was none.
    """
    move, low, high = x - x0, lower - x0, upper - x0
    amount, unit = _scaled(amount, move, norm), need.abs() + torch.finfo(need.dtype).tiny
    steep = slope.square().sum(1).clamp(min=torch.finfo(need.dtype).tiny)
    width = unit / steep
    left, right = torch.full_like(pull, -math.inf), torch.full_like(pull, math.inf)
    best, root, missed = move, pull, torch.full_like(need, math.inf)
    for _ in range(PULLS):
        shrunk, bends = _shrunk(move + pull.unsqueeze(1) * slope, amount.unsqueeze(1), norm)
        inside = torch.minimum(torch.maximum(shrunk, low), high)
        error = need - (slope * (inside - move)).sum(1)
        better = (error.abs() < missed) & ((error <= 0) | (norm > 0))
        best = torch.where(better.unsqueeze(1), inside, best)
        root, missed = torch.where(better, pull, root), torch.where(better, error.abs(), missed)
        left, right = torch.where(error > 0, pull, left), torch.where(error > 0, right, pull)
        pace = (slope.square() * (bends * (shrunk == inside))).sum(1)
        newton = pull + error / pace
        width = 4 * width
        halved = torch.where(torch.isinf(left) | torch.isinf(right), pull + width * error.sign(), (left + right) / 2)
        pull = torch.where((left < newton) & (newton < right), newton, halved)
    return x0 + best, root, missed


def _scaled(amount: Tensor, move: Tensor, norm: float) -> Tensor:
    """From a share in (0, 1) to what `_shrunk` takes; 1 / 2 is about the size of the present move's largest entry."""
    if norm == 2.0:
        return 1 - amount
    largest = move.abs().amax(1)
    return largest * (1 - amount) / amount if norm == math.inf else largest * amount / (1 - amount)


def _shrunk(move: Tensor, amount: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    """(the moves drawn towards zero, the derivative): clip at `amount` (inf), times it (2), soft or hard threshold."""
    if norm == 2.0:
        return move * amount, amount
    if norm == math.inf:
        clipped = torch.maximum(torch.minimum(move, amount), -amount)
        return clipped, (clipped == move).to(move)
    moves = (move.abs() > amount).to(move)
    kept = move * moves
    return (kept if norm == 0.0 else kept - amount * moves * move.sign()), moves
