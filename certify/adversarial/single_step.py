"""Training on single-step attacks, and the guard against their catastrophic overfitting.

A network trained on one step can learn to defeat just that step: within an epoch its accuracy under PGD falls to zero,
while that under FGSM rises (Wong, Rice and Kolter, arXiv:2001.03994, who stop the run then). The guard looks after
every epoch, on held-out data, and instead of stopping lets the attack take one more step from then on.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.attacked import AttackedMethod, above_zero, accuracy, at_least
from certify.inner import ascend
from certify.method import EpochEnd
from certify.terms import Step

LEAST_GAP = 0.1  # of the two accuracies: an untrained network has neither
PGD_STEPS = 10


@dataclass(frozen=True)
class SingleStep(AttackedMethod):
    """alpha: the length of the step, as a share of eps. guard: the overfitting counts as catastrophic where accuracy
    under PGD is below this share of that under FGSM (0: nobody looks). most: steps that the guard may ask for.

    With k > 1 steps the attack is PGD, with steps of `2 alpha / (k + 1)`: the same length at 1, and enough together to
    cross the set.
    """

    random: ClassVar[bool] = True

    alpha: float = 1.0
    guard: float = 0.5
    most: int = 10

    def __post_init__(self) -> None:
        above_zero("alpha", self.alpha)
        at_least("most", self.most, 1)
        if not 0 <= self.guard < 1:
            raise ValueError(f"guard must be in [0, 1), got {self.guard}")

    @abstractmethod
    def one_step(self, step: Step) -> Tensor:
        """The method's own points."""

    def points(self, step: Step) -> Tensor:
        steps = int(step.memory.get("steps", 1))
        if steps == 1:
            return self.one_step(step)
        return ascend(step, steps=steps, step_size=2 * self.alpha / (steps + 1), random=self.random)

    def after_epoch(self, end: EpochEnd) -> None:
        if not self.guard:
            return
        held_out = end.held_out
        single = accuracy(held_out, ascend(held_out, steps=1, step_size=1.0, random=False))
        several = accuracy(held_out, ascend(held_out, steps=PGD_STEPS))
        if several >= self.guard * single or single - several < LEAST_GAP:
            return
        before = int(end.memory.get("steps", 1))
        end.memory["steps"] = min(before + 1, self.most)
        then = (f"the attack takes {end.memory['steps']} steps from here" if end.memory["steps"] > before else
                f"the attack stays at its {before} steps")
        end.notes.append(f"catastrophic overfitting: accuracy {several:.3f} under PGD-{PGD_STEPS}, {single:.3f} under "
                         f"FGSM; {then}")
