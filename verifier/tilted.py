"""Tilted chords as a stage of a verification: region by region on its reduced graph.

What stays open there is attacked once more, from the relaxation's own minimisers and from hundreds of other starts, and
then, where the bound has come near, split (`branch_and_bound.tilted_tree`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.graph.reduce import Layer, can_reduce, reduce_to, undecided
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.precision import rounded_down
from bounds.sets import InputSet
from bounds.tilted import MOST_NUMBERS, Tilted
from verifier.attacks.falsifier import Falsifier
from verifier.best_rows import CLEAR_PLACES, open_rows
from verifier.branch_and_bound.tilted_tree import TiltedTree
from verifier.deadline import CLOSING_S
from verifier.problem import Problem, State, only_branches
from verifier.property import PropertyTensors
from verifier.proved_regions import accounts_for_rounding, proved_regions

MOST_FOLDED = 1 << 25       # entries of the matrix over the input
ATTACK = Falsifier(restarts=256, steps=200, rounds=2, samples=64, time_limit_s=10.0)
ATTACK_SHARE = 0.15         # of the time that is left
DESCENT_STEPS, FIRST_STEP, LAST_STEP = 40, 0.1, 0.002


@dataclass(frozen=True)
class TiltedStage:
    """Lower bounds of the best row of every open branch. Climbing takes at most `share` of the time that is left, and
    splits `tree_share`: a row is split where tilts left little of what it was short of (`Tilted.close`). Regions with
    too many undecided neurons, sets that are no boxes and networks with other than ReLUs are left as they are."""

    name: str = "tilted"
    tilted: Tilted = field(default_factory=Tilted)
    attack: Falsifier = field(default_factory=lambda: ATTACK)
    share: float = 0.15
    tree_share: float = 0.85

    def is_rounded(self, problem: Problem) -> bool:
        return accounts_for_rounding(problem)

    def run(self, problem: Problem, state: State) -> None:
        tensors, graph = problem.tensors, problem.graph
        sources = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Relu)}
        if not (tensors.sets.is_box and can_reduce(graph) and sources and sources == set(graph.relaxed_inputs)
                and sources <= set(state.intervals)):
            return
        end = problem.deadline.left() * (1 - self.share)

        def over() -> bool:
            return problem.deadline.left() < max(end, CLOSING_S)
        tree_end = problem.deadline.left() * (1 - self.tree_share)

        def tree_over() -> bool:
            return problem.deadline.left() < max(tree_end, CLOSING_S)
        method = replace(self.tilted, stop=over)
        rows = open_rows(problem, state)
        for region in tensors.region[rows].unique().tolist():
            if over():
                return
            here = rows[tensors.region[rows] == region]
            self._bound(problem, state, method, region, here, tree_over)
            if state.witness is not None:
                return

    def _bound(self, problem: Problem, state: State, method: Tilted, region: int, rows: Tensor,
               over: Callable[[], bool]) -> None:
        tensors, graph = problem.tensors, problem.graph
        chosen = torch.tensor([region], device=rows.device)
        question, intervals = proved_regions(problem, state, chosen)
        if not is_small_enough(undecided(graph, intervals), graph.nodes[0].shape):
            return
        box = question.sets.index(chosen)
        double = graph if problem.double is None else problem.double.graph
        reduced = reduce_to(double, intervals, Interval(box.lower, box.upper))
        reduced = replace(reduced, graph=reduced.graph.to(dtype=graph.dtype))
        found = method.bound(reduced, box, reduced.intervals(intervals), question.C[rows], -question.bound[rows],
                             CLEAR_PLACES * tensors.last_places[rows], None if question.D is None else question.D[rows])
        if found is None:
            return
        before = state.row_lower[rows].tolist()
        state.domains += len(rows)
        state.improve(rows, rounded_down(found.lower, tensors.bound.dtype))
        for k, row in enumerate(rows.tolist()):
            if k in found.starts and self._offer(problem, state, reduced.graph, row, found.x[k:k + 1]):
                return
        if state.upper < -float(found.lower.min()):  # the truth seems nearer to the best point than to the bound
            self._attack(problem, state, reduced.graph, region)
        for k, start in found.starts.items():
            row = int(rows[k])
            if state.witness is not None or over():
                return
            if float(found.lower[k]) <= method.close * before[k]:
                continue
            one = slice(row, row + 1)
            target = CLEAR_PLACES * tensors.last_places[one]
            tree = TiltedTree(
                replace(method, stop=over), reduced, box, reduced.intervals(intervals), question.C[one],
                -question.bound[one], None if question.D is None else question.D[one], target,
                partial(self._offer, problem, state, reduced.graph, row), over)
            lower, domains = tree.decide(found.take(k), start)
            state.domains += domains
            proved = tensors.bound.new_tensor([lower], dtype=torch.float64)
            state.improve(rows[k:k + 1], rounded_down(proved, tensors.bound.dtype))

    def _offer(self, problem: Problem, state: State, graph: Graph, row: int, x: Tensor) -> bool:
        """Let points "P n" descend along the row and offer the best to the gate."""
        tensors = problem.tensors
        box = tensors.sets.index(tensors.region[row:row + 1])
        x = descended(graph, box, tensors, row, x.to(tensors.bound).view(-1, *graph.input_shape))
        margin = tensors.branch_margin(tensors.violation(x, problem.graph(x)))[:, tensors.branch[row]]
        best = int(margin.argmin())
        state.upper = min(state.upper, float(margin[best]))
        if float(margin[best]) <= 0:
            state.witness = problem.confirm(x[best])
        return state.witness is not None

    def _attack(self, problem: Problem, state: State, graph: Graph, region: int) -> None:
        """Look for a witness of what is open in a region, on the graph that is reduced to it."""
        tensors = problem.tensors
        chosen = state.open_branches(tensors) & (tensors.branch_region == region)
        if not bool(chosen.any()):
            return
        limit_s = min(self.attack.time_limit_s, ATTACK_SHARE * problem.deadline.left())
        outcome = replace(self.attack, time_limit_s=limit_s).run(
            graph, only_branches(tensors, chosen), deadline=problem.deadline, generator=problem.generator,
            gate=problem.confirm)
        state.witness = outcome.witness
        state.upper = min(state.upper, outcome.margin if outcome.witness is None else outcome.witness.margin)


def descended(graph: Graph, box: InputSet, tensors: PropertyTensors, row: int, x: Tensor) -> Tensor:
    """Points "P *shape" moved down along one row's value by signed steps, as far as they got."""
    x = torch.minimum(torch.maximum(x, box.lower), box.upper)
    best, least = x, torch.full_like(x.flatten(1)[:, 0], torch.inf)
    for k in range(DESCENT_STEPS):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = tensors.violation(x, graph(x))[:, row]
            (slope,) = torch.autograd.grad(value.sum(), x)
        better = value.detach() < least
        least = torch.where(better, value.detach(), least)
        best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), x.detach(), best)
        step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (k / DESCENT_STEPS)
        x = x.detach() - step * (box.upper - box.lower) * slope.sign()
        x = torch.minimum(torch.maximum(x, box.lower), box.upper)
    return best


def is_small_enough(layers: tuple[Layer, ...], shape: tuple[int, ...]) -> bool:
    """Whether folding and inner rows fit, told from the numbers of undecided neurons."""
    n, before, inner = torch.Size(shape).numel(), 0, 0
    for layer in layers:
        inner += 2 * len(layer.index) * (n + 2 * before) if before else 0
        before += len(layer.index)
    return inner <= MOST_NUMBERS and before * n <= MOST_FOLDED
