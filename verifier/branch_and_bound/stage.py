"""Branch and bound as a stage of a verification."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.beta_crown import BetaCrown
from bounds.graph.expand_max import expand_max
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.max_pool import MaxPool
from bounds.rounding import is_covered
from verifier.branch_and_bound.bounding import Bounder, Question
from verifier.branch_and_bound.branching.rule import rule_of
from verifier.branch_and_bound.confirm import Confirmer
from verifier.branch_and_bound.contract import Contractor
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout
from verifier.branch_and_bound.leaves import Leaves
from verifier.branch_and_bound.plan import Plan, recordable
from verifier.branch_and_bound.recorder import Recorder
from verifier.branch_and_bound.search import Exact, Search
from verifier.branch_and_bound.splits import kinks_tell
from verifier.deadline import LAST_BATCH_S
from verifier.problem import Problem, State

progress_log = logging.getLogger("verifier.progress")

REPORT_S = 2.0       # seconds between lines of progress


@dataclass(frozen=True)
class BranchAndBoundStage:
    """Decide the open branches by splitting domains."""

    plan: Plan
    name: str = "branch-and-bound"
    certify: bool = False  # prove what other stages have decided once more, for the proof file
    exact: Exact | None = None
    leaves: Leaves | None = None  # of searches over other balls around the same input: where this one starts and ends

    def is_rounded(self, problem: Problem) -> bool:
        if self.exact is not None or not is_covered(problem.graph):
            return False
        return problem.graph.dtype == torch.float64 or self.plan.inputs or is_confirmed(self.plan, problem)

    def run(self, problem: Problem, state: State) -> None:
        plan = self.plan if problem.recorder is None else recordable(self.plan)
        recorder = problem.recorder
        if not self.certify:
            state.choices[self.name] = plan.as_json()
        if self.exact is not None:
            recorder = None  # what a solver decides is no proof: a search proves it once more
        question = Question.of(problem.tensors, recorded=recorder is not None)
        if not bool(question.mask.any(1).all()):
            return  # a branch without rows is unsafe everywhere: a witness is all there is to find
        intervals = state.intervals
        if plan.neurons and not self.certify:
            expanded, intervals = with_splittable_pools(problem, state)
            if expanded.graph is not problem.graph and recorder is not None:
                recorder.refuse("max-pools split as chains of ReLUs are not covered by proof files yet")
                recorder = None
            problem = expanded
        layout = Layout.of(problem.graph)
        method = BetaCrown(iterations=plan.iterations, stop=lambda: problem.deadline.left() < LAST_BATCH_S,
                           notes=recorder is not None)
        affine = AffineNeurons.of(problem.graph, layout, problem.tensors.sets)
        if affine is not None and recorder is not None:
            affine = replace(affine, exact=True)
        confirmer = None
        if recorder is None and is_confirmed(plan, problem):
            assert problem.double is not None
            double = problem.double
            once = BetaCrown(iterations=1, stop=method.stop)
            again = Bounder(double.graph, Question.of(double.tensors), layout, once, plan.refresh, clips=False,
                            warm=True, probes=True)
            confirmer = Confirmer(again, double)
            method = replace(method, keeps=True)
        if plan.inputs and problem.graph.dtype == torch.float32:
            intervals = {}  # they are not proved with their rounding, and every box is bounded anew in any case
        contractor = Contractor(problem.graph, layout, affine) if plan.contracts and affine is not None else None
        bounder = Bounder(problem.graph, question, layout, method, plan.refresh, plan.clips, warm=not plan.refresh,
                          probes=not plan.inputs, fenced=plan.inputs and recorder is None,
                          affine=affine if plan.cuts else None,
                          contractor=contractor, recorder=recorder, confirmer=confirmer,
                          rounded=True if plan.inputs and problem.rounded else None)
        progress = _Progress(problem)
        leaves = self._reused(plan, problem, recorder) if set(layout.nodes) <= set(intervals) else None

        def gate(x: Tensor) -> bool:
            if self.certify:
                return False
            state.witness = problem.confirm(x)
            return state.witness is not None
        search = Search(bounder, rule_of(plan, affine), plan.batch, gate,
                        lambda: problem.deadline.left() < LAST_BATCH_S, progress, plan, self.exact, leaves)
        if leaves is not None:
            closed = leaves.closed(problem.tensors.branches).to(state.branch_closed.device)
            state.branch_closed |= closed
            state.branch_proved[closed] = state.branch_proved[closed].clamp(min=0)
            if not bool(state.open_branches(problem.tensors).any()):
                return
        before = state.domains
        try:
            chosen = recorder.not_proved() if self.certify and recorder is not None else None
            roots = root_domains(problem, state, intervals, bounder, plan, chosen)
            if leaves is None:
                search.run([roots])
            else:
                search.run(*leaves.begin(problem.graph, layout, question, roots, intervals))
        finally:
            state.domains = before + search.tree.domains
            state.upper = min(state.upper, search.upper if state.witness is None else state.witness.margin)
            _take_over(state, question, search)

    def _reused(self, plan: Plan, problem: Problem, recorder: Recorder | None) -> Leaves | None:
        """The leaves, where a tree over another ball says something: boxes that were halved depend on their ball, pools
        that became chains on what was proved there, and a proof file tells of one tree."""
        halved = plan.inputs or plan.joint or problem.tensors.sets.batch > 1
        pools = any(isinstance(node.op, MaxPool) for node in problem.graph.nodes)
        other = recorder is not None or self.certify or self.exact is not None
        if self.leaves is None or halved or pools or other:
            return None
        rounded = problem.rounded and self.is_rounded(problem)
        if self.leaves.rounded is not rounded:
            self.leaves.forget()
            self.leaves.rounded = rounded
        return self.leaves


def is_confirmed(plan: Plan, problem: Problem) -> bool:
    """Whether what a search in float32 closes can be closed once more in float64."""
    changes_boxes = plan.inputs or plan.clips or plan.cuts or plan.contracts
    pools = any(isinstance(node.op, MaxPool) for node in problem.graph.nodes)
    return problem.double is not None and not changes_boxes and not pools


def _take_over(state: State, question: Question, search: Search) -> None:
    """What the tree proves of each branch: the least bound of its leaves and of the domains still open."""
    if search.moving:
        return  # stopped in the middle of a move: what is open is not known
    lower = search.tree.floor.clone()
    for domains in search.open:
        d, slot = domains.open.nonzero(as_tuple=True)
        lower = lower.scatter_reduce(0, question.branches[domains.region[d], slot], domains.lower[d], "amin")
    state.numerical = search.tree.numerical or state.numerical
    if search.complete:
        state.branch_closed |= search.seen & (lower > question.target)
    if search.bounder.discards or search.leaves is not None:
        lower = lower.clamp(max=0)  # of what was cut off, or closed by another search, no more is known
    proved = torch.where(search.seen, lower, torch.full_like(lower, -torch.inf))
    state.branch_proved = torch.maximum(state.branch_proved, proved)


def with_splittable_pools(problem: Problem, state: State) -> tuple[Problem, dict[int, Interval]]:
    """The problem with its max-pools as chains of ReLUs, and proved intervals "U *shape" of what relaxations read.
    (Only intervals of regions with open branches; those of others are infinite.)"""
    tensors = problem.tensors
    is_open = torch.zeros(tensors.sets.batch, dtype=torch.bool, device=tensors.bound.device)
    is_open[tensors.branch_region[state.open_branches(tensors)]] = True
    if not bool(is_open.any()):
        return problem, state.intervals
    expanded = expand_max(problem.graph, {i: x.map(lambda t: t[is_open]) for i, x in state.intervals.items()})
    if expanded is None:
        return problem, state.intervals
    engine = Backward(expanded.graph, tensors.sets.index(is_open.nonzero().squeeze(1)))
    with torch.no_grad():
        refine(engine, known=expanded.known, row_bound=engine.lower)
    intervals = {}
    for i in expanded.graph.relaxed_inputs:
        x = engine.intervals[i]
        nothing = x.lower.new_full((tensors.sets.batch, *x.lower.shape[1:]), torch.inf)
        intervals[i] = Interval((-nothing).index_put((is_open,), x.lower), nothing.index_put((is_open,), x.upper))
    return replace(problem, graph=expanded.graph), intervals


def root_domains(problem: Problem, state: State, intervals: Mapping[int, Interval], bounder: Bounder, plan: Plan,
                 chosen: Tensor | None = None) -> Domains:
    """The open (or the `chosen`, bool "K") branches' regions (a domain each, or one a branch), with the bounds proved
    so far."""
    open_branches = state.open_branches(problem.tensors) if chosen is None else chosen
    question, layout = bounder.question, bounder.layout
    tensors = problem.tensors
    slots = question.branches
    is_open = (slots >= 0) & open_branches[slots.clamp(min=0)]
    if plan.joint:
        region = is_open.any(1).nonzero().squeeze(1)
        opened = is_open[region]
    else:
        region, slot = is_open.nonzero(as_tuple=True)
        opened = torch.zeros(len(region), slots.shape[1], dtype=torch.bool, device=slots.device)
        opened[torch.arange(len(region), device=slots.device), slot] = True
    like = tensors.C
    count, neurons = len(region), layout.total - layout.inputs
    inf = like.new_full((count, neurons), torch.inf)
    low, high = -inf, inf
    kept = layout.split(torch.arange(neurons, device=like.device).unsqueeze(0))
    for node, interval in intervals.items():
        if node in kept:
            at = kept[node].flatten()
            low[:, at] = torch.maximum(low[:, at], interval.lower[region].flatten(1))
            high[:, at] = torch.minimum(high[:, at], interval.upper[region].flatten(1))
    longs = torch.zeros(count, dtype=torch.long, device=like.device)
    noted = 0 if bounder.confirmer is None or kinks_tell(problem.graph) else neurons
    cuts = like.new_tensor([-torch.inf, torch.inf]).view(1, 2, 1).repeat(count, 1, noted)
    return Domains(
        region=region, open=opened, lower=like.new_full((count,), -torch.inf), depth=longs, node=longs,
        low=tensors.sets.lower.flatten(1)[region], high=tensors.sets.upper.flatten(1)[region], z_low=low, z_high=high,
        sides=torch.zeros(count, neurons, dtype=torch.int8, device=like.device), slopes=like.new_zeros(count, 0),
        multipliers=like.new_zeros(count, neurons), choice=longs + NO_CHOICE, point=like.new_zeros(count),
        plane=like.new_zeros(count, 0 if bounder.affine is None else layout.inputs + 1),
        fences=like.new_zeros(count, 2, layout.inputs + 1 if bounder.fenced else 0),
        cuts=cuts)


class _Progress:
    """One line now and then: bound, open domains, domains a second, depth, time left."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.start = self.last = time.monotonic()

    def __call__(self, search: Search) -> None:
        tree, pool = search.tree, search.pool
        now = time.monotonic()
        if now - self.last < REPORT_S:
            return
        self.last = now
        progress_log.info("bound %.4g  open %d  domains %d (%.0f/s)  depth %d  %.0f s left", pool.lowest(), len(pool),
                          tree.domains, tree.domains / (now - self.start), tree.depth, self.problem.deadline.left())
