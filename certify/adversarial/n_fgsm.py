"""N-FGSM: strong noise before a single step, and no projection after it (de Jorge et al., arXiv:2202.01181).

    x' = x + r + alpha eps sign(gradient at x + r),   r uniform in the ball of noise * eps, noise = 2, alpha = 1

Points may lie up to `(noise + alpha) eps` from the input, by design: that keeps single steps from catastrophic
overfitting. They are kept inside the range of inputs. In l_2, which the paper does not treat, the noise is uniform in
the ball and the step goes along the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.attacked import at_least
from certify.adversarial.single_step import SingleStep
from certify.inner import cross_entropy_of, input_gradient, moved
from certify.terms import Step
from verifier.attacks.steps import random_start


@dataclass(frozen=True)
class NFgsm(SingleStep):
    """noise: its radius, as a multiple of eps."""

    name: ClassVar[str] = "n-fgsm"
    paper: ClassVar[str] = "arXiv:2202.01181"

    noise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("noise", self.noise, 0)

    def one_step(self, step: Step) -> Tensor:
        x = random_start(step.room(self.noise * step.eps), step.draws, step.everyone)
        with step.model.attacked():
            _, slope = input_gradient(step, x, step.everyone, cross_entropy_of(step))
        reachable = step.room((self.noise + self.alpha) * step.eps)
        return moved(reachable, x, slope, self.alpha * step.eps, step.everyone).detach()
