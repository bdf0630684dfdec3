"""What a solver cannot be asked, and solvers that are not there: errors of one sentence with a remedy."""

from __future__ import annotations

from milp.mixed import MixedProgram


class SolverMissing(ValueError):
    """A solver that is unknown, or whose package, executable or licence is not there."""


class SolverUnsuitable(ValueError):
    """A programme of a kind that the solver does not have."""


def linear_only(program: MixedProgram, solver: str) -> None:
    """Raises SolverUnsuitable for a programme with quadratic rows."""
    if program.squares:
        raise SolverUnsuitable(f"{solver} is used for linear rows only and the programme has {len(program.squares)} "
                               "quadratic row(s) (an l_2 ball): use the solver \"scip\" (`pip install pyscipopt`)")
