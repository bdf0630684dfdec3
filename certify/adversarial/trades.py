"""TRADES (Zhang et al., arXiv:1901.08573): accuracy and robustness traded by a divergence.

    mean_i CE(f(x_i), y_i) + beta KL(p(x_i) || p(x_i')),   x_i' = argmax of that KL over the set, by projected ascent

p are probabilities; the ascent starts beside x_i, where the divergence has no gradient. Gradients flow through both
arguments of the divergence, as in the authors' program. beta is 1/lambda of the paper: 6 on CIFAR-10, 1 on MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from certify.adversarial.attacked import above_zero, at_least, share_right
from certify.inner import Objective, ascend, nearby
from certify.method import Method
from certify.terms import LossTerms, Step


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)), "B m" each: "B"."""
    log_p, log_q = logits.log_softmax(1), other.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@dataclass(frozen=True)
class Trades(Method):
    """beta: the weight of the divergence. noise: the size of the first displacement, in input units."""

    name: ClassVar[str] = "trades"
    paper: ClassVar[str] = "arXiv:1901.08573"

    beta: float = 6.0
    steps: int = 10
    step_size: float = 0.25
    noise: float = 1e-3

    def __post_init__(self) -> None:
        at_least("beta", self.beta, 0)
        at_least("steps", self.steps, 1)
        above_zero("step_size", self.step_size)
        above_zero("noise", self.noise)

    def points(self, step: Step) -> Tensor:
        """Where the divergence is taken: "B *shape"."""
        return ascend(step, steps=self.steps, step_size=self.step_size, start=nearby(step, self.noise),
                      objective=self._objective(step))

    @staticmethod
    def _objective(step: Step) -> Objective:
        with torch.no_grad(), step.model.attacked():
            clean = step.model(step.x)
        return lambda logits, owner: divergence(clean[owner], logits)

    def loss(self, step: Step) -> LossTerms:
        points = self.points(step)
        logits, attacked = step.model(step.x), step.model(points)
        natural = functional.cross_entropy(logits, step.y)
        robust = divergence(logits, attacked).mean()
        parts = {"natural": natural.detach(), "divergence": robust.detach(),
                 "attacked": share_right(attacked, step.y)}
        return LossTerms(natural + self.beta * robust, parts, logits.detach())
