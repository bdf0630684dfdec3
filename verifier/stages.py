"""The stages of a verification: attacks and bound methods, each a settings object with `run(problem, state)`.

A stage improves the shared `State` and decides nothing by itself: attacks end in the witness gate, bounds
in lower bounds of the rows. Bounds run only on the rows of branches that are still open, in chunks of
regions, and inherit the intermediate bounds proved by the stages before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.bounds import Bounds, LinearRows
from bounds.compute import PRICED_METHODS
from bounds.final import final_bounds
from bounds.graph import Graph
from bounds.interval import CROSSING_RTOL, Interval
from bounds.journal import Journal
from bounds.precision import rounded_down
from bounds.rounding import is_covered
from bounds.sets import InputSet
from milp.methods import METHODS, WITH_SOLVER, method_named
from verifier.attacks.falsifier import Falsifier
from verifier.attacks.property_search import PropertyAttack
from verifier.branch_and_bound.branching import BRANCHING
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.deadline import CLOSING_S
from verifier.leaning import LeaningStage
from verifier.problem import KEPT_INTERVAL_BYTES, Problem, State, only_branches
from verifier.property import PropertyTensors
from verifier.tilted import TiltedStage
from verifier.verdict import Claim, Evidence

CHUNK_REGIONS = 256   # regions bounded together; the bound methods chunk their rows by memory themselves
CHUNK_ENTRIES = 2**25  # of all layers and of these regions
CHUNK_ROWS = 8192
PIECE_ENTRIES = 2**22  # of outputs and inputs gathered for rows at once
CONTRADICTION_RTOL = 1e-4  # float32 evaluation against a bound
ERROR_FACTOR = 8.0  # a bound's error against that of one evaluation
DOUBLED_WEIGHTS = 50_000_000  # up to here sanity checks afford a float64 copy of the network
SANITY_SAMPLES = 8
NOTED_METHODS = ("crown", "alpha-crown")  # whose bounds of neurons a proof file can state


class Stage(Protocol):
    """One step of the strategy. `name` appears in logs and as the method that decided."""

    @property
    def name(self) -> str: ...

    def run(self, problem: Problem, state: State) -> None: ...

    def is_rounded(self, problem: Problem) -> bool:
        """Whether what this stage proves accounts for all rounding."""
        ...


@dataclass(frozen=True)
class AttackStage:
    """Look for a counterexample of the open branches; the attack's gate alone makes one of what it finds.

    It takes at most `share` of the time that is left.
    """

    name: str
    attack: PropertyAttack
    share: float = 1.0

    def is_rounded(self, problem: Problem) -> bool:
        return False  # it proves nothing

    def run(self, problem: Problem, state: State) -> None:
        limit_s = min(self.attack.time_limit_s, self.share * problem.deadline.left())
        graph, tensors = problem.attacked
        outcome = replace(self.attack, time_limit_s=limit_s).run(
            graph, only_branches(tensors, state.open_branches(problem.tensors)),
            deadline=problem.deadline, generator=problem.generator,
            gate=problem.confirm)
        state.witness = outcome.witness
        state.upper = min(state.upper, outcome.margin if outcome.witness is None else outcome.witness.margin)


@dataclass(frozen=True)
class BoundStage:
    """Lower bounds of the open rows by one bound method with its settings.

    With `keep` the intermediate enclosures are stored for later stages; with `inherit` they are taken as given and
    not bounded again, which is what makes optimising the rows alone cheap.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    keep: bool = False
    inherit: bool = False
    method: str | None = None  # where it differs from the stage's name

    def is_rounded(self, problem: Problem) -> bool:
        name = self.method or self.name
        return is_covered(problem.graph) and (name == "ibp" or (
            name in PRICED_METHODS and (problem.graph.dtype == torch.float64 or problem.double is not None)))

    def run(self, problem: Problem, state: State) -> None:
        tensors = problem.tensors
        name = self.method or self.name
        settings = dict(self.settings)
        if name == "alpha-crown":
            settings |= {"stop": lambda: problem.deadline.left() < CLOSING_S, "target": 0.0}
        if name in WITH_SOLVER:
            settings["time_limit_s"] = max(0.0, problem.deadline.left() - CLOSING_S)
        method = method_named(name, **settings)
        for regions, rows in _chunks(problem, state):
            if problem.deadline.passed():
                return
            if state.first_bound_s is None:
                state.first_bound_s = problem.deadline.elapsed()
            owner = _positions(regions, tensors.region[rows], tensors.sets.batch)
            spec = LinearRows(tensors.C[rows], owner, None if tensors.D is None else tensors.D[rows],
                              -tensors.bound[rows])
            given = {i: Interval(v.lower[regions], v.upper[regions]) for i, v in state.intervals.items()}
            notes: dict[str, Any] = {}
            journal = None
            if self.keep and problem.recorder is not None:
                if name not in NOTED_METHODS or self.inherit:
                    problem.recorder.refuse(f"bounds of {name} are not covered by proof files")
                else:
                    notes["journal"] = journal = Journal()
            prover = None
            if self.keep and name == "alpha-crown" and journal is None and problem.double is not None:
                double = problem.double
                prover = notes["prover"] = Backward(double.graph, double.tensors.sets.index(regions))
            with torch.no_grad():
                bounds = method.bound(problem.graph, tensors.sets.index(regions), spec,
                                      given=given if self.inherit else None, **notes)
                bounds = self._confirmed(problem, name, method, regions, rows, owner, bounds, prover)
            kept = self._take_over(problem, state, regions, rows, owner, bounds)
            if journal is not None and problem.recorder is not None:
                problem.recorder.kept(regions, kept, journal)

    @staticmethod
    def _confirmed(problem: Problem, name: str, method: Any, regions: Tensor, rows: Tensor, owner: Tensor,
                   bounds: Bounds, prover: Backward | None) -> Bounds:
        """The bounds, where they decide a row those that float64 confirms, rounding included."""
        double = problem.double
        # Interval arithmetic pays for its own rounding in every dtype, not for the noise of what is asked about.
        if double is None or name not in PRICED_METHODS or (name == "ibp" and problem.claim is Claim.REAL):
            return bounds
        if prover is not None:
            double.keep(regions, prover)
        decided = bounds.lower > problem.tensors.last_places[rows]
        if not bool(decided.any()):
            return bounds
        t = double.tensors
        D = None if t.D is None else t.D[rows]
        asked = LinearRows(t.C[rows], owner, D, -t.bound[rows])
        if name == "ibp":
            found = method.bound(double.graph, t.sets.index(regions), asked).lower
            return replace(bounds, lower=torch.where(decided, rounded_down(found, bounds.lower.dtype), bounds.lower))
        engine = double.engine(regions) if prover is None else prover
        found = method.confirm_output(engine, bounds, asked) if bounds.reached else \
            final_bounds(engine, asked, {}).lower
        return replace(bounds, lower=torch.where(decided, rounded_down(found, bounds.lower.dtype), bounds.lower))

    def _take_over(self, problem: Problem, state: State, regions: Tensor, rows: Tensor, owner: Tensor,
                   bounds: Bounds) -> Tensor:
        """Improve the state; positions (in `regions`) of those whose enclosures were kept."""
        state.domains += len(regions)
        crossed = _crossed(bounds.intervals, len(regions), regions.device)
        nan = torch.isnan(bounds.lower)
        if bool(crossed.any()):
            state.numerical = f"{self.name}: intermediate bounds crossed"
        elif bool(nan.any()):
            state.numerical = f"{self.name}: a bound is not a number"
        usable = ~(nan | crossed[owner])
        state.improve(rows[usable], bounds.lower[usable].detach())
        rest = (~crossed).nonzero().squeeze(1)
        kept = self.keep and _keep_intervals(problem, state, regions[rest],
                                             {i: x.map(lambda t: t[rest]) for i, x in bounds.intervals.items()})
        return rest if kept else rest[:0]


def _chunks(problem: Problem, state: State) -> Iterator[tuple[Tensor, Tensor]]:
    """(region indices, row indices) of the open branches, region by region so that a region is bounded once."""
    tensors = problem.tensors
    rows = torch.nonzero(state.open_branches(tensors)[tensors.branch]).flatten()
    rows = rows[torch.argsort(tensors.region[rows], stable=True)]
    start = 0
    regions = tensors.region[rows]
    while start < len(rows):
        ids, counts = torch.unique_consecutive(regions[start:], return_counts=True)
        fits = int((torch.cumsum(counts, 0) <= CHUNK_ROWS).sum())
        take = max(1, min(regions_together(problem.graph), fits))
        end = start + int(counts[:take].sum())
        yield ids[:take], rows[start:end]
        start = end


def regions_together(graph: Graph) -> int:
    """How many regions are bounded at once."""
    entries = sum(math.prod(node.shape) for node in graph.nodes)
    return max(1, min(CHUNK_REGIONS, CHUNK_ENTRIES // max(1, entries)))


def _positions(ids: Tensor, of: Tensor, total: int) -> Tensor:
    """Where each element of `of` stands in the sorted `ids`."""
    place = torch.zeros(total, dtype=torch.long, device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    return place[of]


def _crossed(intervals: dict[int, Interval], batch: int, device: torch.device) -> Tensor:
    """bool "B": true for regions where some intermediate lower bound exceeds its upper bound, or is NaN."""
    bad = torch.zeros(batch, dtype=torch.bool, device=device)
    for interval in intervals.values():
        lower, upper = interval.lower.flatten(1), interval.upper.flatten(1)
        slack = CROSSING_RTOL * (1 + torch.minimum(lower.abs(), upper.abs()))
        bad |= ~(lower <= upper + slack).all(1)
    return bad


def _keep_intervals(problem: Problem, state: State, regions: Tensor, intervals: dict[int, Interval]) -> bool:
    """Meet what is known of the intermediate nodes with new bounds, while that fits into memory (else false). Where a
    proof is recorded, the new bounds alone are kept: they are as good, and those before need not be proved."""
    total = problem.tensors.sets.batch
    sizes = sum(i.lower[0].numel() * i.lower.element_size() for i in intervals.values() if len(i.lower))
    if 2 * sizes * total > KEPT_INTERVAL_BYTES:
        return False
    for node, new in intervals.items():
        if node not in state.intervals:
            shape = (total, *new.lower.shape[1:])
            state.intervals[node] = Interval(new.lower.new_full(shape, -torch.inf),
                                             new.lower.new_full(shape, torch.inf))
        known = state.intervals[node]
        anew = problem.recorder is not None
        known.lower[regions] = new.lower.detach() if anew else torch.maximum(known.lower[regions], new.lower.detach())
        known.upper[regions] = new.upper.detach() if anew else torch.minimum(known.upper[regions], new.upper.detach())
    return True


def sample_points(sets: InputSet, generator: torch.Generator) -> Tensor:
    """"B n *shape": the middle and a few random points of each region."""
    random = sets.sample(SANITY_SAMPLES, generator)
    return torch.cat([sets.centre_point.unsqueeze(1), random], dim=1)


def contradiction(problem: Problem, state: State) -> str:
    """A sentence if a real point of the network lies below a proved bound: no proof survives that. Else ''.

    A bound method that is wrong by more than rounding is often caught by a handful of evaluations, which
    cost one forward pass. They run in float64: where float32 is far off at these points (large numbers that cancel), so
    may be bounds in float32, and those that are not well above that error prove nothing.
    """
    tensors = problem.tensors
    graph = problem.graph
    doubled = tensors.bound.dtype == torch.float32 and sum(p.numel() for p in graph.parameters()) <= DOUBLED_WEIGHTS
    wide = graph.to(dtype=torch.float64) if doubled else graph
    trusted, closed = state.row_lower.clone(), state.branch_closed.clone()
    lower = state.lower(tensors)
    if state.upper < lower - CONTRADICTION_RTOL * (1 + abs(lower)):
        return f"an attack reached the margin {state.upper:.6g}, below the bound {lower:.6g}"
    for regions in torch.arange(tensors.sets.batch, device=tensors.bound.device).split(
            regions_together(graph)):
        points = sample_points(tensors.sets.index(regions), problem.generator)
        flat = points.flatten(0, 1)
        y = wide(flat.to(wide.dtype) if doubled else flat)
        rows = torch.nonzero(torch.isin(tensors.region, regions)).flatten()
        place = _positions(regions, tensors.region[rows], tensors.sets.batch)
        here = _at_own_points(tensors, rows, place, points, y)
        claimed = state.row_lower[rows].unsqueeze(1)
        below = torch.isfinite(claimed) & ~(here >= claimed - CONTRADICTION_RTOL * (1 + claimed.abs()))
        if bool(below.any()):
            row = int(rows[torch.nonzero(below)[0, 0]])
            return f"row {row}: a point of the network lies below the bound {float(state.row_lower[row]):.6g}"
        branch = tensors.branch[rows]
        margin = here.new_full((tensors.branches, here.shape[1]), -torch.inf).scatter_reduce(
            0, branch.unsqueeze(1).expand_as(here), here, "amax")
        proved = state.branch_proved.to(here).unsqueeze(1)
        here_too = torch.zeros_like(closed).index_fill(0, branch, True).unsqueeze(1)
        below = here_too & (proved > -torch.inf) & ~(margin >= proved - CONTRADICTION_RTOL * (1 + proved.abs()))
        if bool(below.any()):
            k = int(torch.nonzero(below)[0, 0])
            return f"branch {k}: a point of the network lies below the bound {float(state.branch_proved[k]):.6g}"
        if doubled:
            error = (here - _at_own_points(tensors, rows, place, points, graph(flat))).abs()
            gross = error > CONTRADICTION_RTOL * (1 + here.abs())
            lost = (gross & ~(claimed > ERROR_FACTOR * error)).any(1)
            trusted[rows[lost]] = -torch.inf
            shaky = (gross & ~(proved[branch] > ERROR_FACTOR * error)).any(1)
            closed[branch[shaky]] = False
    if not bool((tensors.decided(trusted) | closed).all()):
        return "large numbers cancel: float32 evaluations are off by more than the bounds prove"
    return ""


def _at_own_points(tensors: PropertyTensors, rows: Tensor, place: Tensor, points: Tensor, y: Tensor) -> Tensor:
    """The violation of each row at the points of its own region alone: rows "R" and their places among the regions,
    points "U n *shape", y "U*n *out" -> "R n". In pieces, since rows and points can both be many."""
    count = points.shape[1]
    x, y = points.flatten(2).to(y), y.flatten(1).view(points.shape[0], count, -1)
    width = count * (y.shape[2] + (0 if tensors.D is None else x.shape[2]))
    found = []
    for some, where in zip(*(t.split(max(1, PIECE_ENTRIES // width)) for t in (rows, place)), strict=True):
        v = torch.einsum("rnm,rm->rn", y[where], tensors.C[some].to(y)) - tensors.bound[some].to(y).unsqueeze(1)
        found.append(v if tensors.D is None else v + torch.einsum("rnk,rk->rn", x[where], tensors.D[some].to(y)))
    return torch.cat(found)


def margin_loss(problem: Problem) -> float | None:
    """By how much the arithmetic of the graph lowers the least margin over all branches (of the first one where they
    are many), as CROWN bounds it from the root; None where it leaves nothing."""
    graph, tensors = (problem.graph, problem.tensors) if problem.double is None else (
        problem.double.graph, problem.double.tensors)
    if tensors.sets.batch > regions_together(graph) or len(tensors.C) > CHUNK_ROWS:
        chosen = torch.zeros(tensors.branches, dtype=torch.bool, device=tensors.bound.device)
        chosen[0] = True
        tensors = only_branches(tensors, chosen)
    method = method_named("crown")
    regions, owner = tensors.region.unique(return_inverse=True)
    rows = LinearRows(tensors.C, owner, tensors.D, -tensors.bound)
    margins = []
    for one in (replace(graph, arithmetic=None), graph):
        with torch.no_grad():
            lower = method.bound(one, tensors.sets.index(regions), rows).lower
        margins.append(float(tensors.branch_margin(lower).min()))
    loss = margins[0] - margins[1]
    return loss if math.isfinite(loss) else None


BRIEF = Falsifier(restarts=4, steps=12, rounds=1, samples=64, time_limit_s=1.0)
MIDDLE = Falsifier(restarts=24, steps=40, rounds=1)
LONG = Falsifier(restarts=48, steps=100, rounds=3, samples=1024)
ENDLESS = Falsifier(restarts=48, steps=100, rounds=1 << 30, samples=1024, time_limit_s=math.inf)


def check_method(method: str, branching: str) -> None:
    """Refuse what is no method's or no rule's name."""
    if branching not in BRANCHING:
        raise ValueError(f"branching must be one of {', '.join(BRANCHING)}, got {branching!r}")
    if method not in ("auto", "attack", "bab", "milp", *METHODS):
        raise ValueError(f"method must be auto, attack, bab, milp or one of {', '.join(METHODS)}, got {method!r}")


def stages_for(method: str, problem: Problem, branching: str = BRANCHING[0], solver: str = "highs",
               evidence: Evidence | None = None) -> Sequence[Stage]:
    """The strategy of a method name: "auto", "attack" (nothing is proved), "bab" (branch and bound after CROWN), "milp"
    (after alpha-CROWN, by `solver`), or one bound method alone (then no attack either). evidence: with ROUNDED, stages
    that do not account for rounding are left out, where others do."""
    stages = _stages_for(method, problem, branching, solver)
    if problem.claim is Claim.REAL and evidence is not Evidence.ROUNDED:
        return stages
    # What knows nothing of float32's rounding proves nothing about it; and what is decided without its rounding
    # accounted for would be kept from stages that account for it.
    rounded = tuple(s for s in stages if isinstance(s, AttackStage) or (problem.rounded and s.is_rounded(problem)))
    proves = any(not isinstance(s, AttackStage) for s in rounded)
    return rounded if proves or problem.claim is Claim.FLOAT32 else stages


def _stages_for(method: str, problem: Problem, branching: str, solver: str) -> Sequence[Stage]:
    if method in METHODS:
        return (BoundStage(method),)
    if method == "attack":
        return AttackStage("pgd-brief", BRIEF), AttackStage("pgd-long", ENDLESS)
    if method == "milp":
        from milp.solvers import mixed_solver
        from verifier.milp_stage import MilpStage  # scipy's sparse matrices take their time to import
        stage = MilpStage(mixed_solver(solver))
        return (AttackStage("pgd-brief", BRIEF, share=0.1), BoundStage("crown", keep=True),
                BoundStage("alpha-crown", keep=True), stage)
    plan = plan_for(problem, branching)
    search = BranchAndBoundStage(plan)
    if method == "bab":
        return BoundStage("crown", keep=True), search
    brief = AttackStage("pgd-brief", BRIEF, share=0.1)
    long = AttackStage("pgd-long", LONG)
    if plan.inputs:
        # Small boxes are soon bounded well by CROWN; optimising bounds of the whole set would only delay that.
        return brief, BoundStage("ibp"), BoundStage("crown", keep=True), search, long
    # What these decide no proof file can state: a search would have to prove it once more.
    planes: tuple[Stage, ...] = (LeaningStage(), TiltedStage()) if problem.recorder is None else ()
    return (
        brief,
        BoundStage("ibp"),
        BoundStage("crown", keep=True),
        BoundStage("alpha-crown-rows", {"neuron_iterations": 0}, method="alpha-crown", inherit=True),
        AttackStage("pgd", MIDDLE, share=0.25),
        BoundStage("alpha-crown", keep=True),
        *planes,
        search,
        long,
    )
