"""A question ready to be worked on: the network in search form, the property as tensors, and what is known so far.

Axis legend: U regions (input sets), N rows, K branches, m outputs, n flat inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.graph import Graph, UnsupportedOperator
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.rounding import is_covered, uncovered
from verifier.deadline import Deadline
from verifier.logits import ends_in_softmax, ranking_of
from verifier.property import Property, PropertyTensors
from verifier.real_value import real_agrees
from verifier.verdict import Claim
from verifier.witness import Replayer, Witness, confirm

if TYPE_CHECKING:
    from verifier.branch_and_bound.recorder import Recorder

SMALL_WEIGHTS = 200_000  # below this float64 costs milliseconds, and marginal signs come out right
KEPT_INTERVAL_BYTES = 1 << 30       # intermediate bounds of all regions are kept up to this size


@dataclass(frozen=True, eq=False)
class Problem:
    """`graph` is frozen, simplified and without a final softmax; `tensors` live on its device in its dtype."""

    graph: Graph
    property: Property
    tensors: PropertyTensors
    replayer: Replayer
    deadline: Deadline
    generator: torch.Generator
    recorder: Recorder | None = None  # writes the proof file, where one is wanted
    rounded: bool = True  # what is verified is to account for all rounding, where that is known how
    claim: Claim = Claim.REAL  # of float32: what is in float64, `graph` or that of `double`, has float32's noise

    def confirm(self, x: Tensor) -> Witness | None:
        """The gate of every candidate "*shape" (see `verifier.witness.confirm`). What is asked about the reals no
        witness answers that is shown to be none over the reals."""
        witness = confirm(x, self.property, self.replayer, real_check=lambda point, branch: real_agrees(
            self._real_graph, self.property, point, branch))
        return None if witness and witness.real_agrees is False and self.claim is Claim.REAL else witness

    @cached_property
    def attacked(self) -> tuple[Graph, PropertyTensors]:
        """Network and property as attacks see them: about float32 in float32, which has the values asked about."""
        if self.claim is Claim.REAL:
            return self.graph, self.tensors
        try:
            tensors = self.property.tensors(self.graph.input_shape, dtype=torch.float32, device=self.graph.device)
        except ValueError:  # a coefficient that is no float32
            return self.graph, self.tensors
        return self.graph.to(dtype=torch.float32), tensors

    @cached_property
    def _real_graph(self) -> Graph:
        return dataclasses.replace(self.graph.to(dtype=torch.float64), arithmetic=None)

    @cached_property
    def double(self) -> Double | None:
        """Where the search is in float32: the question in float64, in which its claims are confirmed."""
        if not self.rounded or self.graph.dtype == torch.float64 or not is_covered(self.graph):
            return None
        graph = self.graph.to(dtype=torch.float64)
        if self.claim is Claim.FLOAT32:
            graph = dataclasses.replace(graph, arithmetic=torch.float32)
        tensors = _tensors(self.property, graph, self.claim)
        return Double(graph, tensors, {}) if _same_question(self.tensors, tensors) else None


@dataclass(frozen=True, eq=False)
class Double:
    """A question in float64, and enclosures of what relaxations read "U *shape", rounding included (infinite where
    nothing is proved)."""

    graph: Graph
    tensors: PropertyTensors
    proved: dict[int, Interval]

    def engine(self, regions: Tensor) -> Backward:
        """An engine over some regions, with what is proved there; where that is nothing, with CROWN's enclosures."""
        engine = Backward(self.graph, self.tensors.sets.index(regions))
        given = self._known(regions)
        refine(engine, known=given, row_bound=engine.lower if given is None else None)
        if given is None:
            self.keep(regions, engine)
        return engine

    def intervals(self, regions: Tensor) -> dict[int, Interval]:
        """Enclosures over some regions, "U *shape" each: what is proved there, or CROWN's."""
        given = self._known(regions)
        if given is None:
            self.engine(regions)
            given = self._known(regions)
        return given or {}

    def _known(self, regions: Tensor) -> dict[int, Interval] | None:
        """What is proved over some regions; None where that is not everything that relaxations read."""
        given = {i: x.map(lambda t: t[regions]) for i, x in self.proved.items()}
        known = bool(given) and all(bool(torch.isfinite(x.lower).all()) for x in given.values())
        return given if known else None

    def keep(self, regions: Tensor, engine: Backward) -> None:
        """Keep the enclosures of an engine over some regions."""
        for i in self.graph.relaxed_inputs:
            x = engine.enclosures[i]
            if i not in self.proved:
                nothing = x.lower.new_full((self.tensors.sets.batch, *x.lower.shape[1:]), torch.inf)
                self.proved[i] = Interval(-nothing, nothing)
            low, high = self.proved[i].lower, self.proved[i].upper
            low[regions] = torch.maximum(low[regions], x.lower)
            high[regions] = torch.minimum(high[regions], x.upper)


def _same_question(narrow: PropertyTensors, wide: PropertyTensors) -> bool:
    """Whether both have the same rows over the same regions (part of a property may be asked alone). What is proved
    rests on `wide` lying in `narrow`; that they are no further apart than rounding to float32 is told with a margin."""
    if narrow.C.shape != wide.C.shape or narrow.sets.lower.shape != wide.sets.lower.shape:
        return False
    return torch.equal(narrow.branch, wide.branch) and torch.equal(narrow.region, wide.region) \
        and torch.equal(narrow.C.to(wide.C), wide.C) \
        and bool((narrow.sets.lower <= wide.sets.lower).all() and (narrow.sets.upper >= wide.sets.upper).all()) \
        and bool((narrow.sets.lower.float() - wide.sets.lower.float()).abs().max() < 1e-5 * (
            1 + wide.sets.lower.abs().max()))


def make_problem(
    graph: Graph,
    property: Property,
    *,
    replayer: Replayer,
    deadline: Deadline,
    seed: int = 0,
    device: torch.device | str | None = None,
    simplified: Graph | None = None,
    rounded: bool = True,
    claim: Claim = Claim.REAL,
    wide: bool = False,
) -> Problem:
    """Check that network and property fit, and bring both into search form: in float64 where that costs little, or
    `wide`. About float32 on the graph's own operators."""
    inputs, outputs = _size(graph.input_shape), _size(graph.output_shape)
    if property.inputs != inputs:
        raise ValueError(f"{property.source} has {property.inputs} input variables, "
                         f"but {graph.source} has {inputs} inputs, shape {graph.input_shape}")
    if property.outputs != outputs:
        raise ValueError(f"{property.source} has {property.outputs} output variables, "
                         f"but {graph.source} has {outputs} outputs, shape {graph.output_shape}")
    if claim is Claim.FLOAT32:
        search = float32_graph(graph)
    else:
        search = without_final_softmax(simplified if simplified is not None else graph.simplify(), property)
    dtype = torch.float64 if wide else choose_dtype(search, device)
    search = search.to(dtype=dtype, device=device)
    if dtype == torch.float32:  # which searches, and confirms in float64 what it finds
        search = dataclasses.replace(search, arithmetic=None)
    tensors = _tensors(property, search, claim)
    generator = torch.Generator(device=search.device)
    generator.manual_seed(seed)
    return Problem(search, property, tensors, replayer, deadline, generator, rounded=rounded, claim=claim)


def _tensors(property: Property, graph: Graph, claim: Claim) -> PropertyTensors:
    tensors = property.tensors(graph.input_shape, dtype=graph.dtype, device=graph.device)
    # Inputs of a network in float32 are what witnesses are.
    return dataclasses.replace(tensors, sets=tensors.replay_sets) if claim is Claim.FLOAT32 else tensors


def float32_graph(graph: Graph) -> Graph:
    """The graph as float32 evaluates it node by node."""
    searched = graph.simplify(fold=False).evaluated_in(torch.float32)
    node = uncovered(searched)
    if node is not None:
        raise UnsupportedOperator(f"{graph.source}: {node.op.kind} (node {node.name}): what float32 makes of it is not "
                                  "accounted for; ask about the reals")
    return searched


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def without_final_softmax(graph: Graph, property: Property) -> Graph:
    """The graph up to its last softmax, which keeps the order of the outputs; refused where that is not enough."""
    if not ends_in_softmax(graph):
        return graph
    last = graph.nodes[graph.output]
    if not property.compares_outputs_only:
        raise UnsupportedOperator(f"{graph.source}: {last.op.kind} at the end (node {last.name}): "
                                  f"{property.source} constrains its values and not only their order; "
                                  f"state the property over the inputs of the {last.op.kind}")
    return ranking_of(graph)


def is_convolutional(graph: Graph) -> bool:
    return any(isinstance(n.op, Affine) and "conv" in n.op.kind.lower() for n in graph.nodes)


def is_small(graph: Graph) -> bool:
    """Dense and below `SMALL_WEIGHTS`: such networks gain nothing from float32."""
    return not is_convolutional(graph) and sum(p.numel() for p in graph.parameters()) <= SMALL_WEIGHTS


def is_integral(graph: Graph) -> bool:
    """Whether every parameter is an integer: such networks are made by hand, and their thresholds are met exactly."""
    return all(bool((p == p.round()).all()) for p in graph.parameters())


def choose_dtype(graph: Graph, device: torch.device | str | None) -> torch.dtype:
    """float64 for networks stored in it, whose parameters must not be rounded, and for small ones; float32 for
    convolutional and large ones, where it is up to ten times faster."""
    on_gpu = device is not None and torch.device(device).type != "cpu"
    stored_so = graph.dtype == torch.float64
    return torch.float64 if stored_so or (is_small(graph) and not on_gpu) else torch.float32


@dataclass(eq=False)
class State:
    """What is known so far; stages improve it, nothing else does.

    row_lower "N": proved lower bound of each row's violation over its region. branch_proved "K": proved lower bound of
    a branch's margin by a search, and branch_closed: whether that search left nothing open. rounded "K": branches that
    were decided with all rounding accounted for. intervals: proved enclosures of intermediate nodes, "U *shape". upper:
    the smallest margin seen at a real point.
    """

    row_lower: Tensor
    branch_proved: Tensor
    branch_closed: Tensor
    rounded: Tensor
    intervals: dict[int, Interval] = field(default_factory=dict)
    upper: float = float("inf")
    witness: Witness | None = None
    numerical: str = ""
    domains: int = 0
    first_bound_s: float | None = None
    choices: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem) -> State:
        tensors = problem.tensors
        nothing = tensors.bound.new_full((tensors.branches,), -torch.inf)
        return cls(row_lower=torch.full_like(tensors.bound, -torch.inf), branch_proved=nothing,
                   branch_closed=torch.zeros_like(nothing, dtype=torch.bool),
                   rounded=torch.zeros_like(nothing, dtype=torch.bool))

    def improve(self, rows: Tensor, lower: Tensor) -> None:
        """Take over new lower bounds of `rows` (indices). Only numbers count: NaN and infinities are no proof."""
        usable = torch.where(torch.isfinite(lower), lower, torch.full_like(lower, -torch.inf))
        self.row_lower[rows] = torch.maximum(self.row_lower[rows], usable.to(self.row_lower))

    def branch_lower(self, tensors: PropertyTensors) -> Tensor:
        """"K": max over a branch's rows, since one row that stays positive keeps the branch out of reach, and what a
        search proved."""
        return torch.maximum(tensors.branch_margin(self.row_lower), self.branch_proved)

    def open_branches(self, tensors: PropertyTensors) -> Tensor:
        """bool "K": true where no row is proved out of reach (> 0 if closed, >= 0 if strict) and no search ended."""
        return ~(tensors.decided(self.row_lower) | self.branch_closed)

    def lower(self, tensors: PropertyTensors) -> float:
        """The margin's proved lower bound: min over branches."""
        return float(self.branch_lower(tensors).min())


def only_branches(tensors: PropertyTensors, chosen: Tensor) -> PropertyTensors:
    """The OR of some branches (bool "K"), renumbered; the regions stay."""
    rows = chosen[tensors.branch]
    number = torch.cumsum(chosen, 0) - 1
    return dataclasses.replace(
        tensors, C=tensors.C[rows], D=None if tensors.D is None else tensors.D[rows], bound=tensors.bound[rows],
        strict=tensors.strict[rows], region=tensors.region[rows], branch=number[tensors.branch[rows]],
        branches=int(chosen.sum()), branch_region=tensors.branch_region[chosen])


def narrowed(problem: Problem, state: State, kept: Tensor) -> tuple[Problem, State]:
    """Problem and state of some branches (bool "K") and of their regions alone; `property` stays the whole one, by
    which candidates are confirmed."""
    rows = kept[problem.tensors.branch]
    tensors, regions = _of_their_regions(problem.tensors, kept)
    intervals = {n: Interval(v.lower[regions], v.upper[regions]) for n, v in state.intervals.items()}
    fewer = dataclasses.replace(problem, tensors=tensors)
    # Both are made of the whole property where nobody made them before.
    double, (graph, attacked) = problem.double, problem.attacked
    vars(fewer)["double"] = None if double is None else Double(
        double.graph, _of_their_regions(double.tensors, kept)[0],
        {n: v.map(lambda t: t[regions]) for n, v in double.proved.items()})
    vars(fewer)["attacked"] = graph, tensors if attacked is problem.tensors else _of_their_regions(attacked, kept)[0]
    return fewer, State(
        row_lower=state.row_lower[rows], branch_proved=state.branch_proved[kept],
        branch_closed=state.branch_closed[kept], rounded=state.rounded[kept], intervals=intervals)


def _of_their_regions(tensors: PropertyTensors, kept: Tensor) -> tuple[PropertyTensors, Tensor]:
    """(the OR of some branches over their regions alone, these regions)."""
    fewer = only_branches(tensors, kept)
    regions, place = torch.unique(fewer.branch_region, return_inverse=True)
    return dataclasses.replace(fewer, sets=tensors.sets.index(regions), replay_sets=tensors.replay_sets.index(regions),
                               region=place[fewer.branch], branch_region=place), regions
