"""The networks of the benchmark of radii: their layers, and batch norms folded away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.radius_nets import NETS, adversarial, folded


@pytest.mark.parametrize(("name", "parameters"), [("2x20", 16_330), ("3x100", 99_710), ("wk_small", 166_406)])
def test_the_small_networks_have_the_layers_of_the_survey(name: str, parameters: int) -> None:
    net = NETS[name][0]()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_folding_batch_norms_keeps_the_function() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5),
                        nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.rand(8, 1, 4, 4)
    net(x)  # batch norms see some data
    plain = folded(net)
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in plain)
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-5, atol=1e-6)


def test_the_attack_of_training_stays_in_a_ball_that_grows() -> None:
    torch.manual_seed(0)
    net = NETS["2x20"][0]()
    moved, x = adversarial(net, 4, torch.Generator().manual_seed(0)), torch.rand(6, 1, 28, 28)
    reach = [float((moved(x, torch.zeros(6, dtype=torch.long)) - x).abs().max()) for _ in range(5)]
    assert reach == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], rel=1e-3) and net.training
