"""Weights from which interval bounds neither explode nor vanish (Shi et al., arXiv:2103.17268, "IBP initialisation").

An interval of radius r behind a dense layer with weights N(0, sigma^2) has radius `n r sigma sqrt(2 / pi)` on average
(n inputs a neuron, `E|w| = sigma sqrt(2 / pi)`), and ReLU halves it where centres are as often positive as negative.
With `sigma = sqrt(2 pi) / n` a layer and its ReLU keep the radius. Biases, factors of normalisation and the last layer
stay as they were initialised; weights that read the sum of two branches are halved, because the sum has the radius of
both (as in the authors' code).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from bounds.graph import Graph
from bounds.ops.add import Add
from bounds.ops.base import Affine, Elementwise
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from certify.classifier import Classifier


@torch.no_grad()
def initialise(model: Classifier) -> None:
    """New weights in place, drawn from PyTorch's generator on the CPU: the same on every device."""
    weights = weighted(model.graph)
    for i in weights[:-1]:
        weight = weight_of(model.graph, i)
        deviation = math.sqrt(2 * math.pi) / weight[0].numel()
        if _reads_a_sum(model.graph, i):
            deviation /= 2
        weight.copy_(deviation * torch.randn(weight.shape, dtype=weight.dtype))


def weighted(graph: Graph) -> list[int]:
    """The nodes of dense layers and convolutions with weights to be trained, in order, each weight once."""
    found: dict[int, int] = {}
    for i in range(len(graph.nodes)):
        if isinstance(graph.nodes[i].op, Linear | Conv) and isinstance(weight_of(graph, i), nn.Parameter):
            found.setdefault(id(weight_of(graph, i)), i)
    return list(found.values())


def weight_of(graph: Graph, node: int) -> torch.Tensor:
    op = graph.nodes[node].op
    assert isinstance(op, Linear | Conv), "one of `weighted`"
    return op.weight


def _reads_a_sum(graph: Graph, node: int) -> bool:
    """Whether the input of a node is a sum, seen through activations and reshapes."""
    before = graph.nodes[graph.nodes[node].inputs[0]]
    while isinstance(before.op, Elementwise) or (isinstance(before.op, Affine) and before.op.moves_only):
        before = graph.nodes[before.inputs[0]]
    return isinstance(before.op, Add)
