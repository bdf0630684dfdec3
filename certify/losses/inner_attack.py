"""The attack on inputs that a method makes on its way, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from certify.inner import ascend
from certify.losses.warm_up import WarmUp
from certify.terms import Step


@dataclass(frozen=True)
class InnerAttack(WarmUp):
    """steps, restarts: of projected gradient ascent on the cross-entropy from random starts. step_size: as a share of
    the radius."""

    steps: int = 10
    restarts: int = 1
    step_size: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")

    def adversarial(self, step: Step, eps: float) -> Tensor:
        """Points "B *shape" of the balls of `eps`, detached."""
        if eps == 0:
            return step.x
        return ascend(step, eps=eps, steps=self.steps, restarts=self.restarts, step_size=self.step_size)
