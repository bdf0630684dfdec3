"""Interval bound propagation: the enclosure of every node, one operator after the other.

(Interval arithmetic; as a bound for networks e.g. Gowal et al., arXiv:1810.12715.) The cheapest method and the
loosest: each operator is exact for its own inputs, but inputs are taken to vary independently. The asked rows
are joined with the affine operators at the end of the network before they are bounded; their part on the
inputs is optimised exactly over the set. A ball enters as its bounding box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bounds.backward import Backward, Block
from bounds.bounds import Bounds, LinearRows
from bounds.final import output_rows, owner_of
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.scale import Scale
from bounds.rounding import image, sum_down
from bounds.sets import InputSet


def bounding_box(sets: InputSet) -> Interval:
    """The smallest box that holds each set's box ∩ the bounding box of its ball: "B *shape", rounded outward."""
    if sets.centre is None or sets.radius is None:
        return Interval(sets.lower, sets.upper)
    radius = sets.radius.view(-1, *(1,) * len(sets.shape))
    reach = radius if sets.scale is None else radius * sets.scale
    infinity = torch.full_like(sets.centre, torch.inf)
    # Three roundings at most (scale, radius, sum), each half a unit of the larger operand.
    reach = reach + 2 * torch.finfo(sets.dtype).eps * (reach + sets.centre.abs())
    ball = Interval(torch.nextafter(sets.centre - reach, -infinity), torch.nextafter(sets.centre + reach, infinity))
    return ball.meet(Interval(sets.lower, sets.upper))


def exact_over_boxes(graph: Graph) -> frozenset[int]:
    """Nodes whose interval arithmetic over boxes gives the range of every neuron: one affine operator behind the input,
    or several that keep neurons apart from each other."""
    boxes, exact = {0}, {0}
    for i, node in enumerate(graph.nodes):
        if not isinstance(node.op, Affine) or len(node.inputs) != 1:
            continue
        (j,) = node.inputs
        apart = isinstance(node.op, Scale | BatchNorm) \
            or node.op.passes_rows((graph.nodes[j].shape,), node.shape) is not None
        if j in boxes or (apart and j in exact):
            exact.add(i)
        if j in boxes and apart:
            boxes.add(i)
    return frozenset(exact)


def propagate(graph: Graph, sets: InputSet, *, given: Mapping[int, Interval] | None = None, rounded: bool = True
              ) -> list[Interval]:
    """An enclosure "B *shape" of every node over each set, met with the `given` (proved) ones on the way. Not
    `rounded`: in ordinary floating point, at half the price (training needs no more)."""
    intervals: list[Interval] = []
    for i, node in enumerate(graph.nodes):
        if not i:
            interval = bounding_box(sets)
        elif rounded:
            interval = image(graph, i, {j: intervals[j] for j in node.inputs})
        else:
            interval = node.op.interval(*(intervals[j] for j in node.inputs))
        intervals.append(interval.meet(given[i]) if given and i in given else interval)
    return intervals


def margin_bounds(graph: Graph, sets: InputSet, rows: LinearRows, intervals: Sequence[Interval]) -> Tensor:
    """Lower bounds "N" of rows of outputs alone, joined with the last affine operators, in ordinary floating point."""
    engine = Backward(graph, sets, rounded=False)
    engine.enclosures.update(enumerate(intervals))
    return engine.behind_affine(Block(graph.output, output_rows(engine, rows)))


def rows_over(graph: Graph, sets: InputSet, rows: LinearRows, intervals: Sequence[Interval]) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds "N" of the asked rows, given an enclosure "B *shape" of every node: the better of
    interval arithmetic on the outputs and on the nodes before the last affine operators."""
    engine = Backward(graph, sets, rounded=True)
    engine.enclosures.update(enumerate(intervals))

    def side(rows: LinearRows) -> Tensor:
        return torch.cat([torch.maximum(engine.at_once(block), engine.behind_affine(block))
                          for block in engine.blocks(graph.output, output_rows(engine, rows))])
    lower, upper = side(rows), -side(LinearRows(-rows.C, rows.owner))
    if rows.D is not None:
        D = rows.D.view(-1, *sets.shape)
        index = owner_of(rows, sets.batch).domains(D.shape[0], D)
        lower, upper = sum_down(lower, sets.minimise_down(D, index)), -sum_down(-upper, sets.minimise_down(-D, index))
    return (lower, upper) if rows.offset is None else (sum_down(lower, rows.offset), -sum_down(-upper, -rows.offset))


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None) -> Bounds:
    """Interval bounds of the asked rows and of every node, rounding included. `params` are passed on."""
    intervals = propagate(graph, sets, given=given)
    lower, upper = rows_over(graph, sets, rows, intervals)
    return Bounds(lower, upper, dict(enumerate(intervals)), params)
