"""Tilted chords as a stage of a verification: region by region on its reduced graph.

What stays open there is attacked once more: on a reduced graph descent is cheap enough for hundreds of starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.graph.reduce import Layer, can_reduce, reduce_to, undecided
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.tilted import MOST_NUMBERS, Tilted
from verifier.attacks.pgd import Pgd
from verifier.problem import Problem, State, only_branches
from verifier.witness import confirm

CLEAR_PLACES = 16.0         # what a row must exceed its last places by before it counts as closed
MOST_FOLDED = 1 << 25       # entries of the matrix over the input
FINISH_S = 0.5


ATTACK = Pgd(restarts=256, steps=200, rounds=2, samples=64, time_limit_s=10.0)
ATTACK_SHARE = 0.2          # of the time that is left


@dataclass(frozen=True)
class TiltedStage:
    """Lower bounds of the best row of every open branch; it takes at most `share` of the time that is left. Regions
    with too many undecided neurons, sets that are no boxes and networks with other than ReLUs are left as they are."""

    name: str = "tilted"
    tilted: Tilted = field(default_factory=Tilted)
    attack: Pgd = field(default_factory=lambda: ATTACK)
    share: float = 0.4

    def run(self, problem: Problem, state: State) -> None:
        tensors, graph = problem.tensors, problem.graph
        sources = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Relu)}
        if not (tensors.sets.is_box and can_reduce(graph) and sources and sources == set(graph.relaxed_inputs)
                and sources <= set(state.intervals)):
            return
        end = problem.deadline.left() * (1 - self.share)

        def over() -> bool:
            return problem.deadline.left() < max(end, FINISH_S)
        method = replace(self.tilted, stop=over)
        rows = open_rows(problem, state)
        for region in tensors.region[rows].unique().tolist():
            if over():
                return
            intervals = {i: state.intervals[i].map(lambda t, r=region: t[r:r + 1]) for i in sources}
            here = rows[tensors.region[rows] == region]
            self._bound(problem, state, method, region, here, intervals)
            if state.witness is not None:
                return

    def _bound(self, problem: Problem, state: State, method: Tilted, region: int, rows: Tensor,
               intervals: dict[int, Interval]) -> None:
        tensors, graph = problem.tensors, problem.graph
        if not is_small_enough(undecided(graph, intervals), graph.nodes[0].shape):
            return
        reduced = reduce_to(graph, intervals)
        box = tensors.sets.index(torch.tensor([region], device=rows.device))
        found = method.bound(reduced, box, reduced.intervals(intervals), tensors.C[rows], -tensors.bound[rows],
                             CLEAR_PLACES * tensors.last_places[rows], None if tensors.D is None else tensors.D[rows])
        if found is None:
            return
        state.domains += len(rows)
        # Towards zero when rounded: a bound must not grow.
        lower = found.lower.to(tensors.bound)
        lower = torch.where(lower > found.lower, torch.nextafter(lower, torch.full_like(lower, -torch.inf)), lower)
        state.improve(rows, lower)
        x = found.x.to(tensors.bound).view(-1, *graph.input_shape)
        x = torch.minimum(torch.maximum(x, box.lower), box.upper)
        margin = tensors.branch_margin(tensors.violation(x, graph(x)))[
            torch.arange(len(rows), device=rows.device), tensors.branch[rows]]
        best = int(margin.argmin())
        state.upper = min(state.upper, float(margin[best]))
        if float(margin[best]) <= 0:
            state.witness = confirm(x[best], problem.property, problem.replayer)
        if state.witness is None:
            self._attack(problem, state, reduced.graph, region)

    def _attack(self, problem: Problem, state: State, graph: Graph, region: int) -> None:
        """Look for a witness of what is open in a region, on the graph that is reduced to it."""
        tensors = problem.tensors
        chosen = state.open_branches(tensors) & (tensors.branch_region == region)
        if not bool(chosen.any()):
            return
        limit_s = min(self.attack.time_limit_s, ATTACK_SHARE * problem.deadline.left())
        outcome = replace(self.attack, time_limit_s=limit_s).run(
            graph, only_branches(tensors, chosen), deadline=problem.deadline, generator=problem.generator,
            gate=lambda x: confirm(x, problem.property, problem.replayer))
        state.witness = outcome.witness
        state.upper = min(state.upper, outcome.margin if outcome.witness is None else outcome.witness.margin)


def open_rows(problem: Problem, state: State) -> Tensor:
    """Indices of the best row of every open branch."""
    tensors = problem.tensors
    chosen = []
    for branch in state.open_branches(tensors).nonzero().flatten().tolist():
        rows = (tensors.branch == branch).nonzero().flatten()
        if len(rows):
            chosen.append(rows[state.row_lower[rows].argmax()])
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=tensors.bound.device)


def is_small_enough(layers: tuple[Layer, ...], shape: tuple[int, ...]) -> bool:
    """Whether folding and inner rows fit, told from the numbers of undecided neurons."""
    n, before, inner = torch.Size(shape).numel(), 0, 0
    for layer in layers:
        inner += 2 * len(layer.index) * (n + 2 * before) if before else 0
        before += len(layer.index)
    return inner <= MOST_NUMBERS and before * n <= MOST_FOLDED
