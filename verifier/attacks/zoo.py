"""ZOO (arXiv:1708.03999): the penalty of Carlini and Wagner, minimised coordinate by coordinate from scores; l_2.

||x - x0||^2 + c max(margin, 0), where the margin's slope comes from central differences at random coordinates, each
with an Adam of its own, and c from a binary search. The distance's own slope is known and costs no queries, and beyond
the boundary nothing else is left: there all coordinates move at once, for one query.

Left out: the paper's shrunken attack space, its hierarchy and importance sampling, which are for large images; its
Newton variant, which it finds no better; the change of variables, for which points are moved into the clip range.

Axis legend: P examples, K coordinates of a step, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.estimate import coordinate_slopes
from verifier.attacks.model import Gives
from verifier.attacks.run import Run

FADING, FADING_SQUARES, NO_DIVISION_BY_ZERO = 0.9, 0.999, 1e-8  # Adam, as in the paper
LEAST_STEP = 0.01  # share of the step that is left at the end, by a cosine
FACTOR = 10.0  # between values of c while one end of it is not known; then their geometric mean comes next


@dataclass(frozen=True, kw_only=True)
class Zoo(Attack):
    """steps: of each search. coordinates: differences of one step, two queries each. searches: values of c. constant:
    the first. step_size (of Adam, at first), width (of the differences): in input units."""

    name: ClassVar[str] = "zoo"
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    needs: ClassVar[Gives] = Gives.SCORES
    minimum_norm: ClassVar[bool] = True
    points: ClassVar[int] = 64

    steps: int = 100
    coordinates: int = 64
    searches: int = 4
    constant: float = 3.0
    step_size: float = 0.2
    width: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.coordinates < 1 or self.searches < 1:
            raise ValueError(f"steps, coordinates and searches must be >= 1, got {self.steps}, {self.coordinates}, "
                             f"{self.searches}")
        if not (self.constant > 0 and self.step_size > 0 and self.width > 0):
            raise ValueError(f"constant, step_size and width must be > 0, got {self.constant}, {self.step_size}, "
                             f"{self.width}")

    def propose(self, run: Run) -> None:
        count = run.batch
        c = torch.full((count,), self.constant, dtype=run.x0.dtype, device=run.x0.device)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            i = run.open_examples()
            if not i.numel():
                return
            fell = self._minimised(run, i, c)
            high[i] = torch.where(fell, torch.minimum(high[i], c[i]), high[i])
            low[i] = torch.where(fell, low[i], torch.maximum(low[i], c[i]))
            within = torch.where(low[i] > 0, (low[i] * high[i]).sqrt(), high[i] / FACTOR)
            c[i] = torch.where(torch.isinf(high[i]), low[i] * FACTOR, within)

    def _minimised(self, run: Run, i: Tensor, c: Tensor) -> Tensor:
        """One minimisation for each of the examples i, with c "B": whether it met the criterion, bool as i."""
        fell = torch.zeros(run.batch, dtype=torch.bool, device=i.device)
        adam = CoordinateAdam(run.x0[i].flatten(1))
        everyone = i
        # What fell before goes on from its best point, which is the original elsewhere.
        seen = run.evaluate(run.x[i], i)
        for step in range(self.steps):
            x, margin = seen.x, seen.margin
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x, margin = i[open_], x[open_], margin[open_]
                adam.keep(open_)
            if not i.numel() or run.deadline.passed():
                break
            pull = 2 * (x - run.x0[i]).flatten(1)
            at, known = self._coordinates(run, i), margin < 0
            slope = torch.zeros_like(pull)
            near = (~known).nonzero().flatten()
            if near.numel():
                found = self._differences(run, x[near], i[near], at[near])
                slope[near] = slope[near].scatter(1, at[near], c[i[near]].unsqueeze(1) * found)
            touched = torch.zeros_like(slope, dtype=torch.bool).scatter(1, at, True) | known.unsqueeze(1)
            left = LEAST_STEP + (1 - LEAST_STEP) * (1 + math.cos(math.pi * step / self.steps)) / 2
            # With a success at hand no step is longer than its distance: where that is small, Adam's would be.
            size = (run.key[i] / at.shape[1] ** 0.5).clamp(max=self.step_size).to(x) * left
            x = x + (size.unsqueeze(1) * adam.step(slope + pull, touched)).view_as(x)
            seen = run.evaluate(x, i)
            fell[i[seen.met]] = True
            run.open_examples()  # tells how far it is
        return fell[everyone]

    def _coordinates(self, run: Run, i: Tensor) -> Tensor:
        """Distinct random features of each example, those that may move first: long "P K"."""
        free = run.room.free[i].flatten(1)
        order = run.draws.uniform(i, (free.shape[1],), run.x0.dtype) + free
        return order.topk(min(self.coordinates, int(free.sum(1).max())), dim=1).indices

    def _differences(self, run: Run, x: Tensor, i: Tensor, at: Tensor) -> Tensor:
        """d margin / d x at coordinates "P K", over the move that the room allows; zero where there is none."""
        def margins(points: Tensor) -> tuple[Tensor, Tensor]:
            who = i.repeat_interleave(points.shape[1])
            seen = run.evaluate(points.view(-1, *run.room.shape), who)
            return seen.margin.view(i.numel(), -1), seen.x.flatten(1).view_as(points)
        return coordinate_slopes(margins, x.flatten(1), at, self.width)


class CoordinateAdam:
    """Adam with a clock for every coordinate: those that are not touched keep their averages. All "P F"."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.squares, self.clock = torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like)

    def step(self, slope: Tensor, touched: Tensor) -> Tensor:
        self.clock = self.clock + touched
        self.mean = torch.where(touched, FADING * self.mean + (1 - FADING) * slope, self.mean)
        squares = FADING_SQUARES * self.squares + (1 - FADING_SQUARES) * slope.square()
        self.squares = torch.where(touched, squares, self.squares)
        clock = self.clock.clamp(min=1)
        mean, squares = self.mean / (1 - FADING**clock), self.squares / (1 - FADING_SQUARES**clock)
        return torch.where(touched, -mean / (squares.sqrt() + NO_DIVISION_BY_ZERO), 0.0)

    def keep(self, open_: Tensor) -> None:
        self.mean, self.squares, self.clock = self.mean[open_], self.squares[open_], self.clock[open_]
