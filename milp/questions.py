"""Questions to an encoded network: the least margin of a property's branch, the extremes of an output, a point that
meets a branch, and the nearest such point."""

from __future__ import annotations

import dataclasses
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
from milp.encoder import Encoding
from milp.encoders.form import Form, flat
from milp.mixed import MixedAnswer, MixedProgram, SquaredNorm
from milp.problem import Floats

Norm = Literal["inf", "1", "2"]


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
                 *, time_limit_s: float = math.inf, below: float = -math.inf, above: float = math.inf,
                 start: Tensor | None = None) -> Found:
    """The minimum over the set of the largest of one branch's rows; the search may end once a point is at most `below`,
    or none can be as low as `above`. start: a point "*input" of the set to begin with."""
    encoding = Encoding(graph, sets, intervals)
    forms = _row_forms(encoding, rows)
    low, high = _ends(encoding, forms)
    margin = encoding.largest(forms, float(low.max()), float(high.max()))
    answer = solver.solve(encoding.rows.program({margin: 1.0}), time_limit_s=time_limit_s, below=below, above=above,
                          start=None if start is None else encoding.start(start))
    return Found(answer, _input(encoding, sets, answer))


def nearest(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, x: Tensor, norm: Norm,
            solver: MixedSolver, *, time_limit_s: float = math.inf, above: float = math.inf,
            start: Tensor | None = None) -> Found:
    """The least distance from x "*input" of a point of the set at which all rows of a branch are at most zero; the
    search may end once it is at least `above`. start: such a point to begin with. Norm "2" needs a solver that has
    convex quadratic rows (SolverUnsuitable otherwise)."""
    encoding = Encoding(graph, sets, intervals)
    forms = _row_forms(encoding, rows)
    encoding.rows.add_matrix(forms.matrix, -np.inf, -forms.constant)
    centre = flat(x)
    reach = np.maximum(flat(sets.upper) - centre, centre - flat(sets.lower)).clip(min=0)
    one = np.ones(len(centre))
    if norm == "2":
        cost, above = {_squared_distance(encoding, centre, reach): 1.0}, above ** 2
    elif norm == "1":
        cost = dict.fromkeys(encoding.distances(centre, one, reach).tolist(), 1.0)
    else:
        cost = {_largest_distance(encoding, centre, float(reach.max())): 1.0}
    answer = solver.solve(encoding.rows.program(cost), time_limit_s=time_limit_s, above=above,
                          start=None if start is None else encoding.start(start))
    if norm == "2":
        answer = dataclasses.replace(answer, value=math.sqrt(max(0.0, answer.value)),
                                     bound=math.sqrt(max(0.0, answer.bound)) if answer.bound > -math.inf else -math.inf)
    return Found(answer, _input(encoding, sets, answer))


def meets(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, solver: MixedSolver, *,
          time_limit_s: float = math.inf) -> Found:
    """Any point of the set at which all rows of a branch are at most zero: nothing is minimised."""
    encoding = Encoding(graph, sets, intervals)
    forms = _row_forms(encoding, rows)
    encoding.rows.add_matrix(forms.matrix, -np.inf, -forms.constant)
    answer = solver.solve(encoding.rows.program({}), time_limit_s=time_limit_s)
    return Found(answer, _input(encoding, sets, answer))


def extreme(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], output: int, solver: MixedSolver, *,
            largest: bool = False, time_limit_s: float = math.inf, above: float = math.inf) -> Found:
    """The least (or, negated, the largest) value of one flat output; the search may end once no point is as low as
    `above`."""
    row = torch.zeros(1, 1, torch.Size(graph.output_shape).numel(), dtype=torch.float64)
    row[0, 0, output] = -1.0 if largest else 1.0
    return least_margin(graph, sets, intervals, UnsafeRows(row, torch.zeros(1, 1, dtype=torch.float64)), solver,
                        time_limit_s=time_limit_s, above=above)


def _largest_distance(encoding: Encoding, centre: Floats, reach: float) -> int:
    """A column that is at least `|x - centre|` of each input."""
    unit = sparse.identity(len(centre), format="csr")
    both = Form(sparse.csr_matrix(sparse.vstack([unit, -unit])), np.concatenate([-centre, centre]))
    return encoding.largest(both, 0.0, reach)


def _squared_distance(encoding: Encoding, centre: Floats, reach: Floats) -> int:
    """A column that is at least the squared distance from a centre."""
    column = int(encoding.rows.add_columns(np.zeros(1), np.array([float(reach @ reach)]))[0])
    encoding.rows.squares.append(SquaredNorm(encoding.inputs, centre, np.ones(len(centre)), 0.0, column))

    def fill(v: Floats) -> None:
        v[column] = ((v[encoding.inputs] - centre) ** 2).sum()
    encoding.fills.append(fill)
    return column


def _row_forms(encoding: Encoding, rows: UnsafeRows) -> Form:
    """The violations of one branch's rows."""
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
    return Form(sparse.csr_matrix(matrix), C @ output.constant - rows.bound[0][present].numpy())


def _ends(encoding: Encoding, form: Form) -> tuple[Floats, Floats]:
    """What values are at least and at most, whatever the columns are."""
    lower, upper = np.concatenate(encoding.rows.lower), np.concatenate(encoding.rows.upper)
    matrix = form.over(len(lower))
    centre, radius = matrix @ ((lower + upper) / 2) + form.constant, abs(matrix) @ ((upper - lower) / 2)
    return centre - radius, centre + radius


def _input(encoding: Encoding, sets: InputSet, answer: MixedAnswer) -> Tensor | None:
    if answer.point is None:
        return None
    x = torch.from_numpy(answer.point[encoding.inputs]).view(sets.lower.shape[1:])
    return torch.minimum(torch.maximum(x, sets.lower[0].double().cpu()), sets.upper[0].double().cpu())
