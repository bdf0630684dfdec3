"""Branch and bound over the neurons of a reduced graph, every domain bounded with tilted chords.

A domain is worth much more work here than in the search proper: its tilts start from the region's, and the neuron
whose lines lose most where the last plane is lowest is split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.graph.reduce import Reduced
from bounds.interval import Interval
from bounds.sets import InputSet
from bounds.tilted import Start, Tilted, TiltedBounds

BATCH = 8              # domains split together
ITERATIONS = 300
SHORTER = 0.3          # of the steps in which a region was climbed


@dataclass(frozen=True, eq=False)
class Leaves:
    """Open domains: bounds "D hidden" of all kept neurons, sides int8 "D hidden", lower "D" and gaps "D hidden"."""

    low: Tensor
    high: Tensor
    sides: Tensor
    lower: Tensor
    gaps: Tensor

    def take(self, chosen: Tensor) -> Leaves:
        return Leaves(*(t[chosen] for t in vars(self).values()))

    def plus(self, other: Leaves) -> Leaves:
        return Leaves(*(torch.cat([a, b]) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True, eq=False)
class TiltedTree:
    """One row `C "m" f(x) + D "n" x + offset` over one region: `decide` splits until it exceeds `target` everywhere.
    `offer` takes points "P n" and says whether one of them is a witness; `stop` ends the tree between batches."""

    method: Tilted
    reduced: Reduced
    box: InputSet
    intervals: dict[int, Interval]
    C: Tensor
    offset: Tensor
    D: Tensor | None
    target: Tensor
    offer: Callable[[Tensor], bool]
    stop: Callable[[], bool]

    def decide(self, root: TiltedBounds, start: Start) -> tuple[float, int]:
        """(proved lower bound, domains bounded); `root` and `start` are the row's, over the whole region."""
        method = replace(self.method, iterations=ITERATIONS, tilt_step=SHORTER * self.method.tilt_step,
                         slope_step=SHORTER * self.method.slope_step)
        layers = [self.intervals[layer.reduced] for layer in self.reduced.layers]
        low, high = torch.cat([x.lower for x in layers], 1), torch.cat([x.upper for x in layers], 1)
        leaves = Leaves(low, high, torch.zeros_like(low, dtype=torch.int8), root.lower, root.gaps)
        floor, domains = float("inf"), 0
        while len(leaves.lower) and not self.stop():
            order = leaves.lower.argsort()
            chosen, rest = leaves.take(order[:BATCH]), leaves.take(order[BATCH:])
            children = self._children(chosen)
            if children is None:
                break
            found = self._bound(method, children, start)
            domains += len(children.lower)
            lower = torch.fmax(found.lower, children.lower)  # a bound that is not a number adds nothing
            if self.offer(found.x):
                break
            children = replace(children, lower=lower, gaps=found.gaps)
            closed = lower > self.target
            floor = min(floor, float(lower[closed].min())) if bool(closed.any()) else floor
            leaves = rest.plus(children.take((~closed).nonzero().squeeze(1)))
        return min(floor, float(leaves.lower.min()) if len(leaves.lower) else floor), domains

    def _children(self, leaves: Leaves) -> Leaves | None:
        """Both halves of every domain; None where one has nothing left to split."""
        is_open = (leaves.low < 0) & (leaves.high > 0)
        if not bool(is_open.any(1).all()):
            return None
        at = torch.where(is_open, leaves.gaps.clamp(min=0), torch.full_like(leaves.gaps, -1.0)).argmax(1)
        rows = torch.arange(len(at), device=at.device)
        halves = []
        for side in (1, -1):
            low, high, sides = leaves.low.clone(), leaves.high.clone(), leaves.sides.clone()
            (low if side > 0 else high)[rows, at] = 0.0
            sides[rows, at] = side
            halves.append(replace(leaves, low=low, high=high, sides=sides))
        return halves[0].plus(halves[1])

    def _bound(self, method: Tilted, leaves: Leaves, start: Start) -> TiltedBounds:
        sizes = [len(layer.index) for layer in self.reduced.layers]
        intervals = {layer.reduced: Interval(low, high) for layer, low, high in zip(
            self.reduced.layers, leaves.low.split(sizes, 1), leaves.high.split(sizes, 1), strict=True)}
        count = len(leaves.lower)
        found = method.bound(self.reduced, self.box, intervals, self.C.expand(count, -1), self.offset.expand(count),
                             self.target.expand(count), None if self.D is None else self.D.expand(count, -1),
                             sides=leaves.sides.split(sizes, 1), start=start)
        assert found is not None, "the region itself was bounded"
        return found
