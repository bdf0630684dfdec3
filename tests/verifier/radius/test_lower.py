"""Radii that a bound method proves: never above the exact radius, the largest of a grid, closed forms, limits."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.bounds import Bounds, LinearRows
from bounds.compute import METHODS, compute_bounds
from bounds.graph import Graph, UnsupportedOperator
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.softmax import Softmax
from tests.bounds.networks import GraphBuilder, random_graph
from tests.verifier.test_oracle import KINDS, GraphReplayer, Truth, draw_graph
from verifier.deadline import Deadline
from verifier.logits import ranking_of
from verifier.property import Region, Row
from verifier.radius import lower
from verifier.radius.balls import Balls
from verifier.radius.lower import Certified, certified_radii
from verifier.verdict import Evidence

MOST = 1.5
ONE = Fraction(1)
TOLERANCE = 1e-4
NORMS = [math.inf, 2.0, 1.0]
NAMES = {math.inf: "inf", 2.0: "2", 1.0: "1"}


def linear(weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float64) -> Graph:
    made = GraphBuilder((weight.shape[1],), dtype)
    made.add(Linear(weight.to(dtype), None if bias is None else bias.to(dtype)))
    return made.graph()


def dense(seed: int = 0, inputs: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> Graph:
    random = torch.Generator().manual_seed(seed)
    made = GraphBuilder((inputs,), dtype)
    for width in (8, 8, classes):
        if len(made.nodes) > 1:
            made.add(Relu())
        made.add(Linear(torch.randn(width, made.shape[0], generator=random).to(dtype) / 2,
                        torch.randn(width, generator=random).to(dtype) / 4))
    return made.graph()


def some(graph: Graph, count: int, norm: float = math.inf, **settings_: object) -> Balls:
    x = torch.rand(count, *graph.input_shape, generator=torch.Generator().manual_seed(1))
    label = graph(x.to(graph.dtype)).flatten(1).argmax(1)
    return Balls(x, label, norm, **settings_)  # type: ignore[arg-type]


def proved(graph: Graph, balls: Balls, radius: float, method: str) -> bool:
    rows = balls.rows(math.prod(graph.output_shape), graph.dtype)
    with torch.no_grad():
        lower = compute_bounds(graph, balls.sets(torch.tensor([radius], dtype=torch.float64)).to(dtype=graph.dtype),
                               LinearRows(rows.C, rows.owner), method).lower
    return bool((lower > 0).all())


# ---------------------------------------------------------------------- exact radii


def exact_radius(graph: Graph, x: np.ndarray, label: int, norm: float, clip: tuple[float, float] | None,
                 mask: np.ndarray) -> float:
    """By the oracle, at most two features free; inf beyond MOST."""
    centre = [Fraction(float(v)) for v in x.flatten()]
    reach = Fraction(MOST)
    low = [c - reach if clip is None else Fraction(clip[0]) for c in centre]
    high = [c + reach if clip is None else Fraction(clip[1]) for c in centre]
    free = mask.flatten().tolist()
    region = Region(tuple(v if f else c for v, c, f in zip(low, centre, free, strict=True)),
                    tuple(v if f else c for v, c, f in zip(high, centre, free, strict=True)))
    rows = (Row(((label, ONE), (1 - label, -ONE)), (), Fraction(0)),)
    return Truth.of(graph, region).distance(rows, centre, NAMES[norm])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), clip=st.sampled_from([None, (-1.0, 1.0)]))
def test_no_radius_is_above_the_exact_one(kind: str, norm: float, seed: int, clip: tuple[float, float] | None) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind)
    x = (random.integers(-8, 9, graph.input_shape) / 8).astype(np.float32)
    label = int(GraphReplayer(graph).run(x[None])[0].argmax())
    mask = np.zeros(x.size, dtype=bool)
    mask[random.permutation(x.size)[:2]] = True
    mask = mask.reshape(x.shape)
    exact = exact_radius(graph, x, label, norm, clip, mask)
    balls = Balls(torch.from_numpy(x)[None], torch.tensor([label]), norm, clip, torch.from_numpy(mask))
    for method in METHODS:
        found = certified_radii(graph, balls, method, most=MOST, settings={"iterations": 3, "neuron_iterations": 2}
                                if method == "alpha-crown" else None)
        radius = float(found.radius[0])
        assert radius <= exact * (1 + 1e-12), (method, radius, exact)
        if radius == math.inf:
            assert clip is not None
        assert bool(found.complete.all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_classifier_has_its_closed_form(norm: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0], [-1.0, 0.0, 2.0]])
    graph = linear(weight, torch.tensor([0.0, 0.5, 0.25]), dtype=dtype)
    x = torch.tensor([[0.5, -0.25, 0.125], [-1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    y = graph(x.to(dtype))
    label = y.argmax(1)
    q = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}[norm]
    for method in METHODS:
        found = certified_radii(graph, Balls(x, label, norm), method, tolerance=1e-6).radius
        for i in range(3):
            gap = y[i, label[i]] - y[i]
            steep = torch.linalg.vector_norm(weight.to(dtype)[label[i]] - weight.to(dtype), ord=q, dim=1)
            if method in ("ibp", "zonotope", "crown-ibp") and norm != math.inf:
                steep = torch.linalg.vector_norm(weight[label[i]] - weight, ord=1.0, dim=1)  # their sets are boxes
            exact = min(float(gap[j] / steep[j]) for j in range(3) if j != label[i])
            if method == "crown-ibp" and norm != math.inf:
                assert float(found[i]) >= exact - 2e-6
            else:
                assert float(found[i]) == pytest.approx(exact, abs=2e-6), (method, i)


# ---------------------------------------------------------------------- the largest that is proved


@pytest.mark.parametrize("method", ["ibp", "fastlin", "crown"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_is_the_largest_of_a_fine_grid(method: str, norm: float) -> None:
    graph = dense()
    balls = some(graph, 4, norm, clip=(0.0, 1.0))
    found = certified_radii(graph.simplify(), balls, method, tolerance=TOLERANCE)
    for i in range(4):
        one = balls.take(torch.tensor([i]))
        radius = float(found.radius[i])
        assert 0 < radius < math.inf and proved(graph.simplify(), one, radius, method)
        for step in np.linspace(1.0, 50.0, 20):
            assert not proved(graph.simplify(), one, radius + step * TOLERANCE, method), (i, step)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_input_alone_has_the_radius_it_has_in_a_batch(method: str, dtype: torch.dtype) -> None:
    graph = random_graph(3, "conv", "Relu", torch.float32) if dtype == torch.float32 else dense()
    balls = some(graph, 5)
    together = certified_radii(graph, balls, method)
    for i in range(5):
        alone = certified_radii(graph, balls.take(torch.tensor([i])), method)
        assert float(alone.radius[0]) == pytest.approx(float(together.radius[i]), abs=TOLERANCE)
        assert alone.evidence[0] == together.evidence[i]


def test_few_evaluations_are_needed() -> None:
    graph = dense(2)
    for norm in NORMS:
        found = certified_radii(graph, some(graph, 16, norm, clip=(0.0, 1.0)), "crown")
        assert float(found.evaluations.double().mean()) < 8  # bisection of [0, 1] alone takes 14


def test_a_start_far_off_is_only_slower() -> None:
    graph = dense()
    balls = some(graph, 4)
    usual = certified_radii(graph, balls)
    for start in (1e-6, 1e3):
        found = certified_radii(graph, balls, start=torch.full((4,), start))
        assert found.radius.tolist() == pytest.approx(usual.radius.tolist(), abs=TOLERANCE)


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_safe_everywhere_has_no_radius(dtype: torch.dtype) -> None:
    graph = linear(torch.zeros(2, 3), torch.tensor([1.0, 0.0]), dtype=dtype)
    x = torch.full((1, 3), 0.5)
    assert certified_radii(graph, Balls(x, torch.tensor([0]), clip=(0.0, 1.0))).radius.tolist() == [math.inf]
    assert certified_radii(graph, Balls(x, torch.tensor([0]), clip=(0.0, 1.0)), most=0.25).radius.tolist() == [0.25]
    endless = certified_radii(graph, Balls(x, torch.tensor([0])))
    assert 1e6 < float(endless.radius[0]) < math.inf
    fixed = Balls(x, torch.tensor([0]), mask=torch.zeros(3, dtype=torch.bool))
    assert certified_radii(graph, fixed).radius.tolist() == [math.inf]


def test_other_labels_and_ties_have_the_radius_zero() -> None:
    graph = linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    balls = Balls(torch.tensor([[0.2, 0.7], [0.5, 0.5], [0.7, 0.2]]), torch.tensor([0, 0, 0]), clip=(0.0, 1.0))
    found = certified_radii(graph, balls)
    assert found.radius.tolist() == [0.0, 0.0, pytest.approx(0.25, abs=1e-4)]
    assert found.evidence == (Evidence.ROUNDED,) * 3 and bool(found.complete.all())
    fixed = Balls(torch.tensor([[0.2, 0.7]]), torch.tensor([0]), mask=torch.zeros(2, dtype=torch.bool))
    assert certified_radii(graph, fixed).radius.tolist() == [0.0]


def test_the_mask_and_the_target_count() -> None:
    graph = linear(torch.tensor([[4.0, 0.0], [0.0, 1.0], [-4.0, 0.0]]), torch.tensor([2.0, 0.0, 0.0]))
    x, label = torch.zeros(1, 2), torch.tensor([0])
    every = certified_radii(graph, Balls(x, label), tolerance=1e-6).radius.item()
    second = certified_radii(graph, Balls(x, label, mask=torch.tensor([False, True])), tolerance=1e-6).radius.item()
    target = certified_radii(graph, Balls(x, label, target=1), tolerance=1e-6).radius.item()
    assert (every, second, target) == pytest.approx((0.25, 2.0, 0.4), abs=1e-5)


def test_no_radius_is_above_the_limit() -> None:
    graph = dense()
    balls = some(graph, 4)
    free = certified_radii(graph, balls).radius
    most = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64) * free
    found = certified_radii(graph, balls, most=most)
    assert bool((found.radius <= most).all())
    assert found.radius.tolist() == pytest.approx(torch.minimum(free, most).tolist(), abs=TOLERANCE)


def test_without_time_what_is_found_holds() -> None:
    graph = dense()
    balls = some(graph, 4)
    for limit_s in (1e-9, 0.003, 0.01):
        found = certified_radii(graph, balls, deadline=Deadline.starting_now(limit_s))
        for i, radius in enumerate(found.radius.tolist()):
            assert radius == 0 or proved(graph.simplify(), balls.take(torch.tensor([i])), radius, "crown")


# ---------------------------------------------------------------------- evidence


def test_what_float32_finds_is_confirmed_with_rounding() -> None:
    graph = random_graph(1, "conv", "Relu", torch.float32)
    balls = some(graph, 4)
    found = certified_radii(graph, balls)
    wide = graph.simplify().to(dtype=torch.float64)
    for i, radius in enumerate(found.radius.tolist()):
        assert radius > 0 and found.evidence[i] is Evidence.ROUNDED
        assert proved(wide, balls.take(torch.tensor([i])), radius, "crown")


def test_what_float32_proves_wrongly_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are too high by more than rounding ever is, in float32 alone: every radius found is too large."""
    graph = linear(torch.eye(3), dtype=torch.float32)
    balls = Balls(torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.25]]), torch.tensor([0, 1]))
    bounds = lower.compute_bounds

    def optimistic(graph: Graph, *arguments: object, **settings_: object) -> Bounds:
        found = bounds(graph, *arguments, **settings_)  # type: ignore[arg-type]
        return found if graph.dtype == torch.float64 else dataclasses.replace(found, lower=found.lower + 1e-3)
    monkeypatch.setattr(lower, "compute_bounds", optimistic)
    monkeypatch.setattr(lower, "choose_dtype", lambda graph, device: torch.float32)
    found = certified_radii(graph, balls, tolerance=1e-9)
    assert found.evidence == (Evidence.ROUNDED,) * 2
    for radius, exact in zip(found.radius.tolist(), (0.25, 0.125), strict=True):
        assert 0.9 * exact < radius < exact


def test_methods_that_do_not_account_for_rounding_say_so() -> None:
    graph = dense()
    found = certified_radii(graph, some(graph, 2), "zonotope")
    assert bool((found.radius > 0).all()) and found.evidence == (Evidence.FLOAT,) * 2


def test_a_softmax_at_the_end_changes_nothing() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    made = GraphBuilder((2,), torch.float64)
    made.add(Linear(weight.double(), None))
    made.add(Softmax())
    balls = Balls(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    assert torch.equal(certified_radii(made.graph(), balls).radius, certified_radii(linear(weight), balls).radius)
    made.nodes.pop()
    made.add(Reshape((2, 1)))
    made.add(Softmax())
    with pytest.raises(UnsupportedOperator, match="keeps their order"):
        ranking_of(made.graph())


@pytest.mark.parametrize(("change", "says"), [
    ({"method": "milp"}, "method must be one of"), ({"tolerance": 0.0}, "tolerance must be"),
    ({"most": -1.0}, "expected radii >= 0"),
    ({"balls": Balls(torch.zeros(1, 5), torch.tensor([0]))}, "inputs of shape"),
    ({"balls": Balls(torch.zeros(1, 6), torch.tensor([4]))}, "labels from 0 to 3"),
])
def test_wrong_use_is_told(change: dict[str, object], says: str) -> None:
    graph = dense()
    with pytest.raises(ValueError, match=says):
        certified_radii(graph, **{"balls": some(graph, 1), **change})  # type: ignore[arg-type]


def test_no_inputs_have_no_radii() -> None:
    found: Certified = certified_radii(dense(), Balls(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)))
    assert found.radius.shape == (0,) and found.evidence == ()
