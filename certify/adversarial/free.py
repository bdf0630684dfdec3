"""Free adversarial training (Shafahi et al., arXiv:1904.12843): one backward pass for weights and perturbation.

Each minibatch is replayed m times. A replay differentiates CE(f(x + delta), y) once; the optimiser moves the weights,
and the same pass gives

    delta <- P(delta + eps sign(gradient at x + delta))

with P the projection onto the ball. delta is not reset between replays nor between minibatches: it belongs to the
places of a batch, not to examples. A run of N epochs does m N passes over the data, so that the paper divides its
number of epochs by m; that is left to the run. The point at which the loss is taken is x + delta drawn into the range
of inputs, delta itself is not cut, and the gradient is the one at that point. The pass sees the statistics of batch
normalisation of training, as in the paper, for it is the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from certify.adversarial.attacked import above_zero, at_least, loss_at
from certify.inner import moved
from certify.method import Method
from certify.terms import LossTerms, Step, Update


@dataclass(frozen=True)
class Free(Method):
    """replays: m. step_size: of the perturbation, as a share of eps."""

    name: ClassVar[str] = "free"
    paper: ClassVar[str] = "arXiv:1904.12843"

    replays: int = 8
    step_size: float = 1.0

    def __post_init__(self) -> None:
        at_least("replays", self.replays, 1)
        above_zero("step_size", self.step_size)

    def updates(self, step: Step) -> Iterator[Update]:
        about_zero = replace(step, x=torch.zeros_like(step.x), clip=None).room()
        for _ in range(self.replays):
            delta = about_zero.project(self._delta(step), step.everyone)  # the radius may have changed
            x = step.room().project(step.x + delta, step.everyone).requires_grad_(True)
            yield partial(loss_at, step, x)
            if x.grad is None:
                raise RuntimeError("free needs the gradient of every loss before it goes on: call backward first")
            delta = moved(about_zero, delta, x.grad, self.step_size * step.eps, step.everyone)
            self._keep(step, delta)

    def loss(self, step: Step) -> LossTerms:
        """The loss of the first replay, delta left as it is."""
        return next(self.updates(step))()

    @staticmethod
    def _delta(step: Step) -> Tensor:
        """The perturbations of the first places, zero where there were none yet."""
        kept = step.memory.get("delta", step.x[:0]).to(step.x)[: len(step.x)]
        return torch.cat([kept, torch.zeros_like(step.x[len(kept) :])])

    @staticmethod
    def _keep(step: Step, delta: Tensor) -> None:
        """A smaller batch leaves the places behind it as they were."""
        step.memory["delta"] = torch.cat([delta.detach(), step.memory.get("delta", delta[:0]).to(delta)[len(delta) :]])
