"""Ascent along estimated gradients, from scores alone: RGF, NES (arXiv:1804.08598) and SPSA (arXiv:1802.05666).

They estimate in the same way (`verifier.attacks.estimate`) along random directions and differ in these and in the step:
RGF (random gradient-free search, Nesterov and Spokoiny 2017, doi:10.1007/s10208-015-9296-2) takes normal directions
and forward or central differences, NES normal directions in pairs u, -u with momentum, SPSA random signs in pairs
and the steps of Adam. Differences and steps are stated as shares of eps, not in input units as in the papers.

Left out: NES's partial information and label-only settings, and its schedule that shrinks the step on a plateau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.estimate import estimated_slope, feature_size
from verifier.attacks.losses import Loss
from verifier.attacks.model import Gives
from verifier.attacks.run import Run
from verifier.attacks.steps import steepest

FADING, FADING_SQUARES = 0.9, 0.999  # Adam's two averages
NO_DIVISION_BY_ZERO = 1e-8


@dataclass(frozen=True, kw_only=True)
class GradientFree(Attack):
    """steps: estimates. samples: directions of each. central: two queries a direction, else one. width: of the
    differences, as a share of eps (the norm of the whole move, about). step_size: as a share of eps. momentum: share
    of the previous estimates. loss: ce, dlr or margin."""

    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    needs: ClassVar[Gives] = Gives.SCORES
    points: ClassVar[int] = 50

    steps: int = 100
    samples: int = 25
    central: bool = True
    width: float = 0.1
    step_size: float = 0.1
    momentum: float = 0.0
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"steps and samples must be >= 1, got {self.steps} and {self.samples}")
        if not self.width > 0 or not self.step_size > 0:
            raise ValueError(f"width and step_size must be > 0, got {self.width} and {self.step_size}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    def directions(self, run: Run, i: Tensor) -> Tensor:
        """Of mean zero and second moment one: "P samples *shape"."""
        return run.draws.normal(i, (self.samples, *run.room.shape), run.x0.dtype)

    def ascent(self, run: Run, i: Tensor) -> Ascent:
        return Ascent(self.momentum, self.step_size)

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss(self.loss)
        ascent = self.ascent(run, i)
        # The original has been evaluated: only forward differences need its value again.
        x, value = run.x0[i], self._value(run, run.x0[i], i, loss) if not self.central else None
        for _ in range(self.steps):
            size = feature_size(run, i, self.width)
            slope = estimated_slope(run, x, i, self.directions(run, i), size, loss, value)
            x = x + ascent.step(run, i, slope)
            seen = run.evaluate(x, i)
            x = seen.x
            if value is not None:
                value = loss(seen.y, seen.x, i)
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x = i[open_], x[open_]
                value = None if value is None else value[open_]
                ascent.keep(open_)
            run.open_examples()  # tells how far it is
            if not i.numel() or run.deadline.passed():
                return

    def _value(self, run: Run, x: Tensor, i: Tensor, loss: Loss) -> Tensor:
        seen = run.evaluate(x, i)
        return loss(seen.y, seen.x, i)


class Ascent:
    """Steps in the steepest direction of the norm, along an average of the estimates so far."""

    def __init__(self, momentum: float, share: float) -> None:
        self.momentum, self.share = momentum, share
        self.mean: Tensor | None = None

    def averaged(self, slope: Tensor) -> Tensor:
        """An estimate together with those before."""
        if self.momentum and self.mean is not None:
            slope = self.momentum * self.mean + (1 - self.momentum) * slope
        self.mean = slope
        return slope

    def step(self, run: Run, i: Tensor, slope: Tensor) -> Tensor:
        return self.share * run.room.eps * steepest(self.averaged(slope), run.room.norm, run.room.free[i])

    def keep(self, open_: Tensor) -> None:
        self.mean = None if self.mean is None else self.mean[open_]


class Adam(Ascent):
    """Adam (arXiv:1412.6980): every feature's average estimate over its average size, whatever the norm."""

    def __init__(self, share: float) -> None:
        super().__init__(FADING, share)
        self.squares: Tensor | None = None
        self.count = 0

    def step(self, run: Run, i: Tensor, slope: Tensor) -> Tensor:
        if self.mean is None or self.squares is None:
            self.mean, self.squares = torch.zeros_like(slope), torch.zeros_like(slope)
        self.count += 1
        self.mean = FADING * self.mean + (1 - FADING) * slope
        self.squares = FADING_SQUARES * self.squares + (1 - FADING_SQUARES) * slope.square()
        mean = self.mean / (1 - FADING**self.count)
        size = (self.squares / (1 - FADING_SQUARES**self.count)).sqrt() + NO_DIVISION_BY_ZERO
        return run.room.per_example(feature_size(run, i, self.share)) * mean / size

    def keep(self, open_: Tensor) -> None:
        super().keep(open_)
        self.squares = None if self.squares is None else self.squares[open_]


@dataclass(frozen=True, kw_only=True)
class RandomGradientFree(GradientFree):
    """Normal directions. Central differences and momentum, which the source has not, by default: with 1,000 queries
    inside 0.1 on 60 MNIST images they found 20, forward differences 3, and estimates without momentum 4."""

    name: ClassVar[str] = "rgf"
    momentum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Nes(GradientFree):
    """Normal directions in pairs, cross-entropy, momentum as in the authors' code."""

    name: ClassVar[str] = "nes"
    momentum: float = 0.9
    loss: str = "ce"


@dataclass(frozen=True, kw_only=True)
class Spsa(GradientFree):
    """Random signs in pairs and Adam."""

    name: ClassVar[str] = "spsa"

    def directions(self, run: Run, i: Tensor) -> Tensor:
        return run.draws.sign(i, (self.samples, *run.room.shape), run.x0.dtype)

    def ascent(self, run: Run, i: Tensor) -> Ascent:
        return Adam(self.step_size)
