"""Projected gradient ascent in a ball: PGD (arXiv:1706.06083), BIM (arXiv:1607.02533), FGSM (arXiv:1412.6572), MI-FGSM
(arXiv:1710.06081) and C&W_inf, which is PGD on the margin (as in Wang et al., arXiv:2112.08304).

They are one loop with other settings; only FGSM goes straight to the best point of the linearised problem.
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
from verifier.attacks.steps import best_linear, random_start, steepest

FORWARD = 5.0  # radii that all steps together may go; with the 2.5 of Madry et al. fewer images fell, most in l_1, l_2


@dataclass(frozen=True, kw_only=True)
class Pgd(Attack):
    """steps: gradients of one restart. step_size: as a share of eps [5 / steps, at most 1]. random_start: else the
    original, the first time. momentum: share of the previous direction, gradients in l_1 norm (MI-FGSM). loss: ce,
    dlr or margin."""

    name: ClassVar[str] = "pgd"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")

    def propose(self, run: Run) -> None:
        for restart in range(self.restarts):
            i = run.open_examples()
            if not i.numel():
                return
            loss = run.loss(self.loss)
            x = random_start(run.room, run.draws, i) if self.random_start or restart else run.x0[i]
            self._ascend(run, x, i, loss)

    def _ascend(self, run: Run, x: Tensor, i: Tensor, loss: Loss) -> None:
        share = min(1.0, FORWARD / self.steps) if self.step_size is None else self.step_size
        step = share * run.room.eps
        past = torch.zeros_like(x) if self.momentum else None
        for _ in range(self.steps):
            point = run.gradient(x, i, loss)
            x, slope = point.x, point.slope
            if past is not None:
                size = slope.abs().flatten(1).sum(1).clamp(min=torch.finfo(x.dtype).tiny)
                slope = past = self.momentum * past + slope / run.room.per_example(size)
            x = x + step * steepest(slope, run.room.norm, run.room.free[i])
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x = i[open_], x[open_]
                past = None if past is None else past[open_]
            if not i.numel() or run.deadline.passed():
                return
        run.evaluate(x, i)


@dataclass(frozen=True, kw_only=True)
class Bim(Pgd):
    """PGD from the original."""

    name: ClassVar[str] = "bim"
    steps: int = 10
    random_start: bool = False


@dataclass(frozen=True, kw_only=True)
class Fgsm(Attack):
    """One gradient, and the point that it points to: the sign step of length eps in l_inf, in the other norms
    the exact maximiser of the linearised loss over ball and clip range."""

    name: ClassVar[str] = "fgsm"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    loss: str = "ce"

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss(self.loss)
        run.evaluate(best_linear(run, run.gradient(run.x0[i], i, loss).slope, i), i)


@dataclass(frozen=True, kw_only=True)
class MiFgsm(Pgd):
    """BIM with momentum."""

    name: ClassVar[str] = "mi-fgsm"
    steps: int = 10
    step_size: float | None = 0.1
    random_start: bool = False
    momentum: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CwInf(Pgd):
    """PGD on the margin of the logits."""

    name: ClassVar[str] = "cw-inf"
    norms: ClassVar[tuple[float, ...]] = (math.inf,)
    steps: int = 30
    loss: str = "margin"
