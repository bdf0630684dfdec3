"""Training on the fast gradient sign method (Goodfellow, Shlens and Szegedy, arXiv:1412.6572).

    min over weights of mean_i CE(f(x_i + eps sign(gradient at x_i)), y_i)

in l_2 along the gradient. Left out: the paper's mixture with the clean loss. Cheap, and prone to catastrophic
overfitting, which is what the other single-step methods repair; the guard is off unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.single_step import SingleStep
from certify.inner import ascend
from certify.terms import Step


@dataclass(frozen=True)
class Fgsm(SingleStep):
    """From the input itself."""

    name: ClassVar[str] = "fgsm"
    paper: ClassVar[str] = "arXiv:1412.6572"
    random: ClassVar[bool] = False

    guard: float = 0.0

    def one_step(self, step: Step) -> Tensor:
        return ascend(step, steps=1, step_size=self.alpha, random=False)
