"""The stage that asks a MILP solver about each open branch (`--method milp`).

A solver's word is what it is: a branch counts as closed once its bound is above zero by more than its tolerances, and a
point counts once it was replayed on the original network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from milp.certificate import UnsafeRows
from milp.mixed import MixedStatus
from milp.questions import MixedSolver, least_margin
from verifier.deadline import LAST_BATCH_S
from verifier.problem import Problem, State
from verifier.witness import confirm

CLEAR = 1e-5        # of one and the row's threshold: what a bound must exceed zero by, in tolerances of solvers


def highs() -> MixedSolver:
    from milp.solvers.highs_mixed import HighsMixed
    return HighsMixed()


@dataclass(frozen=True)
class MilpStage:
    """Decide open branches one after the other; unknown intermediate bounds are a mistake of the stages before."""

    name: str = "milp"
    solver: Callable[[], MixedSolver] = highs

    def run(self, problem: Problem, state: State) -> None:
        tensors, solver = problem.tensors, self.solver()
        state.choices[self.name] = {"solver": solver.name}
        for branch in state.open_branches(tensors).nonzero().flatten().tolist():
            left = problem.deadline.left() - LAST_BATCH_S
            rows = (tensors.branch == branch).nonzero().flatten()
            if left <= 0 or not len(rows):
                return
            region = tensors.branch_region[branch:branch + 1]
            intervals = {i: x.map(lambda t, r=region: t[r]) for i, x in state.intervals.items()}
            unsafe = UnsafeRows(tensors.C[rows].unsqueeze(0), tensors.bound[rows].unsqueeze(0),
                                None if tensors.D is None else tensors.D[rows].unsqueeze(0))
            clear = CLEAR * (1 + float(tensors.bound[rows].abs().max()))
            # The search goes on until its bound is clear: one that ended at zero would prove nothing.
            found = least_margin(problem.graph, tensors.sets.index(region), intervals, unsafe, solver,
                                 time_limit_s=left, below=0.0, above=2 * clear)
            state.domains += max(1, found.answer.nodes)
            if found.x is not None:
                state.upper = min(state.upper, found.answer.value)
                state.witness = confirm(found.x.to(tensors.bound), problem.property, problem.replayer)
                if state.witness is not None:
                    return
            if found.answer.status is MixedStatus.INFEASIBLE:
                state.numerical = "the MILP solver finds no point at all, though every input is one"
                continue
            lower = found.answer.bound - clear
            state.branch_proved[branch] = torch.maximum(state.branch_proved[branch], tensors.bound.new_tensor(lower))
            state.branch_closed[branch] |= lower > 0
