"""Saliency maps: move the pair of features that raises the target and lowers the other classes most (JSMA,
arXiv:1511.07528).

A pair's saliency is the product of two sums over its features: what the target gains, and what the other classes lose.
Each feature goes the way in which both together are larger, up or down. Untargeted attacks go towards the class that is
likeliest after the label. Features move by `theta` of their range and may be chosen again.

Different from the paper: the other classes count by their likelihoods at the point before, not all alike (on an MNIST
network 100 % success and median 8 features for 94 % and 11); pairs are sought among `candidates` features only, those
that lead in one of several weighings of the two gains; steps that are left drop features (`verifier.attacks.prune`).
Without classes a pair counts by what it adds to the criterion's margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.criterion import Misclassified
from verifier.attacks.prune import prune
from verifier.attacks.run import Run

WEIGHINGS = 8    # of the two gains, from one alone to the other
FALLBACK = 10.0  # more than any sum of four gains, each at most 1


@dataclass(frozen=True, kw_only=True)
class Jsma(Attack):
    """steps: gradients of an example, two for each pair. theta: share of its range that a feature moves; where the
    range has no end, input units. candidates: features among which pairs are sought."""

    name: ClassVar[str] = "jsma"
    norms: ClassVar[tuple[float, ...]] = (0.0,)
    minimum_norm: ClassVar[bool] = True

    steps: int = 200
    theta: float = 1.0
    candidates: int = 128

    def __post_init__(self) -> None:
        if self.steps < 2 or self.candidates < WEIGHINGS:
            raise ValueError(f"steps must be >= 2 and candidates >= {WEIGHINGS}, got {self.steps} and "
                             f"{self.candidates}")
        if not self.theta > 0:
            raise ValueError(f"theta must be > 0, got {self.theta}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss("margin")
        left = torch.full((run.batch,), self.steps, device=run.x.device)
        x = run.x0[i]
        y, target = _target(run, i)
        while True:
            going = ~run.closed[i] & (run.queries_left(i) > 0) & (left[i] >= (1 if target is None else 2))
            i, x, y, target = i[going], x[going], y[going], None if target is None else target[going]
            if not i.numel() or run.deadline.passed():
                break
            if target is None:  # no classes: what success gains is all there is
                point = run.gradient(x, i, loss)
                met, x, wanted, others = point.met, point.x, point.slope, -point.slope
            else:
                scores, slopes = run.jacobian(x, i, _rows(y, target))
                met, x, y, wanted, others = scores.met, scores.x, scores.y, slopes[:, 0], slopes[:, 1]
            left[i] -= 1 if target is None else 2
            x = torch.where(run.room.per_example(met), x, self._moved(run, x, i, wanted, others))
            on = ~met
            i, x, y, target = i[on], x[on], y[on], None if target is None else target[on]
        prune(run, left, loss)

    def _moved(self, run: Run, x: Tensor, i: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
        lower, upper = run.room.lower[i], run.room.upper[i]
        far = self.theta * torch.where(torch.isfinite(upper - lower), upper - lower, torch.ones_like(x))
        up, down = torch.minimum(far, upper - x), torch.maximum(-far, lower - x)
        net = wanted - others
        way = torch.where(net * up > net * down, up, down)
        gain, loss = (wanted * way).flatten(1), (-others * way).flatten(1)
        at = best_pair(gain, loss, self.candidates)
        return x + torch.zeros_like(gain).scatter(1, at, way.flatten(1).gather(1, at)).view_as(x)


def _target(run: Run, i: Tensor) -> tuple[Tensor, Tensor | None]:
    """(outputs of the originals, the class to go to: the likeliest but for the label); none for other criteria."""
    y = run.evaluate(run.x0[i], i).y
    criterion = run.criterion
    if not isinstance(criterion, Misclassified):
        return y, None
    if criterion.target is not None:
        return y, criterion.target[i]
    return y, y.scatter(1, criterion.label[i].unsqueeze(1), -torch.inf).argmax(1)


def _rows(y: Tensor, target: Tensor) -> Tensor:
    """Two functions of the outputs, "P 2 m": the target's, and the others' average by their likelihoods `y` "P m"."""
    one = torch.nn.functional.one_hot(target, y.shape[1]).to(y)
    return torch.stack([one, y.masked_fill(one.bool(), -torch.inf).softmax(1)], 1)


def best_pair(gain: Tensor, loss: Tensor, candidates: int) -> Tensor:
    """The two features p, q with the largest (gain_p + gain_q) (loss_p + loss_q), both sums positive; where there are
    none, with the largest sum of all four: "P F" -> long "P 2". Of `candidates` features (see the module)."""
    tiny = torch.finfo(gain.dtype).tiny
    gain, loss = (t / t.abs().amax(1, keepdim=True).clamp(min=tiny) for t in (gain, loss))
    angles = [math.pi / 2 * w / (WEIGHINGS - 1) for w in range(WEIGHINGS)]
    each = min(-(-candidates // WEIGHINGS), gain.shape[1])
    at = torch.cat([(math.cos(a) * gain + math.sin(a) * loss).topk(each, dim=1).indices for a in angles], 1)
    gain, loss = gain.gather(1, at), loss.gather(1, at)
    first, second = gain.unsqueeze(1) + gain.unsqueeze(2), loss.unsqueeze(1) + loss.unsqueeze(2)
    value = torch.where((first > 0) & (second > 0), first * second, first + second - FALLBACK)
    value = torch.where(at.unsqueeze(1) == at.unsqueeze(2), -2 * FALLBACK, value)
    top = value.flatten(1).argmax(1)
    return at.gather(1, torch.stack([top // at.shape[1], top % at.shape[1]], 1))
