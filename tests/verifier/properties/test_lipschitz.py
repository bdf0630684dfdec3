"""Certified constants, estimates and verdicts against the exact constant of tiny networks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bounds.graph import UnsupportedOperator
from bounds.jacobian.enclosure import dual
from bounds.ops.sign import Sign
from bounds.sets import InputSet, LpBall
from tests.bounds.networks import random_graph
from tests.verifier.lipschitz.networks import dense, exact_by_patterns, random_dense
from verifier import around, lipschitz_constant
from verifier.lipschitz.certified import GLOBAL, METHODS, certified_constants
from verifier.lipschitz.functions import Confidence, Distance, LargestDistance, Logit, Margin
from verifier.properties.lipschitz import TooSteep
from verifier.verdict import Evidence, Unknown, Verified

NORMS = [1.0, 2.0, math.inf]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_constant_lies_between_the_slope_and_every_method(seed: int, norm: float) -> None:
    graph = random_dense(seed, (2, 4, 3, 1))
    box = InputSet(-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    exact = exact_by_patterns(graph, box, torch.ones(1, dtype=torch.float64), norm)
    for method in METHODS:
        found = lipschitz_constant(graph, box, norm=norm, methods=[method])
        assert found.largest.value >= exact * (1 - 1e-9)
        assert found.estimate[0] <= exact * (1 + 1e-9)
        assert found.pairs[0] is not None
        assert found.pairs[0].slope <= exact * (1 + 1e-9)
        assert found.largest.method == method or method in GLOBAL
        if method == "exact":
            assert found.largest.value == pytest.approx(exact, rel=1e-6)
            assert found.evidence is Evidence.ROUNDED


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_change_at_the_constant(norm: float) -> None:
    graph = dense([torch.tensor([[3.0, -4.0]])])  # linear: the constant is the dual norm of (3, -4)
    exact = float(torch.linalg.vector_norm(torch.tensor([3.0, -4.0]), ord=dual(norm)))
    ball = around(torch.zeros(2), 0.5, norm=norm)
    proved = lipschitz_constant(graph, ball, exact * (1 + 1e-6), norm=norm).verdict
    assert isinstance(proved, Verified)
    assert proved.evidence is Evidence.ROUNDED
    refuted = lipschitz_constant(graph, ball, exact * (1 - 1e-6), norm=norm).verdict
    assert isinstance(refuted, TooSteep)
    assert refuted.evidence is Evidence.ROUNDED
    assert refuted.upper < 0
    pair = refuted.pair
    change = abs(float((graph(pair.first[None]) - graph(pair.second[None])).squeeze()))
    apart = float(torch.linalg.vector_norm(pair.first - pair.second, ord=norm))
    assert change / apart == pytest.approx(pair.slope, rel=1e-9)
    assert pair.slope > exact * (1 - 1e-6)
    assert bool(ball.contains(torch.stack([pair.first, pair.second]), torch.zeros(2, dtype=torch.long)).all())


def test_between_slope_and_certificate_nothing_is_claimed() -> None:
    graph = random_dense(1, (3, 12, 12, 1))
    box = around(torch.zeros(3), 2.0)
    found = lipschitz_constant(graph, box, methods=["fastlip"])
    assert found.pairs[0] is not None
    middle = (found.pairs[0].slope + found.largest.value) / 2
    verdict = lipschitz_constant(graph, box, middle, methods=["fastlip"]).verdict
    assert isinstance(verdict, Unknown)
    assert verdict.lower < 0 < verdict.upper


FUNCTIONS = [Logit(index=0), Logit(index=1, less=0), Margin(0), Confidence(1), Distance(1.0), Distance(2.0),
             LargestDistance()]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 30), kind=st.sampled_from(["dense", "conv", "residual"]),
       activation=st.sampled_from(["Relu", "Tanh", "Sigmoid"]), norm=st.sampled_from(NORMS),
       function=st.sampled_from(FUNCTIONS), radius=st.sampled_from([0.01, 0.3, 3.0]))
def test_no_sampled_gradient_exceeds_a_certified_constant(seed: int, kind: str, activation: str, norm: float,
                                                         function: Margin, radius: float) -> None:
    graph = random_graph(seed, kind, activation, torch.float64)
    assume(torch.Size(graph.output_shape).numel() >= 2)
    x = torch.full((1, *graph.input_shape), 0.1, dtype=torch.float64)
    found = lipschitz_constant(graph, LpBall(x, radius, norm), norm=norm, functions=[function], seed=seed)
    assert found.estimate[0] <= found.largest.value * (1 + 1e-12)
    if found.pairs[0] is not None:
        assert found.pairs[0].slope <= found.largest.value


@given(seed=st.integers(0, 50), label=st.integers(0, 2), width=st.sampled_from([0.0, 0.1, 2.0]))
def test_steepness_covers_gradients_in_the_parts(seed: int, label: int, width: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centre = 2 * torch.randn(1, 2, generator=generator, dtype=torch.float64)
    box = InputSet(centre - width, centre + width)
    for function in (Margin(label), Confidence(label)):
        z = box.sample(50, generator)[0].requires_grad_()
        (slope,) = torch.autograd.grad(function.of(z).sum(), z)
        steep = function.steepness(type("Ends", (), {"lower": box.lower, "upper": box.upper})())
        assert bool((slope.abs().sum(1) <= steep * (1 + 1e-12)).all())


@pytest.mark.parametrize(("centre", "radius", "steepest"), [
    (-5.0, 0.1, -4.9), (5.0, 0.1, 4.9), (2.0, 1.0, 1.0), (-2.0, 1.0, -1.0), (0.5, 3.0, 0.0), (-0.5, 3.0, 0.0)])
def test_confidence_is_steepest_where_it_is_nearest_to_one_half(centre: float, radius: float, steepest: float) -> None:
    """2 outputs, z = y_1 - y_0 = x: dp/dx = p (1 - p)."""
    graph = dense([torch.tensor([[0.0], [1.0]])])
    found = lipschitz_constant(graph, around(torch.full((1,), centre), radius), functions=[Confidence(1)])
    p = 1 / (1 + math.exp(-steepest))
    assert p * (1 - p) * (1 - 1e-12) <= found.largest.value <= p * (1 - p) * (1 + 1e-6)


def test_features_that_stay_do_not_count() -> None:
    graph = dense([torch.tensor([[1.0, 100.0]])])
    mask = torch.tensor([True, False])
    for method in METHODS[:4]:
        found = lipschitz_constant(graph, around(torch.zeros(2), 1.0, mask=mask), methods=[method])
        assert found.largest.value == pytest.approx(1.0)
        assert found.estimate[0] == 1.0


def test_methods_that_do_not_fit_are_left_out_unless_they_are_alone() -> None:
    graph = random_graph(0, "residual", "Tanh", torch.float64)
    ball = LpBall(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.1)
    (found,) = certified_constants(graph, ball, [Logit(index=0)], norm=math.inf, methods=["exact", "jacobian"])
    assert found.method == "jacobian"
    with pytest.raises(UnsupportedOperator, match=r"exact constant needs|joins"):
        certified_constants(graph, ball, [Logit(index=0)], norm=math.inf, methods=["exact"])
    with pytest.raises(ValueError, match="methods must be"):
        certified_constants(graph, ball, [Logit(index=0)], norm=math.inf, methods=["guess"])
    with pytest.raises(ValueError, match="d must be"):
        lipschitz_constant(graph, ball, -1.0)


def test_functions_together_are_as_each_alone() -> None:
    graph = random_dense(3, (3, 6, 3))
    box = around(torch.zeros(3), 0.5)
    functions = [Margin(1), Logit(index=2), Confidence(0)]
    together = lipschitz_constant(graph, box, functions=functions).certified
    for function, constant in zip(functions, together, strict=True):
        alone = lipschitz_constant(graph, box, functions=[function]).largest
        assert constant.value == pytest.approx(alone.value, rel=1e-9)
    rows = lipschitz_constant(graph, box, functions=Margin(1).rows(3)[0]).largest
    assert together[0].value == pytest.approx(rows.value, rel=1e-12)


def test_jumps_have_no_constant() -> None:
    graph = dense([torch.ones(2, 1), torch.ones(1, 2)], activation=Sign())
    with pytest.raises(UnsupportedOperator, match="Sign"):
        lipschitz_constant(graph, around(torch.zeros(1), 1.0))


def test_of_outputs_that_overflow_nothing_is_known() -> None:
    huge = torch.tensor([[1e160, 1.0], [1.0, -1e160]])
    graph = dense([huge, huge])
    box = InputSet(-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    for found in certified_constants(graph, box, [Confidence(0), Margin(0)], norm=2.0):
        assert found.value == math.inf


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_constants_that_hold_everywhere_are_computed_once_for_all_sets(norm: float, monkeypatch: pytest.MonkeyPatch
                                                                       ) -> None:
    from verifier.lipschitz import certified
    graph = random_dense(0, (3, 5, 4, 3))
    centres = torch.tensor([[0.1, 0.2, 0.3], [0.5, -0.4, 0.0]], dtype=torch.float64)
    sets = [around(c, 0.3, norm=norm) for c in centres]
    calls: list[str] = []
    before = certified.global_euclidean
    monkeypatch.setattr(certified, "global_euclidean",
                        lambda g, name, **settings: calls.append(name) or before(g, name, **settings))
    methods, kept = ("jacobian", "norms", "eclipse-fast"), {}
    alone = [lipschitz_constant(graph, s, norm=norm, methods=methods) for s in sets]
    first = len(calls)
    shared = [lipschitz_constant(graph, s, norm=norm, methods=methods, kept=kept) for s in sets]
    assert len(calls) - first == first // len(sets), "asked for the first set alone"
    for a, b in zip(alone, shared, strict=True):
        assert [c.value for c in a.certified] == [c.value for c in b.certified]
    assert {key[:2] for key in kept} == {("norms", norm), ("eclipse-fast", 2.0)}
