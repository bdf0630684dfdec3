"""Notes on how bounds were found, from which they can be computed again without searching or deciding anything.

Parameters of relaxations are kept as multiples of 1/GRID of their box (`GRID` powers of two, so that slopes between 0
and 1 are exact); optimisers that keep notes stay on that grid, and what they evaluate is what is noted.

Intermediate bounds: `Journal.codes` says of every neuron what became of it in one refinement. A neuron that rows have
decided gets the interval that interval arithmetic gave, cut at the kink, and not what its rows happened to prove:
rows that stop early depend on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise

GRID, FINE_GRID = 128, 32768
# Undecided neurons whose intervals are narrower than this share of their layer's size have chords whose slope is all
# rounding: their ends are moved out by the second share, and noted.
NARROW = {torch.float64: (1e-6, 1e-12), torch.float32: (1e-3, 1e-5)}
DECIDED_BEFORE, LOW_LINE, HIGH_LINE, DECIDED_BY_ROWS = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Noted:
    """Parameters of some groups or rows. index "C": which; slopes "C P" (uint8 on GRID, int32 on FINE_GRID):
    multiples of 1/grid of each parameter's box, over all elementwise nodes in order, each "K *shape" flat, NONE where
    the box is a
    point; multipliers "C *shape" by node, weights "C R" (or None: a row of its own)."""

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


def slope_places(graph: Graph, kinds: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """(where each elementwise node's parameters start, how many there are in all)."""
    places, offset = {}, 0
    for i, count in sorted(kinds.items()):
        places[i] = offset
        offset += count * torch.Size(graph.nodes[i].shape).numel()
    return places, offset


def snapped(p: Tensor, low: Tensor, high: Tensor, grid: int) -> Tensor:
    """The nearest multiples of 1/grid of the box: values `low + (high - low) q / grid`."""
    width = high - low
    share = (p - low) / torch.where(width > 0, width, torch.ones_like(width))
    return low + width * ((share * grid).round_() / grid)


def multiples(p: Tensor, low: Tensor, high: Tensor, grid: int) -> Tensor:
    """The q of `snapped`, uint8 or int32; where the box is a point NONE (-1 on a fine grid)."""
    width = high - low
    free = width > 0
    q = ((p - low) / torch.where(free, width, torch.ones_like(width)) * grid).round_()
    if grid > NONE:
        return torch.where(free, q, torch.full_like(q, -1)).to(torch.int32)
    return torch.where(free, q, torch.full_like(q, NONE)).to(torch.uint8)


def noted_slopes(graph: Graph, parts: Mapping[int, Tensor], count: int, grid: int,
                 in_full: Callable[[int, Tensor], Tensor]) -> Tensor:
    """"C P": multiples "K C ..." by node, brought to all neurons by `in_full` ("K C *shape", NONE elsewhere)."""
    places, total = slope_places(graph, graph.parameter_kinds)
    like = next(iter(parts.values()), None)
    if like is None:
        return torch.full((count, total), NONE, dtype=torch.uint8)
    out = torch.full((count, total), NONE if grid <= NONE else -1, dtype=like.dtype, device=like.device)
    for i, q in parts.items():
        full = in_full(i, q).transpose(0, 1).flatten(1)
        out[:, places[i]:places[i] + full.shape[1]] = full
    return out


@dataclass(eq=False)
class Journal:
    """One refinement: codes "B *shape" (uint8) by node, and the rows that were optimised besides (node, Noted whose
    `index` is unused, domain "C", neuron "C", sign "C")."""

    codes: dict[int, Tensor] = field(default_factory=dict)
    polished: list[tuple[int, Noted, Tensor, Tensor, Tensor]] = field(default_factory=list)
    narrow: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def widened(self, node: int, x: Interval, undecided: Tensor) -> Interval:
        """x with the ends of narrow undecided neurons moved out; (node, domain, neuron, lower, upper) are noted."""
        lower, upper = x.lower.flatten(1), x.upper.flatten(1)
        width, out = NARROW[lower.dtype]
        ends = 1 + torch.maximum(lower.abs(), upper.abs()).amax(1, keepdim=True)
        domain, neuron = (undecided.flatten(1) & (upper - lower < width * ends)).nonzero(as_tuple=True)
        if not len(domain):
            return x
        at, move = (domain, neuron), out * ends[domain, 0]
        low, high = lower[at] - move, upper[at] + move
        self.narrow.append((node, domain, neuron, low, high))
        return Interval(lower.index_put(at, low).view_as(x.lower), upper.index_put(at, high).view_as(x.upper))

    def note(self, graph: Graph, node: int, before: Interval, after: Interval, was: Tensor, now: Tensor,
             threshold: float | None) -> Interval:
        """Note what became of the neurons of a node, `was` and `now` (bool "B *shape": undecided before and after its
        rows ran); the interval that follows from the notes."""
        decided = was & ~now
        if threshold is not None:
            assert threshold == 0, "kinks lie at zero"
            up = after.lower >= 0
            low = torch.where(decided, torch.where(up, before.lower.clamp(min=0), before.lower), after.lower)
            high = torch.where(decided, torch.where(up, before.upper, before.upper.clamp(max=0)), after.upper)
            after = Interval(low, high)
        codes = now.to(torch.uint8)
        for reader in graph.consumers[node]:
            op = graph.nodes[reader].op
            if isinstance(op, Elementwise) and op.only_kink is not None:
                found = op.parameters(after)
                if found is not None:
                    codes = codes + (now & (found[0][0] == found[2][0]) & (found[1][0] < found[2][0])).to(torch.uint8)
                break
        self.codes[node] = codes.masked_fill(decided, DECIDED_BY_ROWS)
        return after
