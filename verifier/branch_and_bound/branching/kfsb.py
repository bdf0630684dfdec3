"""Filtered smart branching: of the few best neurons by two cheap scores, split the one whose children are really
bounded best (De Palma et al., arXiv:2104.06718; with both scores as filters: kFSB)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.babsr import Scores
from verifier.branch_and_bound.branching.look_ahead import best_of
from verifier.branch_and_bound.domains import Domains

CANDIDATES = 3     # of each score


@dataclass(frozen=True)
class FilteredSmart:
    """Neuron splits only: a domain without undecided neurons is a leaf."""

    candidates: int = CANDIDATES

    def choose(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> tuple[Tensor, Tensor]:
        """As `Rule.choose`."""
        found = Scores.of(bounder, bounded, domains, group)
        count = min(self.candidates, found.estimate.shape[1])
        neurons = torch.cat([found.estimate.topk(count).indices, found.backup.topk(count).indices], 1)
        return best_of(bounder, domains, (found.split(bounder, bounded, domains, group, at)
                                          for at in neurons.unbind(1)))
