"""The l_2 attack of Carlini and Wagner (arXiv:1608.04644): a penalty for the margin, its constant found by search.

    minimise ||x - x0||_2^2 + constant * max(margin(x) + kappa, 0)   over the box, with Adam,

again and again: a constant that led to a success is lowered, one that did not is raised.

Other than in the paper,
- the first constant belongs to the example: were the margin linear, `2 margin / ||gradient||^2` would be the least that
  reaches the boundary, and `initial` is a multiple of it (1e-3 whatever the network, before);
- a search starts where the one before ended, with a step that decays along a cosine;
- the box is kept by projection, the first of the three ways in section V-B of the paper. In tanh space, its third,
  features that start at an end of their range hardly move at first: with 9 searches of 50 steps on a convolutional
  MNIST network the median distance was 2.66, by projection 0.95.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.losses import Loss
from verifier.attacks.run import Run

FIRST_MOMENT, SECOND_MOMENT, UNDER_ROOT = 0.9, 0.999, 1e-8  # Adam's usual ones
LAST_STEP = 0.01    # of the first
CHECKS = 10         # times in a search that `abort_early` looks
BETTER = 1e-4       # by which share the objective must have fallen since


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """binary_search_steps: constants tried. steps: gradients for each of them (one more sets the first constant).
    step_size: in widths of the box, or in input units where it is infinite. kappa: the margin below zero at which the
    penalty ends and a search counts as a success; the nearest point of the wanted class is returned all the same.
    grow: the constant's factor while nothing succeeded. abort_early: end an example's search when its objective has not
    fallen within a tenth of the steps."""

    name: ClassVar[str] = "cw"
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimum_norm: ClassVar[bool] = True

    binary_search_steps: int = 9
    steps: int = 100
    step_size: float = 0.1
    initial: float = 10.0
    grow: float = 10.0
    kappa: float = 0.0
    abort_early: bool = False

    def __post_init__(self) -> None:
        if self.binary_search_steps < 1 or self.steps < 1:
            raise ValueError(f"binary_search_steps and steps must be >= 1, got {self.binary_search_steps} and "
                             f"{self.steps}")
        if not (self.step_size > 0 and self.initial > 0 and self.grow > 1 and self.kappa >= 0):
            raise ValueError("step_size and initial must be > 0, grow > 1, kappa >= 0, got "
                             f"{self.step_size}, {self.initial}, {self.grow} and {self.kappa}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss("margin")
        x = run.x0.clone()
        constant = torch.ones_like(run.margin)
        constant[i] = self._first_constant(run, i, loss)
        low, high = torch.zeros_like(constant), torch.full_like(constant, math.inf)
        for _ in range(self.binary_search_steps):
            i = run.open_examples()
            i = i[run.queries_left(i) > 0]
            if not i.numel():
                return
            found = self._search(run, i, x, constant, loss)
            high[i] = torch.where(found, torch.minimum(high[i], constant[i]), high[i])
            low[i] = torch.where(found, low[i], torch.maximum(low[i], constant[i]))
            constant = torch.where(torch.isinf(high), constant, (low + high) / 2)
            constant[i] = torch.where(torch.isinf(high[i]), constant[i] * self.grow, constant[i])

    def _first_constant(self, run: Run, i: Tensor, loss: Loss) -> Tensor:
        at = run.gradient(run.x0[i], i, loss)
        steep = (at.slope * run.room.free[i]).flatten(1).square().sum(1)
        least = 2 * (self.kappa - at.value).clamp(min=0) / steep
        return torch.where((steep > 0) & torch.isfinite(least) & (least > 0), self.initial * least, 1.0)

    def _search(self, run: Run, i: Tensor, start: Tensor, constant: Tensor, loss: Loss) -> Tensor:
        """Adam from `start` "B *shape", which is moved, with one constant for each example: bool "P", whether one of
        its points is a success."""
        room, everything = run.room, i
        found = torch.zeros_like(run.success)
        x, x0, weight = start[i], run.x0[i], constant[i]
        step = self._step(run, i)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        lowest, before = (torch.full_like(weight, math.inf) for _ in range(2))
        for k in range(self.steps):
            if run.deadline.passed():
                break
            at = run.gradient(x, i, loss)
            enough = at.value >= self.kappa
            found[i] |= at.met & enough
            move = at.x - x0
            slope = 2 * move - room.per_example(torch.where(enough & at.met, 0, weight)) * at.slope
            first = torch.lerp(slope, first, FIRST_MOMENT)
            second = torch.lerp(slope.square(), second, SECOND_MOMENT)
            size = LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * k / self.steps)) / 2
            size *= math.sqrt(1 - SECOND_MOMENT ** (k + 1)) / (1 - FIRST_MOMENT ** (k + 1))
            x = room.clamp(at.x - size * step * first / (second.sqrt() + UNDER_ROOT), i)
            going = ~run.closed[i] & (run.queries_left(i) > 0)
            if self.abort_early:
                objective = move.flatten(1).square().sum(1) + weight * (self.kappa - at.value).clamp(min=0)
                lowest = torch.minimum(lowest, objective)
                if (k + 1) % max(1, self.steps // CHECKS) == 0:
                    going &= lowest < before * (1 - BETTER)
                    before = lowest
            if not bool(going.all()):
                start[i] = x
                i, x, x0, weight, step, first, second, lowest, before = (
                    t[going] for t in (i, x, x0, weight, step, first, second, lowest, before))
                if not i.numel():
                    break
        start[i] = x
        return found[everything]

    def _step(self, run: Run, i: Tensor) -> Tensor:
        width = run.room.upper[i] - run.room.lower[i]
        return self.step_size * torch.where(torch.isfinite(width), width, 1.0)
