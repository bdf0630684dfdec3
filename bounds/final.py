"""The last step of every backward method: the asked rows, pulled back from the output to the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bounds.backward import Backward, Block, Params, input_rows
from bounds.bounds import Bounds, LinearRows
from bounds.interval import Interval
from bounds.rows import Rows
from bounds.window import Owner


def owner_of(rows: LinearRows, batch: int) -> Owner:
    """Which set each asked row runs over."""
    count = rows.C.shape[0]
    if rows.owner is not None:
        return Owner.of(batch, rows.owner)
    if batch == 1:
        return Owner.of(1, None)
    if count != batch:
        raise ValueError(f"{count} rows over {batch} sets need an owner")
    return Owner(batch, torch.arange(count, device=rows.C.device))


def output_rows(engine: Backward, rows: LinearRows) -> Rows:
    """The asked rows at the output node, dense."""
    return Rows.full(rows.C.view(rows.C.shape[0], *engine.graph.output_shape), owner_of(rows, engine.sets.batch))


def final_bounds(engine: Backward, rows: LinearRows, intervals: dict[int, Interval], params: Any = None) -> Bounds:
    """Lower bounds of the asked rows with the engine's lines; `intervals` are passed on."""
    start = output_rows(engine, rows)
    size = engine.block_size(engine.graph.output, start)
    lowers, As, bs = [], [], []
    for first in range(0, start.count, size):
        chosen = slice(first, first + size)
        lower, A, b = finish(engine, Block(engine.graph.output, start.take(chosen)), part_of(rows, chosen))
        lowers.append(lower)
        As.append(A)
        bs.append(b)
    return Bounds(torch.cat(lowers), None, intervals, params, torch.cat(As), torch.cat(bs))


def part_of(rows: LinearRows, chosen: slice) -> LinearRows:
    """Some of the asked rows."""
    def part(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[chosen]
    return LinearRows(rows.C[chosen], part(rows.owner), part(rows.D), part(rows.offset))


def finish(engine: Backward, block: Block, rows: LinearRows, params: Params | None = None
           ) -> tuple[Tensor, Tensor, Tensor]:
    """(lower "N", A "N *input", b "N") of one block of asked rows, their input part D and offset included."""
    pulled = engine.pull(block, params)
    A, b = input_rows(pulled, engine.graph), pulled.constant
    if rows.D is not None:
        A = A + rows.D.view_as(A)
    if rows.offset is not None:
        b = engine.prices.sum(b, rows.offset)
    owner = block.rows.owner
    return engine.prices.sum(b, engine.minimise(A, owner)), A, b
