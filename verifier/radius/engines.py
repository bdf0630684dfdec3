"""The ways in which a search for the exact radius tries to decide one ball: stages without the attacks.

Where an attack could fall the input, its witness is known already; what stages find on their way (a minimiser of a
relaxation that is unsafe) still counts. No way is the best on all networks: trees of many cheap domains win where there
are few undecided neurons, relaxations that are tight and dear where there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verifier.branch_and_bound.leaves import Leaves
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.leaning import LeaningStage
from verifier.problem import Problem
from verifier.stages import BoundStage, Stage
from verifier.tilted import TiltedStage

CHEAP = (
    BoundStage("crown", keep=True),
    BoundStage("alpha-crown-rows", {"neuron_iterations": 0}, method="alpha-crown", inherit=True),
    BoundStage("alpha-crown", keep=True),
)
CHEAP_NAMES = tuple(stage.name for stage in CHEAP)


@dataclass(frozen=True)
class Engine:
    """A name, and the stages with which it decides a problem. leaves: of the trees over other balls."""

    name: str
    stages: Callable[[Problem, Leaves], Sequence[Stage]]


def _tree(problem: Problem, leaves: Leaves) -> Sequence[Stage]:
    plan = plan_for(problem)
    search = BranchAndBoundStage(plan, leaves=leaves)
    return (CHEAP[0], search) if plan.inputs else (*CHEAP, search)


def _planes(problem: Problem, leaves: Leaves) -> Sequence[Stage]:
    return (*CHEAP, LeaningStage(), TiltedStage())


TREE, PLANES = Engine("branch-and-bound", _tree), Engine("tilted", _planes)


def engines_for(problem: Problem) -> tuple[Engine, ...]:
    """Those that have something to say about a problem."""
    if plan_for(problem).inputs or not problem.tensors.sets.is_box:
        return (TREE,)
    return TREE, PLANES
