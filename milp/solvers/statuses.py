"""What each backend's words mean here. No status proves anything by itself, and a word in no table is FAILED.

All columns that matter are boxed, so that "unbounded" is a failure too, and so is a solver that cannot tell it from
"infeasible".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from milp.mixed import MixedStatus

_OPTIMAL, _INFEASIBLE, _TARGET = MixedStatus.OPTIMAL, MixedStatus.INFEASIBLE, MixedStatus.TARGET
_TIME_LIMIT, _INACCURATE = MixedStatus.TIME_LIMIT, MixedStatus.INACCURATE

HIGHS: dict[str, MixedStatus] = {  # by the name of the model status
    "kOptimal": _OPTIMAL, "kInfeasible": _INFEASIBLE, "kTimeLimit": _TIME_LIMIT, "kInterrupt": _TARGET,
    "kObjectiveTarget": _TARGET,
}
CBC: dict[str, MixedStatus] = {  # the words before the objective value in a file of solutions
    "Optimal": _OPTIMAL, "Optimal (within gap tolerance)": _OPTIMAL, "Infeasible": _INFEASIBLE,
    "Integer infeasible": _INFEASIBLE, "Stopped on time": _TIME_LIMIT,
    "Stopped on time (no integer solution - continuous used)": _TIME_LIMIT,
}
SCIP: dict[str, MixedStatus] = {
    "optimal": _OPTIMAL, "gaplimit": _OPTIMAL, "infeasible": _INFEASIBLE, "timelimit": _TIME_LIMIT,
    "memlimit": _TIME_LIMIT, "userinterrupt": _TIME_LIMIT, "terminate": _TIME_LIMIT, "primallimit": _TARGET,
    "duallimit": _TARGET,
}
# By the numbers of their manuals, which PuLP passes on; those of Gurobi that tell infeasible from unbounded only.
GUROBI: dict[int, MixedStatus] = {2: _OPTIMAL, 3: _INFEASIBLE, 9: _TIME_LIMIT, 15: _TARGET}
CPLEX: dict[int, MixedStatus] = {1: _OPTIMAL, 101: _OPTIMAL, 102: _OPTIMAL, 3: _INFEASIBLE, 103: _INFEASIBLE,
                                 11: _TIME_LIMIT, 107: _TIME_LIMIT, 108: _TIME_LIMIT}
XPRESS: dict[tuple[bool, int], MixedStatus] = {  # (has binaries, mipstatus or lpstatus)
    (True, 6): _OPTIMAL, (True, 5): _INFEASIBLE, (True, 3): _TIME_LIMIT, (True, 4): _TIME_LIMIT,
    (False, 1): _OPTIMAL, (False, 2): _INFEASIBLE, (False, 4): _TIME_LIMIT,
}
COPT: dict[int, MixedStatus] = {1: _OPTIMAL, 2: _INFEASIBLE, 8: _TIME_LIMIT}
CVXPY: dict[str, MixedStatus] = {
    "optimal": _OPTIMAL, "optimal_inaccurate": _INACCURATE, "infeasible": _INFEASIBLE,
    "infeasible_inaccurate": _INACCURATE, "unbounded": MixedStatus.FAILED, "unbounded_inaccurate": MixedStatus.FAILED,
    "infeasible_or_unbounded": MixedStatus.FAILED, "user_limit": _TIME_LIMIT, "solver_error": MixedStatus.FAILED,
}


def meaning(table: Mapping[Any, MixedStatus], word: Hashable) -> MixedStatus:
    """The row of a table; FAILED for a word that it does not have."""
    return table.get(word, MixedStatus.FAILED)
