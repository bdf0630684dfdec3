"""Max-pools as chains of ReLUs, `max(a, b) = a + max(b - a, 0)`, for searches that split neurons.

A chain lets a search decide which input of a window is the largest, one comparison at a time, with everything that
ReLUs have: slopes, split multipliers, exact leaves. Each difference is a neuron of its own, whose bounds see that
neighbouring inputs move together. What is known of the pool's inputs says which of them can be the largest of their
window at all: only those enter, the likeliest first. (On a convolution with 4 x 4 windows, root bounds of trees over
all inputs were far looser than the pool's own lines.)

An increasing elementwise operator that only a pool reads changes places with it, `max(f(a), f(b)) = f(max(a, b))`,
which leaves one neuron a window.

Left out: pools so large that bounding their differences would cost more than it gains (`MOST_COEFFICIENTS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph.graph import Graph, Node
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.base import Elementwise, Operator, Shape
from bounds.ops.gather import Gather
from bounds.ops.max_pool import MaxPool
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape

MOST_COEFFICIENTS = 1 << 29  # of all rows of a chain at the pool's inputs; a second or two


@dataclass(frozen=True, eq=False)
class Expanded:
    """`graph` computes the same function wherever the intervals hold that it was made from; `known`: enclosures of its
    nodes, "U *shape"."""

    graph: Graph
    known: dict[int, Interval]


def expand_max(graph: Graph, intervals: Mapping[int, Interval]) -> Expanded | None:
    """The graph with chains for those max-pools whose inputs have proved `intervals` "U *shape"; None where there are
    none."""
    writing = _Rewriting(graph, intervals)
    for i in range(1, graph.output + 1):
        writing.rewrite(i)
    if not writing.chains:
        return None
    place = writing.place
    errors = {place[i]: e for i, e in graph.fold_errors.items() if i in place}
    new = dataclasses.replace(graph, nodes=tuple(writing.nodes), output=place[graph.output], fold_errors=errors)
    known = {place[i]: x for i, x in intervals.items() if i in place}
    return Expanded(new, {**known, **writing.known})


class _Rewriting:
    def __init__(self, graph: Graph, intervals: Mapping[int, Interval]) -> None:
        self.graph, self.intervals = graph, intervals
        self.nodes: list[Node] = [graph.nodes[0]]
        self.place: dict[int, int] = {0: 0}
        self.known: dict[int, Interval] = {}
        self.chains = 0

    def add(self, name: str, op: Operator, inputs: tuple[int, ...], shape: Shape) -> int:
        self.nodes.append(Node(name, op, inputs, shape))
        return len(self.nodes) - 1

    def rewrite(self, i: int) -> None:
        node, graph = self.graph.nodes[i], self.graph
        if self._changes_places(i):
            return
        if isinstance(node.op, MaxPool):
            (source,) = node.inputs
            if source not in self.place:  # an elementwise operator that waits to be applied to the maxima
                before = graph.nodes[source]
                self.place[i] = self.add(node.name, before.op, (self._chain(i, before.inputs[0]),), node.shape)
                return
            if self._is_worth_a_chain(i, source):
                self.place[i] = self._chain(i, source)
                return
        self.place[i] = self.add(node.name, node.op, tuple(self.place[j] for j in node.inputs), node.shape)

    def _changes_places(self, i: int) -> bool:
        node, readers = self.graph.nodes[i], self.graph.consumers[i]
        if len(readers) != 1 or i == self.graph.output or not isinstance(self.graph.nodes[readers[0]].op, MaxPool):
            return False
        # Parameters that differ between neurons would have to move with the maximum.
        same = not any(isinstance(getattr(node.op, f.name), Tensor) for f in dataclasses.fields(node.op))
        return isinstance(node.op, Elementwise) and node.op.increasing and same \
            and self._is_worth_a_chain(readers[0], node.inputs[0])

    def _is_worth_a_chain(self, pool: int, source: int) -> bool:
        op = self.graph.nodes[pool].op
        assert isinstance(op, MaxPool)
        if source not in self.intervals:
            return False
        index, _ = candidates(op, self.intervals[source])
        steps = index.shape[1] * (index.shape[1] - 1) // 2
        return 2 * steps * index.shape[0] * self.intervals[source].lower[0].numel() <= MOST_COEFFICIENTS

    def _chain(self, i: int, source: int) -> int:
        """The maxima of pool i over the old node `source`."""
        node, x = self.graph.nodes[i], self.intervals[source]
        assert isinstance(node.op, MaxPool)
        self.chains += 1
        index, count = candidates(node.op, x)
        values = x.map(lambda t: t.flatten(1)[:, index])  # "U M K"
        flat = (x.lower[0].numel(),)
        start = self.add(f"{node.name}/flat", Reshape(flat), (self.place[source],), flat)
        shape, total = tuple(count.shape), 0
        least, most = values.lower[..., 0], values.upper[..., 0]
        for k in range(index.shape[1]):
            picked = self.add(f"{node.name}/candidate_{k}", Gather(0, index[:, k].contiguous()), (start,), shape)
            if not k:
                total = picked
                continue
            low, high = values.lower[..., k], values.upper[..., k]
            rise = self.add(f"{node.name}/rise_{k}", Add(-1), (picked, total), shape)
            # A repeated candidate is no larger than the maximum so far.
            repeated = count <= k
            above = torch.where(repeated, torch.zeros_like(high), high - least)
            self.known[rise] = Interval(low - most, above).uncrossed()
            step = self.add(f"{node.name}/step_{k}", Relu(), (rise,), shape)
            total = self.add(f"{node.name}/largest_{k}", Add(), (total, step), shape)
            least, most = torch.maximum(least, low), torch.maximum(most, high)
            self.known[total] = Interval(least, most)
        return self.add(f"{node.name}/maxima", Reshape(node.shape), (total,), node.shape)


def candidates(op: MaxPool, x: Interval) -> tuple[Tensor, Tensor]:
    """(flat positions "M K" of the inputs that can be the largest of each of the M windows in some domain, the
    likeliest first; how many they are, "M": from there on the first one is repeated); x "U C *map"."""
    windows = op.windows(x.lower)  # "P W"
    outside = windows < 0
    place = windows.clamp(min=0)
    lower, upper = (t.flatten(2)[:, :, place].masked_fill(outside, -torch.inf) for t in (x.lower, x.upper))
    possible = ((upper >= lower.amax(-1, keepdim=True)) & ~outside).any(0)  # "C P W"
    likely = (lower + upper).amax(0).masked_fill(~possible, -torch.inf)
    order = likely.argsort(dim=-1, descending=True, stable=True)
    count = possible.sum(-1)
    order = order[..., :int(count.max())]
    positions = place.expand(*likely.shape).gather(-1, order)
    positions = positions + torch.arange(likely.shape[0], device=place.device).view(-1, 1, 1) * x.lower[0, 0].numel()
    kept = torch.arange(order.shape[-1], device=place.device) < count.unsqueeze(-1)
    positions = torch.where(kept, positions, positions[..., :1])
    return positions.flatten(0, 1), count.flatten()
