"""Questions to an encoded network: the least margin of a property's branch, the extremes of an output, the nearest
input that meets a branch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.sets import InputSet
from milp.certificate import UnsafeRows
from milp.encoder import Encoding, flat
from milp.mixed import MixedAnswer, MixedProgram
from milp.problem import Floats


class MixedSolver(Protocol):
    """A file in `milp/solvers`."""

    @property
    def name(self) -> str:
        ...

    def solve(self, program: MixedProgram, *, time_limit_s: float = math.inf, below: float = -math.inf,
              above: float = math.inf, start: Floats | None = None) -> MixedAnswer:
        ...


@dataclass(frozen=True, eq=False)
class Found:
    """A solver's answer, and the input "*input" of its best point (None: it has none)."""

    answer: MixedAnswer
    x: Tensor | None


def least_margin(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, solver: MixedSolver,
                 *, time_limit_s: float = math.inf, below: float = -math.inf, above: float = math.inf) -> Found:
    """The minimum over the box of the largest of one branch's rows; the search may end once a point is at most `below`,
    or none can be as low as `above`."""
    encoding = Encoding(graph, sets, intervals)
    matrix, constant = _row_forms(encoding, rows)
    low, high = _ends(encoding, matrix, constant)
    margin = encoding.free_column(float(low.max()), float(high.max()))
    matrix = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(len(constant), margin + 1))
    unit = sparse.csr_matrix((np.ones(len(constant)), (np.arange(len(constant)), np.full(len(constant), margin))),
                             shape=matrix.shape)
    encoding.rows.add_matrix(matrix - unit, -np.inf, -constant)
    answer = solver.solve(encoding.rows.program({margin: 1.0}), time_limit_s=time_limit_s, below=below, above=above)
    return Found(answer, _input(encoding, sets, answer))


def nearest(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, x: Tensor,
            norm: Literal["inf", "1"], solver: MixedSolver, *, time_limit_s: float = math.inf) -> Found:
    """The least distance from x "*input" of a point of the box at which all rows of a branch are at most zero."""
    encoding = Encoding(graph, sets, intervals)
    matrix, constant = _row_forms(encoding, rows)
    encoding.rows.add_matrix(matrix, -np.inf, -constant)
    centre = x.detach().to("cpu", torch.float64).flatten().numpy()
    reach = np.maximum(flat(sets.upper) - centre, centre - flat(sets.lower)).clip(min=0)
    moved = np.array([encoding.free_column(0.0, float(reach.max()))]) if norm == "inf" \
        else encoding.rows.add_columns(np.zeros(len(centre)), reach)
    each = np.broadcast_to(moved, (len(centre),)) if norm == "inf" else moved
    encoding.rows.add_rows([(each, 1.0), (encoding.inputs, -1.0)], -centre, np.inf)
    encoding.rows.add_rows([(each, 1.0), (encoding.inputs, 1.0)], centre, np.inf)
    answer = solver.solve(encoding.rows.program({int(c): 1.0 for c in moved}), time_limit_s=time_limit_s)
    return Found(answer, _input(encoding, sets, answer))


def extreme(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], output: int, solver: MixedSolver, *,
            largest: bool = False, time_limit_s: float = math.inf) -> Found:
    """The least (or, negated, the largest) value of one flat output."""
    row = torch.zeros(1, 1, torch.Size(graph.output_shape).numel(), dtype=torch.float64)
    row[0, 0, output] = -1.0 if largest else 1.0
    return least_margin(graph, sets, intervals, UnsafeRows(row, torch.zeros(1, 1, dtype=torch.float64)), solver,
                        time_limit_s=time_limit_s)


def _row_forms(encoding: Encoding, rows: UnsafeRows) -> tuple[sparse.csr_matrix, Floats]:
    """(matrix, constant) of the violations of one branch's rows over the columns there are now."""
    rows = rows.double()
    if rows.C.shape[0] != 1:
        raise ValueError("one branch is encoded at a time")
    present = slice(None) if rows.present is None else rows.present[0]
    C = rows.C[0][present].numpy()
    output, columns = encoding.output, encoding.rows.columns
    matrix = sparse.csr_matrix(C) @ output.over(columns)
    if rows.D is not None:
        D = sparse.csr_matrix(rows.D[0][present].numpy())
        matrix = matrix + D @ encoding.form(0).over(columns)
    return sparse.csr_matrix(matrix), C @ output.constant - rows.bound[0][present].numpy()


def _ends(encoding: Encoding, matrix: sparse.csr_matrix, constant: Floats) -> tuple[Floats, Floats]:
    """What rows are at least and at most, whatever the columns are."""
    lower, upper = np.concatenate(encoding.rows.lower), np.concatenate(encoding.rows.upper)
    centre, radius = matrix @ ((lower + upper) / 2) + constant, abs(matrix) @ ((upper - lower) / 2)
    return centre - radius, centre + radius


def _input(encoding: Encoding, sets: InputSet, answer: MixedAnswer) -> Tensor | None:
    if answer.point is None:
        return None
    x = torch.from_numpy(answer.point[encoding.inputs]).view(sets.lower.shape[1:])
    return torch.minimum(torch.maximum(x, sets.lower[0].double().cpu()), sets.upper[0].double().cpu())
