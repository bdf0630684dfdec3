"""Fast minimum norm (FMN): an ascent in a ball that shrinks after every success and grows after every failure
(arXiv:2102.12827).

Each step takes one gradient, first sets the radius, then moves and projects. Until an example has fallen its radius is
the length of the move plus the distance to the linearised boundary (in l_0: the number of features that suffice to
first order); then it is multiplied by 1 - gamma after a success, and by 1 + gamma after a failure. Steps and gamma
shrink along a cosine.

Different from the paper: the loss counts all other classes (`smooth_margin`; medians on two MNIST networks at 100 steps
1.03 for 1.05 in l_2 and 6.1 for 6.6 in l_1 on one, 2.02 both and 10.4 for 10.1 on the other); steps are shares of the
radius, so that but for l_0 nothing depends on the scale of inputs, in l_inf along the signs of the gradient (0.16 for
0.52); in l_2 points go to the sphere and not only into the ball; in l_1 they are projected onto ball and box together
(6.6 for 7.7); in l_0 the last tenth of the steps drops features one by one. Left out: warm starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.prune import prune
from verifier.attacks.run import Run
from verifier.attacks.threat import Room

DUAL = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}
FIRST = {math.inf: 1.0, 2.0: 1.0, 1.0: 0.2, 0.0: 0.5}     # step sizes
LAST = {math.inf: 0.01, 2.0: 0.01, 1.0: 0.01, 0.0: 0.3}   # shares of them at the end
GAMMA = {math.inf: 0.05, 2.0: 0.05, 1.0: 0.05, 0.0: 0.3}
LAST_GAMMA = 0.001
PRUNING = 0.1            # of the steps in l_0
THRESHOLD_STEPS = 24     # of the search for the l_1 projection's threshold, at most
FARTHEST = 1e6           # that a flat gradient may send a point where nothing else limits it
CHECK = 16               # steps between two looks at the clock


@dataclass(frozen=True, kw_only=True)
class Fmn(Attack):
    """steps: gradients of an example. step_size: the first step as a share of the radius, in l_0 of the range of inputs
    [1 in l_inf and l_2, 0.2 in l_1, 0.5 in l_0]. gamma: the first change of the radius [0.05; 0.3 in l_0]. loss:
    smooth, margin, ce or dlr."""

    name: ClassVar[str] = "fmn"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0, 0.0)
    minimum_norm: ClassVar[bool] = True

    steps: int = 500
    step_size: float | None = None
    gamma: float | None = None
    loss: str = "smooth"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")
        if self.gamma is not None and not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), got {self.gamma}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss(self.loss)
        norm = run.room.norm
        last_steps = int(PRUNING * self.steps) if norm == 0.0 else 0
        steps = self.steps - last_steps
        first_gamma = GAMMA[norm] if self.gamma is None else self.gamma
        first_step = FIRST[norm] if self.step_size is None else self.step_size
        x = run.x0[i]
        low, high = run.room.lower[i] - x, run.room.upper[i] - x
        width = torch.maximum(high, -low)
        unit, most = scale(width), torch.linalg.vector_norm(width.flatten(1), ord=norm, dim=1)
        eps = torch.zeros_like(most)
        for k in range(steps):
            cosine = (1 + math.cos(math.pi * k / steps)) / 2
            gamma = LAST_GAMMA + (first_gamma - LAST_GAMMA) * cosine
            alpha = first_step * (LAST[norm] + (1 - LAST[norm]) * cosine)
            point = run.gradient(x, i, loss)
            x0 = run.room.of(run.x0, i)
            move = point.x - x0
            slope = alive(run, run.room.on_free(point.slope, i), i, point.met)
            best = run.key[i].to(x)
            if norm == 0.0:
                eps = torch.minimum(_count(eps, move, slope, point.margin, point.met, best, gamma, low, high), most)
            else:
                eps = torch.minimum(_radius(eps, move, slope, point.margin, point.met, best, gamma, norm), most)
            step = _step(slope, norm, alpha, unit if norm == 0.0 else eps, run.room)
            x = x0 + _into(move + step, eps, norm, low, high)
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x, eps, low, high, unit, most = (t[open_] for t in (i, x, eps, low, high, unit, most))
            if not i.numel() or (k % CHECK == 0 and run.deadline.passed()):
                return
        run.evaluate(x, i)
        prune(run, torch.full_like(run.forward_calls, last_steps), loss)


def scale(width: Tensor) -> Tensor:
    """The widest range of each example's features, 1 where they have no end: "P *shape" -> "P"."""
    return torch.where(torch.isfinite(width), width, torch.ones_like(width)).flatten(1).amax(1)


def alive(run: Run, slope: Tensor, i: Tensor, met: Tensor) -> Tensor:
    """Gradients "P *shape" of distinct examples, random directions in place of those that vanish before success."""
    dead = (torch.linalg.vector_norm(slope.flatten(1), ord=1, dim=1) == 0) & ~met
    if not bool(dead.any()):
        return slope
    slope = slope.clone()
    at = dead.nonzero().flatten()
    slope[at] = run.draws.normal(i[at], run.room.shape, slope.dtype) * run.room.free[i[at]]
    return slope


def _radius(eps: Tensor, move: Tensor, slope: Tensor, margin: Tensor, met: Tensor, best: Tensor, gamma: float,
            norm: float) -> Tensor:
    """The next radius "P" for a norm that is none of counting; `best` "P" is inf before the first success."""
    length = torch.linalg.vector_norm(slope.flatten(1), ord=DUAL[norm], dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
    size = torch.linalg.vector_norm(move.flatten(1), ord=norm, dim=1)
    guess = size + (margin.abs() / length).clamp(max=FARTHEST)
    longer = eps * (1 + gamma)  # at least, or a tie would hold the point for good
    failed = torch.where(torch.isinf(best), torch.maximum(guess, longer), longer)
    return torch.where(met, torch.minimum(eps * (1 - gamma), best), failed)


def _count(eps: Tensor, move: Tensor, slope: Tensor, margin: Tensor, met: Tensor, best: Tensor, gamma: float,
           low: Tensor, high: Tensor) -> Tensor:
    """The next number of features "P"."""
    less = torch.minimum(torch.minimum(eps - 1, (eps * (1 - gamma)).floor()), best)
    more = torch.maximum(eps + 1, (eps * (1 + gamma)).floor())
    new = torch.isinf(best)
    if bool(new.any()):
        left = torch.where(slope > 0, high - move, move - low)
        gain = torch.where(slope == 0, 0, slope.abs() * left).flatten(1).sort(dim=1, descending=True).values.cumsum(1)
        guess = (move != 0).flatten(1).sum(1) + (gain < margin.unsqueeze(1)).sum(1) + 1
        more = torch.where(new, torch.maximum(guess.to(eps), eps + 1), more)
    return torch.where(met, less, more).clamp(min=1)


def _step(slope: Tensor, norm: float, alpha: float, size: Tensor, room: Room) -> Tensor:
    """A step "P *shape": signs in l_inf; in l_0 as long as `size` in the largest entry; else in l_2."""
    if norm == math.inf:
        return slope.sign() * room.per_example(alpha * size)
    order = math.inf if norm == 0.0 else 2.0
    length = torch.linalg.vector_norm(slope.flatten(1), ord=order, dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
    return slope * room.per_example(alpha * size / length)


def _into(move: Tensor, eps: Tensor, norm: float, low: Tensor, high: Tensor) -> Tensor:
    """Moves "P *shape" into the ball of radius eps "P" (l_2: onto its sphere), in l_1, l_2, l_0 also into the box."""
    radius = eps.view(-1, *(1,) * (move.dim() - 1))
    if norm == math.inf:
        return torch.clamp(move, -radius, radius)
    if norm == 1.0:
        return project_l1(move, eps, low, high)
    move = torch.clamp(move, low, high)
    if norm == 2.0:
        length = torch.linalg.vector_norm(move.flatten(1), dim=1).clamp(min=torch.finfo(move.dtype).tiny)
        return move * (eps / length).view_as(radius)
    size = move.abs()
    largest = size.flatten(1).topk(int(eps.max()), dim=1).values
    least = largest.gather(1, eps.long().unsqueeze(1) - 1)
    return torch.where(size >= least.view_as(radius), move, 0)


def project_l1(move: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The point of {||z||_1 <= eps, low <= z <= high} nearest to `move` in l_2, up to rounding: "P *shape".

    Every entry shrinks by one threshold and stops at its end. The threshold is the root of a falling piecewise linear
    function, found by Newton's method inside a bracket.
    """
    size = move.abs().flatten(1)
    end, eps = torch.where(move > 0, high, -low).flatten(1), eps.unsqueeze(1)
    below, above = torch.zeros_like(eps), size.amax(1, keepdim=True)
    at, rounding = below, 4 * torch.finfo(move.dtype).eps * size.sum(1, keepdim=True)
    for _ in range(THRESHOLD_STEPS):
        rest = (size - at).clamp(min=0)
        over = torch.minimum(rest, end).sum(1, keepdim=True) - eps
        if bool(((over.abs() <= rounding) | ((over < 0) & (at == 0))).all()):
            break
        falling = ((rest > 0) & (rest < end)).sum(1, keepdim=True).clamp(min=1)
        below, above = torch.where(over > 0, at, below), torch.where(over > 0, above, at)
        at = at + over / falling
        at = torch.where((at < below) | (at > above), (below + above) / 2, at)
    return torch.minimum((size - at).clamp(min=0), end).view_as(move) * move.sign()
