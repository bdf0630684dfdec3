"""The CBC executable that PuLP brings, on a file with every digit.

PuLP's own driver loses digits in both directions (13 in the model, 8 in the point) and takes no bound from CBC. Here
the point is read from CBC's binary file and the bound from its log. What was seen with CBC 2.10.3: with its integer
preprocessing, which is on by default, it called a point optimal that was 1.5 above the optimum (1 of 200 programmes of
eight columns; without, 0 of 1500); the time limit is not looked at within the first relaxation, so that a process that
overruns is ended; a lower bound is printed with three decimals, rounded up as well as down.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from milp.problem import Floats
from milp.solvers.closing import closing
from milp.solvers.highs_mixed import ABSOLUTE_GAP, FEASIBILITY, INTEGRALITY
from milp.solvers.mps import mps_text
from milp.solvers.statuses import CBC, meaning

INCREMENT = 1e-9      # by which a new point must be better: nodes that promise less are cut off
GRACE_S = 2.0         # beyond the time limit, before the process is ended
SHORTEST_S = 0.01     # what is left of the time must be more than this for CBC to be started
DECIMALS = 5.1e-4     # of "Lower bound:", printed with three of them
DIGITS = 1e-7         # of "best possible", printed with eight digits
BEST_POSSIBLE = re.compile(r"^Cbc0005I .*\(best possible (\S+)\)", re.MULTILINE)
LOWER_BOUND = re.compile(r"^Lower bound: +(\S+)$", re.MULTILINE)
GAP_LEFT = re.compile(r"^Cbc0011I Exiting as integer gap of (\S+) less", re.MULTILINE)
NODES = re.compile(r"^Enumerated nodes: +(\d+)$", re.MULTILINE)


def run_cbc(path: str, program: MixedProgram, threads: int, gap: float, *, time_limit_s: float, below: float,
            above: float, start: Floats | None) -> MixedAnswer:
    """Solve a linear programme with the executable at `path`; CBC has no switch for `below` and `above`."""
    begin = time.monotonic()
    with TemporaryDirectory(prefix="cbc-") as name:
        folder = Path(name)
        (folder / "model.mps").write_text(mps_text(program))
        words = [path, "model.mps", "-timeMode", "elapsed", "-ratio", repr(gap), "-allow", repr(ABSOLUTE_GAP),
                 "-increment", repr(INCREMENT), "-integerTolerance", repr(INTEGRALITY),
                 "-primalTolerance", repr(FEASIBILITY), "-preprocess", "off"]
        if threads > 1:
            words += ["-threads", str(threads)]
        if start is not None:
            lines = (f"{j} c{j} {v!r} 0\n" for j, v in enumerate(start.tolist()))
            (folder / "start.mst").write_text("Stopped on time - objective value 0\n" + "".join(lines))
            words += ["-mipstart", "start.mst"]
        left = time_limit_s - (time.monotonic() - begin)
        said, point, bound, nodes = MixedStatus.TIME_LIMIT, None, -math.inf, 0
        if left > SHORTEST_S:
            words += ["-sec", repr(left)] if left < math.inf else []
            words += ["-solve", "-solution", "model.sol", "-saveSolution", "model.bin"]
            said, point, bound, nodes = _run(words, folder, program, left, gap)
    return closing(said, program, point, bound + program.offset, below=below, above=above,
                   seconds=time.monotonic() - begin, nodes=nodes, start=start)


def _run(words: list[str], folder: Path, program: MixedProgram, left: float, gap: float
         ) -> tuple[MixedStatus, Floats | None, float, int]:
    """(status, point, bound without the offset, nodes) of one call."""
    begin = time.monotonic()
    with (folder / "log").open("w") as log:
        try:
            done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                                  timeout=None if left == math.inf else left + GRACE_S)
        except subprocess.TimeoutExpired:
            return MixedStatus.TIME_LIMIT, None, -math.inf, 0
    late = time.monotonic() - begin >= left - SHORTEST_S
    solution = folder / "model.sol"
    if done.returncode or not solution.exists():
        return MixedStatus.FAILED, None, -math.inf, 0
    with solution.open() as lines:
        said = meaning(CBC, lines.readline().partition(" - objective value")[0].strip())
    text = (folder / "log").read_text(errors="replace")
    found = NODES.search(text)
    nodes = int(found[1]) if found else 0
    if late and said in (MixedStatus.OPTIMAL, MixedStatus.INFEASIBLE):  # known to be said too of what was cut short
        said = MixedStatus.TIME_LIMIT
    if said not in (MixedStatus.OPTIMAL, MixedStatus.TIME_LIMIT):
        return said, None, -math.inf, nodes
    point = _point(folder / "model.bin", program)
    value = math.inf if point is None else float(program.cost @ point)
    whole = bool(program.integer.any())
    if said is MixedStatus.TIME_LIMIT:
        return said, point, _printed_bound(text) if whole else -math.inf, nodes
    if point is None:
        return said, None, -math.inf, nodes
    left_open = max((float(g) for g in GAP_LEFT.findall(text)), default=ABSOLUTE_GAP + 2 * gap * abs(value))
    return said, point, value - (left_open * (1 + DIGITS) + INCREMENT if whole else 0.0), nodes


def _printed_bound(log: str) -> float:
    """The bound that CBC prints twice when it ends early, less what it is rounded by; -inf unless both are there."""
    possible, lower = BEST_POSSIBLE.findall(log), LOWER_BOUND.findall(log)
    if not possible or not lower:
        return -math.inf
    try:
        fine, coarse = float(possible[-1]), float(lower[-1])
    except ValueError:
        return -math.inf
    if abs(fine) >= 1e20 or abs(coarse) >= 1e20:
        return -math.inf
    # The first is that of the last tree, which may be a part of the whole: it counts where the second confirms it.
    return (fine if fine <= coarse + DECIMALS else coarse - DECIMALS) - DIGITS * (1 + abs(fine))


def _point(path: Path, program: MixedProgram) -> Floats | None:
    """Columns from CBC's binary file: two counts, the objective, then rows, their duals, columns, their costs."""
    if not path.exists():
        return None
    data = path.read_bytes()
    rows, columns = (int(n) for n in np.frombuffer(data[:8], dtype=np.int32))
    if columns != len(program.cost) or len(data) != 16 + 16 * (rows + columns):
        return None
    return np.frombuffer(data, dtype=np.float64, offset=16 + 16 * rows, count=columns).copy()
