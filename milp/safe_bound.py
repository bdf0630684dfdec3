"""Lower bounds of linear programmes that survive rounding, from any multipliers (Neumaier and Shcherbina, Mathematical
Programming 99, 2004).

For rows `row_lower <= A v <= row_upper`, columns `lower <= v <= upper` and any y,

    c v  >=  sum of (y > 0: y row_lower; y < 0: y row_upper)  +  sum_j min over the box of (c - A^T y)_j v_j.

A multiplier of the wrong sign for its row (its end is infinite) is set to zero. Everything is evaluated in float64
with a bound of its own rounding: a sum of n products is wrong by at most gamma_n = n u / (1 - n u) times the sum of
their sizes in any order, u = 2^-53 (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3), and by a smallest
number a product where it underflows. The programme is taken as stored.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from milp.problem import Floats, LinearPrograms

UNIT = 2.0 ** -53
TINY = 2.0 ** -1074       # what a product that underflows may lose
ERRORS_UP = 1 + 2.0 ** -40  # of computed error bounds, for their own rounding


def gamma(n: Floats | float) -> Floats:
    """What a sum of n products loses at most, relative to the sum of their sizes; rounded up."""
    size = np.asarray(n, dtype=np.float64) * UNIT
    return np.asarray(size / (1 - size) * ERRORS_UP)


def safe_bounds(problem: LinearPrograms, dual: Floats) -> Floats:
    """Lower bounds "B" of all programmes, whose columns lie in [-1, 1], from one multiplier a row, "N"."""
    owner = problem.row_owner
    y = clipped(dual, problem.row_lower, problem.row_upper)
    side = np.where(y > 0, problem.row_lower, np.where(y < 0, problem.row_upper, 0.0))
    place = np.repeat(owner * problem.columns, np.diff(problem.first_entry)) + problem.column
    each, shape = np.repeat(y, np.diff(problem.first_entry)) * problem.value, (problem.count, problem.columns)

    def by_column(t: Floats | None) -> Floats:
        return np.bincount(place, t, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)

    def by_programme(t: Floats | None) -> Floats:
        return np.bincount(owner, t, minlength=shape[0]).astype(np.float64)
    products, one = y * side, np.ones(shape)
    return _evaluated(problem.cost, by_column(each), by_column(np.abs(each)), by_column(None), -one, one,
                      by_programme(products), by_programme(np.abs(products)), by_programme(None))


def safe_bound(cost: Floats, lower: Floats, upper: Floats, rows: sparse.csr_matrix, row_lower: Floats,
               row_upper: Floats, dual: Floats) -> float:
    """A lower bound of one programme with sparse rows and finite column ends, "V" columns and "N" rows."""
    y = clipped(dual, row_lower, row_upper)
    side = np.where(y > 0, row_lower, np.where(y < 0, row_upper, 0.0))
    entries = np.bincount(rows.indices, minlength=len(cost))[None].astype(np.float64)
    products = y * side
    value = _evaluated(cost[None], (rows.T @ y)[None], (abs(rows).T @ np.abs(y))[None], entries, lower[None],
                       upper[None], np.array([products.sum()]), np.array([np.abs(products).sum()]),
                       np.array([float(len(y))]))
    return float(value[0])


def clipped(dual: Floats, row_lower: Floats, row_upper: Floats) -> Floats:
    """Multipliers without those that are no numbers, and without the sign that an infinite end forbids."""
    y = np.where(np.isfinite(dual), dual, 0.0)
    y = np.where(np.isinf(row_lower), np.minimum(y, 0), y)
    return np.where(np.isinf(row_upper), np.maximum(y, 0), y)


def _evaluated(cost: Floats, sums: Floats, sizes: Floats, entries: Floats, lower: Floats, upper: Floats,
               gains: Floats, spread: Floats, rows: Floats) -> Floats:
    """The bound "B" from sums `A^T y` "B V" with the sizes and numbers of their terms, and the rows' part."""
    with np.errstate(over="ignore", invalid="ignore"):
        reduced = cost - sums
        # The sum itself, its difference from the cost, and products that underflow.
        share = gamma(entries + 2)
        wrong = (share * (sizes * (1 + share) + np.abs(cost)) + (entries + 1) * TINY) * ERRORS_UP
        reach = np.maximum(np.abs(lower), np.abs(upper))
        terms = np.minimum(reduced * lower, reduced * upper)
        columns = float(cost.shape[1])
        lost = (wrong * reach).sum(1) + gamma(columns + 2) * np.abs(terms).sum(1) + columns * TINY
        lost = lost + gamma(rows + 2) * spread + rows * TINY
        value = terms.sum(1) + gains
        lost = (lost + 2 * UNIT * (np.abs(terms).sum(1) + spread)) * ERRORS_UP * (1 + gamma(columns + rows + 8))
        bound = np.nextafter(value - lost, -np.inf)
    return np.where(np.isfinite(bound), bound, -np.inf)
