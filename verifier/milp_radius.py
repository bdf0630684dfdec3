"""The maximal safe radius by mixed programmes: for every other class the nearest point that gets it (Tjeng, Xiao and
Tedrake, arXiv:1711.07356).

An attack first says how far one has to look: the nearer its best point, the tighter the bounds of neurons and the
smaller the programmes. Classes that bounds exclude within that distance are not asked about.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph
from milp.certificate import UnsafeRows
from milp.mixed import MixedStatus
from milp.questions import MixedSolver, Norm, least_margin, nearest
from milp.solvers.registry import mixed_solver
from verifier.attacks.falsifier import Falsifier
from verifier.deadline import Deadline
from verifier.problem import Problem, State, make_problem
from verifier.property import Property, robustness
from verifier.stages import BoundStage
from verifier.witness import Replayer, Witness, confirm

ATTACK = Falsifier(restarts=8, steps=40, rounds=2, samples=128, time_limit_s=1.0)
ATTACKS, CLOSE = 8, 0.02           # so many at most, until the last success and failure are this close
NEARER = 0.98                      # of the distance searched: a witness this near is worth new bounds
LOOSENED = 1e-6                    # of one and a row's threshold: points that near to unsafe count for the lower end
NUDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # by which a solver's point is moved away from the centre
NORMS: dict[Norm, float] = {"inf": math.inf, "1": 1.0, "2": 2.0}


@dataclass(frozen=True, eq=False)
class Radius:
    """No point nearer than `lower` gets another label, says the solver (evidence FLOAT); `witness` does, `upper` away
    (inf and None: none is known). `searched`: how far was looked, where nothing was found."""

    lower: float
    upper: float
    witness: Witness | None
    searched: float
    time_s: float


def milp_radius(graph: Graph, x: NDArray[np.float32], label: int, *, replayer: Replayer, most: float,
                norm: Norm = "inf", clip: tuple[float, float] | None = None, solver: MixedSolver | None = None,
                time_limit_s: float = 300.0, seed: int = 0) -> Radius:
    """Both ends of the safe radius of x "*input" in a norm, looking no further than `most`.

    They meet up to the solver's tolerances unless the time runs out. Raises UnsupportedOperator for what is not
    piecewise linear, and SolverUnsuitable for norm "2" where the solver (default HiGHS) has no quadratic rows.
    """
    begin = time.monotonic()
    deadline = Deadline.starting_now(time_limit_s)
    solver = solver or mixed_solver("highs")
    ask = _Ask(graph, graph.simplify(), x, label, replayer, norm, clip, deadline, seed)
    witness = ask.attacked(most)
    upper = math.inf if witness is None else ask.distance(witness)
    lower, asked, searched = math.inf, set[int](), min(most, upper)
    while searched > 0:
        problem = ask.problem(searched)
        state = ask.bounded(problem)
        for branch in ask.order(problem, state):
            if branch in asked:
                continue
            asked.add(branch)
            bound, found = ask.branch(problem, state, branch, solver, upper)
            lower = min(lower, bound)
            if found is not None and ask.distance(found) < upper:
                witness, upper = found, ask.distance(found)
                if upper < NEARER * searched:
                    break  # nearer by so much that all other classes are better asked about a smaller set
        else:
            break
        searched = upper
    return Radius(min(lower, searched, upper), upper, witness, searched, time.monotonic() - begin)


@dataclass(frozen=True, eq=False)
class _Ask:
    graph: Graph
    simplified: Graph
    x: NDArray[np.float32]
    label: int
    replayer: Replayer
    norm: Norm
    clip: tuple[float, float] | None
    deadline: Deadline
    seed: int

    def property(self, radius: float) -> Property:
        classes = math.prod(self.graph.output_shape)
        return robustness(self.x, self.label, radius, classes=classes, norm=NORMS[self.norm], clip=self.clip)

    def problem(self, radius: float) -> Problem:
        return make_problem(self.graph, self.property(radius), replayer=self.replayer, deadline=self.deadline,
                            seed=self.seed, simplified=self.simplified)

    def distance(self, witness: Witness) -> float:
        moved = torch.from_numpy(witness.x.astype(np.float64) - self.x.astype(np.float64).reshape(witness.x.shape))
        return float(moved.flatten().norm(NORMS[self.norm]))

    def attacked(self, most: float) -> Witness | None:
        """The nearest counterexample of a few attacks, each half-way between what failed and what succeeded."""
        best, low, high = None, 0.0, most
        radius = most
        for _ in range(ATTACKS):
            problem = self.problem(radius)
            outcome = ATTACK.run(problem.graph, problem.tensors, deadline=self.deadline, generator=problem.generator,
                                 gate=partial(confirm, prop=problem.property, replayer=self.replayer))
            if outcome.witness is not None:
                best, high = outcome.witness, self.distance(outcome.witness)
            else:
                low = radius
            radius = (low + high) / 2
            if high - low <= CLOSE * high:
                break
        return best

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

    def branch(self, problem: Problem, state: State, branch: int, solver: MixedSolver, upper: float
               ) -> tuple[float, Witness | None]:
        """(the solver's lower bound of the distance to one branch's points, a witness at its point)."""
        left = self.deadline.left()
        tensors, graph = problem.tensors, problem.graph
        if left <= 0 or not set(graph.relaxed_inputs) <= set(state.intervals):
            return 0.0, None
        rows = (tensors.branch == branch).nonzero().flatten()
        loose = LOOSENED * (1 + tensors.bound[rows].abs())
        unsafe = UnsafeRows(tensors.C[rows].unsqueeze(0), (tensors.bound[rows] + loose).unsqueeze(0),
                            None if tensors.D is None else tensors.D[rows].unsqueeze(0))
        # That a class is out of reach rests on a bound: of a programme without a point there would be a status only.
        least = least_margin(graph, tensors.sets, state.intervals, unsafe, solver, time_limit_s=left, below=-LOOSENED,
                             above=LOOSENED)
        if least.answer.bound > 0 and least.answer.status is not MixedStatus.INFEASIBLE:
            return math.inf, None
        centre = torch.from_numpy(self.x.astype(np.float64)).view(graph.input_shape)
        found = nearest(graph, tensors.sets, state.intervals, unsafe, centre, self.norm, solver,
                        time_limit_s=max(0.0, self.deadline.left()), above=upper)
        if found.answer.status is MixedStatus.INFEASIBLE:
            return 0.0, None
        return max(0.0, found.answer.bound), None if found.x is None else self.confirmed(found.x, centre)

    def confirmed(self, x: Tensor, centre: Tensor) -> Witness | None:
        """A solver's point, or one a little beyond it, as a witness."""
        asked = self.property(2 * float((x - centre).flatten().norm(NORMS[self.norm])) + 1)
        for nudge in NUDGES:
            moved = centre + (1 + nudge) * (x - centre)
            if self.clip is not None:
                moved = moved.clamp(*self.clip)
            witness = confirm(moved, asked, self.replayer)
            if witness is not None:
                return witness
        return None
