"""Every bound method on random tiny networks: sound at every node, batch equals single, known orders hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds import backward
from bounds.alpha_crown import AlphaCrown
from bounds.bounds import Bounds, LinearRows
from bounds.compute import METHODS, compute_bounds, method_named
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.sets import Box, InputSet, LpBall
from tests.bounds.networks import ACTIVATIONS, KINDS, graphs_with_boxes, random_box, random_graph, samples

TOLERANCE = 1e-9  # float64 rounding of sums with a few hundred terms of size one to a thousand


def all_rows(graph: Graph, sets: InputSet, seed: int = 0, per_set: int = 4) -> LinearRows:
    """Random rows over outputs and inputs, some a set."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(sets.lower.dtype)

    outputs, inputs = torch.Size(graph.output_shape).numel(), torch.Size(graph.input_shape).numel()
    count = per_set * sets.batch
    return LinearRows(random(count, outputs), torch.arange(sets.batch).repeat_interleave(per_set),
                      random(count, inputs), random(count))


def row_values(graph: Graph, rows: LinearRows, x: Tensor) -> Tensor:
    """The rows' values at points x "B K *input" of their sets: "N K"."""
    batch, count = x.shape[:2]
    y = graph(x.flatten(0, 1)).reshape(batch, count, -1)
    assert rows.owner is not None
    assert rows.D is not None
    assert rows.offset is not None
    value = torch.einsum("nm,nkm->nk", rows.C, y[rows.owner])
    value = value + torch.einsum("nf,nkf->nk", rows.D, x.flatten(2)[rows.owner])
    return value + rows.offset[:, None]


def assert_sound(graph: Graph, sets: InputSet, rows: LinearRows, answer: Bounds, x: Tensor) -> None:
    values = row_values(graph, rows, x)
    scale = 1 + values.abs().max().item()
    assert (values >= answer.lower[:, None] - TOLERANCE * scale).all(), "a row's value lies below its lower bound"
    if answer.A is not None and answer.b is not None:
        assert rows.owner is not None
        line = torch.einsum("nf,nkf->nk", answer.A.flatten(1), x.flatten(2)[rows.owner]) + answer.b[:, None]
        assert (values >= line - TOLERANCE * scale).all(), "a row's value lies below its affine bound"
    nodes = graph.values(x.flatten(0, 1))
    for i, interval in answer.intervals.items():
        value = nodes[i].reshape(*x.shape[:2], *nodes[i].shape[1:])
        slack = TOLERANCE * (1 + value.abs().max().item())
        assert (value >= interval.lower[:, None] - slack).all(), f"node {i} lies below its lower bound"
        assert (value <= interval.upper[:, None] + slack).all(), f"node {i} lies above its upper bound"


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(drawn=graphs_with_boxes())
def test_bounds_hold_at_every_node_and_row(method: str, drawn: tuple[Graph, InputSet]) -> None:
    graph, sets = drawn
    rows = all_rows(graph, sets)
    settings_ = {"iterations": 5} if method == "alpha-crown" else {}
    answer = compute_bounds(graph, sets, rows, method, **settings_)
    assert_sound(graph, sets, rows, answer, samples(sets, 100))


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("method", ["ibp", "fastlin", "crown", "alpha-crown"])
def test_bounds_hold_over_balls(method: str, p: float) -> None:
    for seed in range(6):
        graph = random_graph(seed, KINDS[seed % len(KINDS)], "mixed")
        generator = torch.Generator().manual_seed(seed)
        centre = torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64)
        sets = LpBall(centre, 0.6, p, clip=(-1.5, 1.5)) if centre.abs().max() < 1.5 else LpBall(centre, 0.6, p)
        rows = all_rows(graph, sets, seed)
        answer = compute_bounds(graph, sets, rows, method)
        assert_sound(graph, sets, rows, answer, sets.sample(300, generator))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_batched_bounds_equal_single_bounds(method: str, kind: str) -> None:
    for seed in range(4):
        graph = random_graph(seed, kind, "mixed")
        sets = random_box(graph, seed, batch=3)
        rows = all_rows(graph, sets, seed)
        together = compute_bounds(graph, sets, rows, method)
        assert rows.owner is not None
        assert rows.D is not None
        assert rows.offset is not None
        for k in range(3):
            mine = rows.owner == k
            alone = compute_bounds(graph, sets.index(torch.tensor([k])),
                                   LinearRows(rows.C[mine], None, rows.D[mine], rows.offset[mine]), method)
            # With optimised slopes the sign of a vanishing gradient is rounding noise, so paths may part.
            tolerance = 1e-4 if method == "alpha-crown" else 1e-9
            torch.testing.assert_close(together.lower[mine], alone.lower, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_rows_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Blocks of one domain are made from sorted rows only."""
    monkeypatch.setattr(backward, "ONE_DOMAIN_COEFFICIENTS", 0)
    graph = random_graph(8, "conv", "Relu")
    sets = random_box(graph, 8, batch=3)
    rows = all_rows(graph, sets, per_set=70)
    order = torch.randperm(210, generator=torch.Generator().manual_seed(0))
    assert rows.owner is not None
    assert rows.D is not None
    assert rows.offset is not None
    shuffled = LinearRows(rows.C[order], rows.owner[order], rows.D[order], rows.offset[order])
    settings_ = {"iterations": 4} if method == "alpha-crown" else {}
    straight = compute_bounds(graph, sets, rows, method, **settings_).lower
    torch.testing.assert_close(compute_bounds(graph, sets, shuffled, method, **settings_).lower, straight[order],
                               rtol=1e-6, atol=1e-6)


def test_without_rows_every_output_is_bounded_from_both_sides() -> None:
    graph = random_graph(3, "residual", "Relu")
    sets = random_box(graph, 3, batch=2)
    answer = compute_bounds(graph, sets, method="crown")
    y = graph(samples(sets, 50).flatten(0, 1)).reshape(2, -1, *graph.output_shape).flatten(2)
    assert answer.upper is not None
    assert (y >= answer.lower[:, None] - 1e-9).all()
    assert (y <= answer.upper[:, None] + 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_point_gives_its_value(method: str) -> None:
    """On a box that is one point every method is exact up to rounding."""
    for seed, name in enumerate(ACTIVATIONS):
        graph = random_graph(seed, "residual", name)
        x = random_box(graph, seed).centre_point
        answer = compute_bounds(graph, Box(x, x), method=method)
        y = graph(x).flatten(1)
        torch.testing.assert_close(answer.lower, y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(answer.upper, y, rtol=1e-6, atol=1e-6)


def test_backward_bounds_are_exact_on_affine_networks() -> None:
    graph = random_graph(5, "dense", "LeakyRelu")
    sets = random_box(graph, 5, radius=1e-3)  # so small that no neuron changes its side
    pre = [graph.values(samples(sets, 0).flatten(0, 1))[n.inputs[0]] for n in graph.nodes if n.op.kind == "LeakyRelu"]
    assert all(((v > 0).all(0) | (v < 0).all(0)).all() for v in pre), "the case must be affine on the box"
    answer = compute_bounds(graph, sets, method="crown")
    corner = graph(samples(sets, 0).flatten(0, 1)).flatten(1)
    torch.testing.assert_close(answer.lower[0], corner.min(0).values, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(drawn=graphs_with_boxes(), seed=st.integers(0, 1000))
def test_alpha_crown_is_never_looser_than_crown_on_the_same_enclosures(drawn: tuple[Graph, InputSet],
                                                                       seed: int) -> None:
    graph, sets = drawn
    rows = all_rows(graph, sets, seed)
    crown = compute_bounds(graph, sets, rows, "crown")
    alpha = AlphaCrown(iterations=6, neuron_iterations=0).bound(graph, sets, rows, given=crown.intervals)
    assert (alpha.lower >= crown.lower - 1e-9 * (1 + crown.lower.abs())).all()


@settings(max_examples=40, deadline=None)
@given(drawn=graphs_with_boxes())
def test_meet_is_never_looser_than_its_parts(drawn: tuple[Graph, InputSet]) -> None:
    graph, sets = drawn
    rows = all_rows(graph, sets)
    meet = compute_bounds(graph, sets, rows, "meet").lower
    for name in ("ibp",):
        assert (meet >= compute_bounds(graph, sets, rows, name).lower - 1e-9).all()


def test_warm_started_slopes_give_at_least_the_bounds_they_came_from() -> None:
    graph = random_graph(11, "dense", "Relu")
    sets = random_box(graph, 11, batch=2)
    rows = all_rows(graph, sets)
    crown = compute_bounds(graph, sets, rows, "crown")
    first = AlphaCrown(iterations=15, neuron_iterations=0).bound(graph, sets, rows, given=crown.intervals)
    again = AlphaCrown(iterations=1, neuron_iterations=0).bound(graph, sets, rows, given=crown.intervals,
                                                               params=first.params)
    torch.testing.assert_close(again.lower, torch.maximum(again.lower, first.lower), rtol=1e-9, atol=1e-9)


def test_a_stopped_optimisation_returns_valid_bounds() -> None:
    graph = random_graph(7, "residual", "mixed")
    sets = random_box(graph, 7, batch=2)
    rows = all_rows(graph, sets)
    for calls in (0, 3, 10):
        left = [calls]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        answer = AlphaCrown(iterations=8, stop=stop).bound(graph, sets, rows)
        assert_sound(graph, sets, rows, answer, samples(sets, 100))
        assert (answer.lower >= compute_bounds(graph, sets, rows, "crown").lower - 1e-6).all() or calls


def test_rows_above_the_target_are_not_improved_further() -> None:
    graph = random_graph(6, "dense", "Relu")
    sets = random_box(graph, 6, radius=2.0)
    rows = all_rows(graph, sets)
    best = AlphaCrown(iterations=20).bound(graph, sets, rows).lower
    low = compute_bounds(graph, sets, rows, "crown").lower
    assert (best > low + 1e-3).any(), "the case must profit from optimisation"
    at_once = AlphaCrown(iterations=20, neuron_iterations=0, target=-1e9).bound(graph, sets, rows).lower
    torch.testing.assert_close(at_once, low, rtol=1e-9, atol=1e-9)


def test_given_intervals_are_used() -> None:
    graph = random_graph(6, "dense", "Relu")
    sets = random_box(graph, 6, radius=2.0)
    rows = all_rows(graph, sets)
    alpha = compute_bounds(graph, sets, rows, "alpha-crown")
    loose = compute_bounds(graph, sets, rows, "crown-ibp")
    tight = method_named("crown-ibp").bound(graph, sets, rows, given=alpha.intervals)
    # No order of the two is a theorem (adaptive slopes), but tighter intervals must make a difference.
    assert (tight.lower > loose.lower + 1e-6).any(), "the case must profit from tighter intervals"


def test_bounds_are_differentiable_in_the_networks_parameters() -> None:
    graph = random_graph(4, "dense", "Relu")
    sets = random_box(graph, 4)
    rows = all_rows(graph, sets)
    weights = [p.requires_grad_(True) for p in graph.parameters()]
    for method in ("ibp", "crown-ibp", "crown"):
        value = compute_bounds(graph, sets, rows, method).lower.sum()
        grads = torch.autograd.grad(value, weights)
        step = 1e-6
        direction = [torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(1)) for w in weights]
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w += step * d
        up = compute_bounds(graph, sets, rows, method).lower.sum()
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w -= 2 * step * d
        down = compute_bounds(graph, sets, rows, method).lower.sum()
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w += step * d
        slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
        assert (up - down).item() / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-4), method


def test_a_chord_two_percent_too_low_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the suite's own checker must reject a slightly wrong relaxation."""
    honest = Relu._chord

    def faulty(self: Relu, x: object) -> tuple[Tensor, Tensor]:
        slope, intercept = honest(self, x)  # type: ignore[arg-type]
        return slope, 0.5 * intercept

    monkeypatch.setattr(Relu, "_chord", faulty)
    caught = 0
    for seed in range(20):
        graph = random_graph(seed, "dense", "Relu")
        sets = random_box(graph, seed, radius=1.0)
        rows = all_rows(graph, sets, seed)
        try:
            assert_sound(graph, sets, rows, compute_bounds(graph, sets, rows, "crown"), samples(sets, 400))
        except AssertionError:
            caught += 1
    assert caught >= 3


def test_ends_that_cross_by_rounding_change_places_and_gross_crossings_stay() -> None:
    """A reader of the bounds must see that one of the two is wrong."""
    x = Interval(torch.tensor([0.0, 1.0 + 1e-6, 5.0, torch.nan, 1e6 + 1]), torch.tensor([1.0, 1.0, 3.0, 1.0, 1e6]))
    y = x.uncrossed()
    assert y.lower[[0, 1, 2, 4]].tolist() == [0.0, 1.0, 5.0, 1e6]
    assert y.upper[[0, 1, 2, 4]].tolist() == [1.0, x.lower[1].item(), 3.0, x.lower[4].item()]
    assert not y.lower[3] <= y.upper[3]
