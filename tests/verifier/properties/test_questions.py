"""Robust, reach and enclose on networks whose answers are known."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import InputSet, LpBall
from tests.bounds.networks import random_graph
from tests.verifier.lipschitz.networks import random_dense
from verifier import Polytope, around, enclose, reach, reaches, robust
from verifier.lipschitz.bounded import bounded_range
from verifier.lipschitz.functions import Logit, Margin
from verifier.lipschitz.seen import steepest_pair, steepest_sample
from verifier.verdict import Evidence


class Absolute(torch.nn.Module):
    """y_0 = |x_0| + x_1 - 1, y_1 = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 3)
        self.second = torch.nn.Linear(3, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
            self.first.bias.copy_(torch.tensor([0.0, 0.0, 4.0]))
            self.second.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
            self.second.bias.copy_(torch.tensor([-5.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def network() -> tuple[Graph, torch.nn.Module]:
    module = Absolute().eval()
    return Graph.from_torch(module, (2,)), module


def test_the_label_holds_up_to_the_boundary_and_no_further(network: tuple[Graph, torch.nn.Module]) -> None:
    graph, module = network
    x = torch.tensor([1.0, 1.0])  # the boundary is 1/2 away in l_inf, and 1 / sqrt(2) in l_2
    for radius, norm, name in ((0.49, math.inf, "verified"), (0.51, math.inf, "falsified"), (0.7, 2.0, "verified"),
                               (0.72, 2.0, "falsified")):
        found = robust(graph, around(x, radius, norm=norm), 0, replayer=module)
        assert found.name == name
    assert robust(graph, around(x, 0.51), 0, replayer=module, target=1).name == "falsified"
    with pytest.raises(ValueError, match="target"):
        robust(graph, around(x, 0.1), 0, replayer=module, target=0)


def test_what_is_reached_is_exact_where_few_features_move(network: tuple[Graph, torch.nn.Module]) -> None:
    graph, _ = network
    found = reach(graph, around(torch.tensor([0.5, 0.25]), 0.75), error=1e-6)  # x_0 in [-1/4, 5/4], x_1 in [-1/2, 1]
    assert found.exact
    assert found.evidence is Evidence.ROUNDED
    torch.testing.assert_close(found.lower, torch.tensor([-1.5, 0.0], dtype=torch.float64), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.upper, torch.tensor([1.25, 0.0], dtype=torch.float64), atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 30), kind=st.sampled_from(["dense", "conv", "residual"]),
       activation=st.sampled_from(["Relu", "Tanh"]), norm=st.sampled_from([1.0, 2.0, math.inf]))
def test_no_sample_leaves_a_range_or_an_enclosure(seed: int, kind: str, activation: str, norm: float) -> None:
    graph = random_graph(seed, kind, activation, torch.float64)
    assume(torch.Size(graph.output_shape).numel() >= 2)
    centre = torch.zeros(1, *graph.input_shape, dtype=torch.float64)
    input_set = LpBall(centre, 0.4, norm)
    y = graph(input_set.sample(200, torch.Generator().manual_seed(seed))[0]).flatten(1)
    ranges = reach(graph, input_set, [Margin(0)], time_limit_s=1.0)
    value = Margin(0).value(y)
    assert float(ranges.lower) <= float(value.min())
    assert float(value.max()) <= float(ranges.upper)
    (one,) = ranges.ranges
    assert one.lower_proved <= one.lower_seen
    assert one.upper_seen <= one.upper_proved
    for x in (one.argmin, one.argmax):
        assert bool(input_set.contains(x[None])[0])
    directions = torch.randn(4, y.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for found in (enclose(graph, input_set), enclose(graph, input_set, directions=directions),
                  enclose(graph, input_set, label=1)):
        assert bool(found.contains(y).all())
        assert bool((y @ found.polytope.C.T <= found.polytope.d).all())


def test_a_region_is_reached_or_proved_out_of_reach(network: tuple[Graph, torch.nn.Module]) -> None:
    graph, module = network
    input_set = around(torch.zeros(2), 1.0)  # y_0 in [-2, 1]
    C = torch.tensor([[-1.0, 0.0]])
    assert reaches(graph, input_set, Polytope(C, torch.tensor([-1.1])), replayer=module).name == "verified"
    found = reaches(graph, input_set, Polytope(C, torch.tensor([-0.9])), replayer=module)
    assert found.name == "falsified"
    # Both rows at once: y_0 >= 0.5 and y_0 <= 0.6.
    both = Polytope(torch.cat([C, -C]), torch.tensor([-0.5, 0.6]))
    assert reaches(graph, input_set, both, replayer=module).name == "falsified"


def test_all_outputs_lie_in_a_region_or_one_is_shown_outside(network: tuple[Graph, torch.nn.Module]) -> None:
    graph, module = network
    input_set = around(torch.zeros(2), 1.0)
    for lower, upper, name in ((-2.1, 1.1, "verified"), (-2.1, 0.9, "falsified"), (-1.9, 1.1, "falsified")):
        region = Polytope.box(torch.tensor([lower, -0.1]), torch.tensor([upper, 0.1]))
        found = enclose(graph, input_set, region=region, replayer=module)
        assert found.inside is not None
        assert found.inside.name == name
    touching = Polytope.box(torch.tensor([-2.1, 0.0]), torch.tensor([1.1, 0.0]))  # y_1 = 0 lies inside
    found = enclose(graph, input_set, region=touching, replayer=module)
    assert found.inside is not None
    assert found.inside.name != "falsified"
    assert enclose(graph, input_set).inside is None


def test_wrong_use_is_told(network: tuple[Graph, torch.nn.Module]) -> None:
    graph, _ = network
    one = around(torch.zeros(2), 1.0)
    two = InputSet(torch.zeros(2, 2), torch.ones(2, 2))
    for wrong, words in ((lambda: reach(graph, two), "one input set"),
                         (lambda: reach(graph, around(torch.zeros(3), 1.0)), "shape"),
                         (lambda: reach(graph, one, torch.ones(1, 3)), "rows"),
                         (lambda: enclose(graph, one, directions=torch.ones(1, 3)), "directions"),
                         (lambda: enclose(graph, one, directions=torch.eye(2), label=0), "exclude"),
                         (lambda: enclose(graph, one, region=Polytope.box(torch.zeros(2), torch.ones(2))), "replayer"),
                         (lambda: Polytope(torch.ones(2), torch.ones(2)), "expected C"),
                         (lambda: around(torch.zeros(2), -1.0), "radius")):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_many_features_are_bounded_without_a_search() -> None:
    graph = random_dense(0, (12, 8, 2))
    found = reach(graph, around(torch.zeros(12), 0.5))
    assert found.method == "crown"
    assert all(r.boxes == 1 for r in found.ranges)


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_points_where_ends_are_seen_lie_in_the_ball_over_the_rationals(norm: float) -> None:
    for seed in range(8):
        graph = random_graph(seed, "dense", "Relu")
        x = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0 ** (seed % 4)
        ball = around(x, 0.3 + seed, norm=norm)
        assert ball.centre is not None and ball.radius is not None
        found = bounded_range(graph, ball, Logit(index=0))
        at = steepest_sample(graph, ball, Logit(index=0), norm=norm)
        pair = steepest_pair(graph, ball, Logit(index=0), at, norm=norm)
        centre = [Fraction(v) for v in ball.centre.flatten().tolist()]
        for point in (found.argmin, found.argmax, *(() if pair is None else (pair.first, pair.second))):
            moved = [abs(Fraction(v) - c) ** int(norm) for v, c in zip(point.flatten().tolist(), centre, strict=True)]
            assert sum(moved) <= Fraction(float(ball.radius)) ** int(norm), seed
