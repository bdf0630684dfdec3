"""Enclosures of the neurons that relaxations need, layer by layer, undecided neurons only.

Each layer first gets interval bounds from the layers before it as tightened so far; rows run only
for neurons whose operator is not yet linear on that interval. Where many rows are at stake, the
side that the network's value at the centre suggests runs first: a neuron that it decides never
needs its other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.ibp import exact_over_boxes
from bounds.interval import Interval
from bounds.ops.base import Elementwise, Relaxed
from bounds.proved import prove, rounded_out
from bounds.rows import Rows
from bounds.window import Owner

RowBound = Callable[[int, Rows, float | None], Tensor]
"""(node, rows sorted by domain, threshold from which a row's bound need not be better) -> lower bounds "N"."""

# Two proved bounds that cross by more than this share of their layer's size contradict each other.
EMPTY_RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}
# Coefficients (rows times all nodes on their way) from which two phases pay for their overhead.
TWO_PHASE_COEFFICIENTS = 2_000_000


def refine(engine: Backward, *, given: Mapping[int, Interval] | None = None,
           known: Mapping[int, Interval] | None = None, row_bound: RowBound | None = None,
           polish: RowBound | None = None, output: bool = False) -> dict[int, Interval]:
    """Enclose every node that a relaxation reads (engine.enclose); returns the interval of every node.

    `given` intervals are taken as proved; `known` ones too, but their undecided neurons are bounded again, and where
    bounds contradict each other `engine.empty` says so. `row_bound` bounds the rows of undecided neurons (None:
    interval arithmetic alone); neurons that stay undecided are bounded once more by `polish`, whose rows
    come in pairs (a neuron's lower side, then its upper). With `output` the output node is tightened too.
    """
    graph, sets = engine.graph, engine.sets
    given, known = given or {}, known or {}
    needed = set(graph.relaxed_inputs)
    if output:
        needed.add(graph.output)
    intervals = engine.enclosures
    intervals.clear()
    engine.prices.clear()
    if engine.prover is not None:
        engine.prover.enclosures.clear()
        engine.prover.prices.clear()
        engine.prover.enclosures[0] = Interval(engine.prover.sets.lower, engine.prover.sets.upper)
    intervals[0] = Interval(sets.lower, sets.upper)
    ranges = exact_over_boxes(graph) if sets.is_box else frozenset()
    for i in range(graph.output + 1):
        exact = i in ranges
        if i:
            intervals[i] = engine.prices.image(i)
        if i in known:
            intervals[i] = intervals[i].meet(known[i])
        if i in given:
            intervals[i] = intervals[i].meet(given[i])
        elif i in needed and row_bound is not None:
            before = intervals[i]
            engine.proposals.clear()
            if not exact:
                intervals[i] = _tighten(engine, i, intervals[i], row_bound)
                if polish is not None:
                    intervals[i] = _polish(engine, i, intervals[i], polish)
            if engine.journal is not None:
                was, now = undecided(engine, i, before), undecided(engine, i, intervals[i])
                intervals[i] = engine.journal.note(i, before, intervals[i], was, now, _threshold(engine, i), not exact)
            if engine.prover is not None:
                intervals[i] = _proved(engine, engine.prover, i, before, intervals[i])
        elif engine.prover is not None and i:
            engine.prover.enclosures[i] = engine.prover.prices.image(i)
        if i in needed:
            intervals[i] = _consistent(engine, intervals[i]) if known else intervals[i].uncrossed()
            engine.enclose(i, intervals[i])
            if engine.journal is not None:
                engine.journal.enclosed(engine, i)
    return intervals


def _proved(engine: Backward, prover: Backward, i: int, before: Interval, x: Interval) -> Interval:
    """What the prover makes of node i, where interval arithmetic gave `before` and rows made it x."""
    decided = undecided(engine, i, before) & ~undecided(engine, i, x)
    found = prove(prover, i, decided, x.centre >= 0, engine.proposals).uncrossed()
    prover.enclose(i, found)
    return rounded_out(found, x.lower.dtype)


def _consistent(engine: Backward, x: Interval) -> Interval:
    """Proved bounds that cross by more than rounding show their domain to be empty (splits contradict each other);
    rounding is measured against the whole layer, whose terms may cancel in one neuron."""
    crossed = x.lower > x.upper
    if not bool(crossed.any()):
        return x
    ends = torch.maximum(x.lower.abs(), x.upper.abs()).flatten(1).amax(1)
    slack = EMPTY_RTOL[x.lower.dtype] * (1 + ends).view(-1, *(1,) * (x.lower.dim() - 1))
    engine.empty = engine.empty | (x.lower > x.upper + slack).flatten(1).any(1)
    low, high = torch.minimum(x.lower, x.upper), torch.maximum(x.lower, x.upper)
    return Interval(torch.where(crossed, low, x.lower), torch.where(crossed, high, x.upper))


def undecided(engine: Backward, i: int, x: Interval) -> Tensor:
    """bool "B *shape": neurons of node i whose readers are not linear on the interval."""
    graph = engine.graph
    mask = torch.zeros_like(x.lower, dtype=torch.bool)
    if i == graph.output:
        mask |= x.lower < x.upper
    for reader in graph.consumers[i]:
        op = graph.nodes[reader].op
        if isinstance(op, Elementwise):
            mask |= ~op.is_linear_on(x)
        elif isinstance(op, Relaxed):
            inputs = tuple(x if j == i else engine.intervals[j] for j in graph.nodes[reader].inputs)
            mask |= ~op.is_linear_on(*inputs)
    return mask


def neurons(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(domain "N", flat index "N") of the true entries "B *shape", by domain; on a map then by position, so
    that rows which share windows lie together."""
    if mask.dim() != 4:
        domain, index = mask.flatten(1).nonzero(as_tuple=True)
        return domain, index
    domain, y, x, channel = mask.permute(0, 2, 3, 1).nonzero(as_tuple=True)
    return domain, (channel * mask.shape[2] + y) * mask.shape[3] + x


def _tighten(engine: Backward, i: int, x: Interval, row_bound: RowBound) -> Interval:
    """Bound the undecided neurons of node i."""
    domain, index = neurons(undecided(engine, i, x))
    if index.numel() == 0:
        return x
    _, total = engine.footprint(i, unit=True)
    if 2 * index.numel() * total < TWO_PHASE_COEFFICIENTS:
        return _both_sides(engine, i, x, domain, index, row_bound)
    ones = x.lower.new_ones(index.shape[0])
    sign = torch.where(engine.centre_value(i).flatten(1)[domain, index] >= 0, ones, -ones)
    x = _one_side(engine, i, x, domain, index, sign, row_bound)
    still = undecided(engine, i, x).flatten(1)[domain, index]
    if not bool(still.any()):
        return x
    return _one_side(engine, i, x, domain[still], index[still], -sign[still], row_bound)


def _polish(engine: Backward, i: int, x: Interval, polish: RowBound) -> Interval:
    domain, index = neurons(undecided(engine, i, x))
    return x if index.numel() == 0 else _both_sides(engine, i, x, domain, index, polish)


def _rows(engine: Backward, domain: Tensor, index: Tensor, sign: Tensor) -> Rows:
    return Rows.unit(index, sign, Owner.of(engine.sets.batch, domain))


def _both_sides(engine: Backward, i: int, x: Interval, domain: Tensor, index: Tensor, bound: RowBound) -> Interval:
    sign = x.lower.new_tensor([1.0, -1.0]).repeat(index.shape[0])
    rows = _rows(engine, domain.repeat_interleave(2), index.repeat_interleave(2), sign)
    value = bound(i, rows, _stop(engine, i))
    return _meet_at(x, domain, index, value[::2], -value[1::2])


def _one_side(engine: Backward, i: int, x: Interval, domain: Tensor, index: Tensor, sign: Tensor,
              bound: RowBound) -> Interval:
    """Rows `sign * z`: a lower bound where the sign is 1, an upper one where it is -1."""
    value = bound(i, _rows(engine, domain, index, sign), _stop(engine, i)) * sign
    lower, upper = x.lower.flatten(1)[domain, index], x.upper.flatten(1)[domain, index]
    return _meet_at(x, domain, index, torch.where(sign > 0, value, lower), torch.where(sign > 0, upper, value))


def _meet_at(x: Interval, domain: Tensor, index: Tensor, low: Tensor, high: Tensor) -> Interval:
    """x, met with [low, high] at some of its neurons."""
    lower, upper = x.lower.flatten(1), x.upper.flatten(1)
    lower = lower.index_put((domain, index), torch.maximum(low, lower[domain, index]))
    upper = upper.index_put((domain, index), torch.minimum(high, upper[domain, index]))
    return Interval(lower.view_as(x.lower), upper.view_as(x.upper))


def _stop(engine: Backward, i: int) -> float | None:
    """From where a row's bound need not be better. A row that stops on its way must be watched by whoever runs it
    again, so that rows which are noted run to the end."""
    return None if engine.journal is not None else _threshold(engine, i)


def _threshold(engine: Backward, i: int) -> float | None:
    """A row at least this large decides its neuron: 0 where every reader has its only kink at 0."""
    readers = [engine.graph.nodes[j].op for j in engine.graph.consumers[i]]
    kinks = {op.only_kink if isinstance(op, Elementwise) else None for op in readers}
    return 0.0 if kinks == {0.0} and i != engine.graph.output else None
