"""SCIP on mixed-integer programmes, quadratic rows included: the l_2 sets.

Linear rows go through a file, which SCIP reads faster than Python can call it for every entry. A square
`((v - c) / s)^2` is that of a free column `w` with `s w = v - c`: multiplied out, small balls around large centres
would cancel. `limits/primal` and `limits/dual` end a search whose sign is known.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from milp.mixed import MixedAnswer, MixedProgram, MixedStatus, SquaredNorm
from milp.problem import Floats
from milp.solvers.closing import closing
from milp.solvers.highs_mixed import ABSOLUTE_GAP
from milp.solvers.mps import mps_text
from milp.solvers.refusals import SolverMissing
from milp.solvers.statuses import SCIP, meaning

FEASIBILITY = 1e-8  # of rows, squares and integrality, for which SCIP has one number; the default is 1e-6
DUAL = 1e-9         # of reduced costs; the default is 1e-7
SQUARES_GAP = 1e-6  # absolute, with quadratic rows: below 1e-7 the search over a ball in three columns went on for ever
INFINITY = 1e20     # what SCIP takes for infinite


@dataclass(frozen=True)
class ScipMixed:
    """`threads` of the linear programmes within the search; `gap`: relative difference of value and bound at which a
    point counts as optimal."""

    threads: int = 1
    gap: float = 1e-6
    name: str = "scip"

    def solve(self, program: MixedProgram, *, time_limit_s: float = math.inf, below: float = -math.inf,
              above: float = math.inf, start: Floats | None = None) -> MixedAnswer:
        """The least value; ends early (TARGET) once a point is `below`, or no point can be below `above`. start: values
        "V" of all columns to begin with. Raises SolverMissing without pyscipopt."""
        begin = time.monotonic()
        model, columns = _read(program)
        squares = [_add_square(model, columns, square) for square in program.squares]
        absolute = SQUARES_GAP if squares else ABSOLUTE_GAP
        for option, value in (("limits/gap", self.gap), ("limits/absgap", absolute), ("lp/threads", self.threads),
                              ("numerics/feastol", FEASIBILITY), ("numerics/dualfeastol", DUAL)):
            model.setParam(option, value)
        if below > -math.inf:
            model.setParam("limits/primal", below - program.offset)
        if above < math.inf:  # SCIP ends at the limit, an answer counts above it
            model.setParam("limits/dual", float(np.nextafter(above - program.offset, math.inf)))
        if start is not None:
            _add_start(model, columns, squares, program, start)
        left = time_limit_s - (time.monotonic() - begin)
        if left <= 0:
            return closing(MixedStatus.TIME_LIMIT, program, None, -math.inf, below=below, above=above,
                           seconds=time.monotonic() - begin, start=start)
        if left < math.inf:
            model.setParam("limits/time", left)
        model.optimize()
        word = model.getStatus()
        if word == "userinterrupt":  # nothing here interrupts: it was Ctrl-C, which SCIP keeps for itself
            raise KeyboardInterrupt
        point = None
        if model.getNSols():
            best = model.getBestSol()
            point = np.array([model.getSolVal(best, column) for column in columns])
        bound = float(model.getDualbound())
        bound = bound + program.offset if abs(bound) < INFINITY else -math.inf
        return closing(meaning(SCIP, word), program, point, bound, below=below, above=above,
                       seconds=time.monotonic() - begin, nodes=int(model.getNTotalNodes()), start=start)


def require_scip() -> Any:
    """The module; raises SolverMissing without it."""
    try:
        import pyscipopt
    except ImportError as error:
        raise SolverMissing("scip needs the package pyscipopt: install it with `pip install pyscipopt`") from error
    return pyscipopt


def _read(program: MixedProgram) -> tuple[Any, list[Any]]:
    """The model with its linear part, and its columns in order."""
    model = require_scip().Model()
    model.hideOutput()
    with TemporaryDirectory(prefix="scip-") as folder:
        path = Path(folder) / "model.mps"
        path.write_text(mps_text(program))
        model.readProblem(str(path))
    by_name = {column.name: column for column in model.getVars()}
    return model, [by_name[f"c{j}"] for j in range(len(program.cost))]


def _add_square(model: Any, columns: list[Any], square: SquaredNorm) -> list[Any]:
    """The row, and its free columns."""
    from pyscipopt import quicksum

    parts = [model.addVar(lb=None, ub=None) for _ in square.columns]
    for part, j, centre, scale in zip(parts, square.columns.tolist(), square.centre.tolist(), square.scale.tolist(),
                                      strict=True):
        model.addCons(scale * part - columns[j] == -centre)
    limit = square.limit if square.column is None else square.limit + columns[square.column]
    model.addCons(quicksum(part * part for part in parts) <= limit)
    return parts


def _add_start(model: Any, columns: list[Any], squares: list[list[Any]], program: MixedProgram, start: Floats) -> None:
    known = model.createSol()
    for column, value in zip(columns, start.tolist(), strict=True):
        model.setSolVal(known, column, value)
    for parts, square in zip(squares, program.squares, strict=True):
        for part, value in zip(parts, ((start[square.columns] - square.centre) / square.scale).tolist(), strict=True):
            model.setSolVal(known, part, value)
    model.addSol(known)
