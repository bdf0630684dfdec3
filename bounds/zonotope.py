"""DeepZ: zonotopes pushed forward through the network (Singh et al., NeurIPS 2018).

A node's value is enclosed by `centre + sum_k e_k generators[k]` with noise symbols e_k in [-1, 1] that all
nodes share, so that branches which meet again stay correlated. Affine operators act on centre and generators
exactly; an elementwise operator is replaced by two parallel lines, whose gap becomes one new symbol a
neuron, for undecided neurons only (a column that any domain of the batch needs is kept for all). Operators
without parallel bounds fall back to their interval.

Differences from the paper: every node's interval is met with interval arithmetic on the met intervals of
the nodes before it (so the bounds are never looser than `ibp`), and S-shaped operators use better slopes (see
`bounds.ops.s_shape`). Inputs are boxes, balls enter as bounding boxes; fixed inputs carry no symbol.
Memory grows with (symbols x neurons): it is estimated beforehand from interval bounds, domains are taken in
groups that fit, and a network that does not fit for one domain is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bounds.bounds import Bounds, LinearRows
from bounds.final import owner_of
from bounds.graph.graph import Graph, Node
from bounds.ibp import propagate, rows_over
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise
from bounds.ops.parallel import ParallelBounds
from bounds.sets import InputSet

MEMORY_BYTES = 4 * 2**30


class ZonotopeTooLarge(MemoryError):
    """One domain's generators do not fit the memory budget."""


@dataclass(frozen=True, eq=False)
class Zonotope:
    """centre "B *shape", generators "B K *shape" for the first K symbols (those beyond are zero)."""

    centre: Tensor
    generators: Tensor

    @property
    def symbols(self) -> int:
        return self.generators.shape[1]

    def interval(self) -> Interval:
        radius = torch.linalg.vector_norm(self.generators, 1, dim=1)
        return Interval(self.centre - radius, self.centre + radius)

    def padded(self, symbols: int) -> Tensor:
        """Generators "B symbols *shape", with zeros for the symbols this node does not know."""
        missing = symbols - self.symbols
        if not missing:
            return self.generators
        zeros = self.generators.new_zeros(self.centre.shape[0], missing, *self.centre.shape[1:])
        return torch.cat((self.generators, zeros), 1)

    def with_noise(self, noise: Tensor, symbols: int) -> Zonotope:
        """Add `noise` "B *shape" (>= 0) as new symbols after the first `symbols`, one for each neuron that needs it."""
        columns = noise.flatten(1).any(0).nonzero().squeeze(1)
        if columns.numel() == 0:
            return self
        batch, shape = self.centre.shape[0], self.centre.shape[1:]
        generators = self.generators.new_zeros(batch, symbols + columns.numel(), shape.numel())
        generators[:, :self.symbols] = self.generators.flatten(2)
        new = symbols + torch.arange(columns.numel(), device=columns.device)
        generators[:, new, columns] = noise.flatten(1)[:, columns]
        return Zonotope(self.centre, generators.view(batch, -1, *shape))


def _of_box(box: Interval) -> Zonotope:
    """A symbol for each input that any domain lets move."""
    centre = box.centre
    radius = torch.maximum(centre - box.lower, box.upper - centre)  # covers both ends although the centre is rounded
    start = Zonotope(centre, centre.new_zeros(centre.shape[0], 0, *centre.shape[1:]))
    return start.with_noise(radius, 0)


def through_parallel(node: Node, inputs: tuple[Interval, ...], z: tuple[Zonotope, ...]) -> tuple[Zonotope, Tensor]:
    """A non-affine operator: its linear part applied to the zonotope, and the noise "B *shape" that remains."""
    op = node.op
    if isinstance(op, Elementwise):
        lines = op.relax_parallel(inputs[0])
        zero = torch.zeros_like(lines.upper_slope)
        low = zero if lines.lower_intercept is None else lines.lower_intercept
        high = zero if lines.upper_intercept is None else lines.upper_intercept
        slope = lines.upper_slope
        centre = slope * z[0].centre + (low + high) / 2
        return Zonotope(centre, z[0].generators * slope.unsqueeze(1)), (high - low).clamp(min=0) / 2
    if isinstance(op, ParallelBounds):
        linear, low, high = op.parallel_bounds(*inputs)
        centre = linear(z[0].centre.unsqueeze(1)).squeeze(1) + (low + high) / 2
        return Zonotope(centre, linear(z[0].generators)), (high - low).clamp(min=0) / 2
    box = op.interval(*inputs)
    centre = box.centre
    none = centre.new_zeros(centre.shape[0], 0, *centre.shape[1:])
    return Zonotope(centre, none), torch.maximum(centre - box.lower, box.upper - centre)


def through_affine(op: Affine, z: tuple[Zonotope, ...]) -> Zonotope:
    """Exact: generators are folded into the batch axis and pushed through the linear part."""
    symbols = max(one.symbols for one in z)
    centre = op.forward(*(one.centre for one in z))
    if not symbols:
        return Zonotope(centre, centre.new_zeros(centre.shape[0], 0, *centre.shape[1:]))
    generators = op.linear(*(one.padded(symbols).flatten(0, 1) for one in z))
    return Zonotope(centre, generators.reshape(centre.shape[0], symbols, *centre.shape[1:]))


def push(graph: Graph, box: Interval, *, given: Mapping[int, Interval] | None = None,
         keep: tuple[int, ...] = ()) -> tuple[list[Interval], dict[int, Zonotope]]:
    """(met interval of every node, zonotopes of the output and of `keep`); others are dropped after their last use."""
    kept = {graph.output, *keep}
    last_use = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs}
    zonotopes: dict[int, Zonotope] = {}
    intervals: list[Interval] = []
    symbols = 0
    for i, node in enumerate(graph.nodes):
        inputs = tuple(intervals[j] for j in node.inputs)
        sources = tuple(zonotopes[j] for j in node.inputs)
        if i == 0:
            z, interval = _of_box(box), box
        elif isinstance(node.op, Affine):
            z, interval = through_affine(node.op, sources), node.op.interval(*inputs)
        else:
            z, noise = through_parallel(node, inputs, sources)
            z, interval = z.with_noise(noise, symbols), node.op.interval(*inputs)
        symbols = max(symbols, z.symbols)
        interval = _meet(interval, z.interval()) if i else interval
        intervals.append(_meet(interval, given[i]) if given and i in given else interval)
        zonotopes[i] = z
        for j in node.inputs:
            if last_use[j] == i and j not in kept:
                zonotopes.pop(j, None)
    return intervals, {i: zonotopes[i] for i in kept}


def _meet(first: Interval, second: Interval) -> Interval:
    return first.meet(second).uncrossed()


# ---------------------------------------------------------------------- memory

def estimate_bytes(graph: Graph, intervals: list[Interval], *, keep: tuple[int, ...] = ()) -> int:
    """Peak memory of the generators of all given domains together, from interval bounds (never too small a
    count of symbols: an interval that is decided stays decided when it shrinks). With gradients nothing is dropped
    after its last use: `keep` all nodes then."""
    kept = {graph.output, *keep}
    last_use = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs}
    live: dict[int, int] = {}
    symbols, peak = int((intervals[0].upper > intervals[0].lower).flatten(1).any(0).sum()), 0
    known = [symbols]
    for i, node in enumerate(graph.nodes):
        size = torch.Size(node.shape).numel()
        if i:
            known.append(max(known[j] for j in node.inputs))
            if not isinstance(node.op, Affine):
                new = _new_symbols(node, tuple(intervals[j] for j in node.inputs))
                symbols += new
                known[i] = symbols if new else known[i]
        live[i] = known[i] * size
        # The new node is written beside a scaled or padded copy of what it reads.
        copies = sum(known[i] * torch.Size(graph.nodes[j].shape).numel() for j in node.inputs)
        peak = max(peak, sum(live.values()) + max(copies, live[i]))
        for j in node.inputs:
            if last_use[j] == i and j not in kept:
                live.pop(j, None)
    return peak * intervals[0].lower.shape[0] * intervals[0].lower.element_size()


def _new_symbols(node: Node, inputs: tuple[Interval, ...]) -> int:
    flat = tuple(Zonotope(x.centre, x.centre.new_zeros(x.centre.shape[0], 0, *x.centre.shape[1:])) for x in inputs)
    return int(through_parallel(node, inputs, flat)[1].flatten(1).any(0).sum())


def _slice(interval: Interval, chosen: slice) -> Interval:
    return interval.map(lambda t: t[chosen])


def group_size(graph: Graph, intervals: list[Interval], keep: tuple[int, ...], memory_bytes: int) -> int:
    """The largest halved batch whose groups all fit the budget. Raises ZonotopeTooLarge where one domain does not."""
    batch = intervals[0].lower.shape[0]
    size = batch
    while True:
        groups = [slice(first, first + size) for first in range(0, batch, size)]
        needed = max(estimate_bytes(graph, [_slice(x, g) for x in intervals], keep=keep) for g in groups)
        if needed <= memory_bytes:
            return size
        if size == 1:
            raise ZonotopeTooLarge(
                f"{graph.source}: a zonotope needs about {needed / 2**30:.3g} GiB for one input set, more than the "
                f"budget of {memory_bytes / 2**30:.3g} GiB; use method crown or ibp, or give it more memory")
        size = (size + 1) // 2


# ---------------------------------------------------------------------- the method

def _rows_of(zonotopes: dict[int, Zonotope], output: int, rows: LinearRows, domain: Tensor, chosen: Tensor,
             lower: Tensor, upper: Tensor) -> None:
    """Bound the rows `chosen` (indices "n"; their domains in this group "n") and write them to lower and upper."""
    y, x = zonotopes[output], zonotopes[0]
    for b in torch.unique(domain).tolist():
        index = chosen[domain == b]
        C = rows.C[index]
        value, spread = C @ y.centre[b].flatten(), C @ y.generators[b].flatten(1).T
        if rows.D is not None:  # the inputs share the first symbols
            D = rows.D[index]
            value = value + D @ x.centre[b].flatten()
            own = D @ x.generators[b].flatten(1).T
            width = max(own.shape[1], spread.shape[1])
            spread = torch.nn.functional.pad(spread, (0, width - spread.shape[1])) \
                + torch.nn.functional.pad(own, (0, width - own.shape[1]))
        radius = torch.linalg.vector_norm(spread, 1, dim=1)
        lower[index], upper[index] = value - radius, value + radius


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None, memory_bytes: int = MEMORY_BYTES) -> Bounds:
    """Zonotope bounds of the asked rows and of every node, never looser than interval bounds; valid up to rounding.

    Raises ZonotopeTooLarge where one domain needs more than `memory_bytes`. `params` are passed on.
    """
    boxes = propagate(graph, sets, given=given)
    keep = (0,)
    size = group_size(graph, boxes, keep, memory_bytes)
    owner = owner_of(rows, sets.batch).domains(rows.C.shape[0], rows.C)
    lower, upper = rows.C.new_empty(rows.C.shape[0]), rows.C.new_empty(rows.C.shape[0])
    groups: list[list[Interval]] = []
    for first in range(0, sets.batch, size):
        part = slice(first, first + size)
        known = {i: _slice(x, part) for i, x in given.items()} if given else None
        intervals, zonotopes = push(graph, _slice(boxes[0], part), given=known, keep=keep)
        groups.append(intervals)
        chosen = ((owner >= first) & (owner < first + size)).nonzero().squeeze(1)
        _rows_of(zonotopes, graph.output, rows, owner[chosen] - first, chosen, lower, upper)
    if rows.offset is not None:
        lower, upper = lower + rows.offset, upper + rows.offset
    intervals = groups[0] if len(groups) == 1 else [
        Interval(torch.cat([x.lower for x in node]), torch.cat([x.upper for x in node]))
        for node in zip(*groups, strict=True)]
    low, high = rows_over(graph, sets, rows, intervals)
    return Bounds(torch.maximum(lower, low), torch.minimum(upper, high), dict(enumerate(intervals)), params)
