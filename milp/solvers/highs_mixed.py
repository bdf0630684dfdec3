"""HiGHS on mixed-integer programmes: with a time limit, a first point, and an end as soon as a sign is known.

Which switches work was measured with HiGHS 1.15: `objective_target` ends a search whose best point is good enough; for
the bound there is no option, so that a callback interrupts once it passes the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from milp.problem import Floats


@dataclass(frozen=True)
class HighsMixed:
    """`threads` of the search; `gap`: relative difference of value and bound at which a point counts as optimal."""

    threads: int = 1
    gap: float = 1e-6
    name: str = "highs"

    def solve(self, program: MixedProgram, *, time_limit_s: float = math.inf, below: float = -math.inf,
              above: float = math.inf, start: Floats | None = None) -> MixedAnswer:
        """The least value; ends early (TARGET) once a point is `below`, or no point can be below `above`. start: values
        "V" of all columns to begin with."""
        import highspy

        solver = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", self.threads), ("mip_rel_gap", self.gap),
                              ("mip_abs_gap", 1e-9), ("mip_feasibility_tolerance", 1e-7),
                              ("primal_feasibility_tolerance", 1e-8)):
            solver.setOptionValue(option, value)
        if time_limit_s < math.inf:
            solver.setOptionValue("time_limit", max(0.0, time_limit_s))
        if below > -math.inf:
            solver.setOptionValue("objective_target", below - program.offset)
        rows = program.rows.tocsr()
        solver.passModel(
            program.rows.shape[1], rows.shape[0], rows.nnz, 2, 1, program.offset, program.cost, program.lower,
            program.upper, program.row_lower, program.row_upper, rows.indptr.astype(np.int32),
            rows.indices.astype(np.int32), rows.data, program.integer.astype(np.int32))
        if start is not None:
            known = highspy.HighsSolution()
            known.col_value = start.tolist()
            solver.setSolution(known)
        if above < math.inf and program.integer.any():
            def interrupt(event: Any) -> None:
                event.data_in.user_interrupt = bool(event.data_out.mip_dual_bound > above)
            solver.cbMipInterrupt += interrupt
        solver.run()
        return _answer(solver, program, highspy, below, above)


def _answer(solver: Any, program: MixedProgram, highspy: Any, below: float, above: float) -> MixedAnswer:
    outcome, info = solver.getModelStatus(), solver.getInfo()
    ended = highspy.HighsModelStatus
    seconds, nodes = float(solver.getRunTime()), max(0, int(info.mip_node_count))
    if outcome == ended.kInfeasible:
        return MixedAnswer(MixedStatus.INFEASIBLE, bound=math.inf, seconds=seconds, nodes=nodes)
    has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    point = np.array(solver.getSolution().col_value) if has_point else None
    value = float(program.cost @ point + program.offset) if point is not None else math.inf
    whole = program.integer.any()
    bound = float(info.mip_dual_bound) if whole else (value if outcome == ended.kOptimal else -math.inf)
    if not math.isfinite(bound):
        bound = -math.inf
    if outcome == ended.kOptimal:
        return MixedAnswer(MixedStatus.OPTIMAL, value, bound, point, seconds, nodes)
    if value <= below or bound > above:
        return MixedAnswer(MixedStatus.TARGET, value, bound, point, seconds, nodes)
    if outcome == ended.kTimeLimit:
        return MixedAnswer(MixedStatus.TIME_LIMIT, value, bound, point, seconds, nodes)
    status = MixedStatus.INACCURATE if point is not None else MixedStatus.FAILED
    return MixedAnswer(status, value, bound, point, seconds, nodes)
