"""Sigma-zero: descent on a margin plus a smooth stand-in for the number of changed features (arXiv:2402.01879).

Moves d are counted by the mean of d^2 / (d^2 + sigma), which has a slope everywhere. The gradient is divided by its
largest entry, Adam takes the step, and moves below a threshold go back to zero; the threshold rises after a success and
falls after a failure. Moves are measured in the widest range of an input (in input units where it has no end).

More than in the paper: targets, inputs of any scale, and a random direction where the gradient vanishes. To end with
steps that drop features one by one, as FMN does here, was no better (medians of 12 and 8 features for 11 and 7.5 on two
MNIST networks at 200 steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.fmn import CHECK, alive, scale
from verifier.attacks.run import Run

BETA, SECOND_BETA, ADAM_EPS = 0.9, 0.999, 1e-8
LAST = 0.1     # share of the step size at the end, along a cosine


@dataclass(frozen=True, kw_only=True)
class SigmaZero(Attack):
    """steps: gradients of an example. step_size: the first of Adam's. sigma: the smaller, the sharper the count.
    threshold: the first one; rate: how fast it moves, as a share of the step size."""

    name: ClassVar[str] = "sigma-zero"
    norms: ClassVar[tuple[float, ...]] = (0.0,)
    minimum_norm: ClassVar[bool] = True

    steps: int = 500
    step_size: float = 1.0
    sigma: float = 0.001
    threshold: float = 0.3
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if not (self.step_size > 0 and self.sigma > 0 and self.rate > 0):
            raise ValueError(f"step_size, sigma and rate must be > 0, got {self.step_size}, {self.sigma}, {self.rate}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        plain = run.loss("margin")

        def hinge(y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
            return plain(y, x, owner).clamp(max=0)  # a success has only features to lose

        room, tiny = run.room, torch.finfo(run.x0.dtype).tiny
        x = run.x0[i]
        unit = room.per_example(scale(room.upper[i] - room.lower[i]))
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        bar = torch.full_like(unit, self.threshold)
        size = self.step_size
        for k in range(self.steps):
            point = run.gradient(x, i, hinge)
            x0 = room.of(run.x0, i)
            move = (point.x - x0) / unit
            slope = 2 * self.sigma / x[0].numel() * move / (move.square() + self.sigma).square()
            slope = slope - alive(run, room.on_free(point.slope, i), i, point.met) * unit
            slope = slope / room.per_example(slope.abs().flatten(1).amax(1).clamp(min=tiny))
            mean = mean.lerp(slope, 1 - BETA)
            square = (square * SECOND_BETA).addcmul_(slope, slope, value=1 - SECOND_BETA)
            length = (square / (1 - SECOND_BETA ** (k + 1))).sqrt_().add_(ADAM_EPS)
            x = room.clamp(x0 + (move - size / (1 - BETA ** (k + 1)) * mean / length) * unit, i)
            size = self.step_size * (LAST + (1 - LAST) * (1 + math.cos(math.pi * k / self.steps)) / 2)
            bar = (bar + self.rate * size * torch.where(room.per_example(point.met), 1.0, -1.0)).clamp(0, 1)
            x = torch.where((x - x0).abs() < bar * unit, x0, x)
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x, unit, mean, square, bar = (t[open_] for t in (i, x, unit, mean, square, bar))
            if not i.numel() or (k % CHECK == 0 and run.deadline.passed()):
                return
        run.evaluate(x, i)
