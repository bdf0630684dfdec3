"""The enclosure of gradients against automatic differentiation at points of the boxes."""

from __future__ import annotations

import pytest
import torch

from bounds.graph import Graph, UnsupportedOperator
from bounds.ibp import propagate
from bounds.ops.softplus import Softplus
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder, random_box, random_graph
from verifier.lipschitz.gradient import gradient_enclosure

KINDS = [(kind, activation) for kind in ("dense", "conv", "residual") for activation in ("Relu", "LeakyRelu", "Tanh",
                                                                                         "Sigmoid")]


def jacobian(graph: Graph, x: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """"P *input" -> "P K *input"."""
    leaf = x.clone().requires_grad_()
    z = graph(leaf).flatten(1) @ C.T
    return torch.stack([torch.autograd.grad(z[:, k].sum(), leaf, retain_graph=True)[0] for k in range(C.shape[0])], 1)


@pytest.mark.parametrize(("kind", "activation"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_at_points_lie_inside(kind: str, activation: str, seed: int) -> None:
    graph = random_graph(seed, kind, activation, torch.float64)
    outputs = torch.Size(graph.output_shape).numel()
    C = torch.randn(3, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for radius in (0.0, 0.05, 1.0):
        sets = random_box(graph, seed, 2, radius) if radius else InputSet(*(2 * [torch.full(
            (2, *graph.input_shape), 0.3, dtype=torch.float64)]))
        ends = gradient_enclosure(graph, sets, C, dict(enumerate(propagate(graph, sets))))
        for k in range(20):
            share = torch.rand(sets.lower.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
            slope = jacobian(graph, sets.lower + share * (sets.upper - sets.lower), C)
            assert bool((ends.lower <= slope + 1e-12).all())
            assert bool((slope <= ends.upper + 1e-12).all())
        if not radius:
            torch.testing.assert_close(ends.lower, ends.upper, rtol=1e-9, atol=1e-9)


def test_an_unknown_derivative_is_told() -> None:
    build = GraphBuilder((2,), torch.float64)
    build.add(Softplus(1.0))
    sets = InputSet(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(UnsupportedOperator, match="Softplus"):
        gradient_enclosure(build.graph(), sets, torch.eye(2, dtype=torch.float64),
                           dict(enumerate(propagate(build.graph(), sets))))
