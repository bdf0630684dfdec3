"""HiGHS through its thin binding: thousands of tiny programmes, one solver object.

The object is kept and one model after the other passed to it, row by row in memory; presolve stays off, for it takes
longer than these programmes do (measured with 5 columns and 60 rows: 0.14 ms a solve without, 0.27 ms with it). All
columns are boxed, so the slack basis is dual feasible and the dual simplex method starts in its second phase.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from milp.problem import Floats, LinearPrograms, Solutions, Status

FEASIBILITY_TOLERANCE = 1e-9  # rows and columns are scaled to size one; HiGHS allows no less than 1e-10
UNREACHABLE = 1e-9  # a row that misses its end by more than this is a proof by itself
ROW_WISE, MINIMISE = 2, 1


@dataclass(frozen=True)
class Highs:
    """Settings of the solver; `tolerance` is that of primal and dual feasibility."""

    tolerance: float = FEASIBILITY_TOLERANCE

    def solve(self, problem: LinearPrograms, *, cutoff: Floats | None = None, time_limit_s: float = math.inf
              ) -> Solutions:
        """Solve one programme after the other; those that the time does not reach end as TIME_LIMIT. A programme ends
        as soon as its dual value exceeds its `cutoff` "B"."""
        deadline = time.monotonic() + time_limit_s
        solver = self._solver()
        status = np.full(problem.count, Status.TIME_LIMIT, dtype=np.int8)
        point = np.zeros_like(problem.cost)
        dual = np.zeros_like(problem.row_lower)
        first_row = problem.first_row.tolist()
        alone = _unreachable_rows(problem)
        for b in range(problem.count):
            begin, end = first_row[b], first_row[b + 1]
            if alone[begin:end].any():  # HiGHS gives no ray for a row without entries
                row = begin + int(np.abs(alone[begin:end]).argmax())
                dual[row] = np.sign(alone[row])
                status[b] = Status.INFEASIBLE
                continue
            if end == begin:
                point[b] = -np.sign(problem.cost[b])
                status[b] = Status.OPTIMAL
                continue
            if time_limit_s < math.inf:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                solver.setOptionValue("time_limit", solver.getRunTime() + left)  # its clock runs on over models
            if cutoff is not None:
                solver.setOptionValue("objective_bound", float(cutoff[b]))
            self._pass(solver, problem, begin, end, problem.cost[b])
            status[b] = self._run(solver, point[b], dual[begin:end])
        return Solutions(status, point, dual)

    def solve_costs(self, problem: LinearPrograms, costs: Floats, *, time_limit_s: float = math.inf) -> Solutions:
        """One programme with several costs "R V", each from the basis that the one before ended with: the Solutions of
        R programmes with the same rows."""
        if problem.count != 1:
            raise ValueError(f"expected one programme, got {problem.count}")
        if not problem.row_lower.shape[0] or _unreachable_rows(problem).any():
            every = [self.solve(replace(problem, cost=cost[None]), time_limit_s=time_limit_s) for cost in costs]
            return Solutions(*(np.concatenate(parts) for parts in zip(*((s.status, s.point, s.dual) for s in every),
                                                                      strict=True)))
        deadline = time.monotonic() + time_limit_s
        solver, rows = self._solver(), problem.row_lower.shape[0]
        status = np.full(len(costs), Status.TIME_LIMIT, dtype=np.int8)
        point, dual = np.zeros_like(costs), np.zeros((len(costs), rows))
        self._pass(solver, problem, 0, rows, costs[0] if len(costs) else problem.cost[0])
        columns = np.arange(problem.columns, dtype=np.int32)
        for r, cost in enumerate(costs):
            if time_limit_s < math.inf:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                solver.setOptionValue("time_limit", solver.getRunTime() + left)
            solver.changeColsCost(problem.columns, columns, np.ascontiguousarray(cost))
            status[r] = self._run(solver, point[r], dual[r])
        return Solutions(status, point, dual.reshape(-1))

    @staticmethod
    def _pass(solver: Any, problem: LinearPrograms, begin: int, end: int, cost: Floats) -> None:
        """Hand over the programme with the rows `begin` to `end`."""
        entries = slice(int(problem.first_entry[begin]), int(problem.first_entry[end]))
        solver.passModel(
            problem.columns, end - begin, entries.stop - entries.start, ROW_WISE, MINIMISE, 0.0, cost,
            -np.ones(problem.columns), np.ones(problem.columns), problem.row_lower[begin:end],
            problem.row_upper[begin:end], problem.first_entry[begin:end + 1] - problem.first_entry[begin],
            problem.column[entries], problem.value[entries], np.zeros(problem.columns, dtype=np.int32))

    def _solver(self) -> Any:
        from highspy._core import _Highs

        solver = _Highs()
        options: dict[str, bool | int | float | str] = {
            "output_flag": False, "threads": 1, "presolve": "off", "solver": "simplex",
            "primal_feasibility_tolerance": self.tolerance, "dual_feasibility_tolerance": self.tolerance}
        for name, value in options.items():
            solver.setOptionValue(name, value)
        return solver

    @staticmethod
    def _run(solver: Any, point: Floats, dual: Floats) -> Status:
        """Run the model that was passed; fills `point` and `dual`."""
        from highspy._core import HighsModelStatus

        solver.run()
        outcome = solver.getModelStatus()
        if outcome in (HighsModelStatus.kOptimal, HighsModelStatus.kObjectiveBound):
            solution = solver.getSolution()
            point[:] = solution.col_value
            dual[:] = solution.row_dual
            return Status.OPTIMAL if outcome == HighsModelStatus.kOptimal else Status.CUTOFF
        if outcome == HighsModelStatus.kInfeasible:
            _, found, ray = solver.getDualRay()
            if found:
                dual[:] = ray
            return Status.INFEASIBLE
        return Status.TIME_LIMIT if outcome == HighsModelStatus.kTimeLimit else Status.FAILED


def _unreachable_rows(problem: LinearPrograms) -> Floats:
    """By how much a row's lower end lies above (positive) or its upper end below (negative) all that the box allows;
    zero where it does not: "N"."""
    entries = np.repeat(np.arange(problem.row_lower.shape[0]), np.diff(problem.first_entry))
    sums = np.bincount(entries, np.abs(problem.value), minlength=problem.row_lower.shape[0])
    reach = sums.astype(np.float64) + UNREACHABLE
    return np.maximum(problem.row_lower - reach, 0) + np.minimum(problem.row_upper + reach, 0)
