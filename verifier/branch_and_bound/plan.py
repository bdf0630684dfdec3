"""What the search does on a given question: chosen from the graph, the set and the device, with reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from bounds.beta_crown import Ascent
from bounds.graph import Graph
from bounds.ops.base import Elementwise
from verifier.branch_and_bound.branching import BRANCHING
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import Layout, is_free
from verifier.problem import Problem

FEW_INPUTS = 20             # so few inputs that bisecting them narrows every neuron soon
BATCH_ENTRIES = 1 << 25     # numbers that one batch of domains may hold
LARGEST_BATCH = 2048
CUT_ENTRIES = 1 << 17       # coefficients of the affine neurons up to which cutting each of them pays


@dataclass(frozen=True)
class Plan:
    """branching: the rule that chooses splits, one of `BRANCHING`; inputs, neurons: splits allowed; refresh: bound
    neurons anew in every domain; clips: cut boxes by planes; joint: all branches of a region share a domain; cuts:
    bound neurons again behind the half-spaces of splits and planes; contracts: before a domain is bounded, cut off what
    its rows and neurons leave no room for; ascents: how bounds climb, batches in turn; batch: domains bounded together
    at most; iterations: evaluations of each group."""

    branching: str
    inputs: bool
    neurons: bool
    refresh: bool
    clips: bool
    joint: bool
    cuts: bool
    contracts: bool
    ascents: tuple[Ascent, ...]
    batch: int
    iterations: int
    why: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def plan_for(problem: Problem, branching: str = BRANCHING[0]) -> Plan:
    """Bisect inputs where few are free; split neurons otherwise, and with the rules that know nothing of inputs."""
    graph, sets = problem.graph, problem.tensors.sets
    free = int(is_free(sets.lower, sets.upper).flatten(1).sum(1).max())
    neurons = nonlinear_neurons(graph)
    layout = Layout.of(graph)
    affine = AffineNeurons.of(graph, layout, sets) if sets.is_box else None
    # Behind one hidden layer every split is a half-space of the box, and contraction makes the most of a conjunction.
    flat = affine is not None and len(affine.at) == layout.total - layout.inputs
    several = bool((torch.bincount(problem.tensors.branch) > 1).any())
    inputs = branching == BRANCHING[0] and sets.is_box and free <= FEW_INPUTS and not (flat and several)
    refresh = inputs
    numbers = sum(torch.Size(n.shape).numel() for n in graph.nodes)
    batch = max(2, min(LARGEST_BATCH, BATCH_ENTRIES // max(1, numbers * (16 if refresh else 8))))
    splits = "inputs are bisected" if inputs else "neurons are split"
    why = f"{free} inputs are free and {neurons} neurons nonlinear: {splits}, bounds of neurons are " \
          f"{'refreshed in every domain' if refresh else 'kept from the root'}"
    contracts = affine is not None and not inputs
    cuts = affine is not None and not inputs and affine.entries <= CUT_ENTRIES
    ascents: tuple[Ascent, ...] = ("signs",) if inputs else ("signs", "level")
    return Plan(branching=branching, inputs=inputs, neurons=True, refresh=refresh, clips=inputs or contracts,
                joint=inputs, cuts=cuts, contracts=contracts, ascents=ascents, batch=batch,
                iterations=12 if cuts else 8, why=why)


def recordable(plan: Plan) -> Plan:
    """The plan without steps that proof files do not cover: boxes are cut by splits only, which costs little where
    neurons are cut (and elsewhere up to three times the domains, each cheaper to check)."""
    return replace(plan, contracts=False, clips=False)


def nonlinear_neurons(graph: Graph) -> int:
    return sum(torch.Size(n.shape).numel() for n in graph.nodes if isinstance(n.op, Elementwise))
