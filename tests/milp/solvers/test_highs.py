"""HiGHS on batches of small programmes: optima, duals, rays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from milp.problem import LinearPrograms, Status
from milp.solvers.highs import Highs


def programmes(cost: np.ndarray, rows: list[np.ndarray], lower: list[np.ndarray], upper: list[np.ndarray]
               ) -> LinearPrograms:
    """Dense rows of each programme as one batch."""
    A = np.concatenate(rows)
    row, column = np.nonzero(A)
    first_entry = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(A)))))
    first_row = np.concatenate(([0], np.cumsum([len(r) for r in rows])))
    return LinearPrograms(cost, np.concatenate(lower), np.concatenate(upper), first_row.astype(np.int32),
                          first_entry.astype(np.int32), column.astype(np.int32), A[row, column])


def test_optima_equal_scipy_and_duals_prove_them() -> None:
    random = np.random.default_rng(0)
    cost = random.standard_normal((20, 4))
    rows = [random.standard_normal((random.integers(0, 7), 4)) for _ in range(20)]
    lower = [A @ random.uniform(-0.5, 0.5, 4) - random.uniform(0, 0.3, len(A)) for A in rows]
    upper = [np.where(random.random(len(low)) < 0.5, np.inf, low + 1) for low in lower]
    problem = programmes(cost, rows, lower, upper)
    found = Highs().solve(problem)
    reduced = cost - problem.transposed(found.dual)
    for b in range(20):
        begin, end = problem.first_row[b:b + 2]
        A = np.concatenate([rows[b], -rows[b]])
        side = np.concatenate([upper[b], -lower[b]])
        answer = linprog(cost[b], A[np.isfinite(side)], side[np.isfinite(side)], bounds=(-1, 1), method="highs")
        if answer.status == 2:
            assert found.status[b] == Status.INFEASIBLE
            continue
        assert found.status[b] == Status.OPTIMAL
        assert cost[b] @ found.point[b] == pytest.approx(answer.fun)
        dual = found.dual[begin:end]
        bound = dual.clip(min=0) @ lower[b] + sum(d * u for d, u in zip(dual, upper[b], strict=True) if d < 0)
        assert bound - np.abs(reduced[b]).sum() == pytest.approx(answer.fun)


def test_ray_of_an_infeasible_programme_proves_it() -> None:
    """v0 + v1 >= 1.5 and v0 + v1 <= 1."""
    problem = programmes(np.ones((1, 2)), [np.ones((2, 2))], [np.array([1.5, -np.inf])], [np.array([np.inf, 1.0])])
    found = Highs().solve(problem)
    assert found.status[0] == Status.INFEASIBLE
    assert found.dual[0] > 0 > found.dual[1]
    value = found.dual[0] * 1.5 + found.dual[1] * 1.0 - np.abs(problem.transposed(found.dual)).sum()
    assert value > 0


def test_programmes_beyond_the_time_limit_stay_undecided() -> None:
    problem = programmes(np.ones((2, 1)), [np.ones((1, 1))] * 2, [np.zeros(1)] * 2, [np.ones(1)] * 2)
    assert (Highs().solve(problem, time_limit_s=0.0).status == Status.TIME_LIMIT).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="upper ends"):
        LinearPrograms(np.ones((1, 1)), np.zeros(1), np.zeros(2), np.array([0, 1], np.int32),
                       np.array([0, 1], np.int32), np.zeros(1, np.int32), np.ones(1))
