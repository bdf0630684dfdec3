"""The ways in which a search for the exact radius tries to decide one ball.

Attacks have their own: where they fell the input a nearer ball is next, so that the others need none. What these find
on their way (a minimiser of a relaxation that is unsafe) still counts. No way is the best on all networks: trees of
many cheap domains win where there are few undecided neurons, relaxations that are tight and dear where there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from verifier.attacks.falsifier import Falsifier
from verifier.branch_and_bound.leaves import Leaves
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.leaning import LeaningStage
from verifier.problem import Problem, is_convolutional
from verifier.stages import AttackStage, BoundStage, Stage
from verifier.tilted import TiltedStage

CHEAP = (
    BoundStage("crown", keep=True),
    BoundStage("alpha-crown-rows", {"neuron_iterations": 0}, method="alpha-crown", inherit=True),
    BoundStage("alpha-crown", keep=True),
)
CLIMB_SHARE = 0.6  # of a slice, for tilts: a tree is worth its time only after them
DESCENT = Falsifier(restarts=32, steps=60, rounds=1, samples=128, time_limit_s=3.0)
CHEAP_NAMES = tuple(stage.name for stage in CHEAP)


@dataclass(frozen=True)
class Engine:
    """A name, and the stages with which it decides a problem. leaves: of its trees over other balls (is_tree: it has
    some)."""

    name: str
    stages: Callable[[Problem, Leaves], Sequence[Stage]]
    is_tree: bool = False


def _tree(branching: str) -> Callable[[Problem, Leaves], Sequence[Stage]]:
    def stages(problem: Problem, leaves: Leaves) -> Sequence[Stage]:
        plan = plan_for(problem)
        search = BranchAndBoundStage(replace(plan, branching=branching), leaves=leaves)
        return (CHEAP[0], search) if plan.inputs else (*CHEAP, search)
    return stages


def _planes(problem: Problem, leaves: Leaves) -> Sequence[Stage]:
    return (*CHEAP, LeaningStage(), TiltedStage(share=CLIMB_SHARE))


def _attack(problem: Problem, leaves: Leaves) -> Sequence[Stage]:
    return (AttackStage("pgd", DESCENT),)


TREE = Engine("branch-and-bound", _tree("realised-gap"), is_tree=True)
BABSR = Engine("branch-and-bound-babsr", _tree("babsr"), is_tree=True)
PLANES, ATTACK = Engine("tilted", _planes), Engine("pgd", _attack)


def engines_for(problem: Problem) -> tuple[Engine, ...]:
    """Those that have something to say about a problem, the likely ones first: which neuron to split the relaxation's
    loss tells best on convolutions, BaBSR on dense layers."""
    if plan_for(problem).inputs:
        return (TREE,)
    trees = (TREE,) if is_convolutional(problem.graph) else (BABSR, TREE)
    return (*trees, PLANES) if problem.tensors.sets.is_box else trees
