"""A batch of small linear programmes, and what a solver answers.

Axis legend: B programmes, V columns (variables), N rows of all programmes together, E their nonzero entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


class Status(IntEnum):
    """How a programme ended. No status proves anything: a bound is what its multipliers are worth."""

    OPTIMAL = 0
    INFEASIBLE = 1   # with a ray, unless the solver had none
    CUTOFF = 2       # the multipliers reached show more than was asked for
    TIME_LIMIT = 3   # a longer limit, or a split, decides it
    FAILED = 4       # numerical trouble: split, or bound the domain in another way


@dataclass(frozen=True, eq=False)
class LinearPrograms:
    """B programmes: minimise `cost v` over `-1 <= v <= 1` and `row_lower <= A v <= row_upper`.

    cost "B V". The rows of programme b are `first_row[b]:first_row[b + 1]`; row n has the entries
    `first_entry[n]:first_entry[n + 1]` of `column` and `value`. Columns without entries are allowed.
    """

    cost: Floats
    row_lower: Floats
    row_upper: Floats
    first_row: Integers
    first_entry: Integers
    column: Integers
    value: Floats

    def __post_init__(self) -> None:
        rows = self.row_lower.shape[0]
        if self.row_upper.shape != (rows,) or self.first_entry.shape != (rows + 1,):
            raise ValueError(f"expected {rows} upper ends and {rows + 1} starts of rows, got "
                             f"{self.row_upper.shape} and {self.first_entry.shape}")
        if self.first_row.shape != (self.count + 1,) or int(self.first_row[-1]) != rows:
            raise ValueError("first_row must have one entry a programme and end in the number of rows")
        if self.column.shape != self.value.shape or int(self.first_entry[-1]) != self.value.shape[0]:
            raise ValueError("column and value must have one entry a nonzero")

    @property
    def count(self) -> int:
        return self.cost.shape[0]

    @property
    def columns(self) -> int:
        return self.cost.shape[1]

    @property
    def row_owner(self) -> NDArray[np.int64]:
        """The programme of every row, "N"."""
        return np.repeat(np.arange(self.count), np.diff(self.first_row))

    def transposed(self, dual: Floats) -> Floats:
        """`A^T dual` of every programme: dual "N" -> "B V"."""
        per_row = np.diff(self.first_entry)
        place = np.repeat(self.row_owner * self.columns, per_row) + self.column
        sums: Floats = np.bincount(place, np.repeat(dual, per_row) * self.value,
                                   minlength=self.count * self.columns).astype(np.float64)
        return sums.reshape(self.count, self.columns)


@dataclass(frozen=True, eq=False)
class Solutions:
    """Of every programme: status "B" (of `Status`), the point "B V" and one multiplier a row, "N".

    A multiplier is positive on a lower end and negative on an upper one: for an optimal programme the derivative of the
    optimum in that end, for an infeasible one a Farkas ray. Zero where the solver gave none. Where the cutoff ended it,
    the multipliers are dual feasible and the point is not feasible yet.
    """

    status: NDArray[np.int8]
    point: Floats
    dual: Floats
