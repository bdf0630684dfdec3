"""How large is a network's mixed programme, and what do making it and handing it to the solver cost? A part of
`exact.py`, on the golden network: the least margin of an image's first other class."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.lines import Entry

if TYPE_CHECKING:
    from milp.mixed import MixedAnswer, MixedProgram
    from verifier.property import Property

BOUNDS = ("ibp", "crown")
FIGURES = ("relus", "undecided", "binaries", "rows", "nonzeros")
SECONDS = ("encode_s", "hand_over_s")


@dataclass
class Scales:
    """In the place of a solver: takes a programme over as HiGHS does, and weighs it instead of solving it."""

    name: str = "scales"
    found: Entry = field(default_factory=dict)

    def solve(self, program: MixedProgram, **_: Any) -> MixedAnswer:
        import highspy

        from milp.mixed import MixedAnswer, MixedStatus
        from milp.solvers.highs_mixed import hand_over
        start = time.perf_counter()
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        assert hand_over(solver, program), "HiGHS takes the programme"
        self.found = {"hand_over_s": time.perf_counter() - start, "binaries": int(program.integer.sum()),
                      "rows": int(program.rows.shape[0]), "nonzeros": int(program.rows.nnz)}
        return MixedAnswer(MixedStatus.FAILED)


def weighed(network: Any, asked: Property, bounds: str) -> Entry:
    """The programme of the first branch, with bounds of the neurons by one method."""
    from bounds.ops.relu import Relu
    from milp.questions import least_margin
    from verifier.deadline import Deadline
    from verifier.milp_stage import rows_of
    from verifier.problem import State, make_problem
    from verifier.stages import BoundStage
    problem = make_problem(network.graph, asked, replayer=network.replayer, deadline=Deadline.starting_now(),
                           simplified=network.simplified)
    state = State.of(problem)
    BoundStage(bounds, keep=True).run(problem, state)
    read = [state.intervals[node.inputs[0]] for node in problem.graph.nodes if isinstance(node.op, Relu)]
    rows, _ = rows_of(problem.tensors, 0)
    scales, start = Scales(), time.perf_counter()
    least_margin(problem.graph, problem.tensors.sets, state.intervals, rows, scales)
    return {"relus": sum(x.lower[0].numel() for x in read),
            "undecided": sum(int(((x.lower[0] < 0) & (x.upper[0] > 0)).sum()) for x in read), **scales.found,
            "encode_s": time.perf_counter() - start - scales.found["hand_over_s"]}


def lines_of(entries: list[Entry]) -> list[list[str]]:
    """The range of each figure, a line a method."""
    found = []
    for bounds in BOUNDS:
        mine = [e for e in entries if e["method"] == bounds]
        if mine:
            found.append([bounds, str(len(mine)), *(_range([e[k] for e in mine], ",.0f") for k in FIGURES),
                          *(_range([e[k] for e in mine], ".3f") for k in SECONDS)])
    return found


def _range(values: list[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{low:{form}}" if low == high else f"{low:{form}} .. {high:{form}}"
