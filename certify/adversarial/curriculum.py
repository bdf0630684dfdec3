"""Curriculum adversarial training (Cai, Du, Liu and Song, IJCAI 2018, arXiv:1805.04807): attacks that grow stronger.

Lesson k trains on PGD with k steps, from k = 0 (clean inputs). A lesson ends when the k-accuracy on held-out data,
under the same attack, has not risen for `patience` epochs (10 in the paper), or, which the paper does not have, when it
reaches `threshold`. Batch mixing against forgetting: in lesson k each example meets an attack of 0, .., k steps, drawn
evenly, where the paper cuts a batch into equal parts.

Left out: the return to a lesson's best weights when it ends, the weights of the parts of a batch (all equal here), and
quantisation of inputs, which is a defence of its own (`certify.defences`). A run that is short may end before the last
lesson; the log says which one it reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from certify.adversarial.attacked import AttackedMethod, above_zero, accuracy, at_least, looked_after
from certify.inner import ascend, cross_entropy_of, input_gradient, moved
from certify.method import EpochEnd
from certify.terms import Step
from verifier.attacks.steps import random_start


@dataclass(frozen=True)
class Curriculum(AttackedMethod):
    """last: the steps of the last lesson. mixing: easier attacks in every batch."""

    name: ClassVar[str] = "curriculum"
    paper: ClassVar[str] = "arXiv:1805.04807"

    last: int = 10
    step_size: float = 0.25
    threshold: float = 1.0
    patience: int = 2
    mixing: bool = True

    def __post_init__(self) -> None:
        at_least("last", self.last, 0)
        above_zero("step_size", self.step_size)
        above_zero("threshold", self.threshold)
        at_least("patience", self.patience, 1)

    def points(self, step: Step) -> Tensor:
        if self.last > 0:
            looked_after(step, self.name, "best")
        lesson = _lesson(step.memory)
        if self.mixing:
            steps = step.draws.integers(step.everyone, (), lesson + 1)
        else:
            steps = torch.full_like(step.everyone, lesson)
        return self._ascend(step, steps)

    def _ascend(self, step: Step, steps: Tensor) -> Tensor:
        """PGD with a number of steps of its own for each example, "B"; the input itself where that is zero."""
        room, objective = step.room(), cross_entropy_of(step)
        x = torch.where(room.per_example(steps > 0), random_start(room, step.draws, step.everyone), step.x)
        with step.model.attacked():
            for k in range(_lesson(step.memory)):
                going = (steps > k).nonzero().flatten()
                if not len(going):
                    break
                _, slope = input_gradient(step, x[going], going, objective)
                x[going] = moved(room, x[going], slope, self.step_size * room.eps, going)
        return x.detach()

    def after_epoch(self, end: EpochEnd) -> None:
        memory, lesson = end.memory, _lesson(end.memory)
        if lesson == self.last:
            return
        points = ascend(end.held_out, steps=lesson, step_size=self.step_size, random=lesson > 0)
        reached = accuracy(end.held_out, points)
        better = reached > memory.get("best", -1.0)
        memory["best"] = max(reached, memory.get("best", -1.0))
        memory["stale"] = 0 if better else int(memory.get("stale", 0)) + 1
        if reached < self.threshold and memory["stale"] < self.patience:
            return
        memory.update(lesson=lesson + 1, best=-1.0, stale=0)
        end.notes.append(f"curriculum: {lesson}-accuracy {reached:.3f}; lesson {lesson + 1} of {self.last} begins")


def _lesson(memory: dict[str, Any]) -> int:
    return int(memory.get("lesson", 0))
