"""Split where the relaxation loses most at the point that attains the bound.

At a minimiser x* of the plane below a row, the network's value exceeds the bound by exactly the sum, over all
neurons, of what their lines lose at the values they take there (besides what multipliers give away). The neuron
with the largest share of that gap is split; where no neuron stands out and inputs may be split, the input with
the largest product of width and sensitivity is bisected: that narrows every neuron at once.

Where the plane is flat (every point attains the bound), the gaps at one of them say little. If bounds of neurons are
known that the box does not imply, the neuron with the most to do with them is split: that is where a contraction
(`contract`) will follow from. On the clauses of a satisfiability problem this counts the clauses of a variable, short
ones more (MOMS).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise, Relaxed
from verifier.branch_and_bound.bounding import Bounded
from verifier.branch_and_bound.clip import SLACK
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout, is_free

FLAT = 1e-2         # a plane that varies by this share of the gaps is flat,
FLAT_TERMS = 1e-5   # and so is one that varies by this share of its terms: the slack of cuts is not worth a split


@dataclass(frozen=True)
class RealisedGap:
    """inputs, neurons: which splits are allowed. A neuron is split where its gap is at least `share` of the whole, or
    where at most `few` neurons are undecided. affine: neurons whose bounds tell where contractions may follow."""

    inputs: bool
    neurons: bool
    share: float = 0.9
    few: int = 0
    affine: AffineNeurons | None = None

    def choose(self, graph: Graph, layout: Layout, bounded: Bounded, domains: Domains, group: Tensor
               ) -> tuple[Tensor, Tensor]:
        """(choice "B", point "B") for open domains; `group` "B" is each one's worst group in `bounded.reached`."""
        scores = bounded.scores[group]
        undecided = layout.flat(undecided_by_node(graph, layout, domains), domains.z_low > 0)
        if self.affine is not None:
            kinks = layout.flat(kinks_by_node(graph, layout, domains), domains.z_low)
            undecided = worth_a_split(undecided, kinks, domains)
        count, rows = undecided.sum(1), torch.arange(len(domains), device=group.device)
        if self.affine is not None:
            at = flatness(bounded, domains, group).nonzero().squeeze(1)
            if len(at):
                pulls = tensions(self.affine, domains.take(at)) * undecided[at]
                some = (pulls > 0).any(1)
                scores = scores.index_copy(0, at[some], pulls[some])
        scores = torch.where(undecided, scores, torch.full_like(scores, -1.0))
        choice = torch.full_like(group, NO_CHOICE)
        point = domains.lower.new_zeros(len(domains))
        splittable = count > 0
        if self.neurons and scores.shape[1]:
            best, at = scores.max(1)
            total = scores.clamp(min=0).sum(1).clamp(min=torch.finfo(scores.dtype).tiny)
            wanted = splittable & ((best >= self.share * total) | (count <= self.few)) if self.inputs else splittable
            choice = torch.where(wanted, at + layout.inputs, choice)
            met = layout.flat(_at_group(bounded.reached.met, layout, domains, group), domains.z_low)[rows, at]
            point = torch.where(wanted, split_points(graph, layout, domains, at, met), point)
        if self.inputs:
            width = domains.high - domains.low
            moved = swing(graph, layout, domains, scores.clamp(min=0))
            steep = bounded.sensitivity[group] * width
            # Where the gaps do not add up to what the bound lacks, rows of a conjunction keep the domain open together
            # though none is low at their common minimum: then the inputs that move the planes count.
            lacking = (1 - bounded.scores[group].sum(1, keepdim=True)).clamp(min=0)
            value, j = ((1 - lacking) * _shares(moved) + lacking * _shares(steep)).max(1)
            value, j = torch.where(value > 0, value, width.amax(1)), torch.where(value > 0, j, width.argmax(1))
            middle = (domains.low[rows, j] + domains.high[rows, j]) / 2
            inside = (middle > domains.low[rows, j]) & (middle < domains.high[rows, j])
            loose = splittable | has_loose_pools(graph, layout, domains)
            take = (choice == NO_CHOICE) & inside & (loose if self.neurons else torch.ones_like(inside))
            choice, point = torch.where(take, j, choice), torch.where(take, middle, point)
        return choice, point


def _shares(t: Tensor) -> Tensor:
    """Each row divided by its sum."""
    return t / t.sum(1, keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)


def flatness(bounded: Bounded, domains: Domains, group: Tensor) -> Tensor:
    """bool "B": whether the plane hardly varies over the domain, measured against the gaps and its own terms."""
    reached = bounded.reached
    A = reached.A[group].flatten(1).abs()
    spread = (A * (domains.high - domains.low)).sum(1)
    size = (A * torch.maximum(domains.low.abs(), domains.high.abs())).sum(1) + reached.b[group].abs()
    gaps = sum((g[group].flatten(1).sum(1) for g in reached.gaps.values()), torch.zeros_like(spread))
    return spread <= FLAT * gaps + FLAT_TERMS * size


def tensions(affine: AffineNeurons, domains: Domains) -> Tensor:
    """How much each affine neuron has to do with bounds that the box does not imply, "B neurons" (0: the others)."""
    at = affine.at
    inputs = affine.tension(domains.low, domains.high, domains.z_low[:, at], domains.z_high[:, at])
    out = torch.zeros_like(domains.z_low)
    out[:, at] = inputs @ affine.weight.abs().T
    return out


def swing(graph: Graph, layout: Layout, domains: Domains, weights: Tensor) -> Tensor:
    """How far each input moves the neurons across their intervals, "B n": the sum over neurons of their weight
    "B neurons" times the distance between their values at both ends of the input's range, all other inputs at
    the centre, as a share of their interval."""
    B, n = domains.low.shape
    free = is_free(domains.low, domains.high).any(0).nonzero().squeeze(1)
    centre = (domains.low + domains.high) / 2
    share = weights / (domains.z_high - domains.z_low).clamp(min=torch.finfo(weights.dtype).tiny)
    out = centre.new_zeros(B, n)
    ends = centre.expand(2, len(free), B, n).clone()
    each = torch.arange(len(free), device=free.device)
    ends[0, each, :, free] = domains.low.T[free]
    ends[1, each, :, free] = domains.high.T[free]
    values = graph.values(ends.view(-1, *graph.input_shape))
    for i, w in layout.split(share).items():
        v = values[i].view(2, len(free), B, -1)
        out[:, free] += torch.einsum("jbs,bs->bj", (v[1] - v[0]).abs(), w.flatten(1))
    return out


def _at_group(values: dict[int, Tensor], layout: Layout, domains: Domains, group: Tensor) -> dict[int, Tensor]:
    """What `Reached` knows of every neuron for each domain's group, "B *shape" by node; zero where no row came by."""
    zeros = domains.lower.new_zeros
    return {i: values[i][group] if i in values else zeros(len(domains), *s)
            for i, s in zip(layout.nodes, layout.shapes, strict=True)}


def has_loose_pools(graph: Graph, layout: Layout, domains: Domains) -> Tensor:
    """bool "B": domains with an operator of several inputs (a max-pool) that is not linear on their intervals. No split
    of a neuron makes it so; smaller boxes do."""
    intervals = domains.intervals(layout)
    out = torch.zeros(len(domains), dtype=torch.bool, device=domains.low.device)
    for node in graph.nodes:
        if isinstance(node.op, Relaxed):
            out |= (~node.op.is_linear_on(*(intervals[j] for j in node.inputs))).flatten(1).any(1)
    return out


def undecided_by_node(graph: Graph, layout: Layout, domains: Domains) -> dict[int, Tensor]:
    """bool "B *shape" by node: neurons with an elementwise reader that is not linear on their interval,
    which is wider than rounding."""
    out = {}
    for i, x in domains.intervals(layout).items():
        mask = torch.zeros_like(x.lower, dtype=torch.bool)
        for reader in graph.consumers[i]:
            op = graph.nodes[reader].op
            if isinstance(op, Elementwise):
                mask |= ~op.is_linear_on(x) & is_free(x.lower, x.upper)
        out[i] = mask
    return out


def worth_a_split(undecided: Tensor, points: Tensor, domains: Domains) -> Tensor:
    """bool "B neurons": the undecided ones, less those that a cut has decided but for the slack that it leaves to
    rounding; where no others are left, these."""
    width = domains.z_high - domains.z_low
    inside = torch.minimum(domains.z_high - points, points - domains.z_low)
    rest = undecided & (inside > 100 * SLACK[width.dtype] * width)
    return torch.where(rest.any(1, keepdim=True), rest, undecided)


def kinks_by_node(graph: Graph, layout: Layout, domains: Domains) -> dict[int, Tensor]:
    """The only kink of each neuron, or the middle of its interval, "B *shape" by node."""
    out = {}
    for i, x in domains.intervals(layout).items():
        kinks = {op.only_kink for j in graph.consumers[i] if isinstance(op := graph.nodes[j].op, Elementwise)}
        kink = kinks.pop() if len(kinks) == 1 else None
        out[i] = x.centre if kink is None else torch.full_like(x.lower, kink)
    return out


def split_points(graph: Graph, layout: Layout, domains: Domains, at: Tensor, met: Tensor) -> Tensor:
    """Where each domain's neuron `at` "B" (flat over all nodes) would be split, "B": as an operator that reads it and
    is not linear there says. met "B": the coefficient that the rows have at it, whose sign tells which line counts."""
    rows = torch.arange(len(domains), device=at.device)
    x, side = Interval(domains.z_low[rows, at], domains.z_high[rows, at]), met.sign()
    out = x.centre
    for node, shape, offset in zip(layout.nodes, layout.shapes, layout.offsets, strict=True):
        first, size = offset - layout.inputs, torch.Size(shape).numel()
        here = ((at >= first) & (at < first + size)).nonzero().squeeze(1)
        if not len(here):
            continue
        part = Interval(x.lower[here], x.upper[here])
        for reader in graph.consumers[node]:
            op = graph.nodes[reader].op
            if isinstance(op, Elementwise):
                op = op.select(_Read(at[here] - first), (1, *shape))
                out[here] = torch.where(op.is_linear_on(part), out[here], op.split_points(part, side[here]))
    return out


@dataclass(frozen=True, eq=False)
class _Read:
    """Values of all neurons of a node, "1 *shape", at flat places "B"."""

    index: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten()[self.index]
