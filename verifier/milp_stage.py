"""The stage that asks a MILP solver (`--method milp`).

Over its whole set about each open branch; or, where few inputs move and every bisection narrows every neuron, about the
pieces that a branch and bound over the inputs leaves with few undecided neurons. A solver's word is what it is: a
branch counts as closed once its bound is above zero by more than its tolerances, and a point counts once it was
replayed on the original network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.sets import InputSet
from milp.certificate import UnsafeRows
from milp.mixed import CLEAR, MixedAnswer, MixedStatus
from milp.questions import MixedSolver, least_margin
from milp.solvers.registry import mixed_solver
from verifier.attacks.falsifier import Falsifier
from verifier.attacks.property_search import PropertyAttack
from verifier.branch_and_bound.bounding import Bounder
from verifier.branch_and_bound.branching.undecided import undecided_by_node
from verifier.branch_and_bound.domains import Domains
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.deadline import LAST_BATCH_S
from verifier.problem import Problem, State, only_branches
from verifier.property import PropertyTensors

MOST_UNDECIDED = 40   # neurons of a piece: ACAS Xu's took 1.3 to 3 s with 40, up to a minute and more with 80
BRIEF = Falsifier(restarts=4, steps=12, rounds=1, samples=64, time_limit_s=0.5)


@dataclass(frozen=True)
class MilpStage:
    """Decide the open branches; unknown intermediate bounds are a mistake of the stages before. `attack` finds the
    solver's first points; pieces have at most `most_undecided` neurons that their bounds leave open."""

    solver: MixedSolver = field(default_factory=lambda: mixed_solver("highs"))
    attack: PropertyAttack = BRIEF
    most_undecided: int = MOST_UNDECIDED
    name: str = "milp"

    def is_rounded(self, problem: Problem) -> bool:
        return False  # a solver's word

    def run(self, problem: Problem, state: State) -> None:
        plan = plan_for(problem)
        state.choices[self.name] = {"solver": self.solver.name, "pieces": plan.inputs}
        if plan.inputs:
            pieces = Pieces(self.solver, problem, self.most_undecided)
            BranchAndBoundStage(replace(plan, neurons=False), self.name, exact=pieces).run(problem, state)
            state.choices[self.name] = {"solver": self.solver.name, "pieces": pieces.solved,
                                        "solver_s": round(pieces.seconds, 3)}
            return
        self._whole(problem, state)

    def _whole(self, problem: Problem, state: State) -> None:
        """Branch by branch, each over its whole set."""
        tensors = problem.tensors
        open_ = state.open_branches(tensors)
        branches = open_.nonzero().flatten().tolist()
        first = self.attack.best_of_each(problem.graph, only_branches(tensors, open_), deadline=problem.deadline,
                                         generator=problem.generator)
        for branch, start in zip(branches, first.x, strict=True):
            left = problem.deadline.left() - LAST_BATCH_S
            rows, clear = rows_of(tensors, branch)
            if left <= 0 or not rows.bound.numel():
                return
            region = tensors.branch_region[branch:branch + 1]
            sets, intervals = tensors.sets.index(region), {i: x.map(lambda t, r=region: t[r])
                                                           for i, x in state.intervals.items()}
            answer, x = asked(problem, sets, intervals, rows, clear, self.solver, left, start)
            state.domains += max(1, answer.nodes)
            state.upper = min(state.upper, answer.value)
            if x is not None:
                state.witness = problem.confirm(x)
                if state.witness is not None:
                    return
            if answer.status is MixedStatus.INFEASIBLE:
                state.numerical = "the MILP solver finds no point at all, though every input is one"
                continue
            lower = answer.bound - clear
            state.branch_proved[branch] = torch.maximum(state.branch_proved[branch], tensors.bound.new_tensor(lower))
            state.branch_closed[branch] |= lower > 0


@dataclass(eq=False)
class Pieces:
    """Decides the small domains of a search over the inputs (`verifier.branch_and_bound.search.Exact`)."""

    solver: MixedSolver
    problem: Problem
    most_undecided: int
    solved: int = 0
    seconds: float = 0.0

    def takes(self, bounder: Bounder, domains: Domains) -> Tensor:
        undecided = undecided_by_node(bounder.graph, bounder.layout, domains)
        count = torch.zeros_like(domains.node)
        for mask in undecided.values():
            count += mask.flatten(1).sum(1)
        return count <= self.most_undecided

    def solve(self, bounder: Bounder, domain: Domains, branch: int) -> tuple[float, Tensor | None]:
        rows, clear = rows_of(self.problem.tensors, branch)
        shape = (1, *bounder.graph.input_shape)
        sets = InputSet(domain.low.view(shape), domain.high.view(shape))
        answer, x = asked(self.problem, sets, domain.intervals(bounder.layout), rows, clear, self.solver,
                          max(0.0, self.problem.deadline.left() - LAST_BATCH_S))
        self.solved += 1
        self.seconds += answer.seconds
        # A piece has points unless splits emptied it: what a solver calls infeasible is left open.
        lower = -torch.inf if answer.status is MixedStatus.INFEASIBLE else answer.bound - clear
        return max(lower, float(domain.lower[0])), x


def rows_of(tensors: PropertyTensors, branch: int) -> tuple[UnsafeRows, float]:
    """A branch's rows, and what a bound of them must exceed zero by."""
    rows = (tensors.branch == branch).nonzero().flatten()
    unsafe = UnsafeRows(tensors.C[rows].unsqueeze(0), tensors.bound[rows].unsqueeze(0),
                        None if tensors.D is None else tensors.D[rows].unsqueeze(0))
    return unsafe, CLEAR * (1 + float(tensors.bound[rows].abs().max())) if len(rows) else 0.0


def asked(problem: Problem, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, clear: float,
          solver: MixedSolver, time_limit_s: float, start: Tensor | None = None) -> tuple[MixedAnswer, Tensor | None]:
    """(answer, point) for one branch over one set. The search goes on until its bound, or the value of its point, is
    clear: one that ended at zero would say nothing."""
    found = least_margin(problem.graph, sets, intervals, rows, solver, time_limit_s=time_limit_s, below=-clear,
                         above=2 * clear, start=start)
    return found.answer, None if found.x is None else found.x.to(problem.tensors.bound)
