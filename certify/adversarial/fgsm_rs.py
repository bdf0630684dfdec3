"""Fast adversarial training: FGSM from a random start (Wong, Rice and Kolter, arXiv:2001.03994).

    x' = P(x + r + alpha eps sign(gradient at x + r)),   r uniform in the ball, alpha = 1.25

and P the projection onto the set. The start is uniform in ball and range together, where the paper's is drawn in the
ball and cut off. Its cyclic learning rate and mixed precision are the run's, not the loss's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.single_step import SingleStep
from certify.inner import ascend
from certify.terms import Step


@dataclass(frozen=True)
class FgsmRs(SingleStep):
    """alpha: 1.25 in the paper; at 2 and above the random start does not help any more."""

    name: ClassVar[str] = "fgsm-rs"
    paper: ClassVar[str] = "arXiv:2001.03994"

    alpha: float = 1.25

    def one_step(self, step: Step) -> Tensor:
        return ascend(step, steps=1, step_size=self.alpha)
