"""Bounds of the l_0 safe radius: the least number of features that must change to reach an unsafe point.

Each changed feature may take any value of the clip range. DeepTRE (Ruan et al., arXiv:1804.05805) bounds it from below
by subspace sensitivities: the radius is above t once *every* set of t features is shown to be harmless. Here that is
shown for many sets at once. Where at most s of the features U may move, the gains of a linear bound are each feature's
own, so that its least value takes the s largest; the convex hull of such points is an l_1 ball of radius s about the
input, each feature measured by the further end of its range (exact where a range lies on one side of the input). CROWN
over that ball, neurons included, bounds all sets of s features in one pass. What stays open is split on the feature of
the largest gain: it is one of those that move, or it stays (the last one to move is in one or the other half of those
that may). Where all t are chosen a box is left, which is bisected.

From above: attacks in l_0, and the points that the bounds themselves propose, features dropped while a point stays
unsafe. Both ends are integers, and meet when a witness has as many changed features as the lower end says.

Left out: DeepTRE's tensor grids, whose lower bounds hold on the grid alone.

Axis legend: M nodes, n flat features, t features that may change, K other classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import PRICED_METHODS, compute_bounds
from bounds.graph import Graph
from bounds.rounding import is_covered
from bounds.sets import InputSet
from bounds.sets import round_down as floor_to
from bounds.sets import round_up as ceil_to
from verifier.attacks.criterion import Misclassified
from verifier.attacks.registry import attack_named
from verifier.attacks.threat import Threat
from verifier.deadline import Deadline
from verifier.exact import fraction, round_down, round_up
from verifier.logits import ranking_of
from verifier.property import robustness
from verifier.radius.balls import Balls
from verifier.radius.interval import RadiusInterval
from verifier.radius.lower import compared_classes
from verifier.real_value import real_agrees
from verifier.stages import regions_together
from verifier.verdict import Evidence
from verifier.witness import Replayer, Witness, confirm

METHODS = ("fastlin", "crown", "crown-ibp", "alpha-crown")  # which give linear bounds
CHEAP = 1024.0     # features that are known to move cost so little of the ball's radius
FINEST = 2.0**-30  # of a feature's range: boxes that narrow are split no more
ATTACKS = {"sigma-zero": {"steps": 200}, "fmn": {"steps": 200}}

OnInterval = Callable[[RadiusInterval], None]


def l0_radius(graph: Graph, x: Tensor, label: int, *, clip: tuple[float, float], replayer: Replayer,
              mask: Tensor | None = None, target: int | None = None, known: RadiusInterval | None = None,
              method: str = "crown", attacks: tuple[str, ...] = tuple(ATTACKS), most: int | None = None, seed: int = 0,
              deadline: Deadline | None = None, on_interval: OnInterval | None = None,
              simplified: Graph | None = None) -> RadiusInterval:
    """Both ends of the number of features that must change, which only approach each other.

    x "*shape" (floats, taken exactly); clip: the range of every feature; mask bool "*shape": features that may change;
    target: the only class that counts as unsafe. known: what is known already; most: lower ends above it are not asked
    for; on_interval gets every improvement. lower inf: nothing in the whole range is unsafe.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    balls = Balls(x.unsqueeze(0), torch.tensor([label]), math.inf, clip, mask, target)
    compared_classes(graph, balls)
    stored = ranking_of(simplified if simplified is not None else graph.simplify())
    search = _Search(stored.to(dtype=torch.float64), balls, replayer, method, deadline or Deadline(),
                     on_interval or (lambda interval: None), known or RadiusInterval())
    search.attack(attacks, seed)
    search.climb(math.inf if most is None else most)
    return search.interval


@dataclass(frozen=True, eq=False)
class _Nodes:
    """M sets of points. chosen "M t": features that may take any value of [low, high] "M t" (-1: none chosen yet; so
    many others may move); fixed bool "M n": features that may not. asked bool "M K": rows that are not proved."""

    chosen: Tensor
    low: Tensor
    high: Tensor
    fixed: Tensor
    asked: Tensor

    def __len__(self) -> int:
        return self.chosen.shape[0]

    def take(self, i: Tensor | slice) -> _Nodes:
        return _Nodes(*(getattr(self, f.name)[i] for f in dataclasses.fields(self)))

    @staticmethod
    def joined(parts: list[_Nodes]) -> _Nodes:
        return _Nodes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(_Nodes)))


@dataclass(eq=False)
class _Search:
    """One input's question; `graph` is in float64 and without a final softmax."""

    graph: Graph
    balls: Balls
    replayer: Replayer
    method: str
    deadline: Deadline
    on_interval: OnInterval
    interval: RadiusInterval
    x: Tensor = field(init=False)
    low: Tensor = field(init=False)
    high: Tensor = field(init=False)
    C: Tensor = field(init=False)

    def __post_init__(self) -> None:
        assert self.balls.clip is not None
        self.x = self.balls.x.flatten()
        span = float(self.balls.clip[1]) - float(self.balls.clip[0])
        whole = self.balls.sets(torch.tensor([2 * span + 1], dtype=torch.float64))
        self.low, self.high = whole.lower.flatten(), whole.upper.flatten()
        self.C = self.balls.rows(math.prod(self.graph.output_shape)).C

    @property
    def evidence(self) -> Evidence:
        rounded = self.method in PRICED_METHODS and is_covered(self.graph)
        return Evidence.ROUNDED if rounded else Evidence.FLOAT

    # ------------------------------------------------------------------ from above

    def attack(self, names: tuple[str, ...], seed: int) -> None:
        """Attacks, their points made sparser."""
        self.propose(self.x, "input")
        label = self.balls.label
        target = None if self.balls.target is None else torch.tensor([self.balls.target])
        mask = None if self.balls.mask is None else self.balls.mask
        for name in names:
            if self.deadline.passed() or self.interval.upper <= max(1.0, self.interval.lower):
                return
            settings: dict[str, Any] = ATTACKS.get(name, {})
            found = attack_named(name, **settings).run(
                self.graph, self.balls.x, Misclassified(label, target), Threat(0.0, clip=self.balls.clip, mask=mask),
                seed=seed, deadline=self.deadline)
            if bool(found.success[0]):
                self.propose(self.sparser(found.x[0].flatten().double()), name)

    def sparser(self, point: Tensor) -> Tensor:
        """An unsafe point with features put back one by one, the one that leaves the margin least, while it stays
        unsafe. Greedy."""
        while True:
            moved = (point != self.x).nonzero().flatten()
            if len(moved) < 2 or self.deadline.passed():
                return point
            tried = point.repeat(len(moved), 1)
            tried[torch.arange(len(moved)), moved] = self.x[moved]
            margin = self.margin(tried)
            if not bool((margin < 0).any()):
                return point
            point = tried[margin.argmin()]

    @torch.no_grad()
    def margin(self, points: Tensor) -> Tensor:
        """The least row "P" at points "P n"."""
        parts = [(self.graph(p.view(-1, *self.balls.shape)).flatten(1) @ self.C.T).amin(1)
                 for p in points.split(regions_together(self.graph))]
        return torch.cat(parts)

    def propose(self, point: Tensor, by: str) -> bool:
        """Whether a point "n" is a witness that improves the upper end."""
        witness = self.confirmed(point.numpy())
        if witness is None:
            return False
        count = float((witness.x.reshape(-1) != self.x.numpy().astype(np.float32)).sum())
        if not count < self.interval.upper:
            return False
        evidence = Evidence.ROUNDED if witness.real_agrees else Evidence.FLOAT
        self.interval = self.interval.lowered(count, evidence, by, witness)
        self.on_interval(self.interval)
        return True

    def confirmed(self, point: NDArray[np.float64]) -> Witness | None:
        """The point through the gate, on the whole range of the features that it changes, and no others. Where rounding
        takes it out of the range or moves other features, nothing is said of the reals."""
        assert self.balls.clip is not None
        x = self.x.numpy()
        low, high = (fraction(float(end)) for end in self.balls.clip)
        first, last = (torch.tensor(end, dtype=torch.float64) for end in (round_up(low), round_down(high)))
        kept = np.clip(point, float(ceil_to(first, torch.float32)), float(floor_to(last, torch.float32)))
        point = np.where(point != x, kept, point)
        asked = robustness(x, int(self.balls.label[0]), high - low, classes=self.C.shape[1], clip=self.balls.clip,
                           mask=point.astype(np.float32) != x.astype(np.float32), target=self.balls.target)
        witness = confirm(point.reshape(self.balls.shape), asked, self.replayer,
                          real_check=lambda y, branch: real_agrees(self.graph, asked, y, branch))
        if witness is None or witness.real_agrees is False:
            return None
        inside = bool(self.balls.inside(torch.from_numpy(witness.x).unsqueeze(0)))
        return witness if inside else dataclasses.replace(witness, real_agrees=None)

    # ------------------------------------------------------------------ from below

    def climb(self, most: float) -> None:
        """Raise the lower end, one feature after the other."""
        free = int((self.low < self.high).sum())
        t = int(max(0.0, self.interval.lower)) if self.interval.lower < math.inf else free + 1
        while self.interval.lower < self.interval.upper and t <= free and t < most and self.proved(t):
            t += 1
            lower = t if t <= free else math.inf
            self.interval = self.interval.raised(lower, self.evidence, f"l_0 {self.method}")
            self.on_interval(self.interval)

    def proved(self, t: int) -> bool:
        """Whether no point with at most t changed features is unsafe; false where a witness was found on the way, or
        nothing was decided."""
        root = _Nodes(torch.full((1, t), -1), self.x.new_zeros(1, t), self.x.new_zeros(1, t),
                      (self.low == self.high).unsqueeze(0), torch.ones(1, len(self.C), dtype=torch.bool))
        open_ = [self.boxed(root)]
        together = regions_together(self.graph)
        while open_:
            if self.deadline.passed() or self.interval.upper <= t:
                return False
            nodes = open_.pop()
            if len(nodes) > together:
                open_.append(nodes.take(slice(together, None)))
                nodes = nodes.take(slice(together))
            # Boxes and balls are bounded apart; boxes first, since they end.
            box = self.is_box(nodes)
            for some in (nodes.take(~box), nodes.take(box)):
                if len(some):
                    left = self.bounded(some)
                    if left is None:
                        return False
                    if len(left):
                        open_.append(left)
        return True

    @staticmethod
    def is_box(nodes: _Nodes) -> Tensor:
        """bool "M": nodes with all their features chosen."""
        return (nodes.chosen >= 0).all(1) | nodes.fixed.all(1)

    def boxed(self, nodes: _Nodes) -> _Nodes:
        """Nodes whose remaining features may all move have them chosen."""
        taken = nodes.chosen >= 0
        rest = self.undecided(nodes)
        fits = (rest.sum(1) <= (~taken).sum(1)) & ~self.is_box(nodes)
        chosen, low, high, fixed = (t.clone() for t in (nodes.chosen, nodes.low, nodes.high, nodes.fixed))
        for m in fits.nonzero().flatten().tolist():
            features = rest[m].nonzero().flatten()
            slots = (~taken[m]).nonzero().flatten()[:len(features)]
            chosen[m, slots], low[m, slots], high[m, slots] = features, self.low[features], self.high[features]
            fixed[m] = True
        return _Nodes(chosen, low, high, fixed, nodes.asked)

    def undecided(self, nodes: _Nodes) -> Tensor:
        """bool "M n": features that may be among those that move, but need not."""
        return ~nodes.fixed & ~self.members(nodes) & (nodes.chosen < 0).any(1, keepdim=True)

    def members(self, nodes: _Nodes) -> Tensor:
        """bool "M n": features that are chosen."""
        found = torch.zeros(len(nodes), len(self.x) + 1, dtype=torch.bool)
        return found.scatter(1, nodes.chosen % found.shape[1], True)[:, :-1]  # -1 is the column too many

    def box(self, nodes: _Nodes) -> tuple[Tensor, Tensor]:
        """The ranges "M n" of all features: chosen ones in theirs, undecided ones in all, fixed ones at the input."""
        rest = self.undecided(nodes)
        ends = []
        for whole, own in ((self.low, nodes.low), (self.high, nodes.high)):
            end = torch.where(rest, whole, self.x)
            end = torch.cat([end, end[:, :1]], 1).scatter(1, nodes.chosen % (len(self.x) + 1), own)[:, :-1]
            ends.append(end)
        return ends[0], ends[1]

    def sets(self, nodes: _Nodes) -> InputSet:
        """Supersets of the nodes (all boxes, or none)."""
        lower, upper = self.box(nodes)
        shape = (len(nodes), *self.balls.shape)
        if bool(self.is_box(nodes).all()):
            return InputSet(lower.view(shape), upper.view(shape))
        members, taken = self.members(nodes), (nodes.chosen >= 0).sum(1)
        scale = torch.maximum(upper - self.x, self.x - lower)
        scale = torch.nextafter(scale, torch.full_like(scale, math.inf))
        scale = torch.where(members, CHEAP * scale, torch.where(lower < upper, scale, 1.0))
        radius = (nodes.chosen.shape[1] - taken) + taken / CHEAP
        return InputSet(lower.view(shape), upper.view(shape), self.x.view(1, *shape[1:]).expand(shape), radius.double(),
                        1.0, scale.view(shape))

    def bounded(self, nodes: _Nodes) -> _Nodes | None:
        """What is left to be proved of nodes (all boxes, or none), split; None where a witness was found or a box
        cannot be split."""
        owner, row = nodes.asked.nonzero(as_tuple=True)
        with torch.no_grad():
            found = compute_bounds(self.graph, self.sets(nodes), LinearRows(self.C[row], owner), self.method)
        assert found.A is not None
        lower = torch.full(nodes.asked.shape, math.inf, dtype=torch.float64)
        lower[owner, row] = torch.where(torch.isnan(found.lower), -math.inf, found.lower)
        asked = nodes.asked & ~(lower > 0)
        left = asked.any(1).nonzero().flatten()
        if not len(left):
            return nodes.take(left)
        # The linear bound of the worst row says where to look, and where to split.
        place = torch.zeros(nodes.asked.shape, dtype=torch.long)
        place[owner, row] = torch.arange(len(row))
        A = found.A.flatten(1)[place[left, lower[left].argmin(1)]]
        nodes = dataclasses.replace(nodes.take(left), asked=asked[left])
        points = self.least(nodes, A)
        margin = self.margin(points)
        if bool((margin <= 0).any()) and self.propose(self.sparser(points[margin.argmin()]), f"l_0 {self.method}"):
            return None
        worst_last = lower[left].amin(1).argsort(descending=True)
        nodes, A = nodes.take(worst_last), A[worst_last]
        return self.bisected(nodes, A) if bool(self.is_box(nodes).all()) else self.split(nodes, A)

    def gains(self, nodes: _Nodes, A: Tensor) -> Tensor:
        """"M n": by how much each feature alone may lower rows A "M n" over its range in the node."""
        lower, upper = self.box(nodes)
        return torch.maximum(A * (self.x - lower), A * (self.x - upper))

    def least(self, nodes: _Nodes, A: Tensor) -> Tensor:
        """Points "M n" of the nodes where rows A "M n" are least: features that move are at an end."""
        lower, upper = self.box(nodes)
        end = torch.where(A > 0, lower, upper)
        rest = self.undecided(nodes)
        gain = torch.where(rest, self.gains(nodes, A), -1.0)
        rank = gain.argsort(dim=1, descending=True).argsort(dim=1)
        moves = self.members(nodes) | (rest & (rank < (nodes.chosen < 0).sum(1, keepdim=True)))
        return torch.where(moves, end, self.x)

    def split(self, nodes: _Nodes, A: Tensor) -> _Nodes:
        """Each node twice: with its feature of the largest gain among those that move, and without it. Where one more
        feature may move, it is among the half of larger gains or in the other."""
        rest = self.undecided(nodes)
        gain = torch.where(rest, self.gains(nodes, A), -1.0)
        order = gain.argsort(dim=1, descending=True)
        feature, slot = order[:, :1], (nodes.chosen < 0).long().argmax(1, keepdim=True)
        large = rest & (order.argsort(dim=1) < (rest.sum(1, keepdim=True) + 1) // 2)
        last = (nodes.chosen < 0).sum(1, keepdim=True) == 1
        moves = _Nodes(torch.where(last, nodes.chosen, nodes.chosen.scatter(1, slot, feature)),
                       nodes.low.scatter(1, slot, self.low[feature]), nodes.high.scatter(1, slot, self.high[feature]),
                       torch.where(last, nodes.fixed | (rest & ~large), nodes.fixed), nodes.asked)
        out = torch.where(last, large, torch.zeros_like(large).scatter(1, feature, True))
        return self.boxed(_Nodes.joined([dataclasses.replace(nodes, fixed=nodes.fixed | out), moves]))

    def bisected(self, nodes: _Nodes, A: Tensor) -> _Nodes | None:
        """Each box halved where its row changes most; None where one is too narrow for that."""
        width = nodes.high - nodes.low
        known = nodes.chosen >= 0
        index = nodes.chosen.clamp(min=0)
        whole = torch.where(known, (self.high - self.low)[index], 0.0)
        wide = width > FINEST * whole
        if width.shape[1] == 0 or bool((~wide).all(1).any()):
            return None
        slope = A.gather(1, index).abs() * width
        slot = torch.where(wide, slope + torch.finfo(slope.dtype).tiny * width, -1.0).argmax(1, keepdim=True)
        middle = ((nodes.low + nodes.high) / 2).gather(1, slot)
        below = dataclasses.replace(nodes, high=nodes.high.scatter(1, slot, middle))
        above = dataclasses.replace(nodes, low=nodes.low.scatter(1, slot, middle))
        return _Nodes.joined([below, above])
