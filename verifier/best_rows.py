"""The best row of every open branch, which stages with dear bounds ask about."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.problem import Problem, State

CLEAR_PLACES = 16.0         # what a row must exceed its last places by before it counts as closed


def open_rows(problem: Problem, state: State) -> Tensor:
    """Indices of the best row of every open branch."""
    tensors = problem.tensors
    chosen = []
    for branch in state.open_branches(tensors).nonzero().flatten().tolist():
        rows = (tensors.branch == branch).nonzero().flatten()
        if len(rows):
            chosen.append(rows[state.row_lower[rows].argmax()])
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=tensors.bound.device)
