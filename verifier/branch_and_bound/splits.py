"""What the splits of a domain say of its neurons, apart from everything else that was bounded in it.

Splits are all that makes a domain of a tree: over another set, or in another precision, the same splits cut what is
proved of the neurons there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.base import Elementwise
from verifier.branch_and_bound.domains import Layout, sets_lower, sets_upper


def kinks_tell(graph: Graph) -> bool:
    """Whether every split of a neuron is at a kink, so that the two halves follow from the side alone. Else domains
    note their `cuts`."""
    return all(node.op.only_kink is not None for node in graph.nodes if isinstance(node.op, Elementwise))


def cut_at_splits(graph: Graph, layout: Layout, low: Tensor, high: Tensor, sides: Tensor, cuts: Tensor
                  ) -> tuple[Tensor, Tensor]:
    """Bounds "B neurons" of neurons, cut where the domains' splits have set them (see `Domains` for sides and cuts)."""
    if cuts.shape[2]:
        cuts = cuts.to(low)
        return torch.maximum(low, cuts[:, 0]), torch.minimum(high, cuts[:, 1])
    kinks = []
    for i, shape in zip(layout.nodes, layout.shapes, strict=True):
        found = {op.only_kink for j in graph.consumers[i] if isinstance(op := graph.nodes[j].op, Elementwise)}
        kink = found.pop() if len(found) == 1 else None
        kinks.append(low.new_full((1, torch.Size(shape).numel()), float("nan") if kink is None else kink))
    point = torch.cat(kinks, 1) if kinks else low[:1]
    low = torch.where(sets_lower(sides), torch.fmax(low, point), low)
    return low, torch.where(sets_upper(sides), torch.fmin(high, point), high)
