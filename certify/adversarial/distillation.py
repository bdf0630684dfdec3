"""Defensive distillation (Papernot et al., arXiv:1511.04508): soft labels of a teacher, both trained at temperature T.

    teacher: mean_i CE(softmax(f(x_i) / T), y_i)      student: mean_i CE(softmax(f(x_i) / T), teacher's softmax(. / T))

The network that comes out is used at temperature 1, where its logits are about T times what they would be. That hides
gradients and does not resist attacks that allow for it (Carlini and Wagner, arXiv:1608.04644): here so that it can be
measured. On digits at eps 0.1 (dense network) accuracy was 0.80 under PGD on the cross-entropy and 0.28 under the same
steps on the margin.

The teacher is made before the first step: the same network, from the same initial weights, trained by Adam on the
examples that the run hands over, and kept in memory as numbers, so that a resumed run has the very same. The student
then trains like any other method, on clean inputs; no radius matters to it. Where a run hands over only some of its
training set, or augments it, the teacher knows less than the student sees.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from certify.adversarial.attacked import above_zero, at_least, share_right
from certify.classifier import Classifier
from certify.method import Method
from certify.terms import LossTerms, Step

PREFIX = "teacher."


@dataclass(frozen=True)
class Distillation(Method):
    """temperature: T, 20 to 100 in the paper. The other settings are the teacher's."""

    name: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "arXiv:1511.04508"

    temperature: float = 20.0
    teacher_epochs: int = 30
    teacher_lr: float = 1e-3
    teacher_batch: int = 128

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        at_least("teacher_epochs", self.teacher_epochs, 1)
        above_zero("teacher_lr", self.teacher_lr)
        at_least("teacher_batch", self.teacher_batch, 2)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor, memory: dict[str, Any], seed: int) -> None:
        if any(name.startswith(PREFIX) for name in memory):
            return
        teacher = self._taught(copy.deepcopy(model.module), x, y, seed)
        memory.update({PREFIX + name: value.detach().clone() for name, value in teacher.state_dict().items()})

    def _taught(self, teacher: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        """Trained on hard labels at the temperature."""
        optimiser = torch.optim.Adam(teacher.parameters(), self.teacher_lr)
        order = torch.Generator().manual_seed(seed)
        teacher.train()
        for _ in range(self.teacher_epochs):
            for part in torch.randperm(len(x), generator=order).to(x.device).split(self.teacher_batch):
                if len(part) == 1:
                    continue  # one example has no statistics for batch normalisation
                optimiser.zero_grad()
                functional.cross_entropy(teacher(x[part]) / self.temperature, y[part]).backward()
                optimiser.step()
        return teacher

    def soft_labels(self, step: Step) -> Tensor:
        """The teacher's probabilities "B m" of the clean inputs, at the temperature."""
        like = dict(step.model.module.state_dict())
        state = {name.removeprefix(PREFIX): value.to(like[name.removeprefix(PREFIX)].device)
                 for name, value in step.memory.items() if name.startswith(PREFIX)}
        if not state:
            raise RuntimeError("distillation has no teacher yet: call prepare before the first step")
        with torch.no_grad(), step.model.attacked():
            logits: Tensor = functional_call(step.model.module, state, (step.x,))
        return (logits / self.temperature).softmax(1)

    def loss(self, step: Step) -> LossTerms:
        labels = self.soft_labels(step)
        logits = step.model(step.x)
        distilled = functional.cross_entropy(logits / self.temperature, labels)
        parts = {"distilled": distilled.detach(), "natural": functional.cross_entropy(logits.detach(), step.y),
                 "right": share_right(logits, step.y)}
        return LossTerms(distilled, parts, logits.detach())
