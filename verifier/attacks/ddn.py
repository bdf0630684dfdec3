"""Decoupled direction and norm (DDN): every step goes along the gradient and then to a sphere whose radius shrinks by
a factor after a success and grows by it after a failure (arXiv:1811.09600).

The gradient is that of the cross-entropy up to its length, which DDN does not use: taken of `smooth_margin`, whose
direction is the same and which does not vanish where the network is sure. Steps are clipped to the range before they
are brought to the sphere, as well as after. The factor falls along a cosine: with 0.4 at first the median on a
certified MNIST network was 1.91, with the paper's constant 0.05 it was 2.4, and on an ordinary one they were equal (100
steps, 150 images). Left out: rounding to grey levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from verifier.attacks.base import Attack
from verifier.attacks.fmn import CHECK, alive, scale
from verifier.attacks.run import Run

LAST = 0.01  # share of the step size at the end, along a cosine


LAST_GAMMA = 0.01  # of the radius; the first is the setting `gamma`


@dataclass(frozen=True, kw_only=True)
class Ddn(Attack):
    """steps: gradients of an example. step_size, first_norm: of the first step and sphere, as shares of the widest
    range of an input, in input units where it has no end. gamma: the first change of the radius. loss: smooth, margin,
    ce or dlr."""

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimum_norm: ClassVar[bool] = True

    steps: int = 500
    step_size: float = 1.0
    first_norm: float = 1.0
    gamma: float = 0.4
    loss: str = "smooth"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if not (self.step_size > 0 and self.first_norm > 0):
            raise ValueError(f"step_size and first_norm must be > 0, got {self.step_size} and {self.first_norm}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), got {self.gamma}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss(self.loss)
        room, tiny = run.room, torch.finfo(run.x0.dtype).tiny
        x = run.x0[i]
        width = torch.maximum(room.upper[i] - x, x - room.lower[i])
        unit, most = scale(room.upper[i] - room.lower[i]), torch.linalg.vector_norm(width.flatten(1), dim=1)
        eps = torch.minimum(self.first_norm * unit, most)
        for k in range(self.steps):
            cosine = (1 + math.cos(math.pi * k / self.steps)) / 2
            alpha = self.step_size * (LAST + (1 - LAST) * cosine)
            point = run.gradient(x, i, loss)
            slope = alive(run, room.on_free(point.slope, i), i, point.met)
            if k:  # the first point is the original: it says nothing about the radius
                gamma = LAST_GAMMA + (self.gamma - LAST_GAMMA) * cosine
                eps = torch.minimum(torch.where(point.met, eps * (1 - gamma), eps * (1 + gamma)), most)
            length = torch.linalg.vector_norm(slope.flatten(1), dim=1).clamp(min=tiny)
            x0 = room.of(run.x0, i)
            move = room.clamp(point.x + slope * room.per_example(alpha * unit / length), i) - x0
            length = torch.linalg.vector_norm(move.flatten(1), dim=1).clamp(min=tiny)
            x = x0 + move * room.per_example(eps / length)
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x, eps, unit, most = (t[open_] for t in (i, x, eps, unit, most))
            if not i.numel() or (k % CHECK == 0 and run.deadline.passed()):
                return
        run.evaluate(x, i)
