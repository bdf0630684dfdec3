"""The safe radius by mixed programmes: for every other class the nearest point that gets it (Tjeng, Xiao and Tedrake,
arXiv:1711.07356).

A witness says how far one has to look: the nearer it is, the tighter the bounds of neurons and the smaller the
programmes. Classes that bounds exclude within that distance are not asked about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bounds.graph import Graph
from milp.certificate import UnsafeRows
from milp.mixed import MixedStatus
from milp.questions import MixedSolver, Norm, least_margin, nearest
from milp.solvers.registry import mixed_solver
from verifier.deadline import Deadline
from verifier.problem import Problem, State, make_problem
from verifier.radius.balls import Balls
from verifier.radius.interval import RadiusInterval
from verifier.radius.polish import polished
from verifier.radius.upper import Nearest
from verifier.stages import BoundStage
from verifier.verdict import Evidence
from verifier.witness import Replayer

NAME = "milp"
NEARER = 0.98                      # of the distance searched: a witness this near is worth new bounds
LOOSENED = 1e-6                    # of one and a row's threshold: points that near to unsafe count for the lower end
NORMS: dict[float, Norm] = {math.inf: "inf", 1.0: "1", 2.0: "2"}


def by_programmes(graph: Graph, simplified: Graph, replayer: Replayer, ball: Balls, known: RadiusInterval, *,
                  deadline: Deadline, most: float = math.inf, solver: MixedSolver | None = None, seed: int = 0
                  ) -> RadiusInterval:
    """Both ends of the safe radius of the only input, looking no further than its witness, the clip range, or `most`.

    They meet up to the solver's tolerances unless the time runs out; the lower end is the solver's word (FLOAT). Where
    nothing says how far to look, what is known stays as it is. Raises UnsupportedOperator for what is not piecewise
    linear, and SolverUnsuitable for l_2 where the solver (default HiGHS) has no quadratic rows.
    """
    ask = _Ask(graph, simplified, replayer, ball, solver or mixed_solver("highs"), deadline, seed)
    lower, asked = math.inf, set[int]()
    searched = min(known.upper, float(ball.largest[0]), most)
    if not math.isfinite(searched):
        return known
    while searched > 0:
        problem = ask.problem(searched)
        state = ask.bounded(problem)
        for branch in ask.order(problem, state):
            if branch in asked:
                continue
            asked.add(branch)
            bound, found = ask.branch(problem, state, branch, known.upper)
            lower = min(lower, bound)
            if found is not None:
                known = known.lowered(found.distance, found.evidence, NAME, found.witness)
                if known.upper < NEARER * searched:
                    break  # nearer by so much that all other classes are better asked about a smaller set
        else:
            break
        searched = known.upper
    everything = lower == math.inf and known.upper == math.inf and searched >= float(ball.largest[0])
    return known.raised(math.inf if everything else min(lower, searched, known.upper), Evidence.FLOAT, NAME)


@dataclass(frozen=True, eq=False)
class _Ask:
    graph: Graph
    simplified: Graph
    replayer: Replayer
    ball: Balls
    solver: MixedSolver
    deadline: Deadline
    seed: int

    def problem(self, radius: float) -> Problem:
        return make_problem(self.graph, self.ball.question(0, radius, math.prod(self.graph.output_shape)),
                            replayer=self.replayer, deadline=self.deadline, seed=self.seed, simplified=self.simplified)

    def bounded(self, problem: Problem) -> State:
        """With bounds of all neurons."""
        state = State.of(problem)
        for stage in (BoundStage("crown", keep=True), BoundStage("alpha-crown", keep=True)):
            stage.run(problem, state)
        return state

    def order(self, problem: Problem, state: State) -> list[int]:
        """Branches that bounds do not exclude, the least margin first."""
        open_ = state.open_branches(problem.tensors).nonzero().flatten()
        return open_[state.branch_lower(problem.tensors)[open_].argsort()].tolist()

    def branch(self, problem: Problem, state: State, branch: int, upper: float) -> tuple[float, Nearest | None]:
        """(the solver's lower bound of the distance to one branch's points, what came of its point)."""
        left = self.deadline.left()
        tensors, graph = problem.tensors, problem.graph
        if left <= 0 or not set(graph.relaxed_inputs) <= set(state.intervals):
            return 0.0, None
        rows = (tensors.branch == branch).nonzero().flatten()
        loose = LOOSENED * (1 + tensors.bound[rows].abs())
        unsafe = UnsafeRows(tensors.C[rows].unsqueeze(0), (tensors.bound[rows] + loose).unsqueeze(0),
                            None if tensors.D is None else tensors.D[rows].unsqueeze(0))
        # That a class is out of reach rests on a bound: of a programme without a point there would be a status only.
        least = least_margin(graph, tensors.sets, state.intervals, unsafe, self.solver, time_limit_s=left,
                             below=-LOOSENED, above=LOOSENED)
        if least.answer.bound > 0 and least.answer.status is not MixedStatus.INFEASIBLE:
            return math.inf, None
        found = nearest(graph, tensors.sets, state.intervals, unsafe, self.ball.x[0], NORMS[self.ball.norm],
                        self.solver, time_limit_s=max(0.0, self.deadline.left()), above=upper)
        if found.answer.status is MixedStatus.INFEASIBLE:
            return 0.0, None
        bound = max(0.0, found.answer.bound)
        if found.x is None:
            return bound, None
        return bound, polished((self.graph, self.simplified, self.replayer), self.ball, found.x, NAME, self.deadline)
