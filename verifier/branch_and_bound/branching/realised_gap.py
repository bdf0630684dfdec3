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
from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.undecided import (
    at_group,
    has_loose_pools,
    kinks_by_node,
    split_points,
    undecided_by_node,
    worth_a_split,
)
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout, is_free

FLAT = 1e-2         # a plane that varies by this share of the gaps is flat,
LEAST_SHARE = 2.0 ** -40  # of an input's range: what moves less is not split, for numbers around zero never end
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

    def choose(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> tuple[Tensor, Tensor]:
        """As `Rule.choose`."""
        graph, layout = bounder.graph, bounder.layout
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
            met = layout.flat(at_group(bounded.reached.met, layout, domains, group), domains.z_low)[rows, at]
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
            sets = bounder.question.tensors.sets
            whole = (sets.upper - sets.lower).flatten(1)[domains.region]
            inside &= width[rows, j] > LEAST_SHARE * whole[rows, j]
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
    if not len(free):
        return weights.new_zeros(B, n)
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
