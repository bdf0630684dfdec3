"""HopSkipJump (arXiv:1904.02144): the nearest success from decisions alone, along the boundary; l_2 and l_inf.

From a start on the far side, each iteration goes back to the boundary by bisection, estimates the boundary's normal
from the decisions at random points around it, with their mean as a baseline, and jumps along it, halving the jump until
it lands on the far side. What comes nearest on the way, directions included, is kept.

Axis legend: P examples, K directions, F features; d: how many features may move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.model import Gives
from verifier.attacks.run import Run
from verifier.attacks.starts import adversarial_starts

CHUNK = 128       # directions at once
HALVINGS = 20     # of one jump


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """steps: iterations. samples: directions of the first estimate; the t-th has sqrt(t) times as many, at most
    most_samples."""

    name: ClassVar[str] = "hopskipjump"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0)
    needs: ClassVar[Gives] = Gives.LABELS
    minimum_norm: ClassVar[bool] = True
    points: ClassVar[int] = 16

    steps: int = 40
    samples: int = 100
    most_samples: int = 10_000

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 2 or self.most_samples < 2:
            raise ValueError(f"steps must be >= 1, samples and most_samples >= 2, got {self.steps}, {self.samples}, "
                             f"{self.most_samples}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        x, found = adversarial_starts(run, i)
        if not bool(found.all()):
            run.note("for some examples no input was found that meets the criterion, so nothing to start from")
        i, x = self._open(run, i[found], x[found])
        for t in range(1, self.steps + 1):
            if not i.numel():
                return
            free = run.room.free[i].flatten(1).sum(1).double()
            x = self._at_boundary(run, x, i, float(free.max()))
            i, x = self._open(run, i, x)
            if not i.numel():
                return
            free = run.room.free[i].flatten(1).sum(1).double()
            far = run.room.distance(x, i)
            # The paper's delta: sqrt(d) theta in l_2, d theta in l_inf, which is 1 / d both times.
            count = min(self.most_samples, round(self.samples * math.sqrt(t)))
            normal = self._normal(run, x, i, far / free, count)
            x = self._jumped(run, x, i, normal, far / math.sqrt(t))
            i, x = self._open(run, i, x)
        self._at_boundary(run, x, i, float(run.room.free.flatten(1).sum(1).max()))

    def _open(self, run: Run, i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        open_ = torch.isin(i, run.open_examples())
        return i[open_], x[open_]

    def _at_boundary(self, run: Run, x: Tensor, i: Tensor, features: float) -> Tensor:
        """Successes as near to their originals as bisection brings them, to theta of their distance: d^(-3/2) in l_2,
        d^(-2) in l_inf."""
        low = torch.zeros(i.numel(), dtype=torch.float64, device=x.device)
        high = run.room.distance(x, i)
        for _ in range(math.ceil(math.log2(max(2.0, features)) * (1.5 if run.room.norm == 2.0 else 2.0))):
            middle = (low + high) / 2
            seen = run.evaluate(run.room.within(x, i, middle), i)
            x = torch.where(run.room.per_example(seen.met), seen.x, x)
            low, high = torch.where(seen.met, low, middle), torch.where(seen.met, middle, high)
        return x

    def _normal(self, run: Run, x: Tensor, i: Tensor, radius: Tensor, count: int) -> Tensor:
        """The direction into the far side: sum_k (phi_k - mean phi) u_k, phi_k = 1 where x + radius u_k meets the
        criterion and -1 elsewhere: "P *shape", of length one in l_2, of signs in l_inf."""
        room = run.room
        weighted, plain = torch.zeros_like(x), torch.zeros_like(x)
        phis = x.new_zeros(i.numel())
        pinned = not bool(room.free[i].all())
        for first in range(0, count, CHUNK):
            size = (min(CHUNK, count - first), *room.shape)
            normal = room.norm == 2.0
            u = run.draws.normal(i, size, x.dtype) if normal else 2 * run.draws.uniform(i, size, x.dtype) - 1
            if pinned:
                u *= room.free[i].unsqueeze(1)
            length = radius.to(x).unsqueeze(1) / torch.linalg.vector_norm(u.flatten(2), dim=2)
            u *= length.view(*u.shape[:2], *(1,) * len(room.shape))
            u += x.unsqueeze(1)
            seen = run.evaluate(u.flatten(0, 1), i.repeat_interleave(u.shape[1]))
            u = seen.x.view_as(u) - x.unsqueeze(1)  # as moved into the box; the radius drops out at the end
            phi = seen.met.view(u.shape[:2]).to(x) * 2 - 1
            weighted += (phi.unsqueeze(1) @ u.flatten(2)).view_as(x)
            plain += u.sum(1)
            phis += phi.sum(1)
        mean = phis / count
        one_sided = mean.abs() == 1
        slope = weighted - room.per_example(torch.where(one_sided, 0.0, mean)) * plain
        if room.norm == math.inf:
            return slope.sign()
        length = torch.linalg.vector_norm(slope.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        return slope / room.per_example(length)

    def _jumped(self, run: Run, x: Tensor, i: Tensor, normal: Tensor, length: Tensor) -> Tensor:
        """x + length * normal, the length halved until that is a success; x where it never is."""
        left = torch.arange(i.numel(), device=i.device)
        x = x.clone()
        for _ in range(HALVINGS):
            scale = run.room.per_example(length[left].to(x))
            seen = run.evaluate(x[left] + scale * normal[left], i[left])
            x[left[seen.met]] = seen.x[seen.met]
            left = left[~seen.met]
            length = length / 2
            if not left.numel():
                break
        return x
