"""One perturbation for all inputs (Moosavi-Dezfooli et al., arXiv:1610.08401), by projected gradients over
mini-batches as in Shafahi et al. (arXiv:1811.11304): ascend the mean of a loss that is cut off at a ceiling, so that
inputs that have fallen stop pulling.

All inputs of a run are one batch, and only the finished change is proposed: an input falls if that one makes it fall.
Left out: the first paper's walk from boundary to boundary, DeepFool on one input after the other.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.criterion import Criterion
from verifier.attacks.draws import Draws
from verifier.attacks.losses import Loss
from verifier.attacks.model import as_model
from verifier.attacks.run import Run
from verifier.attacks.scout import charge, scout
from verifier.attacks.steps import steepest
from verifier.attacks.threat import Threat
from verifier.attacks.warp import flowed
from verifier.deadline import LAST_BATCH_S, Deadline


@dataclass(frozen=True, eq=False)
class Change:
    """What is done to every input: moved by `flow` "2 H W" (pixels; None: not at all), then `noise` "*shape" added."""

    noise: Tensor
    flow: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs "P *shape" changed, not yet clipped."""
        moved = x if self.flow is None else flowed(x, self.flow.expand(x.shape[0], *self.flow.shape))
        return moved + self.noise


@dataclass(frozen=True, eq=False)
class Trained:
    """A change, and the shares of inputs that it makes fall, in training and on inputs held out (NaN without any).
    Inputs that met the criterion unchanged do not count."""

    change: Change
    fooling_rate: float
    held_out_rate: float


@dataclass(frozen=True, kw_only=True)
class UniversalAttack(Attack):
    """steps: passes over the inputs, so gradients of each. minibatch: inputs of one step. loss: ce, dlr or margin.
    ceiling: where the loss of an input is cut off (9 in the paper; 2 made as many digits fall or more)."""

    together: ClassVar[bool] = True

    steps: int = 10
    minibatch: int = 100
    loss: str = "ce"
    ceiling: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.minibatch < 1:
            raise ValueError(f"steps and minibatch must be >= 1, got {self.steps} and {self.minibatch}")
        if math.isnan(self.ceiling):
            raise ValueError("ceiling must be a number")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        change = self.train(run, i)
        i = run.open_examples()
        if i.numel():
            run.evaluate(change(run.x0[i]), i)

    def train(self, run: Run, i: Tensor) -> Change:
        """The change for some examples of a run, which is charged for the gradients but gets no proposals."""
        loss = run.loss(self.loss)
        scouted = scout(run)
        change = self._ascend(scouted, i, lambda y, x, owner: loss(y, x, owner).clamp(max=self.ceiling),
                              self._passes(run, i))
        charge(run, scouted)
        return change

    @abstractmethod
    def _ascend(self, run: Run, i: Tensor, loss: Loss, passes: int) -> Change:
        """Ascend the loss by `passes` gradients of each of the examples i."""

    def _passes(self, run: Run, i: Tensor) -> int:
        """As many as the queries allow that leave one for the finished change."""
        return min(self.steps, int(run.queries_left(i).min()) - 1)

    def _batches(self, run: Run, i: Tensor, passes: int) -> Iterator[tuple[Tensor, float]]:
        """(owners of a mini-batch, share of the way gone), each pass in another order; ends when the time does."""
        count = max(1, passes * math.ceil(i.numel() / self.minibatch))
        done = 0
        for _ in range(passes):
            order = run.draws.uniform(i, (), torch.float64).argsort()
            for part in i[order].split(self.minibatch):
                if run.deadline.left() <= LAST_BATCH_S:
                    run.note("the time ended before the training of the universal change did")
                    return
                yield part, done / count
                done += 1


@dataclass(frozen=True, kw_only=True)
class Universal(UniversalAttack):
    """step_size: the first step as a share of eps; steps shrink to zero evenly. They follow the mean gradient of the
    mini-batch, by its sign (inf) or its direction (2, 1)."""

    name: ClassVar[str] = "uap"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)

    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")

    def _ascend(self, run: Run, i: Tensor, loss: Loss, passes: int) -> Change:
        room = run.room
        origin, zero = torch.zeros_like(run.x0[:1]), i.new_zeros(1)
        ball = Threat(room.norm, room.eps).around(origin)
        noise = origin
        for part, gone in self._batches(run, i, passes):
            x = run.x0[part] + noise
            slope = useful(run, run.gradient(x, part, loss).slope, x, part).mean(0, keepdim=True)
            step = self.step_size * (1 - gone) * room.eps
            noise = ball.project(noise + step * steepest(slope, room.norm, ball.free), zero)
        return Change(noise[0])


def useful(run: Run, slope: Tensor, x: Tensor, owner: Tensor) -> Tensor:
    """Gradients "P *shape" at points before they are moved into their rooms: without those of pinned features, nor what
    would pull a feature further out that the clip range has cut off.

    Where the ball bounds a feature all keep their say: it bounds one perturbation for all inputs, and counting only
    those that pull it inward cost a third of the successes on MNIST.
    """
    low, high = run.anywhere.lower[owner], run.anywhere.upper[owner]
    return slope.masked_fill(((x <= low) & (slope < 0)) | ((x >= high) & (slope > 0)), 0.0)


def train_universal(attack: UniversalAttack, model: Any, x: Tensor, criterion: Criterion, threat: Threat, *,
                    held_out: tuple[Tensor, Criterion] | None = None, seed: int = 0,
                    deadline: Deadline | None = None) -> Trained:
    """Train on inputs x "N *shape" and measure on them and on others.

    `attack.run` on the held-out inputs would train on those. Raises ValueError for settings that do not fit.
    """
    network = as_model(model, shape=tuple(x.shape[1:]))
    attack._check(network.gives, network.shape, x, criterion, threat)

    def begun(inputs: Tensor, wanted: Criterion) -> Run:
        inputs = inputs.to(network.device, network.dtype)
        anywhere = Threat(threat.norm, math.inf, threat.clip, threat.mask).around(inputs)
        run = Run(network, threat.around(inputs) if attack.additive else anywhere, wanted,
                  Draws(seed, torch.arange(inputs.shape[0], device=network.device)),
                  deadline=deadline or Deadline.starting_now(), anywhere=anywhere)
        run.begin()
        return run

    run = begun(x, criterion)
    change = attack.train(run, (~run.closed).nonzero().flatten())
    rate = _fooled(run, change)
    return Trained(change, rate, math.nan if held_out is None else _fooled(begun(*held_out), change))


def _fooled(run: Run, change: Change) -> float:
    standing = (~run.success).nonzero().flatten()
    return float(run.evaluate(change(run.x0[standing]), standing).met.double().mean())
