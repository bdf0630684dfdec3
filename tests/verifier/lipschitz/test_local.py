"""Local Lipschitz constants against pairs of points, enumeration of linear pieces, and functions known exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.jacobian.compute import METHODS
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet, LpBall
from tests.bounds.jacobian.oracle import pieces, rows_of
from tests.bounds.networks import GraphBuilder, graphs_with_boxes, random_graph, samples
from verifier.lipschitz.local import local_lipschitz, local_lipschitz_map
from verifier.verdict import Evidence

NORMS = (1.0, 2.0, math.inf)
every_method = pytest.mark.parametrize("method", METHODS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def double(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def assert_no_pair_is_steeper(graph: Graph, sets: InputSet, points: Tensor, method: str, norm: float) -> None:
    """points "B P *input" of the sets."""
    rows = rows_of(graph, sets.batch)
    assert rows.owner is not None
    constant = local_lipschitz(graph, sets, rows, norm=norm, method=method).constant
    moved = (points.unsqueeze(1) - points.unsqueeze(2)).flatten(3)
    distance = torch.linalg.vector_norm(moved, norm, -1)
    for n, b in enumerate(rows.owner.tolist()):
        value = graph(points[b]).flatten(1) @ rows.C[n]
        change = (value.unsqueeze(0) - value.unsqueeze(1)).abs()
        assert bool((change <= constant[n] * distance[b] + 1e-12 * (1 + value.abs().max())).all())


@every_method
@every_norm
@settings(max_examples=4, deadline=None)
@given(drawn=graphs_with_boxes())
def test_no_pair_of_points_is_steeper(method: str, norm: float, drawn: tuple[Graph, InputSet]) -> None:
    graph, sets = drawn
    assert_no_pair_is_steeper(graph, sets, samples(sets, 20)[:, -60:], method, norm)


@every_method
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_no_pair_of_points_of_a_ball_is_steeper(method: str, p: float) -> None:
    for seed in range(3):
        graph = random_graph(seed, "dense", "mixed")
        centre = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(seed)).double()
        sets = LpBall(centre, 0.8, p)
        points = sets.sample(60, torch.Generator().manual_seed(1))
        for norm in NORMS:
            assert_no_pair_is_steeper(graph, sets, points, method, norm)


def relu_net(seed: int) -> tuple[Graph, InputSet]:
    generator = torch.Generator().manual_seed(seed)
    build = GraphBuilder((2,), torch.float64)
    for rows, columns in ((3, 2), (3, 3)):
        build.add(Linear(torch.randn(rows, columns, generator=generator, dtype=torch.float64),
                         torch.randn(rows, generator=generator, dtype=torch.float64) * 0.3))
        build.add(Relu())
    build.add(Linear(torch.randn(2, 3, generator=generator, dtype=torch.float64), torch.zeros(2).double()))
    centre = torch.randn(1, 2, generator=generator, dtype=torch.float64) * 0.3
    return build.graph(), InputSet(centre - 0.4, centre + 0.4)


@every_method
@every_norm
@pytest.mark.parametrize("seed", range(3))
def test_constants_are_no_smaller_than_the_true_ones(method: str, norm: float, seed: int) -> None:
    graph, sets = relu_net(seed)
    row = double(1.0, -1.0)
    dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[norm]
    truth = max(float(torch.linalg.vector_norm(g, dual)) for g in pieces(graph, sets, row[0]))
    found = local_lipschitz(graph, sets, LinearRows(row), norm=norm, method=method)
    assert truth <= float(found.constant) <= 6 * truth
    assert found.evidence is Evidence.ROUNDED


@every_method
def test_a_linear_function_has_its_dual_norm(method: str) -> None:
    build = GraphBuilder((3,), torch.float64)
    build.add(Linear(double(3.0, -4.0, 12.0), None))
    sets = InputSet(double(-1.0, -1.0, -1.0), double(1.0, 1.0, 1.0))
    for norm, truth in ((math.inf, 19.0), (2.0, 13.0), (1.0, 12.0)):
        found = local_lipschitz(build.graph(), sets, LinearRows(double(1.0)), norm=norm, method=method)
        assert truth <= float(found.constant) <= truth * (1 + 1e-12)


@every_method
def test_features_that_cannot_move_do_not_count(method: str) -> None:
    build = GraphBuilder((3,), torch.float64)
    build.add(Linear(double(3.0, -4.0, 12.0), None))
    sets = InputSet(double(-1.0, -1.0, 0.5), double(1.0, 1.0, 0.5))
    for norm, truth in ((math.inf, 7.0), (2.0, 5.0), (1.0, 4.0)):
        found = local_lipschitz(build.graph(), sets, LinearRows(double(1.0)), norm=norm, method=method)
        assert float(found.constant) == pytest.approx(truth, rel=1e-12)


@every_method
def test_a_smaller_set_has_a_smaller_constant_where_neurons_settle(method: str) -> None:
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2).double()))
    build.add(Relu())
    build.add(Linear(double(1.0, -2.0), None))
    sets = InputSet(double(-1.0, 0.5).T, double(1.0, 1.0).T)
    rows = LinearRows(torch.ones(2, 1, dtype=torch.float64))
    found = local_lipschitz(build.graph(), sets, rows, norm=math.inf, method=method).constant
    assert found.tolist() == pytest.approx([3.0, 1.0], rel=1e-12)


@every_method
@pytest.mark.parametrize(("p", "q"), list(itertools.product(NORMS, NORMS)))
def test_constants_of_the_whole_map_hold_for_pairs(method: str, p: float, q: float) -> None:
    graph = random_graph(4, "residual", "Relu")
    centre = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(2)).double()
    sets = InputSet(centre - 0.3, centre + 0.3)
    found = local_lipschitz_map(graph, sets, p=p, q=q, method=method)
    assert found.constant.shape == (2,)
    x = samples(sets, 40)
    for b in range(2):
        y = graph(x[b]).flatten(1)
        change = torch.linalg.vector_norm(y.unsqueeze(0) - y.unsqueeze(1), q, -1)
        distance = torch.linalg.vector_norm(x[b].unsqueeze(0) - x[b].unsqueeze(1), p, -1)
        assert bool((change <= found.constant[b] * distance + 1e-12).all())


@pytest.mark.parametrize(("p", "q", "truth"), [
    (math.inf, math.inf, 7.0), (1.0, 1.0, 6.0), (1.0, 2.0, math.sqrt(20)), (2.0, math.inf, 5.0),
    (math.inf, 1.0, 10.0), (2.0, 2.0, math.sqrt(15 + math.sqrt(221)))])
def test_a_linear_map_has_its_operator_norm(p: float, q: float, truth: float) -> None:
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.tensor([[3.0, 4.0], [1.0, 2.0]]).double(), None))
    sets = InputSet(double(-1.0, -1.0), double(1.0, 1.0))
    assert float(local_lipschitz_map(build.graph(), sets, p=p, q=q).constant) == pytest.approx(truth, rel=1e-3)


def test_float32_and_uncovered_bounds_are_not_called_rounded() -> None:
    graph = random_graph(0, "conv", "Relu", torch.float32)
    sets = InputSet(torch.zeros(1, *graph.input_shape), torch.ones(1, *graph.input_shape))
    rows = LinearRows(torch.ones(1, torch.Size(graph.output_shape).numel()))
    assert local_lipschitz(graph, sets, rows, norm=math.inf).evidence is Evidence.FLOAT


def test_images_have_constants_too() -> None:
    build = GraphBuilder((1, 4, 4), torch.float64)
    build.add(conv_of(torch.ones(1, 1, 2, 2, dtype=torch.float64), None, stride=(2, 2)))
    build.add(Relu())
    sets = InputSet(torch.ones(1, 1, 4, 4, dtype=torch.float64), 2 * torch.ones(1, 1, 4, 4, dtype=torch.float64))
    rows = LinearRows(torch.ones(1, 4, dtype=torch.float64))
    assert float(local_lipschitz(build.graph(), sets, rows, norm=math.inf).constant) == pytest.approx(16.0)


def test_a_norm_or_method_that_is_not_known_is_refused() -> None:
    graph, sets = relu_net(0)
    with pytest.raises(ValueError, match="norm must be"):
        local_lipschitz(graph, sets, LinearRows(double(1.0, 1.0)), norm=3.0)
    with pytest.raises(ValueError, match="method must be"):
        local_lipschitz(graph, sets, LinearRows(double(1.0, 1.0)), norm=2.0, method="exact")
