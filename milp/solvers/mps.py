"""Linear mixed-integer programmes as free MPS text, with every digit of their numbers.

PuLP writes 13 digits; a row here holds weights of a network, and `repr` writes what reads back as the same double. The
offset is left out, for solvers disagree about its sign: it is added to what they answer.
"""

from __future__ import annotations

import numpy as np

from milp.mixed import MixedProgram
from milp.problem import Floats


def mps_text(program: MixedProgram) -> str:
    """Columns c0, c1, ... and rows r0, r1, ...; rows without any end are not rows, rows with two different ones are
    ranges, an ulp too wide where their length is rounded."""
    lower, upper = program.row_lower, program.row_upper
    sense = np.where(lower == upper, "E", np.where(lower > -np.inf, "G", np.where(upper < np.inf, "L", "N")))
    kept = sense != "N"
    side = np.where(lower > -np.inf, lower, upper)
    ranged = kept & (sense == "G") & (upper < np.inf)
    lines = ["NAME rmax FREE", "ROWS", " N obj"]
    lines += [f" {s} r{i}" for i, s in enumerate(sense.tolist()) if s != "N"]
    lines.append("COLUMNS")
    lines += _columns(program, kept)
    lines.append("RHS")
    lines += [f" RHS r{i} {side[i].item()!r}" for i in (kept & (side != 0)).nonzero()[0].tolist()]
    if ranged.any():
        length = np.nextafter(upper - lower, np.inf)
        lines.append("RANGES")
        lines += [f" RNG r{i} {length[i].item()!r}" for i in ranged.nonzero()[0].tolist()]
    lines.append("BOUNDS")
    lines += _bounds(program.lower, program.upper)
    return "\n".join([*lines, "ENDATA", ""])


def _columns(program: MixedProgram, kept: np.ndarray) -> list[str]:
    """One line an entry, column by column; a column without any gets a zero, so that it is one."""
    matrix = program.rows.tocsc()
    matrix.sum_duplicates()
    first, row, value = matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()
    cost, integer, there = program.cost.tolist(), program.integer.tolist(), kept.tolist()
    lines: list[str] = []
    marked = False
    for j in range(len(cost)):
        if integer[j] != marked:
            marked = integer[j]
            lines.append(f" M{j} 'MARKER' '{'INTORG' if marked else 'INTEND'}'")
        lines.append(f" c{j} obj {cost[j]!r}")
        lines += [f" c{j} r{i} {v!r}" for i, v in zip(row[first[j]:first[j + 1]], value[first[j]:first[j + 1]],
                                                        strict=True) if there[i]]
    if marked:
        lines.append(" MEND 'MARKER' 'INTEND'")
    return lines


def _bounds(lower: Floats, upper: Floats) -> list[str]:
    """Both ends of every column: readers differ in what they take for granted."""
    lines: list[str] = []
    for j, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        if low == -np.inf and high == np.inf:
            lines.append(f" FR BND c{j}")
            continue
        lines.append(f" LO BND c{j} {low!r}" if low > -np.inf else f" MI BND c{j}")
        lines.append(f" UP BND c{j} {high!r}" if high < np.inf else f" PL BND c{j}")
    return lines
