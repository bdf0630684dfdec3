"""What every method starts from: rows, the derivatives of all elementwise operators over the sets, who owns whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.backward import Backward, adaptive
from bounds.bounds import LinearRows
from bounds.final import owner_of
from bounds.graph.graph import Graph, UnsupportedOperator
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise
from bounds.ops.max_pool import MaxPool
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from bounds.window import Owner


@dataclass(frozen=True, eq=False)
class Question:
    """C "N *output": the rows whose gradients are asked for; derivatives: of every elementwise node, "B *shape";
    contenders: of every max-pool, the inputs of each window that can be its maximum, bool "B C P W"; moves: bool
    "B *input", features that are not fixed. rounded: whether rounding is accounted for (in float64)."""

    graph: Graph
    sets: InputSet
    C: Tensor
    owner: Owner
    derivatives: Mapping[int, Interval]
    contenders: Mapping[int, Tensor]
    moves: Tensor
    rounded: bool

    @staticmethod
    @torch.no_grad()
    def of(graph: Graph, sets: InputSet, rows: LinearRows, given: Mapping[int, Interval] | None = None) -> Question:
        """The question over enclosures of every node that are `given` (proved), or those of CROWN."""
        check(graph, sets, rows)
        needed = sorted({j for i in graph.ancestors if not isinstance(graph.nodes[i].op, Affine)
                         for j in graph.nodes[i].inputs})
        known = dict(given or {})
        if any(j not in known for j in needed):
            engine = Backward(graph, sets, adaptive)
            known = {**refine(engine, given=known, row_bound=engine.lower), **known}
        derivatives, contenders = {}, {}
        for i in sorted(graph.ancestors):
            op = graph.nodes[i].op
            if isinstance(op, Elementwise):
                derivatives[i] = op.derivative(known[graph.nodes[i].inputs[0]])
            elif isinstance(op, MaxPool):
                contenders[i] = op.contenders(known[graph.nodes[i].inputs[0]])
        C = rows.C.detach().reshape(-1, *graph.output_shape)
        return Question(graph, sets, C, owner_of(rows, sets.batch), derivatives, contenders, sets.lower < sets.upper,
                        is_priced(sets.dtype) and is_covered(graph))

    def derivative(self, i: int) -> Interval:
        """Of elementwise node i, by rows: "N *shape" (or "1 *shape", broadcastable)."""
        return self.derivatives[i].map(self.owner.rows)


def check(graph: Graph, sets: InputSet, rows: LinearRows) -> None:
    """Raises ValueError or UnsupportedOperator where gradients have no enclosure here."""
    outputs = torch.Size(graph.output_shape).numel()
    if rows.D is not None:
        raise ValueError("rows must be over outputs alone, got a part D over inputs")
    if rows.C.dim() != 2 or rows.C.shape[1] != outputs:
        raise ValueError(f"C must have shape (N, {outputs}), got {tuple(rows.C.shape)}")
    if sets.shape != graph.input_shape:
        raise ValueError(f"sets must have shape {graph.input_shape}, got {sets.shape}")
    dtypes = {sets.dtype, rows.C.dtype, *(p.dtype for p in graph.parameters())}
    if len(dtypes) != 1:
        raise ValueError(f"graph, sets and rows must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    if graph.arithmetic is not None:
        raise ValueError(f"gradients are those of the real function, got a graph evaluated in {graph.arithmetic}")
    for i in graph.ancestors - {0}:
        op = graph.nodes[i].op
        if not isinstance(op, Affine | Elementwise | MaxPool):
            raise UnsupportedOperator(f"{op.kind} (node {graph.nodes[i].name}): no enclosure of its gradient")
