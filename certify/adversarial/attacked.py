"""What methods that train on adversarial points alone have in common: only the points differ."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from certify.method import Method
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class AttackedMethod(Method):
    """The cross-entropy at points of each example's set. Parts: `adversarial`, that loss; `attacked`, the share of the
    points that are classified rightly."""

    @abstractmethod
    def points(self, step: Step) -> Tensor:
        """Where the loss is taken: "B *shape", detached."""

    def loss(self, step: Step) -> LossTerms:
        return loss_at(step, self.points(step))


def loss_at(step: Step, x: Tensor) -> LossTerms:
    """The cross-entropy at points "B *shape"."""
    logits = step.model(x)
    adversarial = functional.cross_entropy(logits, step.y)
    return LossTerms(adversarial, {"adversarial": adversarial.detach(), "attacked": share_right(logits, step.y)})


def share_right(logits: Tensor, y: Tensor) -> Tensor:
    """Of logits "B m": how many have their largest at the label, as a share."""
    return (logits.detach().argmax(1) == y).to(logits.dtype).mean()


def accuracy(step: Step, x: Tensor) -> float:
    """The share of points "B *shape" that keep their labels, with running statistics of batch normalisation."""
    with torch.no_grad(), step.model.attacked():
        return float(share_right(step.model(x), step.y))


def looked_after(step: Step, name: str, mark: str) -> None:
    """Raises ValueError where epochs go by without `after_epoch`, which leaves `mark` in memory: a method that grows by
    it would train on its weakest attack for ever."""
    if step.progress.epoch >= 1 and mark not in step.memory:
        raise ValueError(f"{name} needs a look at held-out examples after every epoch: hold out some (validation > 0)")


def at_least(name: str, value: float, least: float) -> None:
    """A check of settings."""
    if not value >= least:
        raise ValueError(f"{name} must be >= {least:g}, got {value}")


def above_zero(name: str, value: float) -> None:
    """A check of settings."""
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
