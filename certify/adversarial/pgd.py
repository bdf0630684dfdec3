"""Adversarial training (Madry et al., arXiv:1706.06083): the cross-entropy at the end of a projected gradient ascent.

    min over weights of mean_i CE(f(x_i'), y_i),   x_i' = PGD from a random point of the set of x_i

The attack sees running statistics of batch normalisation, the loss those of the adversarial batch. Nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.attacked import AttackedMethod, above_zero, at_least
from certify.inner import ascend
from certify.terms import Step


@dataclass(frozen=True)
class Pgd(AttackedMethod):
    """steps, of `step_size * eps` each; of several restarts the worst point counts. random: start anywhere in the set,
    not at the input."""

    name: ClassVar[str] = "pgd"
    paper: ClassVar[str] = "arXiv:1706.06083"

    steps: int = 10
    step_size: float = 0.25
    restarts: int = 1
    random: bool = True

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        above_zero("step_size", self.step_size)
        at_least("restarts", self.restarts, 1)

    def points(self, step: Step) -> Tensor:
        return ascend(step, steps=self.steps, step_size=self.step_size, restarts=self.restarts, random=self.random)
