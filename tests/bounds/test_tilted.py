"""Tilted chords: bounds that hold, and that pass the barrier of chords."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import method_named
from bounds.graph import Graph
from bounds.graph.reduce import Reduced, reduce_to
from bounds.interval import Interval
from bounds.sets import InputSet
from bounds.tilted import Chain, Lines, Tilted, Tilts, _tilted
from tests.bounds.networks import intervals_by, random_box, random_graph, samples

KINDS = ["dense", "conv", "residual"]


def prepared(seed: int, kind: str, radius: float) -> tuple[Graph, InputSet, dict[int, Interval], Reduced]:
    graph = random_graph(seed, kind, "Relu")
    box = random_box(graph, seed, 1, radius)
    found = intervals_by("crown", graph, box)
    known = {i: found[i] for i in graph.relaxed_inputs}
    return graph, box, known, reduce_to(graph, known, Interval(box.lower, box.upper))


def rows_of(graph: Graph, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    m, n = torch.Size(graph.output_shape).numel(), torch.Size(graph.input_shape).numel()
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, m), (4,), (4, n))]
    return draw[0], draw[1], draw[2]


def never(count: int) -> Tensor:
    return torch.full((count,), torch.inf, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), radius=st.sampled_from([0.1, 0.7, 2.0]),
       iterations=st.sampled_from([1, 7, 40]))
def test_bounds_lie_below_the_network(seed: int, kind: str, radius: float, iterations: int) -> None:
    graph, box, known, reduced = prepared(seed, kind, radius)
    C, offset, D = rows_of(graph, seed)
    found = Tilted(iterations=iterations).bound(reduced, box, reduced.intervals(known), C, offset, never(4), D)
    assert found is not None
    points = samples(box, 300, seed)[0]
    value = graph(points).flatten(1) @ C.T + points.flatten(1) @ D.T + offset
    assert bool((found.lower <= value.amin(0) + 1e-9 * (1 + value.abs().amax())).all())


@pytest.mark.parametrize("seed", range(20))
def test_a_tilted_plane_lies_above_its_relus(seed: int) -> None:
    """Whatever the tilts and slopes."""
    _, box, known, reduced = prepared(seed, "dense", 1.0)
    chain = Chain.of(reduced, box, torch.float64)
    intervals = reduced.intervals(known)
    lines = Lines.of([intervals[layer.reduced] for layer in reduced.layers], torch.float64)
    points = samples(box, 500, seed)[0]
    values = reduced.graph.values(points)
    for k in range(1, len(reduced.layers)):
        generator = torch.Generator().manual_seed(seed)
        w = chain.before(k)
        at = torch.arange(len(w))
        tilts = Tilts(at, w, w.abs().amax(1, keepdim=True), torch.arange(w.numel()))
        parameters = {("tilt", k, k): torch.randn(1, w.numel(), generator=generator, dtype=torch.float64)}
        for i in range(k):
            random = torch.rand(1, 2 * len(at), len(lines.s[i][0]), generator=generator, dtype=torch.float64)
            parameters["inner", k, i] = torch.lerp(lines.low[i], lines.high[i], random)
        _, g, c, _ = _tilted(chain, lines, tilts, parameters, k, torch.zeros(1, len(w), dtype=torch.float64))
        y = torch.cat([points.flatten(1), *(values[layer.reduced].clamp(min=0) for layer in reduced.layers[:k])], 1)
        v = values[reduced.layers[k].reduced]
        assert bool((v.clamp(min=0) <= y @ g[0].T + c[0] + 1e-9).all())


def test_tilts_pass_the_barrier_of_chords() -> None:
    """On random networks the optimised bound of chords, with the same neurons' bounds, is passed by far."""
    better = 0
    for seed in range(12):
        graph, box, known, reduced = prepared(seed, "dense", 1.0)
        if len(reduced.layers) < 2:
            continue
        C, offset, _ = rows_of(graph, seed)
        rows = LinearRows(C, torch.zeros(len(C), dtype=torch.long), None, offset)
        alpha = method_named("alpha-crown", neuron_iterations=0, iterations=200).bound(graph, box, rows, given=known)
        found = Tilted().bound(reduced, box, reduced.intervals(known), C, offset, never(4))
        assert found is not None
        scale = 1 + alpha.lower.abs()
        assert bool((found.lower >= alpha.lower - 0.05 * scale).all())
        better += int((found.lower > alpha.lower + 0.01 * scale).sum())
    assert better >= 4


def test_rows_above_their_target_are_left() -> None:
    graph, box, known, reduced = prepared(4, "dense", 1.0)
    C, offset, _ = rows_of(graph, 4)
    intervals = reduced.intervals(known)
    best = Tilted().bound(reduced, box, intervals, C, offset, never(4))
    assert best is not None
    target = torch.tensor([-1e6, float(best.lower[1]) + 1.0, -1e6, -1e6], dtype=torch.float64)
    found = Tilted().bound(reduced, box, intervals, C, offset, target)
    assert found is not None
    assert (found.lower > target).tolist() == [True, False, True, True]


def test_bounds_over_several_domains_are_those_of_each() -> None:
    """Rows may have neuron bounds of their own, as in a search."""
    graph, box, known, reduced = prepared(7, "dense", 1.0)
    C, offset, _ = rows_of(graph, 7)
    intervals = reduced.intervals(known)
    node = reduced.layers[0].reduced
    narrow = intervals | {node: Interval(intervals[node].lower.clamp(min=0), intervals[node].upper)}
    both = {i: Interval(torch.cat([v.lower, narrow[i].lower]), torch.cat([v.upper, narrow[i].upper]))
            for i, v in intervals.items()}
    row = C[:1].expand(2, -1), offset[:1].expand(2)
    together = Tilted(iterations=30).bound(reduced, box, both, *row, never(2))
    apart = [Tilted(iterations=30).bound(reduced, box, i, C[:1], offset[:1], never(1)) for i in (intervals, narrow)]
    assert together is not None
    for k, one in enumerate(apart):
        assert one is not None
        torch.testing.assert_close(together.lower[k], one.lower[0], rtol=1e-3, atol=1e-3)


def test_other_activations_are_refused() -> None:
    graph = random_graph(0, "dense", "Sigmoid")
    box = random_box(graph, 0)
    known = {i: v for i, v in intervals_by("crown", graph, box).items() if i in graph.relaxed_inputs}
    reduced = reduce_to(graph, known, Interval(box.lower, box.upper))
    with pytest.raises(ValueError, match="ReLUs only"):
        Tilted().bound(reduced, box, reduced.intervals(known), torch.ones(1, 1), torch.zeros(1), torch.zeros(1))
