"""From what a solver said to an answer: its point is held against the programme, its bound against its point."""

from __future__ import annotations

import math

import numpy as np

from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from milp.problem import Floats

MISS = 1e-6           # of a row's terms and one: ten times what solvers are told to keep, lost in their postsolve
CONTRADICTION = 1e-6  # of the value and one: a bound this far above the value of a point that holds is wrong


def closing(said: MixedStatus, program: MixedProgram, point: Floats | None, bound: float, *, below: float,
            above: float, seconds: float, nodes: int = 0, start: Floats | None = None) -> MixedAnswer:
    """The answer. A point "V" that misses a row is no point, and an optimum without one, or with a bound above it, is
    INACCURATE and has no bound; `start` "V" stands in for a worse point; `bound` includes the offset."""
    if said is MixedStatus.INFEASIBLE:
        return MixedAnswer(said, bound=math.inf, seconds=seconds, nodes=nodes)
    if said in (MixedStatus.FAILED, MixedStatus.INACCURATE):
        return MixedAnswer(said, seconds=seconds, nodes=nodes)
    if point is not None and not holds(program, point):
        point = None
    lost = said is MixedStatus.OPTIMAL and point is None
    value = _value(program, point)
    if start is not None and _value(program, start) < value and holds(program, start):
        point, value = start, _value(program, start)
    if math.isnan(bound) or bound >= 1e20:
        bound = -math.inf
    if lost or bound > value + CONTRADICTION * (1 + abs(value)):
        return MixedAnswer(MixedStatus.INACCURATE, value, -math.inf, point, seconds, nodes)
    bound = min(bound, value)
    if said is not MixedStatus.OPTIMAL:
        said = MixedStatus.TARGET if value <= below or bound > above else MixedStatus.TIME_LIMIT
    return MixedAnswer(said, value, bound, point, seconds, nodes)


def holds(program: MixedProgram, point: Floats) -> bool:
    """A point is in all ends, rows and squares, and whole where it must be, up to MISS."""
    if not np.isfinite(point).all():
        return False
    size, at = abs(program.rows) @ np.abs(point), program.rows @ point
    whole = point[program.integer]
    missed = [_outside(program.lower, point, program.upper, np.abs(point)),
              _outside(program.row_lower, at, program.row_upper, size), np.abs(whole - np.round(whole))]
    for square in program.squares:
        reach = ((point[square.columns] - square.centre) / square.scale) ** 2
        limit = square.limit + (0.0 if square.column is None else point[square.column])
        missed.append(np.atleast_1d((reach.sum() - limit) / (1 + reach.sum())))
    return all(float(m.max(initial=0.0)) <= MISS for m in missed)


def _outside(lower: Floats, value: Floats, upper: Floats, size: Floats) -> Floats:
    return np.maximum(lower - value, value - upper) / (1 + size)


def _value(program: MixedProgram, point: Floats | None) -> float:
    return math.inf if point is None else float(program.cost @ point + program.offset)
