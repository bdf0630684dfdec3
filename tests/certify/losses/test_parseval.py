"""Parseval regularisation: the retraction is the gradient step it claims to be, and ends in frames."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bounds.graph import Graph
from certify.losses.lipschitz_margin import lipschitz_constant
from certify.losses.parseval import Parseval, deviation, matrices, retract
from tests.certify.cases import SHAPE, assert_gradients_agree, network, short_run, step_of

KINDS = ["mlp", "conv", "norm", "residual"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str) -> None:
    net = network(kind, dtype=torch.float64)
    step = step_of(net)
    assert_gradients_agree(lambda: Parseval().loss(step).total, net, entries=2)


@pytest.mark.parametrize("rows", [3, 9])
def test_a_retraction_is_a_gradient_step(rows: int) -> None:
    """On ||W W^T - I||^2 / 4, or on that of W^T where W has more rows than columns."""
    torch.manual_seed(0)
    layer = nn.Linear(6, rows).double()
    W = layer.weight.detach().clone().requires_grad_(True)
    V = W if rows <= 6 else W.T
    (gradient,) = torch.autograd.grad((V @ V.T - torch.eye(len(V)).double()).square().sum() / 4, W)
    retract(layer, 0.1)
    torch.testing.assert_close(layer.weight.detach(), (W - 0.1 * gradient).detach())


@pytest.mark.parametrize("kind", ["mlp", "conv", "residual"])
def test_frames_expand_nothing(kind: str) -> None:
    """Every convolution and dense layer of the limit has norm at most 1 (a branch may add another 1)."""
    net = network(kind, dtype=torch.float64).eval()
    before = float(deviation(net))
    for _ in range(400):
        retract(net, 0.1)
    assert float(deviation(net)) < 1e-6 * before
    with torch.no_grad():
        constant = float(lipschitz_constant(Graph.from_torch(net, SHAPE), {}, 500))
    assert constant <= (2 if kind == "residual" else 1) + 1e-3


def test_kernels_count_the_patches_of_an_input() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 4, 2), nn.Conv2d(2, 2, 3, 1), nn.Conv2d(2, 2, (3, 1), 2), nn.Linear(3, 4))
    assert [factor for _, factor in matrices(net)] == [2.0, 3.0, 2.0**0.5, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_closer_to_frames_and_learns(kind: str) -> None:
    plain, drawn = network(kind), network(kind)
    short_run(Parseval(beta=1e-9), plain)
    done = short_run(Parseval(beta=0.05), drawn)
    assert float(deviation(drawn)) < 0.8 * float(deviation(plain))
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="beta"):
        Parseval(beta=0.7)
    with pytest.raises(ValueError, match="layer"):
        deviation(nn.ReLU())
