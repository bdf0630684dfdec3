"""The sum of absolute weights."""

from __future__ import annotations

import torch
from torch import nn

from certify.weights import l1
from tests.certify.cases import network


def test_weights_count_and_biases_and_normalisation_do_not() -> None:
    net = network("norm")
    expected = sum(float(m.weight.detach().abs().sum()) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    value = l1(net)
    torch.testing.assert_close(value.detach(), torch.tensor(expected))
    value.backward()
    assert torch.equal(net[0].weight.grad, net[0].weight.sign())
    assert net[0].bias.grad is None and net[1].weight.grad is None


def test_a_weight_that_is_used_twice_counts_once() -> None:
    layer = nn.Linear(3, 3)
    torch.testing.assert_close(l1(nn.Sequential(layer, nn.ReLU(), layer)), layer.weight.abs().sum())


def test_no_weights_weigh_nothing() -> None:
    assert float(l1(nn.ReLU())) == 0
