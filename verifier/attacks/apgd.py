"""Auto-PGD: projected gradient ascent with momentum whose step size adapts itself (Croce and Hein, arXiv:2003.01690).

It starts with steps of 2 eps. At checkpoints that come ever closer an example whose loss rose in fewer than 3/4 of its
steps, or whose best loss and step size did not change since the checkpoint before, halves its step and goes on from its
best point. In l_1 (arXiv:2103.01208) steps move the k features with the largest gradient; k follows the number of
features that the best point has moved, and the projection is onto ball and clip range together. The larger radii that
the l_1 paper begins with are left out: every point evaluated lies in the set.

Each example adapts alone, and fallen ones are dropped from the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.criterion import Misclassified
from verifier.attacks.losses import Loss, dlr_targeted
from verifier.attacks.run import Run
from verifier.attacks.steps import random_start, steepest

MOMENTUM = 0.75       # share of the new step; the rest repeats the last one
RHO = 0.75            # of the steps since the last checkpoint that must have raised the loss
FIRST_CHECK, LESS, LEAST = 0.22, 0.03, 0.06  # checkpoints, as shares of all steps
L1_START, L1_CHECK = 0.2, 0.04               # first share of features moved, and checkpoints, in l_1
L1_DENSER, L1_SLOWER, L1_STEADY = 1.5, 1.5, 0.95
L1_LEAST_STEP = 0.1


@dataclass
class _State:
    """Of the open examples: numbers `i`, points, gradients, best points; step sizes, and the l_1 sparsity."""

    i: Tensor
    x: Tensor
    before: Tensor
    slope: Tensor
    best_x: Tensor
    best_slope: Tensor
    value: Tensor
    best: Tensor
    step: Tensor
    rises: Tensor        # steps since the last checkpoint that raised the loss
    best_then: Tensor    # best loss at the last checkpoint
    halved_then: Tensor  # whether it halved the step
    share: Tensor        # of the features that an l_1 step moves
    moved_then: Tensor   # features that the best point had moved at the last checkpoint

    def kept(self, which: Tensor) -> _State:
        return _State(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, kw_only=True)
class Apgd(Attack):
    """steps: gradients of one restart. loss: ce, dlr or margin."""

    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")

    def propose(self, run: Run) -> None:
        loss = run.loss(self.loss)
        for _ in range(self.restarts):
            self.ascend(run, loss)

    def ascend(self, run: Run, loss: Loss) -> None:
        """One restart of all open examples."""
        i = run.open_examples()
        if not i.numel():
            return
        first = run.gradient(random_start(run.room, run.draws, i), i, loss)
        sparse = run.room.norm == 1.0
        none, rooms = torch.zeros_like(first.value), run.room
        s = _State(i, first.x, first.x, first.slope, first.x, first.slope, first.value, first.value,
                   none + (1.0 if sparse else 2.0) * rooms.eps, none, first.value, none.bool() | True,
                   none + L1_START, none + L1_START * math.prod(rooms.shape))
        period, since = self._first_period(sparse), 0
        for k in range(1, self.steps + 1):
            open_ = ~run.closed[s.i]
            if not bool(open_.all()):
                s = s.kept(open_)
            if not s.i.numel() or run.deadline.passed():
                return
            following = self._step(run, s, momentum=MOMENTUM if k > 1 and not sparse else 1.0)
            if k == self.steps:  # the gradient at the last point would lead nowhere
                run.evaluate(following, s.i)
                return
            point = run.gradient(following, s.i, loss)
            s.before, s.x, s.slope = s.x, point.x, point.slope
            s.rises = s.rises + (point.value > s.value)
            s.value = point.value
            better = point.value > s.best
            wide = run.room.per_example(better)
            s.best = torch.where(better, point.value, s.best)
            s.best_x, s.best_slope = torch.where(wide, s.x, s.best_x), torch.where(wide, s.slope, s.best_slope)
            since += 1
            if since == period:
                (self._check_l1 if sparse else self._checkpoint)(run, s, period)
                if not sparse:
                    period = max(period - int(LESS * self.steps), max(int(LEAST * self.steps), 1))
                since = 0

    def _first_period(self, sparse: bool) -> int:
        return max(1, int((L1_CHECK if sparse else FIRST_CHECK) * self.steps))

    @staticmethod
    def _step(run: Run, s: _State, momentum: float) -> Tensor:
        wide, free = run.room.per_example, run.room.free[s.i]
        if run.room.norm == 1.0:
            return s.x + wide(s.step) * _sparse(s.slope * free, s.share)
        z = run.room.project(s.x + wide(s.step) * steepest(s.slope, run.room.norm, free), s.i)
        return z if momentum == 1.0 else s.x + momentum * (z - s.x) + (1 - momentum) * (s.x - s.before)

    @staticmethod
    def _checkpoint(run: Run, s: _State, period: int) -> None:
        halve = (s.rises < RHO * period) | (~s.halved_then & (s.best <= s.best_then))
        wide = run.room.per_example(halve)
        s.step = torch.where(halve, s.step / 2, s.step)
        s.x, s.slope = torch.where(wide, s.best_x, s.x), torch.where(wide, s.best_slope, s.slope)
        s.value = torch.where(halve, s.best, s.value)
        s.halved_then, s.best_then, s.rises = halve, s.best, torch.zeros_like(s.rises)

    @staticmethod
    def _check_l1(run: Run, s: _State, period: int) -> None:
        moved = (s.best_x != run.x0[s.i]).flatten(1).sum(1).to(s.share)
        sparser = moved / s.moved_then.clamp(min=1) < L1_STEADY
        s.share = (moved / s.x[0].numel() / L1_DENSER).clamp(max=1)
        s.step = torch.where(sparser, torch.full_like(s.step, run.room.eps),
                             (s.step / L1_SLOWER).clamp(min=L1_LEAST_STEP * run.room.eps))
        wide = run.room.per_example(sparser)
        s.x, s.slope = torch.where(wide, s.best_x, s.x), torch.where(wide, s.best_slope, s.slope)
        s.moved_then = moved


def _sparse(slope: Tensor, share: Tensor) -> Tensor:
    """Signs of the `share` "P" largest entries of each row, of l_1 length 1: "P *shape"."""
    flat = slope.flatten(1)
    features = flat.shape[1]
    count = (share * features).long().clamp(min=1, max=features)
    ranked = flat.abs().sort(dim=1, descending=True).values
    threshold = ranked.gather(1, count.unsqueeze(1) - 1)
    chosen = flat.sign() * (flat.abs() >= threshold)
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp(min=1)).view_as(slope)


@dataclass(frozen=True, kw_only=True)
class ApgdCe(Apgd):
    """On the cross-entropy."""

    name: ClassVar[str] = "apgd-ce"


@dataclass(frozen=True, kw_only=True)
class ApgdDlr(Apgd):
    """On the difference of logits ratio."""

    name: ClassVar[str] = "apgd-dlr"
    loss: str = "dlr"


@dataclass(frozen=True, kw_only=True)
class ApgdTargeted(Apgd):
    """On the targeted difference of logits ratio, towards the `targets` classes that follow the label at the original,
    one after the other. What counts is the run's own criterion."""

    name: ClassVar[str] = "apgd-t"
    loss: str = "dlr"
    targets: int = 9

    def propose(self, run: Run) -> None:
        criterion = run.criterion
        if not isinstance(criterion, Misclassified) or criterion.target is not None:
            super().propose(run)
            return
        label = criterion.label
        order = run.y0.scatter(1, label.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True, stable=True)
        if run.outputs < 4:
            run.note(f"{self.name}: targeted dlr is not defined for {run.outputs} classes; "
                     "the difference of the two logits is used instead")
        for rank in range(min(self.targets, run.outputs - 1)):
            self._towards(run, label, order[:, rank])

    def _towards(self, run: Run, label: Tensor, target: Tensor) -> None:
        def loss(y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
            if y.shape[1] < 4:
                return (y.gather(1, target[owner].unsqueeze(1)) - y.gather(1, label[owner].unsqueeze(1))).squeeze(1)
            return dlr_targeted(y, label[owner], target[owner])

        for _ in range(self.restarts):
            self.ascend(run, loss)
