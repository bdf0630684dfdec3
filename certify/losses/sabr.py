"""SABR: interval bounds over a small box around an adversarial point (Müller et al., arXiv:2210.04871).

An attack finds x' in the ball of eps; the box (or ball) of `shrink * eps` around x', moved so that it stays inside the
whole set, is what intervals bound. Intervals over little boxes grow little on their way, so the network is held back
less than by `ibp`; what they bound is one part of the set, and nothing is certified by it: `margins` are None, except
with shrink 1, which is IBP. shrink 0 is adversarial training.

Where inputs are clipped, the small box has `shrink` times the half width of the clipped one in every feature, and its
centre is clamped to where it fits (as in the authors' code; the paper speaks of the ball alone).

`relu_shrinkage` c below 1 multiplies the upper ends of ReLUs that are neither active nor inactive by c (0.8 in the
paper's runs on CIFAR-10 at 2/255): intervals are then not even bounds of the small box.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ibp import propagate
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.sets import Box, InputSet, LpBall
from certify.losses.inner_attack import InnerAttack
from certify.margins import interval_margins, least, robust_cross_entropy
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class SmallBox(InnerAttack):
    """shrink: the small box's share of the radius. relu_shrinkage: see above; 1 is off."""

    shrink: float = 0.4
    relu_shrinkage: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must be in [0, 1], got {self.shrink}")
        if not 0 < self.relu_shrinkage <= 1:
            raise ValueError(f"relu_shrinkage must be in (0, 1], got {self.relu_shrinkage}")

    @property
    def is_bound(self) -> bool:
        """Whether intervals hold over the whole set."""
        return self.shrink == 1 and self.relu_shrinkage == 1

    def sets(self, step: Step) -> InputSet:
        """The small sets of a minibatch."""
        return step.sets() if self.shrink == 1 else small_sets(step, self.adversarial(step, step.eps), self.shrink)

    def read(self, graph: Graph) -> Graph:
        """The graph on which intervals run."""
        return shrunk(graph, self.relu_shrinkage)


@dataclass(frozen=True)
class Sabr(SmallBox):
    """Settings: those of the small box."""

    name: ClassVar[str] = "sabr"
    paper: ClassVar[str] = "arXiv:2210.04871"

    def loss(self, step: Step) -> LossTerms:
        sets = self.sets(step)
        logits, clean = step.model.clean(step.x)
        graph = self.read(clean)
        intervals = propagate(graph, sets, rounded=False)
        margins = interval_margins(graph, sets, step.y, intervals)
        return self.terms(step, logits, robust_cross_entropy(margins, step.y), graph, intervals,
                          margins=least(margins.detach(), step.y) if self.is_bound else None)


def small_sets(step: Step, x: Tensor, shrink: float) -> InputSet:
    """Sets of `shrink` times the radius, inside the whole ones, that hold the points x "B *shape" of these."""
    room = step.room()
    if step.norm != torch.inf:
        length = room.norm_of(x, step.everyone).clamp(min=torch.finfo(x.dtype).tiny)
        share = ((1 - shrink) * step.eps / length).clamp(max=1)
        return LpBall(step.x + room.per_example(share) * (x - step.x), shrink * step.eps, step.norm, clip=step.clip)
    half = shrink * (room.upper - room.lower) / 2
    centre = torch.minimum(torch.maximum(x, room.lower + half), room.upper - half)
    return Box(torch.maximum(centre - half, room.lower), torch.minimum(centre + half, room.upper))


@dataclass(frozen=True, eq=False)
class ShrunkRelu(Relu):
    """ReLU whose interval is cut where it is neither active nor inactive: no enclosure."""

    factor: float = 1.0

    def interval(self, *inputs: Interval) -> Interval:
        whole = super().interval(*inputs)
        return Interval(whole.lower, torch.where(inputs[0].lower < 0, self.factor * whole.upper, whole.upper))


def shrunk(graph: Graph, factor: float) -> Graph:
    """The graph with `ShrunkRelu` for every ReLU."""
    if factor == 1:
        return graph
    nodes = tuple(dataclasses.replace(n, op=ShrunkRelu(factor)) if isinstance(n.op, Relu) else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)
