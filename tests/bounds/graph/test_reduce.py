"""A reduced graph equals the original on its region."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph import FoldError, Graph, Node
from bounds.graph.reduce import Reduced, can_reduce, reduce_to
from bounds.interval import Interval
from bounds.ops.base import Elementwise, Input
from bounds.ops.leaky_relu import LeakyRelu
from tests.bounds.networks import ACTIVATIONS, intervals_by, random_box, random_graph, samples
from tests.bounds.rational import Rising, exact, values


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


def stored(reduced: Reduced, graph: Graph, x: np.ndarray, found: list[np.ndarray]) -> np.ndarray:
    """E x + e + M_1 r_1 + .. in rationals, r as the original has them at x."""
    out = exact(reduced.weights[0]) @ x + exact(reduced.bias)
    for layer, M in zip(reduced.layers, reduced.weights[1:], strict=True):
        out[len(out) - len(M):] += exact(M) @ found[layer.node][layer.index.numpy()]
    return out


@pytest.mark.parametrize("layers", [1, 2])
def test_errors_bound_the_distance_to_the_exact_network(layers: int) -> None:
    """At points of the region, in rationals: rows as stored against the kept neurons' inputs and the output."""
    off = 0
    for seed in range(10):
        network = Rising(seed, layers, folds=True)
        graph = network.graph
        box = Interval(network.sets.lower, network.sets.upper)
        reduced = reduce_to(graph, network.known, box)
        assert [len(layer.index) for layer in reduced.layers] == [3] * layers
        for share in (Fraction(0), Fraction(1, 3), Fraction(1)):
            x = network.low + (network.high - network.low) * share
            found = values(graph, x)
            true = np.concatenate([*(found[layer.source][layer.index.numpy()] for layer in reduced.layers), found[-1]])
            apart = [abs(a - b) for a, b in zip(stored(reduced, graph, x, found), true, strict=True)]
            assert all(a <= Fraction(e) for a, e in zip(apart, reduced.error.tolist(), strict=True))
            off += sum(a > Fraction(1, 10 ** 12) for a in apart)
        assert float(reduced.error.max()) < 1e-6
    assert off > 20


def test_errors_hold_what_folded_parameters_are_off() -> None:
    """Parameters that a search form folded in float32 are off by far more than float64 loses."""
    network = Rising(0, 1, folds=True)
    graph = dataclasses.replace(network.graph, fold_errors={1: FoldError(bias=torch.full((3,), 1e-3))})
    box = Interval(network.sets.lower, network.sets.upper)
    with_folds, without = (reduce_to(g, network.known, box).error for g in (graph, network.graph))
    weight = graph.nodes[3].op.weight  # type: ignore[attr-defined]
    assert bool((with_folds[:3] >= without[:3] + 0.9e-3 * weight.abs().sum(1)).all())


def test_nothing_is_known_of_how_smooth_operators_round() -> None:
    graph = random_graph(1, "dense", "Sigmoid")
    point = samples(random_box(graph, 1, 1, 0.5), 1)[0][:1]
    assert not bool(torch.isfinite(reduce_to(graph, intervals_of(graph, point), hull(point)).error).any())


def test_errors_hold_what_float32_makes_of_the_network() -> None:
    """Kept neurons and outputs as float32 has them against the rows over the same neurons, at points."""
    off = 0
    for seed in range(30):
        graph = random_graph(seed, "dense", "Relu", torch.float32)
        points = samples(random_box(graph, seed, 1, 0.5), 50, seed)[0].float()
        single = [v.double() for v in graph.values(points)]
        known = {i: hull(single[i]) for i in graph.relaxed_inputs}
        region = Interval(points.double().amin(0, keepdim=True), points.double().amax(0, keepdim=True))
        wide = graph.to(dtype=torch.float64)
        reduced = reduce_to(graph.evaluated_in(torch.float32).to(dtype=torch.float64), known, region)
        rows = points.double() @ reduced.weights[0].T + reduced.bias
        for layer, M in zip(reduced.layers, reduced.weights[1:], strict=True):
            rows[:, rows.shape[1] - len(M):] += single[layer.node][:, layer.index] @ M.T
        true = torch.cat([*(single[layer.source][:, layer.index] for layer in reduced.layers), single[graph.output]], 1)
        apart = (rows - true).abs()
        assert bool((apart <= reduced.error).all())
        off += int((apart > reduce_to(wide, known, region).error).sum())
    assert off > 1000


def test_noise_of_a_stable_neuron_goes_by_its_value() -> None:
    """Behind a steep line the value is larger than what it is computed from, and so is its last place."""
    slope = float(2**20)
    nodes = (Node("x", Input(), (), (1,)), Node("r", LeakyRelu(slope), (0,), (1,)))
    graph = Graph(nodes, 1, arithmetic=torch.float32)
    x = Interval(torch.full((1, 1), -9.0, dtype=torch.float64), torch.full((1, 1), -8.0, dtype=torch.float64))
    reduced = reduce_to(graph, {0: x}, x)
    assert not reduced.layers
    assert float(reduced.error[0]) >= 9 * slope * 2.0**-23
