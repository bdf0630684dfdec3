"""Filtered smart branching: of the few best neurons by two cheap scores, split the one whose children are really
bounded best (De Palma et al., arXiv:2104.06718; with both scores as filters: kFSB).

Children start from their parent's slopes and multipliers and are evaluated once, without a climb.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.babsr import Scores
from verifier.branch_and_bound.domains import NO_CHOICE, Domains

CANDIDATES = 3     # of each score
TIE = 1e-3         # what the better child counts beside the worse one


@dataclass(frozen=True)
class FilteredSmart:
    """Neuron splits only: a domain without undecided neurons is a leaf."""

    candidates: int = CANDIDATES

    def choose(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> tuple[Tensor, Tensor]:
        """As `Rule.choose`."""
        found = Scores.of(bounder, bounded, domains, group)
        count = min(self.candidates, found.estimate.shape[1])
        trial = replace(bounder, method=replace(bounder.method, iterations=1, notes=False), refresh=False, clips=False,
                        probes=False, fenced=False, programmes=None, affine=None, contractor=None, recorder=None)
        plain = replace(domains, plane=domains.plane[:, :0], fences=domains.fences[:, :, :0])
        best = domains.lower.new_full((len(domains),), -torch.inf)
        choice, point = torch.full_like(group, NO_CHOICE), torch.zeros_like(best)
        for at in torch.cat([found.estimate.topk(count).indices, found.backup.topk(count).indices], 1).unbind(1):
            split = found.split(bounder, bounded, domains, group, at)
            rows = (split[0] != NO_CHOICE).nonzero().squeeze(1)
            if not len(rows):
                continue
            parents = replace(plain, choice=split[0], point=split[1]).take(rows)
            value = trial.bound(parents.children(bounder.layout)).domains.lower.clamp(max=0).view(2, -1)
            worth = torch.full_like(best, -torch.inf)
            worth[rows] = value.amin(0) + TIE * value.amax(0)
            better = (worth > best) | ((choice == NO_CHOICE) & (split[0] != NO_CHOICE))
            best = torch.where(better, worth, best)
            choice, point = torch.where(better, split[0], choice), torch.where(better, split[1], point)
        return choice, point
