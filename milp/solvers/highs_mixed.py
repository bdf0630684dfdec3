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
from milp.safe_bound import safe_bound
from milp.solvers.closing import closing
from milp.solvers.refusals import linear_only
from milp.solvers.statuses import HIGHS, meaning

ABSOLUTE_GAP = 1e-9  # margins near zero are the ones that matter, where a relative gap ends nothing
INTEGRALITY = 1e-7   # a tenth of the default: times a big M of ten it is still below what a margin must clear
INFINITE = 1e20
FEASIBILITY = 1e-8   # of rows, by the same reasoning


@dataclass(frozen=True)
class HighsMixed:
    """`threads` of the search; `gap`: relative difference of value and bound at which a point counts as optimal."""

    threads: int = 1
    gap: float = 1e-6
    name: str = "highs"

    def solve(self, program: MixedProgram, *, time_limit_s: float = math.inf, below: float = -math.inf,
              above: float = math.inf, start: Floats | None = None) -> MixedAnswer:
        """The least value; ends early (TARGET) once a point is `below`, or no point can be below `above`. start: values
        "V" of all columns to begin with. Raises SolverUnsuitable for quadratic rows."""
        import highspy

        linear_only(program, self.name)
        solver = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", self.threads), ("mip_rel_gap", self.gap),
                              ("mip_abs_gap", ABSOLUTE_GAP), ("mip_feasibility_tolerance", INTEGRALITY),
                              ("primal_feasibility_tolerance", FEASIBILITY)):
            solver.setOptionValue(option, value)
        if time_limit_s < math.inf:
            solver.setOptionValue("time_limit", max(0.0, time_limit_s))
        if below > -math.inf:
            solver.setOptionValue("objective_target", below - program.offset)
        if not hand_over(solver, program):
            return MixedAnswer(MixedStatus.FAILED)
        if start is not None:
            known = highspy.HighsSolution()
            known.col_value = start.tolist()
            solver.setSolution(known)
        if above < math.inf and program.integer.any():
            def interrupt(event: Any) -> None:
                # An infinite bound is that of a search which is about to end by itself, and knows why.
                event.data_in.user_interrupt = bool(above < event.data_out.mip_dual_bound < INFINITE)
            solver.cbMipInterrupt += interrupt
        solver.run()
        return _answer(solver, program, highspy, below=below, above=above, start=start)


def hand_over(solver: Any, program: MixedProgram) -> bool:
    """Give a `highspy.Highs` the programme; whether it took it."""
    import highspy

    rows = program.rows.tocsr()
    status = solver.passModel(
        program.rows.shape[1], rows.shape[0], rows.nnz, 2, 1, program.offset, program.cost, program.lower,
        program.upper, program.row_lower, program.row_upper, rows.indptr.astype(np.int32),
        rows.indices.astype(np.int32), rows.data, program.integer.astype(np.int32))
    return bool(status != highspy.HighsStatus.kError)


def _answer(solver: Any, program: MixedProgram, highspy: Any, *, below: float, above: float,
            start: Floats | None = None) -> MixedAnswer:
    """What the solver says, held against the programme."""
    said, info = meaning(HIGHS, solver.getModelStatus().name), solver.getInfo()
    has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    point = np.array(solver.getSolution().col_value) if has_point else None
    bound = float(info.mip_dual_bound)
    if not program.integer.any():  # of a linear programme there is one that stands by itself
        dual = np.array(solver.getSolution().row_dual)
        bound = -math.inf if len(dual) != len(program.row_lower) else program.offset + safe_bound(
            program.cost, program.lower, program.upper, program.rows, program.row_lower, program.row_upper, dual)
    return closing(said, program, point, bound, below=below, above=above, seconds=float(solver.getRunTime()),
                   nodes=max(0, int(info.mip_node_count)), start=start)
