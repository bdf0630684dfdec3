"""Training for randomised smoothing: cross-entropy under Gaussian noise (Cohen et al., arXiv:1902.02918; before them
Lecuyer et al., arXiv:1802.03471).

    mean over examples and noises of CE(f(x + sigma N(0, I)), y)

with fresh noise in every step. What it is worth is measured by `certify.smoothing`, with the same sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional

from certify.method import Method
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class Noise(Method):
    """sigma: of the noise, in input units; noises: of each example in a step. The radius of training plays no part,
    nor does the range of inputs: the noise leaves it, as it does when the classifier is smoothed."""

    name: ClassVar[str] = "smoothing"
    paper: ClassVar[str] = "arXiv:1902.02918"

    sigma: float = 0.25
    noises: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf or self.noises < 1:
            raise ValueError(f"expected sigma >= 0 and noises >= 1, got {self.sigma} and {self.noises}")

    def loss(self, step: Step) -> LossTerms:
        noise = step.draws.normal(step.everyone, (self.noises, *step.x.shape[1:]), step.x.dtype)
        noisy = (step.x.unsqueeze(1) + self.sigma * noise).flatten(0, 1)
        total = functional.cross_entropy(step.model(noisy), step.y.repeat_interleave(self.noises))
        return LossTerms(total, {"noisy": total.detach()})
