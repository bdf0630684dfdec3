"""A reduced graph equals the original on its region."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph import Graph
from bounds.graph.reduce import Reduced, can_reduce, reduce_to
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from tests.bounds.networks import ACTIVATIONS, intervals_by, random_box, random_graph, samples


def intervals_of(graph: Graph, points: Tensor) -> dict[int, Interval]:
    """The neurons' ranges over the points "P *shape": as if proved for a region that holds just these."""
    values = graph.values(points)
    sources = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Elementwise)}
    return {i: Interval(values[i].amin(0, keepdim=True), values[i].amax(0, keepdim=True)) for i in sources}


def hull(points: Tensor) -> Interval:
    return Interval(points.amin(0, keepdim=True), points.amax(0, keepdim=True))


def reduced_on_samples(seed: int, kind: str, activation: str, radius: float) -> tuple[Graph, Tensor, Reduced]:
    graph = random_graph(seed, kind, activation)
    points = samples(random_box(graph, seed, 1, radius), 50, seed)[0]
    return graph, points, reduce_to(graph, intervals_of(graph, points), hull(points))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["dense", "conv", "residual"]),
       activation=st.sampled_from([*ACTIVATIONS, "mixed"]), radius=st.sampled_from([0.01, 0.3, 2.0]))
def test_a_reduced_graph_equals_the_original_on_its_region(seed: int, kind: str, activation: str, radius: float
                                                           ) -> None:
    graph, points, reduced = reduced_on_samples(seed, kind, activation, radius)
    torch.testing.assert_close(reduced.graph(points), graph(points), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_kept_neurons_have_the_values_of_their_originals(kind: str) -> None:
    for seed in range(10):
        graph, points, reduced = reduced_on_samples(seed, kind, "Relu", 0.5)
        values, originals = reduced.graph.values(points), graph.values(points)
        for layer in reduced.layers:
            torch.testing.assert_close(values[layer.reduced], originals[layer.source].flatten(1)[:, layer.index],
                                       rtol=1e-9, atol=1e-9)


def test_only_undecided_neurons_that_matter_are_kept() -> None:
    kept = total = 0
    for seed in range(20):
        graph, points, reduced = reduced_on_samples(seed, "conv", "Relu", 0.1)
        known = intervals_of(graph, points)
        for layer in reduced.layers:
            x = known[layer.source].map(lambda t, at=layer.index: t.flatten(1)[:, at])
            assert bool(((x.lower < 0) & (x.upper > 0)).all())
            kept += len(layer.index)
        total += sum(k.lower.numel() for k in known.values())
    assert 0 < kept < 0.5 * total


def test_bounds_of_kept_neurons_are_those_of_their_originals() -> None:
    graph = random_graph(3, "conv", "Relu")
    box = random_box(graph, 3, 1, 0.5)
    known = {i: v for i, v in intervals_by("ibp", graph, box).items() if i in graph.relaxed_inputs}
    reduced = reduce_to(graph, known, Interval(box.lower, box.upper))
    assert reduced.layers
    for layer, (node, x) in zip(reduced.layers, reduced.intervals(known).items(), strict=True):
        assert node == layer.reduced
        assert torch.equal(x.lower, known[layer.source].lower.flatten(1)[:, layer.index])


def test_a_network_that_is_affine_on_its_region_has_no_neurons_left() -> None:
    graph = random_graph(1, "residual", "Relu")
    point = samples(random_box(graph, 1, 1, 0.5), 1)[0][:1]
    reduced = reduce_to(graph, intervals_of(graph, point), hull(point))
    assert not reduced.layers
    torch.testing.assert_close(reduced.graph(point), graph(point), rtol=1e-9, atol=1e-9)


def test_a_float32_graph_is_folded_in_float64() -> None:
    graph = random_graph(5, "conv", "Relu", torch.float32)
    points = samples(random_box(graph, 5, 1, 0.3), 50)[0]
    known = intervals_of(graph, points)
    reduced, double = (reduce_to(g, known, hull(points)) for g in (graph, graph.to(dtype=torch.float64)))
    assert reduced.graph.dtype == torch.float32
    for a, b in zip(reduced.weights, double.weights, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


def test_networks_with_other_operators_are_refused() -> None:
    graph = random_graph(0, "pooling", "Relu")
    assert not can_reduce(graph)
    with pytest.raises(ValueError, match="only affine and elementwise operators"):
        reduce_to(graph, {}, Interval(torch.zeros(1), torch.zeros(1)))


def test_the_output_keeps_its_shape() -> None:
    graph = random_graph(2, "conv", "Relu")
    cut = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Elementwise))
    graph = dataclasses.replace(graph, nodes=graph.nodes[:cut + 2], output=cut + 1)
    points = samples(random_box(graph, 2, 1, 0.5), 20)[0]
    reduced = reduce_to(graph, intervals_of(graph, points), hull(points))
    assert reduced.graph.output_shape == graph.output_shape
    torch.testing.assert_close(reduced.graph(points), graph(points), rtol=1e-9, atol=1e-9)
