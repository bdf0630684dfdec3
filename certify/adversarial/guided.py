"""Gradient-magnitude-guided training, the M+ rule of DEAT (Wang, Zhang, Zheng and Ruan, arXiv:2103.03076).

PGD that starts with few steps and gets one more when the network has grown used to those it knows. The sign is the
magnitude of the input gradients, summed over an epoch at the last step of every attack,

    l = sum over examples of || gradient of CE at x' ||_1

which tells of the network's local Lipschitz constant. The first epoch trains on random points, the second on one step,
and l there, times gamma, becomes the threshold. After each later epoch one step is added, and the threshold set anew,
if l exceeds it or if the steps are still too short together to reach the end of the ball from its middle. (The authors'
program for PGD; the same rule drives their variants of TRADES, MART and Free, which are left out.) l is of a
process's own share of the data where several train together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certify.adversarial.attacked import AttackedMethod, above_zero, at_least, looked_after
from certify.inner import cross_entropy_of, input_gradient, moved
from certify.method import EpochEnd
from certify.terms import Step
from verifier.attacks.steps import random_start


@dataclass(frozen=True)
class Guided(AttackedMethod):
    """gamma: by which factor the magnitude must grow. most: steps, at the end."""

    name: ClassVar[str] = "guided"
    paper: ClassVar[str] = "arXiv:2103.03076"

    gamma: float = 1.01
    most: int = 7
    step_size: float = 0.25

    def __post_init__(self) -> None:
        above_zero("gamma", self.gamma)
        at_least("most", self.most, 1)
        above_zero("step_size", self.step_size)

    def points(self, step: Step) -> Tensor:
        looked_after(step, self.name, "steps")
        room, objective = step.room(), cross_entropy_of(step)
        x = random_start(room, step.draws, step.everyone)
        slope = None
        with step.model.attacked():
            for _ in range(int(step.memory.get("steps", 0))):
                _, slope = input_gradient(step, x, step.everyone, objective)
                x = moved(room, x, slope, self.step_size * room.eps, step.everyone)
        if slope is not None:
            step.memory["magnitude"] = step.memory.get("magnitude", 0.0) + slope.abs().sum()
        return x.detach()

    def after_epoch(self, end: EpochEnd) -> None:
        memory = end.memory
        steps, magnitude = int(memory.get("steps", 0)), float(memory.pop("magnitude", 0.0))
        if steps == 0:
            memory["steps"] = 1
        elif "threshold" not in memory:
            memory["threshold"] = self.gamma * magnitude
        elif steps < self.most and (magnitude > memory["threshold"] or steps * self.step_size < 1):
            memory.update(steps=steps + 1, threshold=self.gamma * magnitude)
            end.notes.append(f"guided: gradient magnitude {magnitude:.4g}; {steps + 1} steps from here")
