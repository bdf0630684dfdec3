"""Interval bounds: sound at every node by sampling, exact where intervals are, equal for a batch and one by one."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from bounds import ibp
from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.sets import Box, InputSet, LpBall
from tests.bounds.networks import ACTIVATIONS, KINDS, graphs_with_boxes, random_box, random_graph, samples


def assert_encloses(graph: Graph, sets: InputSet, intervals: list[Interval], count: int = 200) -> None:
    """Sampled values of every node lie in its interval, up to rounding of the forward pass itself."""
    x = samples(sets, count)
    atol = 2e-5 if graph.dtype == torch.float32 else 1e-12
    for b in range(sets.batch):
        for value, interval in zip(graph.values(x[b]), intervals, strict=True):
            allowed = atol * (1 + value.abs())
            assert bool((value >= interval.lower[b] - allowed).all())
            assert bool((value <= interval.upper[b] + allowed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_node_encloses_its_samples(kind: str, activation: str, dtype: torch.dtype) -> None:
    graph = random_graph(1, kind, activation, dtype)
    sets = random_box(graph, 2, batch=3)
    assert_encloses(graph, sets, ibp.propagate(graph, sets))


@settings(max_examples=40, deadline=None)
@given(graphs_with_boxes())
def test_random_networks_enclose_their_samples(drawn: tuple[Graph, InputSet]) -> None:
    assert_encloses(*drawn, ibp.propagate(*drawn), 50)


def test_one_affine_layer_is_exact() -> None:
    graph = random_graph(3)
    first = Graph(graph.nodes[:2], 1)
    sets = random_box(first, 4, batch=2)
    corners = first(samples(sets, 0)[0])
    found = ibp.propagate(first, sets)[1]
    torch.testing.assert_close(found.lower[0], corners.amin(0))
    torch.testing.assert_close(found.upper[0], corners.amax(0))


def test_a_batch_equals_one_by_one() -> None:
    for kind in KINDS:
        graph = random_graph(5, kind, "mixed")
        sets = random_box(graph, 6, batch=4)
        together = ibp.propagate(graph, sets)
        for b in range(4):
            alone = ibp.propagate(graph, sets.index(torch.tensor([b])))
            for whole, single in zip(together, alone, strict=True):
                torch.testing.assert_close(whole.lower[b], single.lower[0])
                torch.testing.assert_close(whole.upper[b], single.upper[0])


def test_given_intervals_are_met_and_used_further_on() -> None:
    graph = random_graph(7, "dense")
    sets = random_box(graph, 8, batch=2)
    free = ibp.propagate(graph, sets)
    half = Interval(free[1].lower, free[1].centre)
    tight = ibp.propagate(graph, sets, given={1: half})
    assert torch.equal(tight[1].upper, half.upper)
    assert torch.equal(tight[1].lower, free[1].lower)
    for before, after in zip(free, tight, strict=True):
        assert bool((after.lower >= before.lower - 1e-12).all())
        assert bool((after.upper <= before.upper + 1e-12).all())
    assert bool((tight[2].upper < free[2].upper).any())


def test_rows_are_exact_over_the_last_activation_and_over_the_inputs() -> None:
    graph = random_graph(9, "dense")
    sets = random_box(graph, 10, batch=2)
    outputs, inputs = graph.output_shape[0], graph.input_shape[0]
    generator = torch.Generator().manual_seed(1)
    C = torch.randn(5, outputs, generator=generator, dtype=torch.float64)
    D = torch.randn(5, inputs, generator=generator, dtype=torch.float64)
    offset = torch.randn(5, generator=generator, dtype=torch.float64)
    owner = torch.tensor([0, 1, 1, 0, 1])
    answer = ibp.bound(graph, sets, LinearRows(C, owner, D, offset))
    last = graph.nodes[graph.output]
    hidden = answer.intervals[last.inputs[0]]
    for n, b in enumerate(owner.tolist()):
        values = [float(C[n] @ last.op.forward(torch.stack(z)[None])[0] + D[n] @ torch.stack(x) + offset[n])
                  for z in itertools.product(*zip(hidden.lower[b], hidden.upper[b], strict=True))
                  for x in itertools.product(*zip(sets.lower[b], sets.upper[b], strict=True))]
        assert float(answer.lower[n]) == pytest.approx(min(values))
        assert answer.upper is not None
        assert float(answer.upper[n]) == pytest.approx(max(values))


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_ball_enters_as_its_bounding_box(p: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(3, 4, generator=generator, dtype=dtype)
    ball = LpBall(centre, torch.tensor([0.1, 0.3, 0.9], dtype=dtype), p, clip=(0.0, 1.0))
    box = ibp.bounding_box(ball)
    radius = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64).to(dtype).double()[:, None]
    lower = (centre.double() - radius).clamp(min=0)
    upper = (centre.double() + radius).clamp(max=1)
    assert bool((box.lower.double() <= lower).all())
    assert bool((box.upper.double() >= upper).all())
    torch.testing.assert_close(box.lower.double(), lower, atol=1e-6, rtol=0)
    torch.testing.assert_close(box.upper.double(), upper, atol=1e-6, rtol=0)


def test_a_scaled_ball_enters_as_its_bounding_box() -> None:
    centre, scale = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    ball = LpBall(centre, 0.5, 2.0)
    wide = dataclasses.replace(ball, scale=scale.expand(1, 2), lower=centre - 9, upper=centre + 9)
    box = ibp.bounding_box(wide)
    torch.testing.assert_close(box.upper, torch.tensor([[0.5, 1.5]], dtype=torch.float64))


def test_a_single_set_takes_all_rows() -> None:
    graph = random_graph(11, "residual")
    box = random_box(graph, 12)
    C = torch.eye(graph.output_shape[0], dtype=torch.float64)
    answer = ibp.bound(graph, Box(box.lower, box.upper), LinearRows(C))
    torch.testing.assert_close(answer.lower, answer.intervals[graph.output].lower[0])


def test_nodes_called_exact_have_their_range_and_no_others() -> None:
    """Of affine chains: a second mixing operator loses what the first one's neurons share."""
    torch.manual_seed(0)
    chains = [
        ([nn.Flatten(), nn.Linear(8, 5), nn.Linear(5, 4)], 1),
        ([nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU()], 0),
    ]
    for layers, lost in chains:
        net = nn.Sequential(*layers).double().eval()
        graph = Graph.from_torch(net, (2, 2, 2))
        exact = ibp.exact_over_boxes(graph)
        affine = [i for i, n in enumerate(graph.nodes) if i and n.op.kind != "Relu"]
        assert len([i for i in affine if i not in exact]) == lost
        sets = Box(torch.full((1, 2, 2, 2), -0.5, dtype=torch.float64), torch.ones(1, 2, 2, 2, dtype=torch.float64))
        with torch.no_grad():
            found = ibp.propagate(graph, sets, rounded=False)
            zero = graph.values(torch.zeros(1, 2, 2, 2, dtype=torch.float64))
            units = graph.values(torch.eye(8, dtype=torch.float64).view(8, 2, 2, 2))
        for i in affine:
            W = (units[i] - zero[i]).flatten(1)
            low = zero[i].flatten() + W.clamp(max=0).sum(0) - 0.5 * W.clamp(min=0).sum(0)
            tight = torch.allclose(found[i].lower.flatten(), low, atol=1e-12)
            assert tight == (i in exact)
