"""Weights from which intervals keep their size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bounds.ibp import propagate
from bounds.sets import Box
from certify.classifier import Classifier
from certify.initialise import initialise
from tests.certify.cases import SHAPE, network


def gains(net: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Mean radii before activations, over that of the inputs."""
    model = Classifier(net, shape)
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    intervals = propagate(model.graph, Box(x - 0.1, x + 0.1), rounded=False)
    return [float(intervals[n.inputs[0]].radius.mean().detach()) / 0.1 for n in model.graph.nodes
            if n.op.kind == "Relu"]


def deep(width: int = 400, layers: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Flatten(), nn.Linear(100, width)]
    for _ in range(layers):
        parts += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(width, 10))


def test_intervals_keep_their_size_through_a_deep_network() -> None:
    net = deep()
    assert gains(net, (1, 10, 10))[-1] > 100
    initialise(Classifier(net, (1, 10, 10)))
    # A dense layer multiplies the radius by 2 (sqrt(2 pi) sqrt(2 / pi)), the ReLU before it halves it.
    assert all(1.2 < gain < 3 for gain in gains(net, (1, 10, 10)))


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_weights_are_normal_with_the_deviation_of_the_paper(kind: str) -> None:
    torch.manual_seed(3)
    nets = [network(kind, seed) for seed in range(30)]
    before = [{name: p.clone() for name, p in net.named_parameters()} for net in nets]
    for net in nets:
        initialise(Classifier(net, SHAPE))
    names = [name for name, p in nets[0].named_parameters() if p.dim() > 1]
    for name, p in nets[0].named_parameters():
        drawn = torch.stack([dict(net.named_parameters())[name] for net in nets])
        old = torch.stack([b[name] for b in before])
        if name in names[:-1]:
            expected = math.sqrt(2 * math.pi) / p[0].numel()
            assert abs(float(drawn.std().detach()) / expected - 1) < 0.1
            assert abs(float(drawn.mean().detach())) < 0.1 * expected
        else:
            assert torch.equal(drawn, old), name


class Longer(nn.Module):
    """A convolution that reads the sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 20, 3, 1, 1), nn.Conv2d(20, 20, 3, 1, 1)
        self.third, self.last = nn.Conv2d(20, 20, 3, 1, 1), nn.Linear(720, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = (self.second(x) + x).relu()
        return self.last(self.third(x).relu().flatten(1))


def test_weights_behind_a_sum_are_halved() -> None:
    torch.manual_seed(0)
    net = Longer()
    initialise(Classifier(net, SHAPE))
    expected = math.sqrt(2 * math.pi) / 180
    assert abs(float(net.second.weight.std().detach()) / expected - 1) < 0.1
    assert abs(float(net.third.weight.std().detach()) / (expected / 2) - 1) < 0.1


def test_the_seed_decides() -> None:
    drawn = []
    for seed in (0, 0, 1):
        net = network("mlp")
        torch.manual_seed(seed)
        initialise(Classifier(net, SHAPE))
        drawn.append(net[1].weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
