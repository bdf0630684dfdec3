"""Domains of the search as a struct of arrays, and the pool in which open ones wait.

A domain is a box, proved bounds of the neurons that relaxations read, and the splits that made them.
Axis legend: B domains, K branches of a region (padded), n flat inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from verifier.branch_and_bound.clip import clip

NO_CHOICE = -1
LOWER_SET, UPPER_SET, BOTH_SET = 1, -1, 2  # which of a neuron's bounds splits have set
ROUNDING_ULPS = 4  # so wide an interval may be nothing but a decimal number that is no float


def sets_lower(sides: Tensor) -> Tensor:
    """bool: neurons whose lower bound a split has set."""
    return (sides == LOWER_SET) | (sides == BOTH_SET)


def sets_upper(sides: Tensor) -> Tensor:
    """bool: neurons whose upper bound a split has set."""
    return (sides == UPPER_SET) | (sides == BOTH_SET)


def is_free(low: Tensor, high: Tensor) -> Tensor:
    """bool: inputs that move by more than rounding, which no split need narrow."""
    info = torch.finfo(low.dtype)
    return high - low > ROUNDING_ULPS * info.eps * torch.maximum(low.abs(), high.abs()) + info.tiny


@dataclass(frozen=True)
class Layout:
    """Where a split variable lies: the flat inputs first, then the neurons of `nodes`, one after the other."""

    inputs: int
    nodes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    total: int

    @staticmethod
    def of(graph: Graph) -> Layout:
        nodes = graph.relaxed_inputs
        shapes = tuple(tuple(graph.nodes[i].shape) for i in nodes)
        sizes = [torch.Size(s).numel() for s in shapes]
        inputs = torch.Size(graph.input_shape).numel()
        offsets = [inputs]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        return Layout(inputs, nodes, shapes, tuple(offsets[:-1]), offsets[-1])

    def flat(self, values: Mapping[int, Tensor], like: Tensor | None = None) -> Tensor:
        """Values of all neurons, "B *shape" by node -> "B neurons". like "B ..": needed where a network has none."""
        if not self.nodes and like is not None:
            return like.new_zeros(len(like), 0)
        return torch.cat([values[i].flatten(1) for i in self.nodes], 1)

    def split(self, flat: Tensor) -> dict[int, Tensor]:
        """The other way: "B neurons" -> "B *shape" by node (views)."""
        return {i: flat[:, o - self.inputs:o - self.inputs + torch.Size(s).numel()].view(-1, *s)
                for i, s, o in zip(self.nodes, self.shapes, self.offsets, strict=True)}


@dataclass(eq=False)
class Domains:
    """B domains. All tensors have the leading axis B; neurons are flat over all nodes of the layout.

    region "B"; open "B K": branches of the region not yet out of reach; lower "B": proved bound of the margin over
    the open branches; depth "B"; node "B": number in the tree; low, high "B n": the box; z_low, z_high "B neurons":
    proved bounds; sides "B neurons" int8: LOWER_SET, UPPER_SET or BOTH_SET, or 0 where no split did; slopes "B k":
    relaxation parameters to start from, flat over nodes; multipliers "B neurons"; choice "B", point "B": the next
    split (`Layout` index, or NO_CHOICE); in a child the last one; plane "B n+1" (or "B 0"): unsafe points x of the
    domain have `plane . (x, 1) <= 0` (zeros: nothing is known);
    fences "B 2 n+1" (or "B 2 0"): points of the lower and of the upper child of a neuron split have
    `fence . (x, 1) <= 0`;
    cuts "B 2 neurons" (or "B 2 0": nobody asks): where splits have set neurons' lower and upper bounds, however much
    these were tightened since (infinite: nowhere).
    """

    region: Tensor
    open: Tensor
    lower: Tensor
    depth: Tensor
    node: Tensor
    low: Tensor
    high: Tensor
    z_low: Tensor
    z_high: Tensor
    sides: Tensor
    slopes: Tensor
    multipliers: Tensor
    choice: Tensor
    point: Tensor
    plane: Tensor
    fences: Tensor
    cuts: Tensor

    def __len__(self) -> int:
        return len(self.region)

    def map(self, function: Callable[[Tensor], Tensor]) -> Domains:
        return Domains(**{name: function(value) for name, value in vars(self).items()})

    def take(self, chosen: Tensor) -> Domains:
        return self.map(lambda t: t[chosen])

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    def intervals(self, layout: Layout) -> dict[int, Interval]:
        low, high = layout.split(self.z_low), layout.split(self.z_high)
        return {i: Interval(low[i], high[i]) for i in layout.nodes}

    def children(self, layout: Layout) -> Domains:
        """Both halves of every domain, the upper halves after all lower ones: "2 B". Node numbers and choices are
        the parents'."""
        upper, lower = self.map(torch.clone), self.map(torch.clone)
        rows = torch.arange(len(self), device=self.region.device)
        on_input = self.choice < layout.inputs
        d, j, p = rows[on_input], self.choice[on_input], self.point[on_input]
        upper.low[d, j] = torch.maximum(upper.low[d, j], p)
        lower.high[d, j] = torch.minimum(lower.high[d, j], p)
        d, j, p = rows[~on_input], self.choice[~on_input] - layout.inputs, self.point[~on_input]
        upper.z_low[d, j] = torch.maximum(upper.z_low[d, j], p)
        lower.z_high[d, j] = torch.minimum(lower.z_high[d, j], p)
        if self.cuts.shape[2]:
            upper.cuts[d, 0, j] = torch.maximum(upper.cuts[d, 0, j], p)
            lower.cuts[d, 1, j] = torch.minimum(lower.cuts[d, 1, j], p)
        sides = self.sides[d, j]
        has_lower, has_upper = sets_lower(sides), sets_upper(sides)
        upper.sides[d, j] = torch.where(has_upper, BOTH_SET, LOWER_SET).to(sides)
        lower.sides[d, j] = torch.where(has_lower, BOTH_SET, UPPER_SET).to(sides)
        both = Domains(**{name: torch.cat([getattr(lower, name), getattr(upper, name)]) for name in vars(lower)})
        both.depth += 1
        if self.fences.shape[2]:
            fence = self.fences.transpose(0, 1).flatten(0, 1).unsqueeze(1)
            low, high = clip(both.low, both.high, fence[..., :-1], fence[..., -1])
            inside = (low <= high).all(1, keepdim=True)  # an empty child is left for bounds to show
            both.low, both.high = torch.where(inside, low, both.low), torch.where(inside, high, both.high)
            both.fences = torch.zeros_like(both.fences)
        return both


class Pool:
    """Open domains; those with the lowest bounds leave first. Storage grows by doubling and is reused.

    Above `budget` bytes the domains nearest to being closed leave first instead, which ends subtrees before new ones
    are begun; and what lies on a GPU moves to host memory.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._store: Domains | None = None
        self._count = 0
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        if self._store is None or not len(self._store):
            return 0
        return self._store.bytes * self._count // len(self._store)

    def push(self, new: Domains) -> None:
        if not len(new):
            return
        end = self._count + len(new)
        self._device = new.region.device
        if self._store is not None and self._device.type != "cpu" and self.bytes + new.bytes > self.budget:
            self._store = self._store.map(lambda t: t.cpu())
        if self._store is not None:
            home = self._store.region.device
            new = new.map(lambda t: t.to(home))
        if self._store is None:
            self._store, self._count = new, len(new)
            return
        if end > len(self._store):
            size = max(end, 2 * len(self._store))
            kept = self._count
            self._store = self._store.map(lambda t: torch.cat([t[:kept], t.new_empty(size - kept, *t.shape[1:])]))
        for name, value in vars(new).items():
            getattr(self._store, name)[self._count:end] = value
        self._count = end

    def lowest(self) -> float:
        """The lowest bound of all open domains (infinity where none is left)."""
        return float(self._live("lower").min()) if self._count else float("inf")

    def deepest(self) -> int:
        return int(self._live("depth").max()) if self._count else 0

    def all(self) -> Domains:
        """All open domains (views)."""
        assert self._store is not None
        return self._store.map(lambda t: t[:self._count])

    def _live(self, name: str) -> Tensor:
        assert self._store is not None
        value: Tensor = getattr(self._store, name)[:self._count]
        return value

    def pop(self, count: int) -> Domains:
        """The `count` domains with the lowest bounds (all, if there are fewer)."""
        assert self._store is not None
        device = self._device
        if count >= self._count:
            out = self._store.map(lambda t: t[:self._count].to(device))
            self._store, self._count = None, 0
            return out
        chosen = self._live("lower").topk(count, largest=self.bytes > self.budget).indices
        out = self._store.take(chosen).map(lambda t: t.to(device))
        # The holes are filled with the last domains, so that what is left stays together.
        left = self._count - count
        gone = torch.zeros(self._count, dtype=torch.bool, device=chosen.device)
        gone[chosen] = True
        holes = gone[:left].nonzero().squeeze(1)
        movers = (~gone[left:]).nonzero().squeeze(1) + left
        for value in vars(self._store).values():
            value[holes] = value[movers]
        self._count = left
        return out
