"""One flow field and one additive perturbation for all inputs: Zhang, Ruan, Wang and Huang, "Generalizing Universal
Adversarial Attacks Beyond Additive Perturbations", ICDM 2020, arXiv:2010.07788.

Every input is moved by the flow, then the noise is added, then clipped. The paper trains a generator network that puts
out both fields from a fixed code; here the fields themselves are optimised, the flow by Adam, the noise as in
`universal`, both in every step. Limits are the paper's: eps on the noise in l_inf, tau on the flow's `variation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.criterion import Criterion
from verifier.attacks.flow import Adam
from verifier.attacks.losses import Loss
from verifier.attacks.model import Gives
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.universal import Change, UniversalAttack, useful
from verifier.attacks.warp import check_images, flowed, variation

MODES = ("combined", "flow", "noise")
START = 0.1  # of tau: zero flow is a kink of the sampling


@dataclass(frozen=True, kw_only=True)
class CombinedUniversal(UniversalAttack):
    """mode: combined, flow or noise. eps: of the noise, in input units. tau: of the flow, in pixels (both 0.1 in the
    paper on Fashion-MNIST). step_size: first step of the noise as a share of eps. learning_rate: of the flow, as a
    share of tau. Both shrink to zero evenly.

    The threat's eps does not limit the search: it says which results count.
    """

    name: ClassVar[str] = "guap"
    norms: ClassVar[tuple[float, ...]] = (math.inf,)
    additive: ClassVar[bool] = False

    mode: str = "combined"
    eps: float = 0.1
    tau: float = 0.1
    step_size: float = 1.0
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not (0 <= self.eps < math.inf and 0 <= self.tau < math.inf):
            raise ValueError(f"eps and tau must be >= 0, got {self.eps} and {self.tau}")
        if not (self.step_size > 0 and self.learning_rate > 0):
            raise ValueError(f"step_size and learning_rate must be > 0, got {self.step_size} and "
                             f"{self.learning_rate}")

    def _check(self, gives: Gives, shape: tuple[int, ...] | None, x: Tensor, criterion: Criterion,
               threat: Threat) -> None:
        super()._check(gives, shape, x, criterion, threat)
        check_images(self.name, x)

    def _ascend(self, run: Run, i: Tensor, loss: Loss, passes: int) -> Change:
        eps = self.eps if self.mode != "flow" else 0.0
        tau = self.tau if self.mode != "noise" else 0.0
        noise = torch.zeros_like(run.x0[0])
        flow = run.x0.new_zeros(1, 2, *run.room.shape[1:])
        if tau:
            flow = _limited(2 * run.draws.uniform(i[:1], flow.shape[1:], flow.dtype) - 1, START * tau)
        adam = Adam.like(flow)
        for part, gone in self._batches(run, i, passes):
            noise_slope, flow_slope = _slopes(run, noise, flow, part, loss)
            step = self.step_size * (1 - gone) * eps
            noise = (noise + step * noise_slope.sign()).clamp(-eps, eps)
            if tau:
                flow = flow + self.learning_rate * (1 - gone) * tau * adam.direction(flow_slope)
                flow = _limited(flow, tau)
        return Change(noise, flow[0] if tau else None)


def _slopes(run: Run, noise: Tensor, flow: Tensor, owner: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Mean gradients in the noise "*shape" and the flow "1 2 H W": one call for each of the owners."""
    with torch.enable_grad():
        leaf = flow.detach().requires_grad_()
        moved = flowed(run.x0[owner], leaf.expand(owner.numel(), *leaf.shape[1:]))
        x = moved.detach() + noise
        slope = useful(run, run.gradient(x, owner, loss).slope, x, owner) / owner.numel()
        (flow_slope,) = torch.autograd.grad((slope * moved).sum(), leaf)
    return slope.sum(0), flow_slope


def _limited(flow: Tensor, tau: float) -> Tensor:
    """A flow "1 2 H W" scaled down until its variation is at most tau."""
    return flow * (tau / variation(flow).clamp(min=max(tau, torch.finfo(flow.dtype).tiny)))
