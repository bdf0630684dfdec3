"""Notes on how bounds were found, from which they can be computed again without searching or deciding anything.

Slopes of lines are what is noted. Where every elementwise operator is a ReLU they are multiples of 1/GRID (`GRID` a
power of two, so that they are exact); optimisers that keep notes stay on that grid, and what they evaluate is what is
noted. Other operators have tangent points or the like as parameters: of them the slopes of both lines are noted as
numbers, so that nobody else need know how the lines were found.

Intermediate bounds: `Journal.rows` says of every neuron which of its rows count, and how. A neuron that a row has
decided gets the interval that interval arithmetic gave, cut at the kink, and not what its rows happened to prove: rows
that stop early depend on who else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise

if TYPE_CHECKING:
    from bounds.backward import Backward

GRID, FINE_GRID = 128, 32768
# Intervals around zero that are narrower than this share of their layer's size have chords whose slope is all
# rounding: it is noted, as the intercept that goes with any slope is as sure as the interval.
NARROW = {torch.float64: 1e-6, torch.float32: 1e-2}
NO_ROW, LOWER_CUT, UPPER_CUT, BOTH_ROWS = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Noted:
    """Slopes of some groups or rows. index "C": which; slopes "C P" over all elementwise nodes in order
    (`slope_places`): on a grid (uint8 on GRID, int32 on FINE_GRID) multiples of 1/grid, NONE where the interval leaves
    no choice; else (grid 0) numbers, NaN where the row did not come by;
    multipliers "C *shape" by node, weights "C R" (or None: a row of its own)."""

    index: Tensor
    slopes: Tensor
    grid: int
    multipliers: dict[int, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    def at(self, place: Tensor) -> Noted:
        """With other indices: place[index]."""
        return Noted(place[self.index], self.slopes, self.grid, self.multipliers, self.weights)

    def take(self, chosen: Tensor) -> Noted:
        return Noted(self.index[chosen], self.slopes[chosen], self.grid,
                     {i: s[chosen] for i, s in self.multipliers.items()},
                     None if self.weights is None else self.weights[chosen])


NONE = 255  # above any multiple on GRID; on FINE_GRID -1


def slope_counts(graph: Graph) -> dict[int, int]:
    """How many slopes a neuron of each elementwise node has: the lower one where the upper line is the chord, else
    both."""
    return {i: 1 if n.op.reuses_lines else 2 for i, n in enumerate(graph.nodes) if isinstance(n.op, Elementwise)}


def keeps_grid(graph: Graph) -> bool:
    """Whether all slopes are multiples on a grid."""
    return all(count == 1 for count in slope_counts(graph).values())


def slope_places(graph: Graph) -> tuple[dict[int, int], int]:
    """(where each elementwise node's slopes start, each "K *shape" flat, how many there are in all)."""
    places, offset = {}, 0
    for i, count in sorted(slope_counts(graph).items()):
        places[i] = offset
        offset += count * math.prod(graph.nodes[i].shape)
    return places, offset


def snapped(p: Tensor, low: Tensor, high: Tensor, grid: int) -> Tensor:
    """The nearest multiples of 1/grid of the box: values `low + (high - low) q / grid`."""
    width = high - low
    share = (p - low) / torch.where(width > 0, width, torch.ones_like(width))
    return low + width * ((share * grid).round_() / grid)


def slopes_of(op: Elementwise, x: Interval, p: Tensor, low: Tensor, high: Tensor, grid: int) -> Tensor:
    """What is noted of parameters p "K N ..." in their box: on a grid multiples of it (uint8 or int32, where the box is
    a point NONE or -1), else the slopes of the lines over x "N ..."."""
    if grid == 0:
        if op.reuses_lines:
            return torch.where(low < high, p, torch.full_like(p, torch.nan))
        lines = op.relax_with(x, p)
        return torch.stack([s.expand(p.shape[1:]) for s in (lines.lower_slope, lines.upper_slope)])
    width = high - low
    free = width > 0
    q = ((p - low) / torch.where(free, width, torch.ones_like(width)) * grid).round_()
    if grid > NONE:
        return torch.where(free, q, torch.full_like(q, -1)).to(torch.int32)
    return torch.where(free, q, torch.full_like(q, NONE)).to(torch.uint8)


def noted_slopes(graph: Graph, parts: Mapping[int, Tensor], count: int, grid: int,
                 in_full: Callable[[int, Tensor], Tensor]) -> Tensor:
    """"C P": slopes "K C ..." by node, brought to all neurons by `in_full` ("K C *shape", `nothing(grid)`
    elsewhere)."""
    places, total = slope_places(graph)
    like = next(iter(parts.values()), None)
    if like is None:
        return torch.full((count, total), NONE, dtype=torch.uint8) if grid else torch.full((count, total), torch.nan)
    out = torch.full((count, total), nothing(grid), dtype=like.dtype, device=like.device)
    for i, q in parts.items():
        full = in_full(i, q).transpose(0, 1).flatten(1)
        out[:, places[i]:places[i] + full.shape[1]] = full
    return out


def nothing(grid: int) -> float:
    """What stands where no slope is noted."""
    return math.nan if grid == 0 else NONE if grid < NONE else -1


@dataclass(eq=False)
class Journal:
    """One refinement. By node, "B *shape": rows (uint8): NO_ROW; LOWER_CUT, UPPER_CUT: the row `+z` (`-z`) shows the
    sign, the lower (upper) end is cut at zero; BOTH_ROWS: both count in full. By elementwise node its default slopes
    "K B *shape" (lower, or lower and upper). polished: rows that were optimised besides (node, Noted whose `index` is
    unused, domain "C", neuron "C", sign "C"). narrow: (node, domain, neuron, slope of the chord) of narrow intervals
    around zero."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    slopes: dict[int, Tensor] = field(default_factory=dict)
    polished: list[tuple[int, Noted, Tensor, Tensor, Tensor]] = field(default_factory=list)
    narrow: list[tuple[int, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def note(self, node: int, before: Interval, after: Interval, was: Tensor, now: Tensor, threshold: float | None,
             ran: bool) -> Interval:
        """Note what became of the neurons of a node, `was` and `now` (bool "B *shape": undecided before and after its
        rows, if any `ran`); the interval that follows from the notes."""
        rows = torch.zeros_like(was, dtype=torch.uint8)
        if ran:
            rows = rows.masked_fill(was, BOTH_ROWS)
        if ran and threshold is not None:
            assert threshold == 0, "kinks lie at zero"
            decided = was & ~now
            up = after.lower >= 0
            rows = torch.where(decided, torch.where(up, LOWER_CUT, UPPER_CUT).to(rows), rows)
            low = torch.where(decided, torch.where(up, before.lower.clamp(min=0), before.lower), after.lower)
            high = torch.where(decided, torch.where(up, before.upper, before.upper.clamp(max=0)), after.upper)
            after = Interval(low, high)
        self.rows[node] = rows
        return after

    def enclosed(self, engine: Backward, node: int) -> None:
        """Note the default lines over the node's enclosure."""
        x = engine.intervals[node]
        for i in engine.graph.consumers[node]:
            op = engine.graph.nodes[i].op
            if not isinstance(op, Elementwise):
                continue
            lines = engine.lines(i).relaxation
            kept = (lines.lower_slope,) if op.reuses_lines else (lines.lower_slope, lines.upper_slope)
            self.slopes[i] = torch.stack([s.expand(x.lower.shape) for s in kept])
            if not op.reuses_lines:
                continue
            size = torch.maximum(x.lower.abs(), x.upper.abs())
            most = 1 + size.flatten(1).amax(1).view(-1, *(1,) * (size.dim() - 1))
            domain, neuron = (size < NARROW[size.dtype] * most).flatten(1).nonzero(as_tuple=True)
            if len(domain):
                self.narrow.append((i, domain, neuron,
                                    lines.upper_slope.expand(size.shape).flatten(1)[domain, neuron]))
