"""Solvers that PuLP drives: CBC, which it brings along, and those that are installed beside it.

CBC is called on a file of its own (`milp/solvers/cbc.py`). The others take PuLP's model in memory, with every digit,
and are asked for their own word and their own bound: PuLP 3.3 says "infeasible" too where CPLEX ran out of time without
a point and where Gurobi or COPT cannot tell it from unbounded, and it has no bound.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from milp.problem import Floats
from milp.solvers import statuses
from milp.solvers.cbc import SHORTEST_S, run_cbc
from milp.solvers.closing import closing
from milp.solvers.highs_mixed import ABSOLUTE_GAP, FEASIBILITY, INTEGRALITY
from milp.solvers.refusals import SolverMissing, linear_only


@dataclass(frozen=True)
class Driver:
    """pulp: the class in PuLP; package: what it imports, error: the name of its error; options: (threads, gap, below,
    above) to arguments of the class; word: of a solved model, to be looked up in `words`; bound: of a model with
    binaries, which means something after any word in `words`."""

    pulp: str
    package: str
    error: str
    options: Callable[[int, float, float, float], dict[str, Any]]
    words: Mapping[Any, MixedStatus]
    word: Callable[[Any], Hashable]
    bound: Callable[[Any], float]


def _gurobi(threads: int, gap: float, below: float, above: float) -> dict[str, Any]:
    return {"gapRel": gap, "MIPGapAbs": ABSOLUTE_GAP, "IntFeasTol": INTEGRALITY, "FeasibilityTol": FEASIBILITY,
            "Threads": threads, "BestObjStop": below, "BestBdStop": above, "manageEnv": True}


def _cplex(threads: int, gap: float, below: float, above: float) -> dict[str, Any]:
    return {"gapRel": gap, "threads": threads, "mip.tolerances.absmipgap": ABSOLUTE_GAP,
            "mip.tolerances.integrality": INTEGRALITY, "simplex.tolerances.feasibility": FEASIBILITY}


def _xpress(threads: int, gap: float, below: float, above: float) -> dict[str, Any]:
    # As text: PuLP makes a whole number of a pair's value, zero of a tolerance.
    return {"gapRel": gap, "options": [f"THREADS={threads}", f"MIPABSSTOP={ABSOLUTE_GAP!r}", f"MIPTOL={INTEGRALITY!r}",
                                       f"FEASTOL={FEASIBILITY!r}"]}


def _copt(threads: int, gap: float, below: float, above: float) -> dict[str, Any]:
    return {"gapRel": gap, "AbsGap": ABSOLUTE_GAP, "IntTol": INTEGRALITY, "FeasTol": FEASIBILITY, "Threads": threads}


def _scip(threads: int, gap: float, below: float, above: float) -> dict[str, Any]:
    return {"gapRel": gap, "gapAbs": ABSOLUTE_GAP, "options": [f"numerics/feastol={FEASIBILITY!r}"]}


DRIVERS: dict[str, Driver] = {
    "scip": Driver("SCIP_PY", "pyscipopt", "Exception", _scip, statuses.SCIP, lambda m: m.getStatus(),
                   lambda m: m.getDualbound()),
    "gurobi": Driver("GUROBI", "gurobipy", "GurobiError", _gurobi, statuses.GUROBI, lambda m: m.Status,
                     lambda m: m.ObjBound),
    "cplex": Driver("CPLEX_PY", "cplex", "exceptions.CplexError", _cplex, statuses.CPLEX,
                    lambda m: m.solution.get_status(), lambda m: m.solution.MIP.get_best_objective()),
    "xpress": Driver("XPRESS_PY", "xpress", "SolverError", _xpress, statuses.XPRESS,
                     lambda m: (m.attributes.mipents > 0, m.attributes.mipstatus if m.attributes.mipents else
                                m.attributes.lpstatus), lambda m: m.attributes.bestbound),
    "copt": Driver("COPT", "coptpy", "CoptError", _copt, statuses.COPT, lambda m: m.status, lambda m: m.bestbnd),
}
"""Solvers by name, beside "cbc"."""


@dataclass(frozen=True)
class PulpMixed:
    """`solver`: "cbc" or a name of DRIVERS; `threads` of its search; `gap`: relative difference of value and bound at
    which a point counts as optimal."""

    solver: str = "cbc"
    threads: int = 1
    gap: float = 1e-6

    def __post_init__(self) -> None:
        if self.solver != "cbc" and self.solver not in DRIVERS:
            raise SolverMissing(f"PuLP's solvers are cbc, {', '.join(DRIVERS)}; got {self.solver!r}")

    @property
    def name(self) -> str:
        return self.solver

    def solve(self, program: MixedProgram, *, time_limit_s: float = math.inf, below: float = -math.inf,
              above: float = math.inf, start: Floats | None = None) -> MixedAnswer:
        """The least value. Only Gurobi ends early for `below` and `above`; the others may end with a status TARGET when
        the time is up. start: values "V" of all columns to begin with.

        Raises SolverMissing without the solver or its licence, SolverUnsuitable for quadratic rows.
        """
        linear_only(program, self.solver)
        if self.solver == "cbc":
            return run_cbc(cbc_path(), program, self.threads, self.gap, time_limit_s=time_limit_s, below=below,
                           above=above, start=start)
        require_driver(self.solver)
        begin = time.monotonic()
        driver = DRIVERS[self.solver]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3.3 announces the constructors of 4.0
            model, variables = pulp_model(program, start)
        left = time_limit_s - (time.monotonic() - begin)
        said, point, bound = MixedStatus.TIME_LIMIT, None, -math.inf
        if left > SHORTEST_S:
            options = driver.options(self.threads, self.gap, below - program.offset, above - program.offset)
            with contextlib.redirect_stdout(io.StringIO()):  # PuLP prints what it stumbles over
                said, point, bound = _drive(driver, self.solver, model, variables, program, options, left, start)
        return closing(said, program, point, bound + program.offset, below=below, above=above,
                       seconds=time.monotonic() - begin, start=start)


def _drive(driver: Driver, name: str, model: Any, variables: list[Any], program: MixedProgram, options: dict[str, Any],
           left: float, start: Floats | None) -> tuple[MixedStatus, Floats | None, float]:
    """(status, point, bound without the offset) of one solver on a PuLP model."""
    import pulp

    if start is not None:
        options["warmStart"] = True
    if left < math.inf:
        options["timeLimit"] = left
    errors = (pulp.PulpSolverError, _error(driver))
    solver: Any = None
    try:
        solver = getattr(pulp, driver.pulp)(msg=False, **options)
        solver.actualSolve(model)
        own = model.solverModel
        said = statuses.meaning(driver.words, driver.word(own))
        values = [v.varValue for v in variables]
        point = None if any(v is None for v in values) else np.array(values, dtype=np.float64)
        if said in (MixedStatus.INFEASIBLE, MixedStatus.FAILED):
            return said, None, -math.inf
        if program.integer.any():
            return said, point, float(driver.bound(own))
        if said is MixedStatus.OPTIMAL and point is not None:
            return said, point, float(program.cost @ point)
        return said, point, -math.inf
    except errors as error:
        raise SolverMissing(f"{name} ended with an error, often that of a missing or size-limited licence: {error}"
                            ) from error
    finally:
        if hasattr(solver, "close"):
            solver.close()


def _error(driver: Driver) -> type[Exception]:
    """The solver's own error, by its dotted name in its package."""
    if driver.error == "Exception":
        return RuntimeError
    try:
        at: Any = importlib.import_module(driver.package)
    except ImportError as error:
        raise SolverMissing(f"the package {driver.package} is there but cannot be loaded: {error}") from error
    for part in driver.error.split("."):
        at = getattr(at, part)
    return at


def pulp_model(program: MixedProgram, start: Floats | None) -> tuple[Any, list[Any]]:
    """A programme without its offset as PuLP has it, and its variables in order."""
    import pulp

    variables = [pulp.LpVariable(f"c{j}", None if low == -np.inf else low, None if high == np.inf else high,
                                 pulp.LpInteger if whole else pulp.LpContinuous)
                 for j, (low, high, whole) in enumerate(zip(program.lower.tolist(), program.upper.tolist(),
                                                            program.integer.tolist(), strict=True))]
    if start is not None:
        for variable, value in zip(variables, start.tolist(), strict=True):
            variable.varValue = value
    model = pulp.LpProblem("rmax", pulp.LpMinimize)
    model.addVariables(variables)
    model.setObjective(pulp.LpAffineExpression(dict(zip(variables, program.cost.tolist(), strict=True))))
    rows = program.rows.tocsr()
    rows.sum_duplicates()
    first, column, value = rows.indptr.tolist(), rows.indices.tolist(), rows.data.tolist()
    for i, (low, high) in enumerate(zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)):
        entries = slice(first[i], first[i + 1])
        terms = dict(zip((variables[j] for j in column[entries]), value[entries], strict=True)) or {variables[0]: 0.0}
        sides = {pulp.LpConstraintEQ: low} if low == high else {pulp.LpConstraintGE: low, pulp.LpConstraintLE: high}
        for k, (sense, end) in enumerate(sides.items()):
            if abs(end) < np.inf:
                model.addConstraint(pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, f"r{i}_{k}", end))
    return model, variables


def cbc_path() -> str:
    """The executable: PuLP's own, else one that it finds; raises SolverMissing without any."""
    pulp = require_pulp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PuLP 3.3 announces that 4.0 will bring CBC in another way
        found = [getattr(pulp, name)(msg=False) for name in ("PULP_CBC_CMD", "COIN_CMD") if hasattr(pulp, name)]
    for solver in found:
        if solver.available():
            return str(Path(solver.path).resolve()) if Path(solver.path).exists() else str(solver.path)
    raise SolverMissing("cbc needs an executable, and PuLP finds none: install one with `pip install pulp[cbc]`")


def require_pulp() -> Any:
    """The module; raises SolverMissing without it."""
    try:
        import pulp
    except ImportError as error:
        raise SolverMissing("this solver is driven by PuLP: install it with `pip install pulp`") from error
    return pulp


def require_driver(name: str) -> None:
    """Raises SolverMissing where PuLP or the solver's package is not there; licences are seen when it solves."""
    require_pulp()
    package = DRIVERS[name].package
    if importlib.util.find_spec(package) is None:
        raise SolverMissing(f"{name} needs its Python package and a licence: install it with `pip install {package}`")
