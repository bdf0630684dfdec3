"""Solvers of mixed-integer programmes by name; a solver is loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milp.solvers.refusals import SolverMissing

if TYPE_CHECKING:
    from milp.questions import MixedSolver

MIXED_SOLVERS = ("highs", "cbc", "scip", "gurobi", "cplex", "xpress", "copt")
QUADRATIC = ("scip",)  # those with convex quadratic rows


def mixed_solver(name: str, threads: int = 1) -> MixedSolver:
    """The solver with its usual settings; raises SolverMissing, with the remedy, for one that is not there."""
    if name not in MIXED_SOLVERS:
        raise SolverMissing(f"there is no solver {name!r}: choose one of {', '.join(MIXED_SOLVERS)}")
    if threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    if name == "highs":
        from milp.solvers.highs_mixed import HighsMixed
        return HighsMixed(threads=threads)
    if name == "scip":
        from milp.solvers.scip_mixed import ScipMixed, require_scip
        require_scip()
        return ScipMixed(threads=threads)
    from milp.solvers.pulp_mixed import PulpMixed, cbc_path, require_driver
    if name == "cbc":
        cbc_path()
    else:
        require_driver(name)
    return PulpMixed(name, threads=threads)
