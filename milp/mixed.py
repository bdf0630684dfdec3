"""A mixed-integer linear programme, and what a solver answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milp.problem import Floats

CLEAR = 1e-5            # of one and the value, what solvers' tolerances are taken to amount to: integrality of 1e-7
#                         times a big M of ten, passed on through a few layers
SMALL = 1e-9            # HiGHS's `small_matrix_value`, the largest that any solver is known to drop
LOST_UP = 1 + 1e-9      # for the rounding of what is lost


class MixedStatus(Enum):
    """How a solver ended. No status proves anything that its point or its bound does not."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    TARGET = "target reached"     # the sign that was asked for is known
    TIME_LIMIT = "time limit"
    INACCURATE = "inaccurate"     # an optimum outside of the solver's own tolerances
    FAILED = "failed"


@dataclass(frozen=True, eq=False)
class SquaredNorm:
    """The convex row `sum_i ((v[columns_i] - centre_i) / scale_i)^2 <= limit + v[column]` (column None: `<= limit`)."""

    columns: NDArray[np.int64]
    centre: Floats
    scale: Floats
    limit: float
    column: int | None = None


@dataclass(frozen=True, eq=False)
class MixedProgram:
    """Minimise `cost v + offset` over `lower <= v <= upper`, `row_lower <= rows v <= row_upper`, v integer at `integer`
    (all such columns are binary), and every row of `squares`, which few solvers have. Columns "V", rows "N V"."""

    cost: Floats
    lower: Floats
    upper: Floats
    integer: NDArray[np.bool_]
    rows: sparse.csr_matrix
    row_lower: Floats
    row_upper: Floats
    offset: float = 0.0
    squares: tuple[SquaredNorm, ...] = ()


@dataclass(frozen=True, eq=False)
class MixedAnswer:
    """status; value of the best point found (inf: none) and the point "V"; bound: no point is lower, says the solver
    (-inf: it says nothing); seconds and nodes of the search."""

    status: MixedStatus
    value: float = math.inf
    bound: float = -math.inf
    point: Floats | None = None
    seconds: float = 0.0
    nodes: int = 0


@dataclass
class Builder:
    """Columns and rows as they are found."""

    lower: list[Floats] = field(default_factory=list)
    upper: list[Floats] = field(default_factory=list)
    integer: list[NDArray[np.bool_]] = field(default_factory=list)
    blocks: list[tuple[sparse.coo_matrix, Floats, Floats]] = field(default_factory=list)
    squares: list[SquaredNorm] = field(default_factory=list)
    columns: int = 0

    def add_columns(self, lower: Floats, upper: Floats, *, integer: bool = False) -> NDArray[np.int64]:
        """The numbers of new columns with these ends."""
        first, self.columns = self.columns, self.columns + len(lower)
        self.lower.append(np.array(lower, dtype=np.float64))
        self.upper.append(np.array(upper, dtype=np.float64))
        self.integer.append(np.full(len(lower), integer))
        return np.arange(first, self.columns)

    def add_rows(self, terms: list[tuple[NDArray[np.int64], Floats | float]], lower: Floats | float,
                 upper: Floats | float) -> None:
        """Rows `lower <= sum of value * column <= upper`, one for each entry of the terms (columns, values)."""
        count = len(terms[0][0])
        if not count:
            return
        row = np.concatenate([np.arange(count)] * len(terms))
        column = np.concatenate([c for c, _ in terms])
        value = np.concatenate([np.broadcast_to(np.asarray(v, dtype=np.float64), (count,)) for _, v in terms])
        self.add_matrix(sparse.coo_matrix((value, (row, column)), shape=(count, self.columns)), lower, upper)

    def add_matrix(self, matrix: sparse.spmatrix, lower: Floats | float, upper: Floats | float) -> None:
        """Rows given as a matrix over the first columns."""
        ends = (np.broadcast_to(np.asarray(e, dtype=np.float64), (matrix.shape[0],)) for e in (lower, upper))
        self.blocks.append((sparse.coo_matrix(matrix), *ends))

    def program(self, cost: dict[int, float]) -> MixedProgram:
        """The programme that minimises the sum of `cost` by column."""
        c = np.zeros(self.columns)
        c[list(cost)] = list(cost.values())
        nothing = sparse.coo_matrix((0, self.columns)), np.zeros(0), np.zeros(0)
        blocks = [nothing, *self.blocks]
        starts = np.cumsum([0, *(m.shape[0] for m, _, _ in blocks)])
        row, column, value = (np.concatenate(parts) for parts in zip(
            *((m.row + s, m.col, m.data) for (m, _, _), s in zip(blocks, starts, strict=False)), strict=True))
        low, high = np.concatenate(self.lower), np.concatenate(self.upper)
        lower, upper = (np.concatenate([b[k] for b in blocks]) for k in (1, 2))
        # Solvers drop what is this small without a word: here it goes into the ends of its row.
        small = np.abs(value) <= SMALL
        lost = np.bincount(row[small], np.abs(value[small]) * np.maximum(np.abs(low), np.abs(high))[column[small]],
                           minlength=int(starts[-1])) * LOST_UP
        rows = sparse.csr_matrix((value[~small], (row[~small], column[~small])), shape=(int(starts[-1]), self.columns))
        return MixedProgram(c, low, high, np.concatenate(self.integer), rows, lower - lost, upper + lost,
                            squares=tuple(self.squares))
