"""Leaning planes: valid at every point, never worse than the chords they start from, and the hull of a neuron."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.bounds import LinearRows
from bounds.final import final_bounds
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.leaning import Leaning, Windows, first_layer
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder, samples

ALL = math.inf  # a target that no row reaches


def conv_network(seed: int, dtype: torch.dtype = torch.float64) -> Graph:
    """Convolution (stride 1 or 2, padded or not), ReLU, convolution, ReLU, dense."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    build = GraphBuilder((2, 5, 5), dtype)
    build.add(Conv(normal(3, 2, 3, 3) / 3, normal(3) / 3, stride=(1 + seed % 2,) * 2, padding=(seed // 2 % 2,) * 2))
    build.add(Relu())
    build.add(Conv(normal(2, 3, 1, 1), normal(2) / 3))
    build.add(Relu())
    size = math.prod(build.shape)
    build.add(Reshape((size,)))
    build.add(Linear(normal(3, size) / 3, normal(3)))
    return build.graph("conv")


def dense_network(seed: int, dtype: torch.dtype = torch.float64) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    build = GraphBuilder((4,), dtype)
    for width in (7, 5):
        build.add(Linear(normal(width, build.shape[0]), normal(width) / 2))
        build.add(Relu())
    build.add(Linear(normal(3, 5), normal(3)))
    return build.graph("dense")


def question(graph: Graph, seed: int, regions: int = 2) -> tuple[InputSet, LinearRows, dict[int, Interval]]:
    """Boxes (some features of which do not move), five rows over them, and CROWN's enclosures."""
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (regions, *graph.input_shape)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64)
    radius = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.6
    radius = torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, radius)
    sets = InputSet((centre - radius).to(graph.dtype), (centre + radius).to(graph.dtype))
    owner = torch.arange(5) % regions
    m, n = math.prod(graph.output_shape), math.prod(graph.input_shape)
    C, D, offset = (torch.randn(5, k, generator=generator, dtype=torch.float64).to(graph.dtype) for k in (m, n, 1))
    engine = Backward(graph, sets)
    refine(engine, row_bound=engine.lower)
    given = {i: engine.intervals[i] for i in graph.relaxed_inputs}
    return sets, LinearRows(C, owner, D if seed % 2 else None, offset[:, 0]), given


def at_points(graph: Graph, sets: InputSet, rows: LinearRows) -> Tensor:
    """The least value of each row at sampled points and corners, "R"."""
    x = samples(sets, 2000, 3)
    y = graph(x.flatten(0, 1)).view(*x.shape[:2], -1)
    value = torch.einsum("rm,rpm->rp", rows.C, y[rows.owner])
    if rows.D is not None:
        value = value + torch.einsum("rn,rpn->rp", rows.D, x.flatten(2)[rows.owner])
    assert rows.offset is not None
    return (value + rows.offset.unsqueeze(1)).amin(1)


@pytest.mark.parametrize("make", [conv_network, dense_network])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_and_are_not_below_their_start(make, dtype: torch.dtype, seed: int) -> None:  # type: ignore[no-untyped-def]
    graph = make(seed, dtype)
    sets, rows, given = question(graph, seed)
    engine = Backward(graph, sets)
    for i, x in given.items():
        engine.enclose(i, x)
    crown = final_bounds(engine, rows, {}).lower.double()
    target = crown.new_full(crown.shape, ALL)
    start = Leaning(iterations=1).bound(graph, sets, rows, target, given)
    climbed = Leaning(iterations=60).bound(graph, sets, rows, target, given)
    assert start is not None and climbed is not None and climbed.dtype == torch.float64
    torch.testing.assert_close(start, crown, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)
    assert bool((climbed >= start - 1e-4).all()), "chords are where the climb starts"
    assert bool((climbed > start + 1e-3).any()), "leaning gains nothing in this example"
    assert bool((climbed <= at_points(graph, sets, rows).double() + 1e-4).all())


@pytest.mark.parametrize("make", [conv_network, dense_network])
@pytest.mark.parametrize("seed", range(3))
def test_any_planes_and_slopes_are_valid(make, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Steps of any length, in any direction."""
    graph = make(seed)
    sets, rows, given = question(graph, seed)
    true = at_points(graph, sets, rows)
    for step in (0.5, -0.5, 5.0):
        wild = Leaning(iterations=3, plane_step=step, slope_step=step)
        lower = wild.bound(graph, sets, rows, true + ALL, given)
        assert lower is not None and bool((lower <= true + 1e-9).all())


def test_one_neuron_is_bounded_by_its_hull() -> None:
    """-relu(w x + b) + d x is least at a corner of the box, and that is what planes reach; chords do not."""
    generator = torch.Generator().manual_seed(0)
    missed = []
    for _ in range(5):
        w, d = (torch.randn(1, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        build = GraphBuilder((5,), torch.float64)
        build.add(Linear(w, torch.zeros(1, dtype=torch.float64)))
        build.add(Relu())
        graph = build.graph("one")
        sets = InputSet(-torch.ones(1, 5).double(), torch.ones(1, 5).double())
        rows = LinearRows(-torch.ones(1, 1).double(), torch.zeros(1, dtype=torch.long), d / 2, torch.zeros(1).double())
        reach = w.abs().sum()
        given = {1: Interval(-reach.view(1, 1), reach.view(1, 1))}
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
        true = float((-(corners @ w[0]).clamp(min=0) + corners @ d[0] / 2).min())
        lower = Leaning(iterations=600, patience=601).bound(graph, sets, rows, torch.full((1,), ALL).double(), given)
        assert lower is not None
        assert true - 0.02 * abs(true) <= float(lower) <= true + 1e-9
        chords = -float(reach) / 2 - float((d[0] / 2 - w[0] / 2).abs().sum())
        missed.append(true - chords)
    assert max(missed) > 0.3, "chords would do in these examples"


@pytest.mark.parametrize("settings", [{}, {"stride": (2, 1)}, {"padding": (1, 2)}, {"dilation": (2, 1)},
                                      {"stride": (2, 2), "padding": (1, 1)}])
def test_windows_give_the_convolution(settings: dict[str, tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(1)
    build = GraphBuilder((2, 6, 5), torch.float64)
    build.add(Conv(torch.randn(3, 2, 3, 2, generator=generator).double(), torch.randn(3, generator=generator).double(),
                   **settings))
    build.add(Relu())
    graph = build.graph("windows")
    neurons = torch.arange(0, math.prod(graph.nodes[1].shape), 2)
    windows = Windows.of(graph, 1, neurons)
    assert windows is not None
    x = torch.randn(1, 2, 6, 5, generator=generator).double()
    padded = torch.cat([x.flatten(), torch.zeros(1).double()])
    torch.testing.assert_close((windows.weight * padded[windows.index]).sum(1) + windows.bias,
                               graph.values(x)[1].flatten()[neurons])


def test_rows_do_not_depend_on_their_company() -> None:
    graph = conv_network(2)
    sets, rows, given = question(graph, 2)
    method, target = Leaning(iterations=12, patience=13), torch.full((5,), ALL).double()
    together = method.bound(graph, sets, rows, target, given)
    assert together is not None
    for k in range(5):
        one = slice(k, k + 1)
        owner = int(rows.owner[k])
        alone = method.bound(graph, sets.index(torch.tensor([owner])), LinearRows(
            rows.C[one], torch.zeros(1, dtype=torch.long), None if rows.D is None else rows.D[one], rows.offset[one]),
            target[one], {i: x.map(lambda t, o=owner: t[o:o + 1]) for i, x in given.items()})
        assert alone is not None
        torch.testing.assert_close(alone, together[one], rtol=1e-6, atol=1e-6)


def test_other_networks_are_left_alone() -> None:
    build = GraphBuilder((3,), torch.float64)
    build.add(Relu())
    build.add(Linear(torch.ones(2, 3).double(), torch.zeros(2).double()))
    graph = build.graph("relu first")
    given = {0: Interval(-torch.ones(1, 3).double(), torch.ones(1, 3).double())}
    assert first_layer(graph, given) is None
    decided = dense_network(0)
    x = torch.zeros(1, 4).double()
    values = decided.values(x)
    assert first_layer(decided, {i: Interval(values[i], values[i]) for i in decided.relaxed_inputs}) is None
