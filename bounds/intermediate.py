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
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise, Relaxed
from bounds.ops.scale import Scale
from bounds.rows import Rows
from bounds.window import Owner

RowBound = Callable[[int, Rows], Tensor]
"""(node, rows) -> lower bounds "N"."""

# Coefficients (rows times all nodes on their way) from which two phases pay for their overhead.
TWO_PHASE_COEFFICIENTS = 4_000_000


def refine(engine: Backward, *, given: Mapping[int, Interval] | None = None,
           row_bound: RowBound | None = None, output: bool = False) -> dict[int, Interval]:
    """Enclose every node that a relaxation reads (engine.enclose); returns the interval of every node.

    `given` intervals are taken as proved. `row_bound` bounds the rows of undecided neurons (None:
    interval arithmetic alone). With `output` the output node is tightened as well.
    """
    graph, sets = engine.graph, engine.sets
    given = given or {}
    needed = set(graph.relaxed_inputs)
    if output:
        needed.add(graph.output)
    intervals: dict[int, Interval] = {0: Interval(sets.lower, sets.upper)}
    boxes = {0} if sets.is_box else set()
    for i, node in enumerate(graph.nodes[:graph.output + 1]):
        exact = sets.is_box and i == 0
        if i:
            interval = node.op.interval(*(intervals[j] for j in node.inputs))
            if isinstance(node.op, Affine):
                exact = len(node.inputs) == 1 and node.inputs[0] in boxes
                if exact and (isinstance(node.op, Scale) or node.op.passes_rows(
                        (graph.nodes[node.inputs[0]].shape,), node.shape) is not None):
                    boxes.add(i)
            intervals[i] = interval
        if i in given:
            intervals[i] = intervals[i].meet(given[i])
        elif i in needed and not exact and row_bound is not None:
            intervals[i] = _tighten(engine, i, intervals[i], row_bound)
        if i in needed:
            engine.enclose(i, intervals[i])
    return intervals


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


def _tighten(engine: Backward, i: int, x: Interval, row_bound: RowBound) -> Interval:
    mask = undecided(engine, i, x).flatten(1)
    domain, index = mask.nonzero(as_tuple=True)
    if index.numel() == 0:
        return x
    lower, upper = x.lower.flatten(1), x.upper.flatten(1)
    batch = lower.shape[0]
    _, total = engine.footprint(i, unit=True)

    def run(domain: Tensor, index: Tensor, sign: Tensor) -> Tensor:
        return row_bound(i, Rows.unit(index, sign, Owner(batch, None if batch == 1 else domain)))

    def put(t: Tensor, domain: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return t.index_put((domain, index), values)

    ones = lower.new_ones(index.shape[0])
    if 2 * index.numel() * total < TWO_PHASE_COEFFICIENTS:
        both = run(domain.repeat(2), index.repeat(2), torch.cat([ones, -ones]))
        low, high = both[:index.shape[0]], -both[index.shape[0]:]
        lower = put(lower, domain, index, torch.maximum(low, lower[domain, index]))
        upper = put(upper, domain, index, torch.minimum(high, upper[domain, index]))
    else:
        sign = torch.where(engine.centre_value(i).flatten(1)[domain, index] >= 0, ones, -ones)
        for phase in (1, 2):
            value = run(domain, index, sign)
            old = torch.where(sign > 0, lower[domain, index], -upper[domain, index])
            value = torch.maximum(value, old) * sign
            up = sign > 0
            lower = put(lower, domain[up], index[up], value[up])
            upper = put(upper, domain[~up], index[~up], value[~up])
            if phase == 1:
                open_ = undecided(engine, i, Interval(lower.view_as(x.lower), upper.view_as(x.upper)))
                still = open_.flatten(1)[domain, index]
                domain, index, sign = domain[still], index[still], -sign[still]
                if index.numel() == 0:
                    break
    # Rounding may cross two bounds that meet: keep the interval between them.
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return Interval(lower.view_as(x.lower), upper.view_as(x.upper))
