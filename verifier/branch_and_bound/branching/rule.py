"""What a branching rule is, and the rules by name."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.babsr import Babsr
from verifier.branch_and_bound.branching.kfsb import FilteredSmart
from verifier.branch_and_bound.branching.realised_gap import RealisedGap
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import Domains
from verifier.branch_and_bound.plan import Plan


class Rule(Protocol):
    """Where domains are split."""

    def choose(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> tuple[Tensor, Tensor]:
        """(choice "B", `Layout` index or NO_CHOICE, and point "B") for open domains, which have the slopes and
        multipliers that their children start from. `group` "B": each one's worst group in `bounded.reached`."""
        ...


def rule_of(plan: Plan, affine: AffineNeurons | None) -> Rule:
    """The rule that a plan names; affine: the neurons whose planes contract domains, if there are any."""
    if plan.branching == "babsr":
        return Babsr()
    if plan.branching == "kfsb":
        return FilteredSmart()
    return RealisedGap(plan.inputs, plan.neurons, affine=affine if plan.contracts else None)
