"""Which examples no attack can move: those whose label CROWN proves inside the whole threat, in float32 as it runs.

An attack that is spared them reports the same robust accuracy, since what it would fail to find is not there. All
rounding is accounted for: of the bounds, and of the network's own float32 evaluation, in any order of its sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph import Graph, UnsupportedOperator
from bounds.sets import InputSet
from verifier.attacks.threat import Threat
from verifier.problem import float32_graph

AT_ONCE = 32  # examples bounded together


def proved_standing(graph: Graph, x: Tensor, label: Tensor, threat: Threat, *, target: int | None = None) -> Tensor:
    """bool "N": no point of the threat around x "N *shape" (float32) gets another label than `label` "N", or gets the
    class `target`. False says nothing. graph: as read, not simplified. All false where the network has operators whose
    float32 rounding is not accounted for."""
    try:
        rounded = float32_graph(graph).to(dtype=torch.float64)
    except UnsupportedOperator:
        return torch.zeros(len(x), dtype=torch.bool)
    sets = threat.around(x.to(torch.float32)).sets.to(dtype=torch.float64)
    parts = [_proved(rounded, sets.index(torch.arange(i, min(i + AT_ONCE, len(x)))), label[i : i + AT_ONCE], target)
             for i in range(0, len(x), AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)


def _proved(graph: Graph, sets: InputSet, label: Tensor, target: int | None) -> Tensor:
    classes = int(torch.tensor(graph.output_shape).prod())
    others = torch.arange(classes).expand(len(label), -1) if target is None else torch.full((len(label), 1), target)
    keep = others != label.unsqueeze(1)
    owner = torch.arange(len(label)).unsqueeze(1).expand_as(others)[keep]
    C = torch.zeros(len(owner), classes, dtype=torch.float64)
    C[torch.arange(len(owner)), label[owner]] = 1
    C[torch.arange(len(owner)), others[keep]] = -1
    with torch.no_grad():
        lower = compute_bounds(graph, sets, LinearRows(C, owner), "crown").lower
    open_ = torch.zeros(len(label), dtype=torch.long).index_add(0, owner, (~(lower > 0)).long())
    return open_ == 0
