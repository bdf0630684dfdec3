"""Layers: the same function as the graph, entries within their radii, slopes that no secant leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.ops.add import Add
from bounds.ops.base import Input
from bounds.ops.elu import Elu
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.scale import Scale
from bounds.ops.sign import Sign
from bounds.ops.softplus import Softplus
from tests.bounds.networks import ACTIVATIONS, GraphBuilder, random_graph
from tests.verifier.lipschitz.networks import random_dense
from verifier.lipschitz.layers import Layers, of_matrix, read_layers
from verifier.lipschitz.slopes import slopes


def evaluated(layers: Layers, graph: Graph, x: torch.Tensor) -> torch.Tensor:
    """The function that layers are, at "N *input"."""
    z = x.flatten(1)
    for k, m in enumerate(layers.maps):
        z = z @ torch.from_numpy(m.matrix.toarray()).T + torch.from_numpy(m.constant)
        if k < len(layers.activations):
            shape = graph.nodes[layers.nodes[k]].shape
            z = layers.activations[k].forward(z.view(-1, *shape)).flatten(1)
    return z


@given(st.integers(0, 10**6), st.sampled_from(("dense", "conv")), st.booleans())
def test_layers_are_the_function_of_the_graph(seed: int, kind: str, simplified: bool) -> None:
    graph = random_graph(seed, kind, "mixed")
    graph = graph.simplify() if simplified else graph
    x = torch.randn(20, *graph.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(evaluated(read_layers(graph), graph, x), graph(x).flatten(1), rtol=1e-10, atol=1e-10)


def test_rows_take_the_place_of_outputs() -> None:
    graph = random_dense(0, (3, 5, 4))
    row = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers = read_layers(graph, row)
    assert layers.widths == (3, 5, 1)
    assert torch.allclose(evaluated(layers, graph, x)[:, 0], graph(x) @ row)
    with pytest.raises(ValueError, match="over 4 outputs"):
        read_layers(graph, row[:2])


def test_branches_without_activations_are_one_map() -> None:
    build = GraphBuilder((3,), torch.float64)
    first = build.add(Linear(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), None))
    build.add(Add(1), first, 0)
    build.add(Relu())
    build.add(Linear(torch.ones(1, 3, dtype=torch.float64), None))
    graph = build.graph()
    layers = read_layers(graph)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert len(layers.maps) == 2
    assert torch.allclose(evaluated(layers, graph, x), graph(x))


def test_what_joins_activations_is_refused_by_name() -> None:
    graph = random_graph(0, "residual", "Relu")
    with pytest.raises(UnsupportedOperator, match=r"Add \(Add_\d+\) joins the outputs"):
        read_layers(graph)
    with pytest.raises(UnsupportedOperator, match="MaxPool"):
        read_layers(random_graph(0, "pooling", "Relu"))
    jump = Graph((Node("x", Input(), (), (2,)), Node("s", Sign(), (0,), (2,))), 1)
    with pytest.raises(UnsupportedOperator, match=r"Sign \(s\)"):
        read_layers(jump)


@given(st.integers(0, 10**6))
def test_products_stay_within_their_radii_over_the_rationals(seed: int) -> None:
    from fractions import Fraction
    random = np.random.default_rng(seed)
    A, B = random.normal(size=(2, 3)), random.normal(size=(3, 2)) * 10.0 ** random.integers(-8, 8, size=(3, 2))
    both = of_matrix(A).after(of_matrix(B))
    value, radius = both.dense()
    for i in range(2):
        for j in range(2):
            exact = sum(Fraction(float(A[i, k])) * Fraction(float(B[k, j])) for k in range(3))
            assert abs(exact - Fraction(float(value[i, j]))) <= Fraction(float(radius[i, j]))


def test_folded_parameters_are_paid_for() -> None:
    build = GraphBuilder((3,), torch.float32)
    generator = torch.Generator().manual_seed(0)
    build.add(Scale(torch.rand(3, generator=generator) + 0.1, torch.rand(3, generator=generator)))
    build.add(Linear(torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)))
    graph = build.graph()
    stored, folded = read_layers(graph).maps[0], read_layers(graph.simplify()).maps[0]
    off = np.abs(stored.matrix.toarray() - folded.matrix.toarray())
    assert off.max() > 1e-9  # folded in float32
    assert (off <= folded.radius.toarray() + stored.radius.toarray()).all()
    assert (np.abs(stored.constant - folded.constant) <= folded.constant_radius + stored.constant_radius).all()


@pytest.mark.parametrize("name", [*ACTIVATIONS, "ElSteep"])
def test_no_secant_leaves_the_slopes_and_some_come_near(name: str) -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    op = Elu(3.0) if name == "ElSteep" else ACTIVATIONS[name](random, (4,))
    graph = Graph((Node("x", Input(), (), (4,)), Node("y", op, (0,), (4,))), 1)
    found = slopes(graph, graph.nodes[1])
    z = torch.cat([torch.linspace(-9, 9, 1801, dtype=torch.float64), torch.tensor([-0.0])]).sort().values
    y = op.forward(z[:, None].expand(-1, 4)).numpy()
    step = np.diff(z.numpy())[:, None]
    moves = step[:, 0] > 0
    secants = (np.diff(y, axis=0) / np.where(step > 0, step, 1))[moves]
    assert (secants >= found.lower - 1e-9).all() and (secants <= found.upper + 1e-9).all()
    assert np.allclose(secants.max(0), found.upper, atol=0.02) and np.allclose(secants.min(0), found.lower, atol=0.02)


def test_the_drop_of_softplus_is_no_exact_slope() -> None:
    for op, exact in ((Softplus(1.0, 80.0), True), (Softplus(1.0, 20.0), False)):
        graph = Graph((Node("x", Input(), (), (1,)), Node("y", op, (0,), (1,))), 1)
        assert slopes(graph, graph.nodes[1]).exact is exact
