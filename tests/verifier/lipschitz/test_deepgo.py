"""Nested Lipschitz searches: right where constants are proved, wrong where they are estimated and a needle hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import InputSet
from tests.verifier.lipschitz.nets import dense, grid, spike, square
from tests.verifier.test_oracle import GraphReplayer
from verifier.deadline import Deadline
from verifier.lipschitz.deepgo import deepgo_range, feature_safety, nested_minimum, proved_constants
from verifier.lipschitz.functions import Confidence, Logit, Margin, OutputFunction
from verifier.lipschitz.range import output_range
from verifier.verdict import Evidence, Falsified, Unknown, Verified


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31 - 1), st.integers(1, 2), st.sampled_from([0, 3, 200]))
def test_lower_ends_hold_with_constants_that_hold(seed: int, n: int, iterations: int) -> None:
    """The least of some cones, whose slopes along each axis are known; with few steps as well."""
    random = torch.Generator().manual_seed(seed)
    tips = torch.rand(4, n, generator=random, dtype=torch.float64)
    slopes = 3 * torch.rand(4, n, generator=random, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return ((x.unsqueeze(1) - tips).abs() * slopes).sum(2).amin(1)

    found = nested_minimum(function, torch.full((n,), -1.0, dtype=torch.float64), torch.full((n,), 2.0).double(),
                           constants=slopes.amax(0), error=0.1, iterations=iterations)
    assert found.lower <= 1e-12, "the minimum is zero, at every tip"
    assert found.upper >= 0
    assert float(function(found.x[None])) == pytest.approx(found.upper, abs=1e-12)
    assert found.complete == (found.upper - found.lower <= 0.1)
    if iterations == 200 and n == 1:
        assert found.complete


def test_points_are_those_of_piyavskii() -> None:
    """By hand: |x - 1| on [0, 4] with K = 1: the cones of both ends meet at x = 1, whose value is the bound there."""
    seen: list[float] = []

    def function(x: Tensor) -> Tensor:
        seen.extend(x[:, 0].tolist())
        return (x[:, 0] - 1).abs()

    found = nested_minimum(function, numbers(0.0), numbers(4.0), constants=numbers(1.0), error=1e-6)
    assert seen == [0.0, 4.0, 1.0]
    assert found.lower == found.upper == 0.0


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("function", [Logit(index=0), Confidence(1), Margin(2)], ids=["logit", "confidence", "margin"])
def test_proved_constants_bound_slopes_and_give_ranges(activation: str, function: OutputFunction) -> None:
    graph = dense(3, activation=activation, widths=(5,))
    box = square(graph, 0.0, 2.0)
    constants = proved_constants(graph, box, function)
    leaf = grid(box, 41).requires_grad_()
    (slope,) = torch.autograd.grad(function.value(graph(leaf)).sum(), leaf)
    assert bool((slope.abs() <= constants + 1e-12).all())
    found = deepgo_range(graph, box, function, constants=constants, error=0.2)
    values = function.value(graph(grid(box)))
    assert found.evidence is Evidence.FLOAT
    assert found.complete
    assert found.lower_proved <= float(values.min()) <= found.lower_proved + 0.2 + 1e-9
    assert found.upper_proved - 0.2 - 1e-9 <= float(values.max()) <= found.upper_proved
    sound = output_range(graph, box, function, error=0.05)
    assert found.lower_proved <= sound.lower_seen
    assert sound.lower_proved <= found.lower_seen + 1e-9


def test_estimated_constants_miss_a_needle_that_proofs_find() -> None:
    """Why an estimate is called one: no sample meets the needle, so the estimated constant is zero."""
    graph = spike()
    box = square(graph, moving=(0,))
    estimated = deepgo_range(graph, box, Logit(index=0), error=0.05)
    assert estimated.evidence is Evidence.ESTIMATE
    assert estimated.complete
    assert estimated.upper_proved < 0.1, "its range is wrong: the needle is one high"
    proved = deepgo_range(graph, box, Logit(index=0), constants=proved_constants(graph, box, Logit(index=0)),
                          error=0.05, iterations=200)
    found = output_range(graph, box, Logit(index=0), error=0.05)
    for sound in (proved, found):
        assert sound.upper_proved >= 1
        assert sound.evidence >= Evidence.FLOAT
    assert found.upper_seen > 0.9
    assert found.evidence is Evidence.ROUNDED


def test_estimated_ranges_are_near_where_nothing_hides() -> None:
    graph = dense(3, widths=(5,))
    box = square(graph, 0.0, 2.0)
    found, sound = deepgo_range(graph, box, Logit(index=0)), output_range(graph, box, Logit(index=0))
    assert found.evidence is Evidence.ESTIMATE
    assert found.lower_seen == pytest.approx(sound.lower_seen, abs=0.02)
    assert found.upper_seen == pytest.approx(sound.upper_seen, abs=0.02)


def test_no_time_still_gives_valid_ends() -> None:
    graph = dense(3, widths=(5,))
    box = square(graph, 0.0, 2.0)
    found = deepgo_range(graph, box, Logit(index=0), constants=proved_constants(graph, box, Logit(index=0)),
                         deadline=Deadline.starting_now(1e-9))
    values = graph(grid(box))[:, 0]
    assert found.lower_proved <= float(values.min())
    assert float(values.max()) <= found.upper_proved
    assert not found.complete


def test_bad_input_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        return x[:, 0]

    with pytest.raises(ValueError, match="low < high"):
        nested_minimum(function, numbers(1.0), numbers(1.0))
    with pytest.raises(ValueError, match="one constant"):
        nested_minimum(function, numbers(0.0), numbers(1.0), constants=numbers(1.0, 1.0))
    with pytest.raises(ValueError, match="eta"):
        nested_minimum(function, numbers(0.0), numbers(1.0), eta=0.5)
    graph = dense(0)
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="no feature"):
        deepgo_range(graph, InputSet(x, x), Logit(index=0))


# ---------------------------------------------------------------------- safety


CLIP = (-3.0, 3.0)


def classified(seed: int) -> tuple[Graph, np.ndarray, int]:
    graph = dense(seed, inputs=3, widths=(6, 6))
    x = np.array([0.25, 0.5, 0.75])
    return graph, x, int(graph(torch.from_numpy(x)[None]).argmax())


@pytest.mark.parametrize("seed", range(8))
def test_safety_over_features_agrees_with_a_grid(seed: int) -> None:
    graph, x, label = classified(seed)
    features = np.array([True, False, True])
    answer = feature_safety(graph, GraphReplayer(graph), x, label, features, clip=CLIP)
    points = torch.from_numpy(x).repeat(201 * 201, 1)
    axis = torch.linspace(*CLIP, 201, dtype=torch.float64)
    points[:, [0, 2]] = torch.cartesian_prod(axis, axis)
    least = float(Margin(label).value(graph(points)).min())
    if isinstance(answer, Verified):
        assert 0 < answer.lower <= least
        assert answer.evidence is Evidence.ROUNDED
    else:
        assert isinstance(answer, Falsified)
        assert answer.witness.x[1] == np.float32(0.5)
        assert float(Margin(label).value(graph(torch.from_numpy(answer.witness.x)[None].double()))) <= 1e-6
        assert answer.lower <= least


def test_both_answers_occur() -> None:
    features = np.array([True, False, True])
    kinds = {type(feature_safety(graph, GraphReplayer(graph), x, label, features, clip=CLIP)) for graph, x, label in
             map(classified, range(8))}
    assert kinds == {Verified, Falsified}


def test_safety_without_time_is_unknown_or_right() -> None:
    graph = dense(5, inputs=2, widths=(30, 30, 30))
    x = np.array([0.5, 0.5])
    label = int(graph(torch.from_numpy(x)[None]).argmax())
    answer = feature_safety(graph, GraphReplayer(graph), x, label, np.array([True, True]), clip=(-30.0, 30.0),
                            deadline=Deadline.starting_now(1e-9))
    assert isinstance(answer, Unknown)
    assert -math.inf < answer.lower <= 0 < answer.upper
