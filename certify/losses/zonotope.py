"""Training on zonotopes (DiffAI: Mirman, Gehr and Vechev, ICML 2018), with the transformers of `bounds.zonotope`.

A zonotope is pushed through the network, each undecided neuron adding a symbol, and the margins are read off its
image: `<c_label - c_j, centre> - sum_k |<c_label - c_j, generator_k>|`. Where the run asks for the robust loss,
`abstract` is its share beside the natural one; weights lambda to 1, as in the authors' code, are lambda / (1 + lambda):
lambda = 0.1 is 0.1 / 1.1.

What is done differently: lines are DeepZ's (least area; the paper's hybrid zonotopes replace some neurons by boxes and
never add symbols), every neuron's interval is met with interval arithmetic, and the loss is the cross-entropy of
all worst margins, which bounds the attacked one (the paper takes softplus of the worst, which does not).
Balls enter as their bounding boxes. Generators need (symbols x neurons) numbers an example: examples are taken in
groups that fit into memory, each pushed again for its gradients, and a network too large for one is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bounds.graph import Graph
from bounds.ibp import bounding_box, propagate
from bounds.interval import Interval
from bounds.zonotope import group_size, push
from certify.margins import by_class, least, margin_rows, robust_cross_entropy
from certify.method import Method
from certify.terms import LossTerms, Step

SAVED = 3  # copies of each node's generators that gradients keep: as read, as scaled, as padded


@dataclass(frozen=True)
class ZonotopeLoss(Method):
    """abstract: the share of the zonotope's loss, the rest natural. memory_gib: for the generators of a group."""

    abstract: float = 1.0
    memory_gib: float = 2.0

    name: ClassVar[str] = "zonotope"
    paper: ClassVar[str] = "Mirman et al., ICML 2018"
    bounds_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.abstract <= 1:
            raise ValueError(f"abstract must lie in (0, 1], got {self.abstract}")
        if not 0 < self.memory_gib < math.inf:
            raise ValueError(f"memory_gib must be > 0 and finite, got {self.memory_gib}")

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        natural = functional.cross_entropy(logits, step.y)
        sets = step.sets()
        with torch.no_grad():
            boxes = propagate(graph, sets, rounded=False)
            size = group_size(graph, boxes, tuple(range(len(graph.nodes))), int(self.memory_gib * 2**30 / SAVED))
        box = bounding_box(sets)
        if size >= len(step.y):
            margins = zonotope_margins(graph, box, step.y)
        else:
            margins = torch.cat([
                checkpoint(zonotope_margins, graph, box.map(lambda t, k=k: t[k:k + size]), step.y[k:k + size],
                           use_reentrant=False) for k in range(0, len(step.y), size)])
        robust = robust_cross_entropy(margins, step.y)
        share = (1 - step.natural) * self.abstract
        total = (1 - share) * natural + share * robust
        return LossTerms(total, {"natural": natural.detach(), "robust": robust.detach()}, logits.detach(),
                         least(margins.detach(), step.y))


def zonotope_margins(graph: Graph, box: Interval, y: Tensor) -> Tensor:
    """Lower bounds "B m" of the margins over boxes "B *shape", from the zonotope of the outputs alone."""
    _, zonotopes = push(graph, box)
    z = zonotopes[graph.output]
    classes = z.centre[0].numel()
    C = margin_rows(y, classes, z.centre).C.view(len(y), classes - 1, classes)
    spread = torch.einsum("brm,bkm->brk", C, z.generators.flatten(2)).abs().sum(2)
    middle = torch.einsum("brm,bm->br", C, z.centre.flatten(1))
    return by_class((middle - spread).flatten(), y, classes)
