"""Dynamic adversarial training (Wang et al., ICML 2019, arXiv:2112.08304): convergence quality as a curriculum.

PGD, in which an example stops moving once its first-order stationarity gap (FOSC) is at most

    c_t = max(c_max - t c_max / T', 0)

so that early epochs train on points that are far from converged, and from epoch T' on all steps are made. The gap is
looked at after every step, at the point that the step led to; the first step is always made. (The algorithm as printed
sets its control vector to 1 where the gap is at most c_t, that is, stops the others: its text and figures say what is
done here.) t is the number of whole epochs before this one. The gap is in units of the loss, so that c_max goes with
eps and with the number of features; 0.5 is the paper's, for MNIST at 0.3 as for CIFAR-10 at 8/255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.attacked import AttackedMethod, above_zero, at_least
from certify.inner import cross_entropy_of, input_gradient, moved
from certify.terms import Progress, Step
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.steps import random_start


@dataclass(frozen=True)
class Dynamic(AttackedMethod):
    """c_max: the gap that the first epoch is content with. control: T', as a share of all epochs (40 of 50 and 100 of
    120 in the paper)."""

    name: ClassVar[str] = "dynamic"
    paper: ClassVar[str] = "arXiv:2112.08304"

    c_max: float = 0.5
    control: float = 0.8
    steps: int = 10
    step_size: float = 0.25

    def __post_init__(self) -> None:
        at_least("c_max", self.c_max, 0)
        if not 0 < self.control <= 1:
            raise ValueError(f"control must be in (0, 1], got {self.control}")
        at_least("steps", self.steps, 1)
        above_zero("step_size", self.step_size)

    def threshold(self, progress: Progress) -> float:
        """c_t of an epoch."""
        t, end = int(progress.epoch), self.control * progress.epochs
        return max(self.c_max - t * self.c_max / end, 0.0)

    def points(self, step: Step) -> Tensor:
        room, objective, enough = step.room(), cross_entropy_of(step), self.threshold(step.progress)
        x, going = random_start(room, step.draws, step.everyone), step.everyone
        with step.model.attacked():
            for k in range(self.steps):
                here = x[going]
                _, slope = input_gradient(step, here, going, objective)
                if k:
                    still = stationarity_gap(slope, here, room, going) > enough
                    going, here, slope = going[still], here[still], slope[still]
                    if not len(going):
                        break
                x[going] = moved(room, here, slope, self.step_size * room.eps, going)
        return x.detach()
