"""Enclosures proved in float64 beside a refinement in float32: what float32 proposes, rounding included.

A refinement in float32 is fast and not rigorous. Beside it an engine in float64, whose bounds account for their
rounding, evaluates once what the other found: the rows that decided a neuron, and optimised rows at the slopes that
were reached. The float32 engine goes on with these enclosures, rounded outward, so that both know the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds.backward import Backward, Block, Params
from bounds.bounds import LinearRows
from bounds.final import finish
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.rows import Rows
from bounds.window import Owner


def rounded_out(x: Interval, dtype: torch.dtype) -> Interval:
    """The interval in another dtype, none of it lost."""
    low, high = x.lower.to(dtype), x.upper.to(dtype)
    infinity = torch.full_like(low, torch.inf)
    return Interval(torch.where(low > x.lower, torch.nextafter(low, -infinity), low),
                    torch.where(high < x.upper, torch.nextafter(high, infinity), high))


def _relaid(engine: Backward, i: int, p: Tensor, source: Block) -> Tensor:
    """Slopes "K N ..." of node i, as laid out along a block of another engine over the same sets, in the layout of this
    one, where other columns may matter, and in its boxes."""
    node = engine.graph.nodes[i]
    assert isinstance(node.op, Elementwise)
    layout: Rows = source.gathered[i, "layout"]
    columns = engine.lines(i).columns if layout.extent is None else None
    if layout.columns is not None:
        flat = p.new_zeros(*p.shape[:2], torch.Size(node.shape).numel())
        p = flat.index_copy_(2, layout.columns, p.flatten(2)).view(*p.shape[:2], *node.shape)
    if columns is not None:
        p = p.flatten(2).index_select(2, columns)
    layout = replace(layout, columns=columns)
    whole = engine.intervals[node.inputs[0]]
    box = node.op.select(layout.gather, whole.lower.shape).parameters(whole.map(layout.gather))
    assert box is not None, "what has slopes has boxes for them"
    return torch.minimum(torch.maximum(p.to(box[1]), box[1]), box[2])


@torch.no_grad()
def value_at(engine: Backward, source: Block, params: Params) -> Tensor:
    """Lower bounds "N" of a block's rows at slopes that another engine reached."""
    rows, dtype = source.rows, engine.sets.dtype
    rows = replace(rows, A=None if rows.A is None else rows.A.to(dtype),
                   sign=None if rows.sign is None else rows.sign.to(dtype))
    return engine.value(Block(source.start, rows), {i: _relaid(engine, i, p, source) for i, p in params.items()})


@torch.no_grad()
def confirmed(engine: Backward, source: Block, params: Params, rows: LinearRows) -> Tensor:
    """As `value_at` for asked rows (in the dtype of the engine), their input part and offset included."""
    block = Block(source.start, replace(source.rows, A=rows.C.view(len(rows.C), *engine.graph.output_shape)))
    return finish(engine, block, rows, {i: _relaid(engine, i, p, source) for i, p in params.items()})[0]


@torch.no_grad()
def prove(engine: Backward, node: int, decided: Tensor, lower_side: Tensor,
          proposals: list[tuple[Rows, Tensor]]) -> Interval:
    """Enclose a node by interval arithmetic, by the rows of `decided` neurons (bool "B *shape") on the side that
    decided them (`lower_side` "B *shape": the lower one), and by `proposals`: other rows with their bounds."""
    x = engine.prices.image(node)
    lower, upper = x.lower.flatten(1).clone(), x.upper.flatten(1).clone()

    def meet(rows: Rows, value: Tensor) -> None:
        assert rows.index is not None and rows.sign is not None
        domain = rows.owner.domains(rows.count, rows.index)
        for sign, ends, pick in ((1, lower, "amax"), (-1, upper, "amin")):
            here = (rows.sign == sign).nonzero().squeeze(1)
            flat = ends.view(-1).scatter_reduce(0, domain[here] * ends.shape[1] + rows.index[here],
                                                sign * value[here].to(ends), pick)
            ends.copy_(flat.view_as(ends))
    domain, index = decided.flatten(1).nonzero(as_tuple=True)
    if len(index):
        sign = torch.where(lower_side.flatten(1)[domain, index], 1.0, -1.0).to(lower)
        rows = Rows.unit(index, sign, Owner.of(engine.sets.batch, domain))
        meet(rows, engine.lower(node, rows))
    for rows, value in proposals:
        meet(rows, value)
    return Interval(lower.view_as(x.lower), upper.view_as(x.upper))
