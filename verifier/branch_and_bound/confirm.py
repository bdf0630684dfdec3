"""Domains that a search in float32 closes, closed once more in float64 with all rounding accounted for.

The search proposes: what it closed, with the parameters that it reached. Here the same bounder works in float64, from
enclosures that were proved there, over the splits of the domain; it evaluates the parameters once, and climbs on where
that is not enough. What does not close here either stays open in the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.beta_crown import BetaCrown, Start
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout
from verifier.branch_and_bound.splits import cut_at_splits
from verifier.problem import Double

if TYPE_CHECKING:
    from verifier.branch_and_bound.bounding import Bounded, Bounder

ITERATIONS = 8


def _closed_at(bounded: Bounded) -> Tensor:
    """The bounds of domains with one open branch each, -inf where they are not closed."""
    return torch.where(bounded.closed, bounded.group_lower, torch.full_like(bounded.group_lower, -torch.inf))


@dataclass(frozen=True, eq=False)
class Confirmer:
    """`bounder`: in float64, without clips and cuts. Boxes of domains are their regions."""

    bounder: Bounder
    double: Double

    def confirm(self, domains: Domains, branch: Tensor, start: Start) -> Tensor:
        """"G": what is proved of the domains "G" that are closed here, each for one branch, with proposed parameters
        (-inf: not closed)."""
        bounder, layout = self.bounder, self.bounder.layout
        region = domains.region
        self.double.engine(region.unique())  # what is not proved yet
        z_low, z_high = self._sides(domains, layout)
        like = z_low
        sets = bounder.question.tensors.sets
        G = len(domains)
        zeros = torch.zeros(G, dtype=torch.long, device=like.device)
        one = replace(
            domains, open=bounder.question.branches[region] == branch.unsqueeze(1),
            lower=like.new_full((G,), -torch.inf), low=sets.lower.flatten(1)[region],
            high=sets.upper.flatten(1)[region], z_low=z_low, z_high=z_high,
            slopes=bounder.flat_slopes({i: p.to(like) for i, p in start.slopes.items()}, G, like),
            multipliers=self._flat(start.multipliers, layout, like), choice=zeros + NO_CHOICE,
            point=like.new_zeros(G), plane=like.new_zeros(G, 0), fences=like.new_zeros(G, 2, 0),
            cuts=like.new_zeros(G, 2, 0))
        lower = _closed_at(bounder.bound(one))
        rest = (lower == -torch.inf).nonzero().squeeze(1)
        if len(rest):
            again = replace(bounder, method=BetaCrown(iterations=ITERATIONS, stop=bounder.method.stop))
            lower[rest] = _closed_at(again.bound(one.take(rest)))
        return lower

    def _sides(self, domains: Domains, layout: Layout) -> tuple[Tensor, Tensor]:
        """What is proved of the regions' neurons, cut where they were split."""
        low = layout.flat({i: x.lower[domains.region] for i, x in self.double.proved.items()}, domains.low)
        high = layout.flat({i: x.upper[domains.region] for i, x in self.double.proved.items()}, domains.low)
        return cut_at_splits(self.bounder.graph, layout, low, high, domains.sides, domains.cuts)

    @staticmethod
    def _flat(multipliers: Mapping[int, Tensor], layout: Layout, like: Tensor) -> Tensor:
        if not multipliers:
            return torch.zeros_like(like)
        return layout.flat({i: multipliers[i].to(like) if i in multipliers else like.new_zeros(len(like), *s)
                            for i, s in zip(layout.nodes, layout.shapes, strict=True)})
