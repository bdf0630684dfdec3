"""The inner maximisation of training: projected gradient ascent on all examples of a minibatch at once.

The attacks of `verifier.attacks` keep count, confirm and stop; here a point is all that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from certify.terms import Step
from verifier.attacks.steps import random_start, steepest
from verifier.attacks.threat import Room

Objective = Callable[[Tensor, Tensor], Tensor]  # (logits "P m", places in the batch "P") -> one value a point, "P"


def cross_entropy_of(step: Step) -> Objective:
    """The loss that an untargeted attack ascends."""
    return lambda logits, owner: functional.cross_entropy(logits, step.y[owner], reduction="none")


def input_gradient(step: Step, x: Tensor, owner: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(values "P", gradients "P *shape") at points x. Call inside `step.model.attacked()`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = objective(step.model(x), owner)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def ascend(step: Step, *, eps: float | None = None, steps: int = 10, step_size: float = 0.25, restarts: int = 1,
           random: bool = True, start: Tensor | None = None, objective: Objective | None = None) -> Tensor:
    """Adversarial points "B *shape" of a minibatch, detached: the last point of each run, of several runs the one with
    the largest value. step_size: as a share of eps. start: where every run begins, instead of a random point or the
    input itself."""
    room = step.room(eps)
    objective = objective or cross_entropy_of(step)
    best, best_value = step.x, step.x.new_full((len(step.x),), -torch.inf)
    begin = step.x if start is None else start
    with step.model.attacked():
        for _ in range(restarts):
            x = random_start(room, step.draws, step.everyone) if random and start is None else begin
            for _ in range(steps):
                _, slope = input_gradient(step, x, step.everyone, objective)
                x = moved(room, x, slope, step_size * room.eps, step.everyone)
            if restarts == 1:
                return x.detach()
            with torch.no_grad():
                value = objective(step.model(x), step.everyone)
            better = value > best_value
            best = torch.where(room.per_example(better), x, best)
            best_value = torch.where(better, value, best_value)
    return best.detach()


def moved(room: Room, x: Tensor, slope: Tensor, length: float, owner: Tensor) -> Tensor:
    """One projected step of ascent."""
    return room.project(x + length * steepest(slope, room.norm, room.free[owner]), owner)


def nearby(step: Step, noise: float) -> Tensor:
    """Starts "B *shape" so close to the inputs that only ties are broken: normal noise of that size, inside the set."""
    shake = noise * step.draws.normal(step.everyone, step.x.shape[1:], step.x.dtype)
    return step.room().project(step.x + shake, step.everyone)
