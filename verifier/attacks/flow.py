"""A flow field that moves pixels a little: spatially transformed adversarial examples, Xiao et al., arXiv:1801.02612.

Descends `margin + smoothness * roughness` over the flow. The gradient in the image comes from the model, the rest of
the chain, through the bilinear sampling, is worked out here and costs no calls.

Other than in the paper: Adam instead of L-BFGS, a limit on how far a pixel may move, and an example ends at its first
success instead of going on to the smoothest one (early_stop=False keeps the least margin, not the smoothest flow).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.criterion import Criterion
from verifier.attacks.losses import Loss
from verifier.attacks.model import Gives
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.warp import check_images, flowed, roughness

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # of Adam, as in its paper
START = 0.1  # of the limit: at zero flow sampling has a kink, whose slope sees one of the two neighbours only


@dataclass(frozen=True, kw_only=True)
class Flow(Attack):
    """steps: gradients of one restart. limit: pixels that a pixel may move, in any direction. smoothness: weight of the
    roughness, 0.05 in the paper. learning_rate: of Adam, as a share of the limit, falling to a tenth along a cosine.
    loss: margin (as in the paper), ce or dlr."""

    name: ClassVar[str] = "flow"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0, 0.0)
    additive: ClassVar[bool] = False

    steps: int = 50
    limit: float = 1.0
    smoothness: float = 0.05
    learning_rate: float = 0.6
    restarts: int = 1
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not (0 <= self.limit < math.inf and 0 <= self.smoothness < math.inf and self.learning_rate > 0):
            raise ValueError(f"limit and smoothness must be >= 0 and learning_rate > 0, got {self.limit}, "
                             f"{self.smoothness} and {self.learning_rate}")

    def _check(self, gives: Gives, shape: tuple[int, ...] | None, x: Tensor, criterion: Criterion,
               threat: Threat) -> None:
        super()._check(gives, shape, x, criterion, threat)
        check_images(self.name, x)

    def propose(self, run: Run) -> None:
        for _ in range(self.restarts):
            i = run.open_examples()
            if not i.numel():
                return
            loss = run.loss(self.loss)
            self._descend(run, i, loss)

    def _descend(self, run: Run, i: Tensor, loss: Loss) -> None:
        size = (2, *run.room.shape[1:])
        flow = START * self.limit * (2 * run.draws.uniform(i, size, run.x.dtype) - 1)
        adam = Adam.like(flow)
        for k in range(self.steps):
            flow = shortened(flow, self.limit)
            slope = flow_slope(run, flow, i, loss, self.smoothness)
            rate = self.learning_rate * self.limit * (0.55 + 0.45 * math.cos(math.pi * k / self.steps))
            flow = flow + rate * adam.direction(slope)
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, flow, adam = i[open_], flow[open_], adam.index(open_)
            if not i.numel() or run.deadline.passed():
                return
        run.evaluate(flowed(run.x0[i], shortened(flow, self.limit)), i)


def flow_slope(run: Run, flow: Tensor, owner: Tensor, loss: Loss, smoothness: float) -> Tensor:
    """The gradient in the flow "P 2 H W" of `loss at the moved images - smoothness * roughness`: one call a point."""
    with torch.enable_grad():
        leaf = flow.detach().requires_grad_()
        moved = flowed(run.x0[owner], leaf)
        point = run.gradient(moved, owner, loss)
        pinned = point.slope * run.room.free[owner]
        gain = (pinned * moved).sum() - smoothness * roughness(leaf).sum()
        (slope,) = torch.autograd.grad(gain, leaf)
    return slope


def shortened(flow: Tensor, limit: float) -> Tensor:
    """No pixel moves further than `limit` pixels: "P 2 H W"."""
    length = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    return flow * (limit / length.clamp(min=max(limit, torch.finfo(flow.dtype).tiny)))


@dataclass(eq=False)
class Adam:
    """The moments of Adam (arXiv:1412.6980), one row an example, so that examples can leave."""

    mean: Tensor
    square: Tensor
    count: int = 0

    @classmethod
    def like(cls, x: Tensor) -> Adam:
        return cls(torch.zeros_like(x), torch.zeros_like(x))

    def direction(self, slope: Tensor) -> Tensor:
        """Where to go for a rate of one, uphill."""
        self.count += 1
        self.mean = FIRST * self.mean + (1 - FIRST) * slope
        self.square = SECOND * self.square + (1 - SECOND) * slope.square()
        mean, square = self.mean / (1 - FIRST**self.count), self.square / (1 - SECOND**self.count)
        return mean / (square.sqrt() + TINY)

    def index(self, chosen: Tensor) -> Adam:
        return Adam(self.mean[chosen], self.square[chosen], self.count)
