"""The leaves of a tree, kept for the same question about another radius.

Splits of neurons cut up the whole input space, whatever the set: where a tree over one ball ended, a tree over another
ball can begin. A leaf remembers the largest radius at which it was closed. For a larger ball every leaf is a root, with
the splits, slopes and multipliers that it had; for a smaller one than the last, only those that were left open are.
Bounds of neurons are not kept: they are proved anew for each ball, and cut at the splits.

Axis legend: B leaves, n flat inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from verifier.branch_and_bound.bounding import Question
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout
from verifier.branch_and_bound.splits import cut_at_splits

BUDGET_BYTES = 1 << 30
SHORT = torch.bfloat16  # any slopes and multipliers are valid: what rounding takes from them costs no proof


@dataclass(frozen=True, eq=False)
class Leaf:
    """B leaves: branch "B"; closed_at "B" (float64, -inf: never); sides, cuts, depth as in `Domains`; slopes and
    multipliers to start from."""

    branch: Tensor
    closed_at: Tensor
    depth: Tensor
    sides: Tensor
    cuts: Tensor
    slopes: Tensor
    multipliers: Tensor

    def __len__(self) -> int:
        return len(self.branch)

    def take(self, chosen: Tensor) -> Leaf:
        return Leaf(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Paused:
    """What a search over one radius had not bounded yet, and what its pool held."""

    radius: float
    waiting: list[Domains]
    pool: Domains | None

    @property
    def domains(self) -> list[Domains]:
        return [*self.waiting, *([] if self.pool is None else [self.pool])]


@dataclass(eq=False)
class Leaves:
    """The leaves of all trees so far over balls around one input. Those of a branch cover the whole space together,
    or there are none of it.

    A search over the ball of `radius` starts from `begin`, notes what it closes with `close`, what nothing decides with
    `keep`, and ends with `end`. Where that never comes, the leaves before count as they did. Above `budget` bytes all
    are forgotten. Where the next ball has the radius of the last one, the search goes on where it stopped, with all
    that was proved in what it left open.
    """

    budget: int = BUDGET_BYTES
    kept: list[Leaf] = field(default_factory=list)
    radius: float = 0.0
    rounded: bool | None = None  # whether searches accounted for rounding when they closed what is closed here
    paused: Paused | None = None
    _rest: list[Leaf] = field(default_factory=list)
    _new: list[Leaf] = field(default_factory=list)
    _stuck: bool = False

    def __len__(self) -> int:
        return sum(len(leaf) for leaf in self.kept)

    @property
    def bytes(self) -> int:
        return sum(leaf.bytes for leaf in self.kept)

    def closed(self, branches: int) -> Tensor:
        """bool "branches": those of which every leaf was closed at `radius` or a larger one."""
        out = torch.zeros(branches, dtype=torch.bool)
        for leaf in self.kept:
            out[leaf.branch] = True
        for leaf in self.kept:
            out[leaf.branch[~(leaf.closed_at >= self.radius)]] = False
        return out

    def closed_below(self, radius: float) -> int:
        """How many leaves were closed, but at smaller radii than this alone: they are to be bounded anew."""
        return sum(int(((leaf.closed_at < radius) & (leaf.closed_at > -math.inf)).sum()) for leaf in self.kept)

    def forget(self) -> None:
        """Begin anew."""
        self.kept, self.paused = [], None

    def begin(self, graph: Graph, layout: Layout, question: Question, roots: Domains,
              intervals: Mapping[int, Interval]) -> tuple[list[Domains], Domains | None]:
        """The domains from which a search starts, and those that its pool starts with (None: nothing): of each root
        (one branch of the only region) the leaves that are not closed at `radius`, or itself where there are none.
        Parts differ in the slopes that they bring.

        intervals "1 *shape": proved over this ball, of all nodes of the layout."""
        assert question.tensors.sets.batch == 1, "one ball"
        slot = roots.open.long().argmax(1)
        branch = question.branches[0][slot].cpu()
        self._rest, self._new, self._stuck = [], [], False
        covered = torch.zeros(len(branch), dtype=torch.bool)
        asked: list[Leaf] = []
        for leaf in self.kept:
            covered |= torch.isin(branch, leaf.branch)
            chosen = torch.isin(leaf.branch, branch) & ~(leaf.closed_at >= self.radius)
            self._rest.append(leaf.take(~chosen))
            asked.append(leaf.take(chosen))
        new = (~covered).nonzero().squeeze(1).to(roots.node.device)
        paused, self.paused = self.paused, None
        if paused is not None and paused.radius == self.radius and not len(new) \
                and sum(map(len, asked)) == sum(map(len, paused.domains)):
            return paused.waiting, paused.pool
        parts = [_domains(leaf, graph, layout, question, roots, intervals) for leaf in asked if len(leaf)]
        return [roots.take(new), *parts] if len(new) else parts, None

    def close(self, domains: Domains, question: Question) -> None:
        """These domains are closed at `radius`."""
        self._note(domains, question, self.radius)

    def keep(self, domains: Domains, question: Question) -> None:
        """These domains nothing decided."""
        self._stuck = self._stuck or len(domains) > 0
        self._note(domains, question, -math.inf)

    def end(self, question: Question, waiting: list[Domains], pool: Domains | None) -> None:
        """The search is over, and left open what was waiting and what its pool holds."""
        paused = Paused(self.radius, waiting, pool)
        for domains in paused.domains:
            self._note(domains, question, -math.inf)
        self.kept = [leaf for leaf in (*self._rest, *self._new) if len(leaf)]
        self._rest, self._new = [], []
        room = self.budget - self.bytes
        if room < 0:
            self.kept = []
        fits = sum(domains.bytes for domains in paused.domains) <= room
        self.paused = paused if fits and not self._stuck else None

    def _note(self, domains: Domains, question: Question, closed_at: float) -> None:
        if not len(domains):
            return
        slot = domains.open.long().argmax(1)
        self._new.append(Leaf(
            branch=question.branches[domains.region, slot].cpu(),
            closed_at=torch.full((len(domains),), closed_at, dtype=torch.float64), depth=domains.depth.cpu(),
            sides=domains.sides.cpu(), cuts=domains.cuts.cpu(), slopes=domains.slopes.to("cpu", SHORT),
            multipliers=domains.multipliers.to("cpu", SHORT)))


def _domains(leaf: Leaf, graph: Graph, layout: Layout, question: Question, like: Domains,
             intervals: Mapping[int, Interval]) -> Domains:
    """Leaves as domains over another ball."""
    count, to = len(leaf), like.low

    def everywhere(t: Tensor) -> Tensor:
        return t[:1].expand(count, *t.shape[1:])
    low, high = (layout.flat({i: getattr(intervals[i], side) for i in layout.nodes}, like.low[:1])
                 for side in ("lower", "upper"))
    sides, cuts = leaf.sides.to(to.device), leaf.cuts.to(to)
    z_low, z_high = cut_at_splits(graph, layout, everywhere(low.to(to)), everywhere(high.to(to)), sides, cuts)
    branch = leaf.branch.to(to.device)
    zeros = torch.zeros_like(branch)
    return Domains(
        region=zeros, open=question.branches[:1] == branch.unsqueeze(1), lower=to.new_full((count,), -torch.inf),
        depth=leaf.depth.to(to.device), node=zeros,
        low=everywhere(like.low).clone(), high=everywhere(like.high).clone(),
        z_low=z_low, z_high=z_high, sides=sides, slopes=leaf.slopes.to(to),
        multipliers=leaf.multipliers.to(to), choice=zeros + NO_CHOICE, point=to.new_zeros(count),
        plane=everywhere(torch.zeros_like(like.plane)), fences=everywhere(torch.zeros_like(like.fences)), cuts=cuts)
