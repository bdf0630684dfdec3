"""What all attacks share: projection, evaluation, counting, the gate, and when to stop.

An attack is a strategy over a `Problem`: it asks for margins and gradients at points of its choice.
The problem projects every point into the float32 input set before it evaluates it, counts the
calls, remembers the best candidates and offers those that look unsafe to the gate. The strategy
stops when the problem says it is finished. Nothing an attack returns is a counterexample except the
gate's own `Witness`.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import InputSet
from verifier.deadline import Deadline
from verifier.property import PropertyTensors
from verifier.witness import Witness

Gate = Callable[[Tensor], Witness | None]

KEPT = 16                 # candidates remembered, best first
GATE_TRIES = 48           # replays that may fail before only clearly better points are offered
OFFERS = 3                # replays for one batch
NEAR = 1e-4               # at the end, candidates this close to unsafe are replayed as well: the graph here and
#                           the original network round differently, and the gate decides exactly
BATCH_ENTRIES = 1 << 23   # activations of one batch, all layers (32 MiB of float32); the deadline is seen between them
DENSE_ROWS = 256          # up to here all rows are evaluated at all points in one product


@dataclass(frozen=True, eq=False)
class Candidates:
    """Points in the float32 input set, best first: x "P *shape", branch "P", margin "P" (<= 0 looks unsafe)."""

    x: Tensor
    branch: Tensor
    margin: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack brought: a witness or None, and the best candidates with their cost."""

    witness: Witness | None
    candidates: Candidates
    margin: float              # the least margin seen, in the graph's own arithmetic
    forward_calls: int         # points evaluated
    backward_calls: int        # points differentiated
    time_s: float


@dataclass
class Problem:
    """One question under attack; the state an attack works on. Built by `Attack.run`."""

    graph: Graph
    tensors: PropertyTensors
    deadline: Deadline
    generator: torch.Generator | None
    gate: Gate | None = None
    each: bool = False  # remember the best point of every branch
    forward_calls: int = 0
    backward_calls: int = 0
    witness: Witness | None = None
    kept: list[tuple[float, int, Tensor]] = field(default_factory=list)  # (margin, branch, x)
    _failures: int = 0
    _refused: float = math.inf  # the best margin the gate has refused

    def __post_init__(self) -> None:
        t = self.tensors
        self.sets: InputSet = t.replay_sets
        self.branch_margin = torch.full((t.branches,), math.inf, dtype=t.C.dtype, device=t.C.device)
        self.branch_x = self.sets.centre_point[t.branch_region].clone() if self.each else None
        counts = torch.bincount(t.branch, minlength=t.branches)
        self._C, self._D, self._bound = t.C, t.D, t.bound
        if bool((counts == 0).any()):  # a branch without rows: one that always holds
            self._C = torch.cat([t.C, t.C.new_zeros(1, t.C.shape[1])])
            self._D = None if t.D is None else torch.cat([t.D, t.D.new_zeros(1, t.D.shape[1])])
            self._bound = torch.cat([t.bound, t.bound.new_full((1,), math.inf)])
        width = max(1, int(counts.max()))
        order = t.branch.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        offset = torch.arange(width, device=counts.device).expand(t.branches, -1)
        valid = offset < counts.unsqueeze(1)
        first = torch.where(counts > 0, starts, torch.zeros_like(starts))
        at = torch.where(valid, starts.unsqueeze(1) + offset, first.unsqueeze(1))
        table = order[at] if order.numel() else at
        self._table = torch.where((counts > 0).unsqueeze(1), table, torch.full_like(table, self._C.shape[0] - 1))
        self._valid = valid | (offset == 0)

    # ------------------------------------------------------------------ facts

    @property
    def finished(self) -> bool:
        return self.witness is not None or self.deadline.passed()

    def points_at_once(self) -> int:
        """How many points one batch may hold."""
        entries = sum(math.prod(node.shape) for node in self.graph.nodes)
        return max(1, BATCH_ENTRIES // max(1, entries))

    def region_of(self, branch: Tensor) -> Tensor:
        return self.tensors.branch_region[branch]

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """(the points as projected, their margin): x "P *shape", branch "P" -> ("P *shape", "P"). In batches."""
        size = self.points_at_once()
        points, margins = [], []
        for i in range(0, x.shape[0], size):
            part, owner = x[i : i + size], branch[i : i + size]
            part = self.sets.project(part, self.region_of(owner))
            with torch.no_grad():
                margin = self._violation(part, self.graph(part), owner).amax(1)
            self.forward_calls += part.shape[0]
            self._record(part, owner, margin)
            points.append(part)
            margins.append(margin)
            if self.finished and i + size < x.shape[0]:
                rest = x[i + size :]
                points.append(self.sets.project(rest, self.region_of(branch[i + size :])))
                margins.append(margin.new_full((rest.shape[0],), math.inf))
                break
        return torch.cat(points), torch.cat(margins)

    def gradient(self, x: Tensor, branch: Tensor, summed: Tensor) -> tuple[Tensor, Tensor]:
        """(margin "P", gradient of the loss "P *shape") at points already projected; one batch.

        The loss of a point is the largest violation of its branch's rows or, where `summed` (bool
        "P"), the sum of their positive parts, which moves all rows at once.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self._violation(x, self.graph(x), branch)
            margin = v.amax(1)
            loss = margin
            if v.shape[1] > 1:
                positive = (v.clamp(min=0) * self._valid[branch]).sum(1)
                # A point with no positive part left has nothing to sum: go on with the largest.
                loss = torch.where(summed & (margin > 0), positive, margin)
            if loss.requires_grad:
                (slope,) = torch.autograd.grad(loss.sum(), x)
            else:
                slope = torch.zeros_like(x)
        self.forward_calls += x.shape[0]
        self.backward_calls += x.shape[0]
        self._record(x.detach(), branch, margin.detach())
        return margin.detach(), torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)

    def _violation(self, x: Tensor, y: Tensor, branch: Tensor) -> Tensor:
        """v of the rows of each point's branch, padded by repeats: "P R"."""
        y, rows = y.flatten(1), self._table[branch]
        if self._C.shape[0] <= DENSE_ROWS:
            v = y @ self._C.T - self._bound
            if self._D is not None:
                v = v + x.flatten(1) @ self._D.T
            return v.gather(1, rows)
        v = torch.einsum("prm,pm->pr", self._C[rows], y) - self._bound[rows]
        return v if self._D is None else v + torch.einsum("prn,pn->pr", self._D[rows], x.flatten(1))

    # ------------------------------------------------------------------ candidates and the gate

    def _record(self, x: Tensor, branch: Tensor, margin: Tensor) -> None:
        if not x.shape[0]:
            return
        margin = torch.nan_to_num(margin, nan=math.inf, posinf=math.inf, neginf=-math.inf)
        before = self.branch_margin[branch]
        self.branch_margin.scatter_reduce_(0, branch, margin, "amin")
        if self.branch_x is not None:
            ahead = (margin < before) & (margin == self.branch_margin[branch])
            self.branch_x[branch[ahead]] = x[ahead]
        best = float(margin.min())
        if len(self.kept) < KEPT or best < self.kept[-1][0]:
            values, at = margin.topk(min(4, margin.numel()), largest=False)
            for value, i in zip(values.tolist(), at.tolist(), strict=True):
                if value < math.inf:
                    self.kept.append((value, int(branch[i]), x[i].clone()))
            self.kept.sort(key=lambda entry: entry[0])
            del self.kept[KEPT:]
        if best <= 0 and self.gate is not None and self.witness is None:
            values, at = margin.topk(min(OFFERS, margin.numel()), largest=False)
            for value, i in zip(values.tolist(), at.tolist(), strict=True):
                if value <= 0 and not self.deadline.passed():
                    self._offer(value, x[i])

    def _offer(self, margin: float, x: Tensor) -> None:
        if self.gate is None or self.witness is not None:
            return
        if self._failures >= GATE_TRIES and not margin < self._refused - abs(self._refused):
            return
        self.witness = self.gate(x)
        if self.witness is None:
            self._failures += 1
            self._refused = min(self._refused, margin)

    def close(self) -> None:
        """Offer what is left: candidates so near that rounding may decide either way."""
        for margin, _, x in self.kept:
            if margin <= NEAR and not self.deadline.passed():
                self._offer(margin, x)

    def candidates(self) -> Candidates:
        t = self.tensors
        x = torch.stack([x for _, _, x in self.kept]) if self.kept else t.C.new_zeros(0, *self.sets.shape)
        return Candidates(x, torch.tensor([k for _, k, _ in self.kept], dtype=torch.long, device=t.C.device),
                          torch.tensor([m for m, _, _ in self.kept], dtype=t.C.dtype, device=t.C.device))


@dataclass(frozen=True, kw_only=True)
class PropertyAttack(ABC):
    """A strategy with its settings. `time_limit_s` is its own share of the deadline."""

    name: ClassVar[str] = "attack"
    time_limit_s: float = math.inf

    @abstractmethod
    def search(self, problem: Problem) -> None:
        """Look for unsafe points through `problem` until it is finished or the strategy has nothing left."""

    def run(self, graph: Graph, tensors: PropertyTensors, *, deadline: Deadline | None = None,
            generator: torch.Generator | None = None, gate: Gate | None = None) -> Outcome:
        """Attack a property. tensors in the graph's dtype and on its device; generator on that device.

        gate: usually `lambda x: confirm(x, prop, replayer)`; without it nothing is confirmed and the
        candidates are only that.
        """
        start = time.monotonic()
        if graph.parameters() and tensors.C.dtype != graph.dtype:  # without parameters a graph takes any dtype
            raise ValueError(f"the property is in {tensors.C.dtype}, the graph in {graph.dtype}")
        deadline = deadline or Deadline.starting_now()
        left = min(self.time_limit_s, deadline.left())
        problem = Problem(graph, tensors, Deadline.starting_now(max(left, 1e-9)), generator, gate)
        if not problem.finished:
            self.search(problem)
        problem.close()
        margin = problem.kept[0][0] if problem.kept else math.inf
        return Outcome(problem.witness, problem.candidates(), margin, problem.forward_calls, problem.backward_calls,
                       time.monotonic() - start)

    def best_of_each(self, graph: Graph, tensors: PropertyTensors, *, deadline: Deadline | None = None,
                     generator: torch.Generator | None = None) -> Candidates:
        """Attack the branches as so many questions: the best point found for each of them, "K *shape" in their order
        (margin inf: none was evaluated). Nothing is confirmed, and no success ends the search for the others."""
        deadline = deadline or Deadline.starting_now()
        left = min(self.time_limit_s, deadline.left())
        problem = Problem(graph, tensors, Deadline.starting_now(max(left, 1e-9)), generator, each=True)
        if not problem.finished:
            self.search(problem)
        assert problem.branch_x is not None, "points of each branch were asked for"
        return Candidates(problem.branch_x, torch.arange(tensors.branches, device=tensors.C.device),
                          problem.branch_margin)
