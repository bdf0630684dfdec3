"""Of a few splits of each domain the one whose children are bounded best (after De Palma et al., arXiv:2104.06718).

Children start from their parent's slopes and multipliers and are evaluated once, without a climb.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from verifier.branch_and_bound.bounding import Bounder
from verifier.branch_and_bound.domains import NO_CHOICE, Domains

TIE = 1e-3         # what the better child counts beside the worse one


def best_of(bounder: Bounder, domains: Domains, candidates: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(choice "B", point "B"): the best of the `candidates`, each a (choice, point) for all domains."""
    trial = replace(bounder, method=replace(bounder.method, iterations=1, notes=False), refresh=False, clips=False,
                    probes=False, fenced=False, programmes=None, affine=None, contractor=None, recorder=None)
    plain = replace(domains, plane=domains.plane[:, :0], fences=domains.fences[:, :, :0])
    best = domains.lower.new_full((len(domains),), -torch.inf)
    choice, point = torch.full_like(domains.choice, NO_CHOICE), torch.zeros_like(best)
    for new_choice, new_point in candidates:
        rows = (new_choice != NO_CHOICE).nonzero().squeeze(1)
        if not len(rows):
            continue
        parents = replace(plain, choice=new_choice, point=new_point).take(rows)
        value = trial.bound(parents.children(bounder.layout)).domains.lower.clamp(max=0).view(2, -1)
        worth = torch.full_like(best, -torch.inf)
        worth[rows] = value.amin(0) + TIE * value.amax(0)
        better = (worth > best) | ((choice == NO_CHOICE) & (new_choice != NO_CHOICE))
        best = torch.where(better, worth, best)
        choice, point = torch.where(better, new_choice, choice), torch.where(better, new_point, point)
    return choice, point
