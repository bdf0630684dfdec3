"""YOPO-m-n: the adversary moves through the first layer alone (Zhang et al., arXiv:1905.00877).

The network is g after f0, its first layer. Each of m outer steps makes one full pass and keeps its slack variable p,
the gradient of the loss by the first layer's output, while n inner steps move the points through f0 alone:

    p = gradient of CE(g(z), y) at z = f0(x_j),      x <- P(x + step_size eps sign(gradient of <p, f0(x)>))

The weights move once, along the mean of the gradients at the m points that the outer steps end with. The backward pass
there serves the weights and the next p alike, so that m + 1 full passes are made, whatever n is. (The authors' program
takes the gradients at the points that the outer steps begin with, and repairs those of the first layer.)

The first layer is read off the graph: from the input along operators that have one input and one reader, up to the
first dense or convolutional one, and its activation where that follows at once. Normalisation of inputs lies before
it; batch normalisation there is refused, for it ties the examples of a batch together. Where no activation follows (a
residual network that normalises first), f0 is affine and its gradient stays what it is for all inner steps. Passes are
those of the graph: dropout, which a graph does not have, is left out. Batch normalisation takes, and keeps, the
statistics of every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bounds.graph import Graph
from bounds.ops.base import Elementwise
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from certify.adversarial.attacked import above_zero, at_least, share_right
from certify.classifier import Classifier
from certify.inner import moved
from certify.method import Method
from certify.terms import LossTerms, Step
from verifier.attacks.steps import random_start
from verifier.attacks.threat import Room


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The nodes of a graph from the input to `place`, one after the other."""

    graph: Graph
    nodes: tuple[int, ...]

    @property
    def place(self) -> int:
        """Of the node whose value is z."""
        return self.nodes[-1]

    def __call__(self, x: Tensor) -> Tensor:
        for i in self.nodes:
            x = self.graph.nodes[i].op.forward(x)
        return x

    def slope(self, x: Tensor, p: Tensor) -> Tensor:
        """The gradient of <p, f0(x)> by x "B *shape"; none of the weights is computed."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad((p * self(x)).sum(), x)
        return slope


def first_layer(graph: Graph) -> FirstLayer:
    """Raises ValueError, with the node in question, where a network has no first layer to be decoupled."""
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for j in node.inputs:
            readers.setdefault(j, []).append(i)
    chain: list[int] = []
    here = 0
    while not (chain and isinstance(graph.nodes[here].op, Linear | Conv)):
        nodes = readers.get(here, [])
        if len(nodes) != 1:
            raise _refusal(graph, f"{graph.nodes[here].name} is read by {len(nodes)} operators before one comes")
        here = nodes[0]
        node = graph.nodes[here]
        if len(node.inputs) != 1 or isinstance(node.op, BatchNorm):
            raise _refusal(graph, f"{node.op.kind} ({node.name}) comes before one")
        chain.append(here)
    after = readers.get(here, [])
    if len(after) == 1 and isinstance(graph.nodes[after[0]].op, Elementwise) and len(graph.nodes[after[0]].inputs) == 1:
        chain.append(after[0])
    return FirstLayer(graph, tuple(chain))


def _refusal(graph: Graph, found: str) -> ValueError:
    return ValueError(f"yopo needs a first dense or convolutional layer that inputs reach one by one: in "
                      f"{graph.source} {found}; pgd or free train any network")


@dataclass(frozen=True)
class Yopo(Method):
    """outer: m. inner: n, with steps of `step_size * eps` each, from a random start."""

    name: ClassVar[str] = "yopo"
    paper: ClassVar[str] = "arXiv:1905.00877"

    outer: int = 5
    inner: int = 3
    step_size: float = 0.25

    def __post_init__(self) -> None:
        at_least("outer", self.outer, 1)
        at_least("inner", self.inner, 1)
        above_zero("step_size", self.step_size)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor, memory: dict[str, Any], seed: int) -> None:
        first_layer(model.graph)

    def loss(self, step: Step) -> LossTerms:
        first, room = first_layer(step.model.graph), step.room()
        x = random_start(room, step.draws, step.everyone)
        weights = [p for p in step.model.module.parameters() if p.requires_grad]
        sums = [torch.zeros_like(w) for w in weights]
        earlier = step.x.new_zeros(())
        for j in range(self.outer):
            values, _ = step.model.values(x)
            loss = self._cross_entropy(values, step)
            p, *slopes = torch.autograd.grad(loss, [values[first.place], *(weights if j else [])], allow_unused=True)
            for total, slope in zip(sums, slopes, strict=False):  # the first pass, at a random start, gives p alone
                total += 0 if slope is None else slope
            earlier += loss.detach() if j else 0
            x = self._inner(first, room, x, p, step.everyone)
        values, _ = step.model.values(x)
        last = self._cross_entropy(values, step)
        total = (last + _carrying(weights, sums, earlier)) / self.outer
        right = share_right(values[step.model.graph.output], step.y)
        return LossTerms(total, {"adversarial": total.detach(), "attacked": right})

    def _inner(self, first: FirstLayer, room: Room, x: Tensor, p: Tensor, owner: Tensor) -> Tensor:
        for _ in range(self.inner):
            x = moved(room, x, first.slope(x, p), self.step_size * room.eps, owner)
        return x.detach()

    @staticmethod
    def _cross_entropy(values: list[Tensor], step: Step) -> Tensor:
        return functional.cross_entropy(values[step.model.graph.output], step.y)


def _carrying(weights: Sequence[Tensor], slopes: Sequence[Tensor], value: Tensor) -> Tensor:
    """A scalar with a given value and given gradients: those of passes whose graphs are gone."""
    linear = sum(((w * s).sum() for w, s in zip(weights, slopes, strict=True)), value.new_zeros(()))
    return value + linear - linear.detach()
