"""Ranges against dense grids and the rational oracle: proved ends outside, seen ends inside, at all times."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from bounds.jacobian.interval import bound as fastlip
from bounds.sets import InputSet
from tests.verifier.lipschitz.nets import conv, dense, grid, spike, square
from tests.verifier.test_oracle import Truth, draw_graph, draw_region
from verifier.deadline import Deadline
from verifier.lipschitz.functions import (
    Confidence,
    Distance,
    LargestDistance,
    Linear,
    Logit,
    Margin,
    OutputFunction,
)
from verifier.lipschitz.range import Range, output_range
from verifier.property import Row
from verifier.verdict import Evidence

FUNCTIONS: dict[str, OutputFunction] = {"logit": Logit(index=1), "margin": Margin(0), "confidence": Confidence(2),
                                        "l1": Distance(1.0), "l2": Distance(2.0), "linf": LargestDistance()}
NETS = {name: dense(i, activation=name) for i, name in enumerate(("relu", "sigmoid", "tanh"))} | {"conv": conv(3)}
ERROR = 0.05


def assert_right(found: Range, graph: Graph, box: InputSet, function: OutputFunction) -> None:
    values = function.value(graph(grid(box)).flatten(1))
    assert found.lower_proved <= float(values.min())
    assert found.upper_proved >= float(values.max())
    assert found.lower_proved <= found.lower_seen
    assert found.upper_seen <= found.upper_proved
    for point, seen in ((found.argmin, found.lower_seen), (found.argmax, found.upper_seen)):
        assert bool(((box.lower[0] <= point) & (point <= box.upper[0])).all())
        assert float(function.value(graph(point[None]).flatten(1))) == pytest.approx(seen, abs=1e-9)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_grid_never_leaves_the_proved_ends(net: str, name: str) -> None:
    graph, function = NETS[net], FUNCTIONS[name]
    box = square(graph)
    found = output_range(graph, box, function, error=ERROR)
    assert_right(found, graph, box, function)
    assert found.complete
    assert found.lower_seen - found.lower_proved <= ERROR
    assert found.upper_proved - found.upper_seen <= ERROR
    assert found.evidence is Evidence.ROUNDED
    assert found.diameter[0] <= found.diameter[1] <= found.diameter[0] + 2 * ERROR + 1e-12


@pytest.mark.parametrize("method", ["ibp", "zonotope", "fastlin", "crown-ibp", "alpha-crown"])
@pytest.mark.parametrize("name", ["margin", "confidence"])
def test_every_method_gives_valid_ends(method: str, name: str) -> None:
    graph = dense(5, widths=(5,))
    box = square(graph)
    found = output_range(graph, box, FUNCTIONS[name], error=ERROR, method=method, batch=64,
                         deadline=Deadline.starting_now(1.5))
    assert_right(found, graph, box, FUNCTIONS[name])
    assert (found.evidence is Evidence.ROUNDED) == (method != "zonotope")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_lipschitz_constants_give_valid_ends(net: str, method: str) -> None:
    graph = NETS[net]
    box = square(graph, 0.0, 4.0)
    for function in (FUNCTIONS["logit"], FUNCTIONS["confidence"]):
        found = output_range(graph, box, function, error=ERROR, gradient=fastlip, method=method)
        assert_right(found, graph, box, function)
        assert found.complete


def test_lipschitz_constants_tighten_intervals_on_small_boxes() -> None:
    graph = dense(2, widths=(12, 12))
    box = square(graph, 3.0, 3.1)
    plain, steep = (output_range(graph, box, Logit(index=0), error=math.inf, method="ibp", gradient=gradient)
                    for gradient in (None, fastlip))
    assert_right(steep, graph, box, Logit(index=0))
    assert steep.upper_proved - steep.lower_proved < 0.5 * (plain.upper_proved - plain.lower_proved)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(6))
def test_exact_ranges_lie_between_proved_and_seen(kind: str, seed: int) -> None:
    """In rationals: what is proved, and what is seen, holds with all its digits."""
    random = np.random.default_rng([seed, 7])
    graph = draw_graph(random, kind)
    region = draw_region(random, math.prod(graph.input_shape))
    lower, upper = (torch.from_numpy(np.array(end)).view(1, *graph.input_shape) for end in (region.lower, region.upper))
    assert region.lower.tolist() == [float(v) for v in region.exact_lower], "eighths are floats"
    truth = Truth.of(graph, region)
    weights = [Fraction(int(c)) for c in random.integers(-2, 3, 2)]
    function = Linear(tuple(float(w) for w in weights))
    row = Row(tuple(enumerate(weights)), (), Fraction(0))
    opposite = Row(tuple(enumerate(-w for w in weights)), (), Fraction(0))
    least, most = truth.minimum(row), -truth.minimum(opposite)
    found = output_range(graph, InputSet(lower, upper), function, error=1e-3, deadline=Deadline.starting_now(5))
    assert Fraction(found.lower_proved) <= least <= Fraction(found.lower_seen)
    assert Fraction(found.upper_seen) <= most <= Fraction(found.upper_proved)
    assert found.complete
    margin = output_range(graph, InputSet(lower, upper), Margin(0), error=1e-3, deadline=Deadline.starting_now(5))
    least = truth.minimum(Row(((0, Fraction(1)), (1, Fraction(-1))), (), Fraction(0)))
    assert Fraction(margin.lower_proved) <= least <= Fraction(margin.lower_seen)


def test_bounds_only_improve_over_time() -> None:
    graph = dense(1, activation="tanh", widths=(16, 16))
    box = square(graph)
    seen: list[Range] = []
    output_range(graph, box, Margin(1), error=0.01, batch=8, progress=seen.append)
    assert len(seen) > 5
    for before, after in pairwise(seen):
        assert after.lower_proved >= before.lower_proved
        assert after.upper_proved <= before.upper_proved
        assert after.lower_seen <= before.lower_seen
        assert after.upper_seen >= before.upper_seen
    for found in seen:
        assert_right(found, graph, box, Margin(1))
    assert not any(found.complete for found in seen[:-1])
    assert seen[-1].complete


def test_no_time_still_gives_valid_ends() -> None:
    graph = dense(1, widths=(16, 16))
    box = square(graph)
    found = output_range(graph, box, Logit(index=0), error=1e-6, deadline=Deadline.starting_now(1e-9))
    assert_right(found, graph, box, Logit(index=0))
    assert not found.complete
    assert math.isfinite(found.lower_proved)


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_any_batch_gives_valid_ends(batch: int) -> None:
    graph = dense(4, activation="sigmoid")
    box = square(graph)
    found = output_range(graph, box, Confidence(0), error=0.02, batch=batch)
    assert_right(found, graph, box, Confidence(0))
    assert found.complete


def test_fixed_features_stay() -> None:
    graph = dense(6, inputs=4)
    box = square(graph, moving=(1, 3), fixed=0.625)
    found = output_range(graph, box, Logit(index=2), error=ERROR)
    assert_right(found, graph, box, Logit(index=2))
    for point in (found.argmin, found.argmax):
        assert point[[0, 2]].tolist() == [0.625, 0.625]


def test_a_point_has_a_range_of_one_value() -> None:
    graph = dense(6)
    x = torch.full((1, 2), 0.3, dtype=torch.float64)
    found = output_range(graph, InputSet(x, x), Confidence(1), error=1e-9)
    value = float(torch.softmax(graph(x), 1)[0, 1])
    assert found.lower_proved <= value <= found.upper_proved
    assert found.upper_proved - found.lower_proved < 1e-12
    assert found.complete


@pytest.mark.parametrize(("root", "evidence"), [("alpha-crown", Evidence.ROUNDED), ("zonotope", Evidence.FLOAT)])
def test_the_whole_box_may_have_a_method_of_its_own(root: str, evidence: Evidence) -> None:
    graph = dense(7, widths=(5,))
    box = square(graph, 0.0, 2.0)
    found = output_range(graph, box, Margin(1), error=ERROR, root_method=root)
    assert_right(found, graph, box, Margin(1))
    assert found.evidence is evidence


def test_float32_is_no_more_than_float() -> None:
    graph = dense(2, dtype=torch.float32)
    box = square(graph)
    found = output_range(graph, box, Logit(index=0), error=ERROR)
    assert found.evidence is Evidence.FLOAT
    values = graph(grid(box))[:, 0]
    assert found.lower_proved <= float(values.min()) + 1e-4
    assert found.upper_proved >= float(values.max()) - 1e-4


def test_gradients_of_folded_parameters_account_for_the_fold() -> None:
    graph = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    folded = Graph.from_torch(graph.double().eval(), (2,)).simplify()
    assert folded.fold_errors
    box = square(folded, 0.0, 1.0)
    evidence = [output_range(folded, box, Logit(index=0), error=1.0, gradient=gradient).evidence
                for gradient in (None, fastlip)]
    assert evidence == [Evidence.ROUNDED, Evidence.ROUNDED]


def test_a_needle_is_found() -> None:
    graph = spike(inputs=2, slope=500.0)
    found = output_range(graph, square(graph), Logit(index=0), error=0.02)
    assert found.complete
    assert found.upper_seen > 0.97
    torch.testing.assert_close(found.argmax, torch.full((2,), 3.21, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("offset", [-0.05, 0.05])
def test_asking_whether_the_minimum_is_above_stops_early(offset: float) -> None:
    graph = dense(8, widths=(16, 16))
    box = square(graph)
    full = output_range(graph, box, Margin(0), error=1e-3)
    threshold = full.lower_seen + offset
    found = output_range(graph, box, Margin(0), error=1e-3, above=threshold)
    assert found.complete
    assert (found.lower_proved > threshold) == (offset < 0)
    assert (found.lower_seen <= threshold) == (offset > 0)
    assert found.boxes <= full.boxes


def test_bad_input_is_refused() -> None:
    graph = dense(0)
    box = square(graph)
    with pytest.raises(ValueError, match="method"):
        output_range(graph, box, Logit(index=0), method="crow")
    with pytest.raises(ValueError, match="one box"):
        output_range(graph, InputSet(box.lower.repeat(2, 1), box.upper.repeat(2, 1)), Logit(index=0))
    ball = InputSet(box.lower, box.upper, box.centre_point, torch.ones(1, dtype=torch.float64), 2.0)
    with pytest.raises(ValueError, match="a ball"):
        output_range(graph, ball, Logit(index=0))
    with pytest.raises(ValueError, match="shape"):
        output_range(dense(0, inputs=3), box, Logit(index=0))
    with pytest.raises(ValueError, match="error"):
        output_range(graph, box, Logit(index=0), error=-1.0)
    with pytest.raises(ValueError, match="output from 0"):
        output_range(graph, box, Logit(index=3))
