"""A training method: settings, and the loss of a minibatch that they define.

A new method is one file with one class, and a row in `certify.registry`. Its fields are its settings: they are read
from flags and YAML by their names, and printed in logs and model cards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from certify.terms import LossTerms, Step, Update

if TYPE_CHECKING:
    from certify.classifier import Classifier


@dataclass(frozen=True, eq=False)
class EpochEnd:
    """After an epoch: a held-out step (training examples, where nothing is held out) at the radius that is to hold,
    whatever the schedule says by then, on which a method may measure; notes go to the log."""

    held_out: Step
    memory: dict[str, Any]
    notes: list[str]


class Method(ABC):
    """Settings of a training method. Frozen dataclasses: what changes in a run lives in `Step.memory`."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    bounds_sets: ClassVar[bool] = False
    """Whether the loss needs bounds, so that the network must be one that `bounds` can read."""

    def prepare(self, model: Classifier, x: Tensor, y: Tensor, memory: dict[str, Any], seed: int) -> None:
        """Before the first step: x "N *shape" and y "N" are (some of) the training set."""
        return None

    @abstractmethod
    def loss(self, step: Step) -> LossTerms:
        """The loss of a minibatch, the module in training mode."""

    def updates(self, step: Step) -> Iterator[Update]:
        """The steps of the optimiser that a minibatch makes: one, unless a method says otherwise. After each of them
        the loss has been differentiated, so that gradients of whatever it read can be used."""
        yield lambda: self.loss(step)

    def after_epoch(self, end: EpochEnd) -> None:
        """Look at what an epoch made of the network."""
        return None


@dataclass(frozen=True)
class Standard(Method):
    """Cross-entropy on clean inputs."""

    name: ClassVar[str] = "standard"

    def loss(self, step: Step) -> LossTerms:
        from torch.nn import functional
        logits = step.model(step.x)
        natural = functional.cross_entropy(logits, step.y)
        return LossTerms(natural, {"natural": natural.detach()}, logits.detach())
