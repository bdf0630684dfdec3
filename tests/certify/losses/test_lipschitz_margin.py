"""Lipschitz-margin training: the constant, its gradient, and the bound it gives."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bounds.graph import Graph, UnsupportedOperator
from certify.losses.lipschitz_margin import LipschitzMargin, l2_radius, lipschitz_constant
from certify.terms import LossTerms, Step
from tests.certify.cases import SHAPE, assert_gradients_agree, attacked_bounded_loss, network, short_run, step_of

KINDS = ["mlp", "conv", "norm", "residual"]
CONVERGED = 400


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str) -> None:
    """Of the converged constant; starts from the vectors of a first pass."""
    net = network(kind, dtype=torch.float64)
    memory: dict[str, Any] = {}
    loss = LipschitzMargin(iterations=CONVERGED)
    loss.loss(step_of(net, eps=0.05, norm=2.0, memory=memory))
    again = LipschitzMargin(iterations=20)
    step = step_of(net, natural=0.3, eps=0.05, norm=2.0, count=6)
    assert_gradients_agree(lambda: again.loss(replace(step, memory=dict(memory))).total, net, entries=2)


def _matrix(graph: Graph, i: int) -> torch.Tensor:
    op = graph.nodes[i].op
    shape = graph.nodes[graph.nodes[i].inputs[0]].shape
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return op.linear(units).flatten(1).T  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_the_constant_is_the_product_of_spectral_norms(kind: str) -> None:
    graph = Graph.from_torch(network(kind, dtype=torch.float64).eval(), SHAPE)
    with torch.no_grad():
        expected = 1.0
        for i, node in enumerate(graph.nodes[1:], 1):
            if node.op.kind != "Relu":
                expected *= float(torch.linalg.matrix_norm(_matrix(graph, i), 2))
        found = float(lipschitz_constant(graph, {}, 3000))
    assert found == pytest.approx(expected, rel=1e-6)


def test_branches_add_up() -> None:
    net = network("residual", dtype=torch.float64).eval()
    graph = Graph.from_torch(net, SHAPE)
    with torch.no_grad():
        norms = [float(torch.linalg.matrix_norm(_matrix(graph, i), 2)) for i, n in enumerate(graph.nodes)
                 if n.op.kind in ("Conv", "Linear")]
        found = float(lipschitz_constant(graph, {}, 3000))
    assert found == pytest.approx(norms[0] * (norms[1] + 1) * norms[2], rel=1e-6)


def test_the_vectors_are_kept_from_step_to_step() -> None:
    graph = Graph.from_torch(network("conv", dtype=torch.float64).eval(), SHAPE)
    memory: dict[str, Any] = {}
    with torch.no_grad():
        values = [float(lipschitz_constant(graph, memory, 1)) for _ in range(600)]
        best = float(lipschitz_constant(graph, {}, 3000))
    assert values[0] < values[-1] == pytest.approx(best, rel=1e-4)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_lies_above_the_attacked_one_at_every_step(kind: str, norm: float) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        assert float(terms.parts["robust"]) >= float(attacked_bounded_loss(step).mean()) - 1e-5
        assert terms.margins is None
    short_run(LipschitzMargin(), network(kind), norm=norm, natural=0.0, eps=0.1 if norm == 2 else 0.02, look=look,
              updates=10)


def test_a_linear_networks_loss_is_exact_where_two_logits_oppose_each_other() -> None:
    """With rows w and -w the difference moves by 2 c |w|, and sqrt(2) c ||[w; -w]||_2 is just that."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    layer = net[1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[1] = -layer.weight[0]
    step = step_of(net, eps=0.1, norm=2.0, clip=None)
    step = replace(step, y=step.y % 2)
    found = LipschitzMargin(iterations=50).loss(step).parts["robust"]
    w = layer.weight[0].detach()
    away = (1 - 2 * step.y).view(-1, 1, 1, 1) * -0.1 * (w / w.norm()).view(1, *SHAPE)
    worst = nn.functional.cross_entropy(net(step.x + away), step.y)
    torch.testing.assert_close(found, worst.detach())


def test_the_radius_in_l2() -> None:
    net = network("mlp")
    assert l2_radius(step_of(net, eps=0.1)) == pytest.approx(0.6)
    assert l2_radius(step_of(net, eps=0.1, norm=2.0)) == 0.1


def test_wrong_settings_and_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        LipschitzMargin(iterations=0)
    with pytest.raises(ValueError, match="scale"):
        LipschitzMargin(scale=0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()
    with pytest.raises(UnsupportedOperator, match="MaxPool"):
        lipschitz_constant(Graph.from_torch(net, SHAPE), {}, 1)
