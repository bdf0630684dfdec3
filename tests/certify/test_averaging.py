"""Averages of weights are the means they are said to be, start when they should, and survive a checkpoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certify.averaging import WeightAverage
from certify.classifier import Classifier
from tests.certify.cases import SHAPE, examples, network


def moved(net: nn.Module, seed: int) -> list[Tensor]:
    """Other weights, in place; copies of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return [p.detach().clone() for p in net.parameters()]


def run(net: nn.Module, average: WeightAverage, epochs: range) -> list[list[Tensor]]:
    seen = []
    for epoch in epochs:
        seen.append(moved(net, epoch))
        average.update(net, epoch)
    return seen


def test_swa_is_the_mean_from_its_start_on() -> None:
    net = network("norm", dtype=torch.float64)
    average = WeightAverage(net, "swa", 2)
    seen = run(net, average, range(6))
    assert average.count == 4
    average.apply(net)
    for k, p in enumerate(net.parameters()):
        torch.testing.assert_close(p.detach(), torch.stack([s[k] for s in seen[2:]]).mean(0))


def test_ema_forgets_and_forgets_faster_at_first() -> None:
    net = network("mlp", dtype=torch.float64)
    average = WeightAverage(net, "ema", 1, decay=0.3)
    seen = run(net, average, range(7))
    average.apply(net)
    for k, p in enumerate(net.parameters()):
        expected = seen[1][k]
        for later, kept in zip(seen[2:], (2 / 11, 3 / 12, 0.3, 0.3, 0.3), strict=True):  # 4 / 13 is above the decay
            expected = kept * expected + (1 - kept) * later[k]
        torch.testing.assert_close(p.detach(), expected)


def test_before_the_start_nothing_happens() -> None:
    net = network("mlp")
    average = WeightAverage(net, "swa", 10)
    (seen,) = run(net, average, range(1))
    average.apply(net)
    assert average.count == 0
    assert all(torch.equal(p.detach(), s) for p, s in zip(net.parameters(), seen, strict=True))


def test_the_graph_of_a_module_sees_the_average() -> None:
    net = network("conv")
    model = Classifier(net, SHAPE)
    average = WeightAverage(net)
    run(net, average, range(3))
    average.apply(net)
    x, _ = examples()
    torch.testing.assert_close(model.graph(x), net(x))


@pytest.mark.parametrize("settings", [{"kind": "swa", "start": 1}, {"kind": "ema", "start": 1, "decay": 0.9}])
def test_a_resumed_average_is_the_same(settings: dict[str, Any]) -> None:
    nets = [network("norm"), network("norm")]
    whole, first = (WeightAverage(net, **settings) for net in nets)
    run(nets[0], whole, range(6))
    run(nets[1], first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = WeightAverage(network("norm", seed=5), **settings)
    second.load_state_dict(torch.load(file))
    run(nets[1], second, range(3, 6))
    whole.apply(nets[0])
    second.apply(nets[1])
    assert all(torch.equal(a, b) for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(),
                                                 strict=True))


def test_settings_are_checked() -> None:
    for name, value in {"kind": "mean", "start": -1.0, "decay": 1.0}.items():
        with pytest.raises(ValueError, match=r"average|start|decay"):
            WeightAverage(network("mlp"), **{name: value})
