"""Mesh adaptive direct search: minimising what can only be evaluated, as upper bounds on black boxes need.

MADS (Audet and Dennis 2006, doi:10.1137/040603371) with orthogonal polls (OrthoMADS, Abramson, Audet, Dennis and Le
Digabel 2009, doi:10.1137/080716980) from random instead of Halton directions; DeepQuant (arXiv:2009.06114) has it for
networks. A poll tries the incumbent moved along an orthonormal basis and its negative; moves lie on a mesh whose size
falls with the square of the poll's, so that directions become dense in the limit. Success doubles the poll's size and
tries the same move again, twice as long; failure halves it. Constraints by the two-phase extreme barrier: first the
violation is minimised, and from the first feasible point on infeasible ones are refused.

Left out: surrogate models, Halton sequences, the progressive barrier. Polls are evaluated in batches.

Axis legend: P problems or points, K directions, n features that move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.deadline import Deadline

Blackbox = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points "P *shape" -> (objective "P", violation "P": feasible where <= 0)."""

FIRST = 2       # halvings of the widths that the first poll begins with
FINEST = 26     # halvings at which a search ends


@dataclass(frozen=True, eq=False)
class Found:
    """x "*shape", the best point seen; its objective and violation (feasible where <= 0). complete: the mesh became as
    fine as asked for before evaluations or time ran out. An upper bound of the minimum where feasible, and no more."""

    x: Tensor
    objective: float
    violation: float
    evaluations: int
    complete: bool

    @property
    def feasible(self) -> bool:
        return self.violation <= 0


def poll_directions(normal: Tensor, halvings: Tensor, columns: Tensor | None = None) -> Tensor:
    """Moves of a poll of size 2^-halvings: normal "P n" (not zero), halvings "P" long >= 0 -> "P 2K n".

    The columns ("P K" long; all by default) of the reflection about `normal`, an orthonormal basis, scaled to the
    poll's size in l_inf and rounded to the mesh of size 4^-halvings, and their negatives. No move is zero.
    """
    n = normal.shape[1]
    q = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    if columns is None:
        columns = torch.arange(n, device=normal.device).expand(normal.shape[0], n)
    basis = torch.nn.functional.one_hot(columns, n).to(normal) - 2 * q.gather(1, columns).unsqueeze(2) * q.unsqueeze(1)
    poll = 0.5 ** halvings.to(normal).view(-1, 1, 1)
    mesh = poll.square()
    steps = (basis / basis.abs().amax(2, keepdim=True) * (poll / mesh)).round() * mesh
    return torch.cat([steps, -steps], 1)


def direct_search(blackbox: Blackbox, start: Tensor, lower: Tensor, upper: Tensor, *, evaluations: int = 10_000,
                  batch: int = 256, finest: int = FINEST, generator: torch.Generator | None = None,
                  deadline: Deadline | None = None) -> Found:
    """Minimise over the box [lower, upper] "*shape" from a point inside; features with lower == upper stay.

    batch: points evaluated together; the rest of a poll is left out once a batch holds a success. finest: halvings of
    the box's widths at which the mesh is fine enough.
    """
    if not (start.shape == lower.shape == upper.shape) or not bool(((lower <= start) & (start <= upper)).all()):
        raise ValueError(f"expected lower <= start <= upper of one shape, got {tuple(lower.shape)}, "
                         f"{tuple(start.shape)} and {tuple(upper.shape)}")
    if evaluations < 1 or batch < 1 or finest < 1:
        raise ValueError(f"evaluations, batch and finest must be >= 1, got {evaluations}, {batch} and {finest}")
    if not bool(torch.isfinite(upper - lower).all()):
        raise ValueError("the box must be bounded")
    search = _DirectSearch(blackbox, start, lower, upper, evaluations, batch)
    generator = generator or torch.Generator(start.device).manual_seed(0)
    deadline = deadline or Deadline.starting_now()
    halvings = FIRST
    while halvings <= finest and len(search.free) and search.left > 0 and not deadline.passed():
        normal = torch.randn(1, len(search.free), generator=generator, dtype=start.dtype, device=start.device)
        move = search.poll(poll_directions(normal, torch.tensor([halvings]))[0])
        halvings = halvings + 1 if move is None else max(0, halvings - 1)
        while move is not None:
            move = search.poll(2 * move.unsqueeze(0))
    return Found(search.x, *search.key, evaluations - search.left,
                 halvings > finest or not len(search.free))


class _DirectSearch:
    """The incumbent, and what is left of the evaluations."""

    def __init__(self, blackbox: Blackbox, start: Tensor, lower: Tensor, upper: Tensor, evaluations: int,
                 batch: int) -> None:
        self.blackbox, self.lower, self.upper, self.batch = blackbox, lower.flatten(), upper.flatten(), batch
        self.free = (self.lower < self.upper).nonzero().flatten()
        self.width = (self.upper - self.lower)[self.free]
        self.left, self.x = evaluations, start
        objective, violation = self._evaluated(start.unsqueeze(0))
        self.key = float(objective[0]), float(violation[0])

    def _evaluated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.left -= x.shape[0]
        objective, violation = self.blackbox(x)
        return objective.nan_to_num(nan=torch.inf), violation.nan_to_num(nan=torch.inf)

    def poll(self, moves: Tensor) -> Tensor | None:
        """Try moves "K n" in units of the widths; the one that became the incumbent."""
        base = self.x.flatten()
        for part in moves.split(self.batch):
            part = part[:max(0, self.left)]
            if not part.shape[0]:
                return None
            ends = torch.clamp(base[self.free] + part * self.width, self.lower[self.free], self.upper[self.free])
            points = base.expand(part.shape[0], -1).index_copy(1, self.free, ends).view(-1, *self.x.shape)
            objective, violation = self._evaluated(points)
            if self.key[1] > 0:
                best = int(violation.argmin())
                better = float(violation[best]) < self.key[1]
            else:
                best = int(objective.masked_fill(violation > 0, torch.inf).argmin())
                better = float(violation[best]) <= 0 and float(objective[best]) < self.key[0]
            if better:
                self.x, self.key = points[best], (float(objective[best]), float(violation[best]))
                return part[best]
        return None
