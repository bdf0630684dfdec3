"""Square Attack (arXiv:1912.00049): random search whose every proposal repaints one square of the image; scores only.

In l_inf a window gets, channel by channel, one end of the room. In l_2 a window takes the energy of a second window,
which is put back to the original, and what the clip range left unused, in the shape of two opposite bumps added to what
was there before. Windows shrink by the paper's schedule, stretched to the number of queries.

Shapes "C H W" are images; all others are read as one line of features, whose squares are segments. A proposal that
would repaint what is already there takes the opposite signs instead: else queries would be lost, of one channel half.
Left out: the cross-entropy that the authors use against targets; here the criterion's margin decides throughout.

Axis legend: B examples of the batch still open, C channels, H W height and width, h w those of the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.model import Gives
from verifier.attacks.run import Run

# The share of pixels is halved when this share of the queries is used up (section 3 of the paper, of 10,000).
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
LEAST_BUMP = 3       # side of the smallest window in l_2, which needs two halves of its own
TILES = 5            # of the start in l_2, along each side
INSIDE = 1 - 2**-20  # of eps in l_2: rounding must not carry a point out of its ball
CHUNK = 50           # iterations whose random numbers are drawn at once: far fewer calls


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """steps: queries of one restart, the start included. p_init: share of the pixels in the first windows."""

    name: ClassVar[str] = "square"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0)
    needs: ClassVar[Gives] = Gives.SCORES

    steps: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must lie in (0, 1], got {self.p_init}")

    def propose(self, run: Run) -> None:
        # The limit of the whole run, not what is left: each example's windows must not depend on the rest of its batch.
        steps = self.steps if run.queries is None else max(1, min(self.steps, run.queries - 1))
        canvas = Canvas(run)
        for _ in range(self.restarts):
            i = run.open_examples()
            if not i.numel():
                return
            self._search(run, canvas, i, steps)

    def _search(self, run: Run, canvas: Canvas, i: Tensor, steps: int) -> None:
        inf = run.room.norm == math.inf
        start = run.evaluate(canvas.stripes(i) if inf else canvas.tiles(i), i)
        x, best = start.x, start.margin
        draws = x.new_zeros(i.numel())
        for step in range(steps - 1):
            open_ = ~run.closed[i]
            if not bool(open_.all()):
                i, x, best, draws = i[open_], x[open_], best[open_], draws[open_]
            if not i.numel() or run.deadline.passed():
                return
            if step % CHUNK == 0:
                draws = run.draws.uniform(i, (CHUNK, canvas.numbers), x.dtype)
                run.open_examples()  # tells how far it is
            h, w = canvas.window(self._share(step / steps), inf)
            u = draws[:, step % CHUNK]
            if inf:
                # Only the window is touched: it is painted in place and put back where that was no gain.
                at = canvas.cells(u[:, 0], u[:, 1], h, w)
                before, after = canvas.repainted(x, i, at, u[:, 4:])
                x.view(-1)[at] = after
                margin = run.evaluate(x, i).margin
                better = margin < best
                x.view(-1)[at] = torch.where(better.view(-1, 1, 1, 1), after, before)
            else:
                points = run.evaluate(canvas.exchanged(x, i, h, w, u), i)
                margin = points.margin
                better = margin < best
                x = torch.where(run.room.per_example(better), points.x, x)
            best = torch.where(better, margin, best)

    def _share(self, used: float) -> float:
        """Share of the pixels that a window covers once this share of the queries is used."""
        return self.p_init / 2.0 ** sum(used > h for h in HALVINGS)


class Canvas:
    """Where squares lie: a run's points as images "B C H W"."""

    def __init__(self, run: Run) -> None:
        shape = run.room.shape
        image = len(shape) == 3 and min(shape[1:]) > 1
        self.run = run
        self.channels, self.height, self.width = shape if image else (1, 1, math.prod(shape))
        self.numbers = 5 + self.channels  # uniform numbers an iteration: two windows, a turn, a sign for each channel

    def image(self, t: Tensor) -> Tensor:
        return t.reshape(-1, self.channels, self.height, self.width)

    def window(self, share: float, inf: bool) -> tuple[int, int]:
        """Height and width of the window with a share of the pixels; odd in l_2, as in the paper."""
        least = 1 if inf else LEAST_BUMP
        if self.height == 1:
            return 1, min(self.width, max(least, round(share * self.width)))
        side = max(least, round(math.sqrt(share * self.height * self.width)))
        side = min(side if inf else side | 1, self.height, self.width)
        return side, side

    def cells(self, u: Tensor, v: Tensor, h: int, w: int) -> Tensor:
        """Flat places, in all open examples' images, of windows at u, v in (0, 1): long "B C h w"."""
        where = u.device
        top = (u * (self.height - h + 1)).long().clamp(max=self.height - h)
        left = (v * (self.width - w + 1)).long().clamp(max=self.width - w)
        first = top * self.width + left + torch.arange(u.numel(), device=where) * (
            self.channels * self.height * self.width)
        inside = (torch.arange(h, device=where) * self.width).unsqueeze(1) + torch.arange(w, device=where)
        planes = torch.arange(self.channels, device=where) * (self.height * self.width)
        return first.view(-1, 1, 1, 1) + planes.view(1, -1, 1, 1) + inside

    # ------------------------------------------------------------------ l_inf

    def stripes(self, i: Tensor) -> Tensor:
        """Every column of every channel at one end of the room, at random."""
        room = self.run.room
        up = self.run.draws.sign(i, (self.channels, 1, self.width), room.x0.dtype) > 0
        ends = torch.where(up, self.image(room.upper[i]), self.image(room.lower[i]))
        return ends.view(-1, *room.shape)

    def repainted(self, x: Tensor, i: Tensor, at: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A window as it is and as proposed, "B C h w": each channel at one end of the room; u "B C+"."""
        room, size = self.run.room, self.channels * self.height * self.width
        there = at + ((i - torch.arange(i.numel(), device=i.device)) * size).view(-1, 1, 1, 1)
        low, high = room.lower.view(-1)[there], room.upper.view(-1)[there]
        before = x.view(-1)[at]
        up = (u[:, : self.channels] < 0.5).view(-1, self.channels, 1, 1)
        after = torch.where(up, high, low)
        same = (after == before).flatten(1).all(1).view(-1, 1, 1, 1)
        return before, torch.where(same, torch.where(up, low, high), after)

    # ------------------------------------------------------------------ l_2

    def tiles(self, i: Tensor) -> Tensor:
        """A grid of bumps, each with signs of its own for every channel, scaled to the radius."""
        room, dtype = self.run.room, self.run.x0.dtype
        h, w = max(1, self.height // TILES), max(1, self.width // TILES)
        bump = bumps(h, w).to(room.x0)
        down, across = min(TILES, self.height // h), min(TILES, self.width // w)
        sign = self.run.draws.sign(i, (self.channels, down, across), dtype)
        move = torch.zeros_like(self.image(room.x0[i]))
        top, left = (self.height - h * down) // 2, (self.width - w * across) // 2
        grid = torch.einsum("bcij,hw->bcihjw", sign, bump).reshape(-1, self.channels, down * h, across * w)
        move[..., top : top + down * h, left : left + across * w] = grid
        return self.scaled(move, i)

    def exchanged(self, x: Tensor, i: Tensor, h: int, w: int, u: Tensor) -> Tensor:
        """Algorithm 3 of the paper: the second window's energy, and the unused, go to the first; u "B 5+C"."""
        room = self.run.room
        move = (x - room.x0[i]).contiguous()
        flat = move.view(-1)
        unused = (room.eps**2 - move.flatten(1).square().sum(1)).clamp(min=0) / self.channels
        first, second = self.cells(u[:, 0], u[:, 1], h, w), self.cells(u[:, 2], u[:, 3], h, w)
        old = flat[first]
        energy = old.square().sum((2, 3))
        flat[first] = 0.0
        energy += flat[second].square().sum((2, 3)) + unused.unsqueeze(1)  # the cells of both windows count once
        flat[second] = 0.0
        bump = bumps(h, w).to(x)
        if h == w:
            bump = torch.where((u[:, -1] < 0.5).view(-1, 1, 1, 1), bump.T, bump)
        sign = 1 - 2 * (u[:, 4 : 4 + self.channels] < 0.5).to(x).view(-1, self.channels, 1, 1)
        new = bump * sign + old / length(old)
        flat[first] = new / length(new) * energy.sqrt().view(-1, self.channels, 1, 1)
        return self.scaled(move, i)

    def scaled(self, move: Tensor, i: Tensor) -> Tensor:
        """The originals moved in a direction "B ..", on features that may move, by the radius."""
        room = self.run.room
        move = move.reshape(-1, *room.shape) * room.free[i]
        far = move.flatten(1).square().sum(1).sqrt().clamp(min=torch.finfo(move.dtype).tiny)
        return room.x0[i] + move * room.per_example(room.eps * INSIDE / far)


def length(t: Tensor) -> Tensor:
    """The l_2 norm of each channel's window: "B C h w" -> "B C 1 1", never zero."""
    return t.square().sum((2, 3), keepdim=True).sqrt().clamp(min=torch.finfo(t.dtype).tiny)


@cache
def bumps(h: int, w: int) -> Tensor:
    """Two bumps of opposite signs side by side, of length one: "h w" (equation 2 of the paper)."""
    if h == 1:
        half = torch.cat([_bump(1, w // 2), -_bump(1, w - w // 2)], 1) if w > 1 else torch.ones(1, 1)
    else:
        half = torch.cat([_bump(h // 2, w), -_bump(h - h // 2, w)], 0)
    return half / half.norm()


def _bump(h: int, w: int) -> Tensor:
    """Highest in the middle: ring k around it has the height 1 / (k+1)^2 + 1 / (k+2)^2 + .. + 1 / rings^2, then scaled
    to length one."""
    rows, columns = (torch.arange(h) - h // 2).abs(), (torch.arange(w) - w // 2).abs()
    ring = torch.maximum(rows.unsqueeze(1), columns)
    rings = max(h // 2, w // 2) + 1
    heights = (1.0 / torch.arange(1, rings + 1).square()).flip(0).cumsum(0).flip(0)
    bump = heights[ring]
    return bump / bump.norm()
