"""What a training method is told about one minibatch, and what it answers.

Axis legend of this package: B examples of a minibatch, m classes, *shape one input without its batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bounds.sets import Box, InputSet, LpBall
from certify.classifier import Classifier
from verifier.attacks.draws import Draws
from verifier.attacks.threat import Room


@dataclass(frozen=True)
class Progress:
    """Where a run is. epoch: fractional, from 0; epochs: of the whole run; update: how many were made before."""

    epoch: float
    epochs: float
    update: int

    @property
    def share(self) -> float:
        """Of the run that is over, in [0, 1]."""
        return min(1.0, self.epoch / self.epochs) if self.epochs > 0 else 1.0


@dataclass(frozen=True, eq=False)
class LossTerms:
    """total: the scalar that is minimised, with its graph. parts: means to be logged, by name. logits "B m": of the
    clean inputs. margins "B": lower bounds of the least margin over each example's set, where the method knows them:
    above 0 the example is certified."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    margins: Tensor | None = None


Update = Callable[[], LossTerms]
"""One step of the optimiser: called in a module's forward, so that gradients synchronise between processes."""


@dataclass(frozen=True, eq=False)
class Step:
    """One minibatch: x "B *shape" in input units, y "B", number "B" (places in the training set).

    eps: the radius of this step, from the schedule; target_eps: that of its end. natural: the weight of the natural
    loss, where a method mixes it with another (1: nothing else). clip: the range of inputs. memory: what a method keeps
    between steps, saved in checkpoints: numbers, strings and tensors by name.
    """

    model: Classifier
    x: Tensor
    y: Tensor
    number: Tensor
    eps: float
    target_eps: float
    natural: float
    norm: float
    clip: tuple[float, float] | None
    progress: Progress
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def draws(self) -> Draws:
        """Random numbers of each example, the same however a batch is spread over devices."""
        return Draws(self.seed * 1_000_003 + self.progress.update, self.number)

    @cached_property
    def everyone(self) -> Tensor:
        """"B": the examples by their places in this batch."""
        return torch.arange(len(self.x), device=self.x.device)

    def room(self, eps: float | None = None) -> Room:
        """Where an attack may go: the ball of `eps` (None: of this step) inside the range of inputs."""
        eps = self.eps if eps is None else eps
        low, high = (-math.inf, math.inf) if self.clip is None else self.clip
        return Room(self.x, (self.x - eps).clamp(min=low), (self.x + eps).clamp(max=high), self.norm, eps)

    def sets(self, eps: float | None = None) -> InputSet:
        """The same set for bounds. In l_inf its ends are the floats next to the true ones: training proves nothing."""
        eps = self.eps if eps is None else eps
        if self.norm == math.inf:
            room = self.room(eps)
            return Box(room.lower, room.upper)
        return LpBall(self.x, eps, self.norm, clip=self.clip)

    def with_eps(self, eps: float) -> Step:
        """The same minibatch at another radius."""
        return replace(self, eps=eps)
