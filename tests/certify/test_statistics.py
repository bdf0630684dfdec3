"""Statistics of batch normalisation are those of the data, and nothing else of the module changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from certify.statistics import recompute_statistics
from tests.certify.cases import examples, network


def test_they_are_those_of_pytorchs_own_update() -> None:
    net = network("norm")
    twin = copy.deepcopy(net)
    batches = [examples(16, seed)[0] for seed in range(4)]
    recompute_statistics(net, batches)
    update_bn(batches, twin)
    for (name, mine), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_of_one_batch_they_are_its_own() -> None:
    net = network("norm")
    x, _ = examples(16)
    net(10 * x)
    recompute_statistics(net, [x])
    before = net[0](x).detach()
    torch.testing.assert_close(net[1].running_mean, before.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, before.var((0, 2, 3)))


def test_modes_and_momenta_are_as_before_even_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm1d(4))
    net.train()
    net[2].eval()
    modes = [m.training for m in net.modules()]
    recompute_statistics(net, [torch.randn(8, 3)])
    assert [m.training for m in net.modules()] == modes and net[1].momentum == 0.3
    with pytest.raises(RuntimeError, match="shape"):
        recompute_statistics(net, [torch.randn(8, 3), torch.randn(8, 5)])
    assert [m.training for m in net.modules()] == modes and net[1].momentum == 0.3


def test_dropout_is_off() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    recompute_statistics(net, [x])
    torch.testing.assert_close(net[1].running_mean, x.mean(0))


def test_no_data_change_nothing() -> None:
    net = network("norm")
    net(examples()[0])
    before = net[1].running_mean.clone()
    with pytest.raises(ValueError, match="batch"):
        recompute_statistics(net, [])
    assert torch.equal(net[1].running_mean, before) and bool(before.any())
    recompute_statistics(network("mlp"), [])
