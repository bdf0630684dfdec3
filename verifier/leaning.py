"""The stage that bounds rows with leaning planes (`bounds.leaning`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bounds.bounds import LinearRows
from bounds.leaning import Leaning
from bounds.precision import rounded_down
from verifier.best_rows import CLEAR_PLACES, open_rows
from verifier.deadline import CLOSING_S
from verifier.problem import Problem, State
from verifier.proved_regions import accounts_for_rounding, proved_regions


@dataclass(frozen=True)
class LeaningStage:
    """Lower bounds of the best row of every open branch, in at most `share` of the time that is left."""

    name: str = "leaning"
    leaning: Leaning = field(default_factory=Leaning)
    share: float = 0.1

    def is_rounded(self, problem: Problem) -> bool:
        return accounts_for_rounding(problem)

    def run(self, problem: Problem, state: State) -> None:
        tensors, graph = problem.tensors, problem.graph
        rows = open_rows(problem, state)
        if not len(rows) or not set(graph.relaxed_inputs) <= set(state.intervals):
            return
        end = max(problem.deadline.left() * (1 - self.share), CLOSING_S)
        regions, owner = tensors.region[rows].unique(return_inverse=True)
        question, given = proved_regions(problem, state, regions)
        D = None if question.D is None else question.D[rows]
        asked = LinearRows(question.C[rows], owner, D, -question.bound[rows])
        target = CLEAR_PLACES * tensors.last_places[rows]
        method = replace(self.leaning, stop=lambda: problem.deadline.left() < end)
        lower = method.bound(graph, question.sets.index(regions), asked, target, given,
                             None if problem.double is None else problem.double.graph)
        if lower is not None:
            state.domains += len(regions)
            state.improve(rows, rounded_down(lower, tensors.bound.dtype))
