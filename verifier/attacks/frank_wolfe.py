"""Frank-Wolfe ascent in a ball: steps towards the best point of the linearised loss (Chen et al., arXiv:1811.10828).

They never leave the set. Linear maximisation is exact over ball, clip range and mask; its gap is FOSC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from verifier.attacks.base import Attack
from verifier.attacks.run import Run
from verifier.attacks.steps import best_linear, random_start


@dataclass(frozen=True, kw_only=True)
class FrankWolfe(Attack):
    """steps: gradients of one restart. momentum: share of the past gradients. step_size: of the way to the best linear
    point; None: 2 / (k + 2) in step k, the schedule for which convergence is proved. random_start: from the second
    restart on in any case."""

    name: ClassVar[str] = "fw"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    steps: int = 40
    restarts: int = 1
    momentum: float = 0.5
    step_size: float | None = None
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not 0 <= self.momentum < 1 or (self.step_size is not None and not 0 < self.step_size <= 1):
            raise ValueError(f"expected momentum in [0, 1) and step_size in (0, 1], got {self.momentum} and "
                             f"{self.step_size}")

    def propose(self, run: Run) -> None:
        loss = run.loss(self.loss)
        for restart in range(self.restarts):
            i = run.open_examples()
            x = random_start(run.room, run.draws, i) if self.random_start or restart else run.x0[i]
            mean = torch.zeros_like(x)
            for k in range(self.steps):
                if not i.numel() or run.deadline.passed():
                    return
                point = run.gradient(x, i, loss)
                mean = self.momentum * mean + (1 - self.momentum) * point.slope
                share = 2 / (k + 2) if self.step_size is None else self.step_size
                x = point.x + share * (best_linear(run, mean, i) - point.x)
                open_ = ~run.closed[i]
                if not bool(open_.all()):
                    i, x, mean = i[open_], x[open_], mean[open_]
            if i.numel():
                run.evaluate(x, i)
