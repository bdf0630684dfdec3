"""FGSM in the first epochs, PGD from then on (Wang et al., ICML 2019, arXiv:2112.08304, section 3.2).

The paper's check that attacks need not converge early in training: its PGD training with the first 20 of 120 epochs on
one step of length eps from the input. Nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.pgd import Pgd
from certify.inner import ascend
from certify.terms import Step


@dataclass(frozen=True)
class FgsmPgd(Pgd):
    """first: the share of all epochs that train on FGSM; the others' settings are those of PGD."""

    name: ClassVar[str] = "fgsm-pgd"
    paper: ClassVar[str] = "arXiv:2112.08304"

    first: float = 1 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first <= 1:
            raise ValueError(f"first must lie in [0, 1], got {self.first}")

    def points(self, step: Step) -> Tensor:
        if step.progress.share < self.first:
            return ascend(step, steps=1, step_size=1.0, random=False)
        return super().points(step)
