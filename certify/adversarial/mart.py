"""MART: misclassified examples count more (Wang et al., ICLR 2020, openreview.net/forum?id=rklOg6EFwS).

    BCE(p(x'), y) + weight (1 - p_y(x)) KL(p(x) || p(x')),   BCE(p, y) = -log p_y - log(1 - max over k != y of p_k)

x' is a PGD point of the cross-entropy, started beside x as in the authors' program. Logarithms are taken of logits, so
that none of the small constants of that program are needed. Gradients flow through every term, the weight
`1 - p_y(x)` included. Left out: the semi-supervised form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from certify.adversarial.attacked import above_zero, at_least, share_right
from certify.adversarial.trades import divergence
from certify.inner import ascend, nearby
from certify.margins import others
from certify.method import Method
from certify.terms import LossTerms, Step


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - p_k), k the likeliest other class: logits "B m" -> "B"."""
    wrong = logits.scatter(1, y.unsqueeze(1), -float("inf")).argmax(1)
    rest = logits.gather(1, others(wrong, logits.shape[1])).logsumexp(1)  # 1 - p_k, up to the common factor
    return functional.cross_entropy(logits, y, reduction="none") + logits.logsumexp(1) - rest


@dataclass(frozen=True)
class Mart(Method):
    """weight: lambda of the paper. noise: the size of the first displacement, in input units."""

    name: ClassVar[str] = "mart"
    paper: ClassVar[str] = "ICLR 2020, openreview.net/forum?id=rklOg6EFwS"

    weight: float = 5.0
    steps: int = 10
    step_size: float = 0.25
    noise: float = 1e-3

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)
        at_least("steps", self.steps, 1)
        above_zero("step_size", self.step_size)
        above_zero("noise", self.noise)

    def points(self, step: Step) -> Tensor:
        """Where the robust terms are taken: "B *shape"."""
        return ascend(step, steps=self.steps, step_size=self.step_size, start=nearby(step, self.noise))

    def loss(self, step: Step) -> LossTerms:
        points = self.points(step)
        logits, attacked = step.model(step.x), step.model(points)
        boosted = boosted_cross_entropy(attacked, step.y).mean()
        doubt = 1 - logits.softmax(1).gather(1, step.y.unsqueeze(1)).squeeze(1)
        robust = (divergence(logits, attacked) * doubt).mean()
        parts = {"boosted": boosted.detach(), "divergence": robust.detach(),
                 "attacked": share_right(attacked, step.y)}
        return LossTerms(boosted + self.weight * robust, parts, logits.detach())
