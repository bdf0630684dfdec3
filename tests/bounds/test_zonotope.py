"""DeepZ: sound at every node by sampling, exact on affine networks, correlated through branches, within memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from bounds import ibp, zonotope
from bounds.bounds import LinearRows
from bounds.graph import Graph, Node
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.base import Input
from bounds.ops.concat import Concat
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.scale import Scale
from bounds.ops.softmax import Softmax
from bounds.sets import Box, InputSet
from tests.bounds.networks import (
    ACTIVATIONS,
    KINDS,
    GraphBuilder,
    graphs_with_boxes,
    random_box,
    random_graph,
    samples,
)
from tests.bounds.test_ibp import assert_encloses


def _push(graph: Graph, sets: InputSet) -> list[Interval]:
    return zonotope.push(graph, ibp.bounding_box(sets))[0]


def _outputs(graph: Graph, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.eye(torch.Size(graph.output_shape).numel(), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_node_encloses_its_samples(kind: str, activation: str, dtype: torch.dtype) -> None:
    graph = random_graph(1, kind, activation, dtype)
    sets = random_box(graph, 2, batch=3)
    assert_encloses(graph, sets, _push(graph, sets))


@settings(max_examples=40, deadline=None)
@given(graphs_with_boxes())
def test_the_zonotope_itself_encloses_the_samples_at_every_node(drawn: tuple[Graph, InputSet]) -> None:
    """Not only the interval it was met with: the concretised zonotopes, each kept."""
    graph, sets = drawn
    every = tuple(range(len(graph.nodes)))
    _, found = zonotope.push(graph, ibp.bounding_box(sets), keep=every)
    assert_encloses(graph, sets, [found[i].interval() for i in every], 50)


@settings(max_examples=40, deadline=None)
@given(graphs_with_boxes())
def test_rows_enclose_samples_and_are_never_looser_than_intervals(drawn: tuple[Graph, InputSet]) -> None:
    graph, sets = drawn
    outputs, inputs = torch.Size(graph.output_shape).numel(), torch.Size(graph.input_shape).numel()
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([1, 0, 1])
    rows = LinearRows(*(torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (outputs,)), owner=owner,
                      D=torch.randn(3, inputs, generator=generator, dtype=torch.float64),
                      offset=torch.randn(3, generator=generator, dtype=torch.float64))
    found, coarse = zonotope.bound(graph, sets, rows), ibp.bound(graph, sets, rows)
    x = samples(sets, 50)
    assert found.upper is not None
    assert coarse.upper is not None
    assert rows.D is not None
    assert rows.offset is not None
    for n, b in enumerate(owner.tolist()):
        value = graph(x[b]).flatten(1) @ rows.C[n] + x[b].flatten(1) @ rows.D[n] + rows.offset[n]
        scale = 1e-10 * (1 + float(value.abs().max()))
        assert float(found.lower[n]) <= float(value.min()) + scale
        assert float(found.upper[n]) >= float(value.max()) - scale
    size = 1e-9 * (1 + coarse.lower.abs())
    assert bool((found.lower >= coarse.lower - size).all())
    assert bool((found.upper <= coarse.upper + size).all())


def _affine_graph() -> Graph:
    """Branches that meet: y = W2 [W1 x + b, 2x - 1] + W3 x, all affine."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    build = GraphBuilder((4,), torch.float64)
    first = build.add(Linear(random(3, 4), random(3)), 0)
    second = build.add(Scale(torch.full((4,), 2.0, dtype=torch.float64), -torch.ones(4, dtype=torch.float64)), 0)
    joined = build.add(Concat(0), first, second)
    third = build.add(Linear(random(2, 7), random(2)), joined)
    fourth = build.add(Linear(random(2, 4), None), 0)
    build.add(Add(1), third, fourth)
    return build.graph()


def test_affine_networks_are_exact() -> None:
    """Equal to vertex enumeration, at every node, for the outputs, and for rows that mix outputs and inputs."""
    graph = _affine_graph()
    sets = random_box(graph, 3, batch=2)
    corners = samples(sets, 0)
    intervals = _push(graph, sets)
    for b in range(2):
        for value, interval in zip(graph.values(corners[b]), intervals, strict=True):
            torch.testing.assert_close(interval.lower[b], value.amin(0))
            torch.testing.assert_close(interval.upper[b], value.amax(0))
    C, D = torch.tensor([[1.0, -2.0], [0.5, 1.0]]).double(), torch.tensor([[1.0, 2, -3, 0], [0, 0, 1, 1]]).double()
    answer = zonotope.bound(graph, sets, LinearRows(C, None, D))
    for n in range(2):
        value = graph(corners[n]) @ C[n] + corners[n] @ D[n]
        assert float(answer.lower[n]) == pytest.approx(float(value.min()))
        assert answer.upper is not None
        assert float(answer.upper[n]) == pytest.approx(float(value.max()))


def test_a_relu_subtracted_from_itself_vanishes() -> None:
    """Branches share noise symbols, those of undecided neurons included: relu(x) - relu(x) = 0, not an interval."""
    nodes = (Node("x", Input(), (), (2,)), Node("r", Relu(), (0,), (2,)),
             Node("a", Scale(torch.tensor([3.0, -1.0])), (1,), (2,)),
             Node("b", Scale(torch.tensor([3.0, -1.0])), (1,), (2,)),
             Node("d", Add(-1), (2, 3), (2,)))
    graph = Graph(nodes, 4)
    answer = zonotope.bound(graph, Box(-torch.ones(1, 2), torch.ones(1, 2)), LinearRows(torch.eye(2)))
    assert float(answer.lower.abs().max()) == 0
    assert answer.upper is not None
    assert float(answer.upper.abs().max()) == 0


def test_relu_of_one_input_by_hand() -> None:
    """On [-1, 2] the chord is 2/3 z + 2/3, so relu(x) - x lies in [-2/3, 1] by x = 1/2 + 3/2 e (Singh et al. 2018)."""
    nodes = (Node("x", Input(), (), (1,)), Node("r", Relu(), (0,), (1,)), Node("d", Add(-1), (1, 0), (1,)))
    sets = Box(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    _, found = zonotope.push(Graph(nodes, 2), ibp.bounding_box(sets))
    z = found[2]
    torch.testing.assert_close(z.centre, torch.tensor([[1 / 3 + 1 / 3 - 0.5]]))
    torch.testing.assert_close(z.generators.flatten(), torch.tensor([1.0 - 1.5, 1 / 3]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_one_by_one(kind: str) -> None:
    graph = random_graph(5, kind, "mixed")
    sets = random_box(graph, 6, batch=4)
    rows = LinearRows(_outputs(graph).repeat(4, 1), torch.arange(4).repeat_interleave(_outputs(graph).shape[0]))
    together = zonotope.bound(graph, sets, rows)
    for b in range(4):
        alone = zonotope.bound(graph, sets.index(torch.tensor([b])), LinearRows(_outputs(graph)))
        chosen = rows.owner == b
        torch.testing.assert_close(together.lower[chosen], alone.lower)
        for i, interval in alone.intervals.items():
            torch.testing.assert_close(together.intervals[i].lower[b], interval.lower[0])
            torch.testing.assert_close(together.intervals[i].upper[b], interval.upper[0])


def test_groups_of_domains_under_a_small_budget_give_the_same_bounds() -> None:
    graph = random_graph(8, "conv", "Tanh")
    sets = random_box(graph, 9, batch=5)
    count = _outputs(graph).shape[0]
    rows = LinearRows(_outputs(graph).repeat(5, 1), torch.arange(5).repeat_interleave(count))
    intervals = ibp.propagate(graph, sets)
    single = [[Interval(x.lower[b:b + 1], x.upper[b:b + 1]) for x in intervals] for b in range(5)]
    alone = max(zonotope.estimate_bytes(graph, one, keep=(0,)) for one in single)
    whole, grouped = zonotope.bound(graph, sets, rows), zonotope.bound(graph, sets, rows, memory_bytes=2 * alone)
    torch.testing.assert_close(whole.lower, grouped.lower)
    torch.testing.assert_close(whole.intervals[graph.output].upper, grouped.intervals[graph.output].upper)
    with pytest.raises(zonotope.ZonotopeTooLarge, match=r"GiB for one input set.*crown"):
        zonotope.bound(graph, sets, rows, memory_bytes=alone // 2)
    assert issubclass(zonotope.ZonotopeTooLarge, MemoryError)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_estimate_covers_all_generators_alive_at_the_end(kind: str) -> None:
    graph = random_graph(10, kind, "mixed")
    sets = random_box(graph, 11, batch=3, radius=2.0)
    every = tuple(range(len(graph.nodes)))
    _, found = zonotope.push(graph, ibp.bounding_box(sets), keep=every)
    used = sum(z.generators.numel() * z.generators.element_size() for z in found.values())
    estimate = zonotope.estimate_bytes(graph, ibp.propagate(graph, sets), keep=every)
    assert used <= estimate <= 4 * used


def test_fixed_inputs_and_stable_neurons_carry_no_symbol() -> None:
    lower, upper = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[1.0, 3.0, 1.0]])
    graph = Graph((Node("x", Input(), (), (3,)), Node("r", Relu(), (0,), (3,))), 1)
    _, found = zonotope.push(graph, Interval(lower, upper), keep=(0,))
    assert found[0].symbols == 2
    assert found[1].symbols == 3
    assert int((found[1].generators != 0).sum()) == 3


def test_given_intervals_tighten_the_rest() -> None:
    graph = random_graph(7, "dense", "Tanh")
    sets = random_box(graph, 8, batch=1)
    rows = LinearRows(_outputs(graph))
    free = zonotope.bound(graph, sets, rows)
    pinned = graph.values(sets.centre_point)[1]
    tight = zonotope.bound(graph, sets, rows, given={1: Interval(pinned - 1e-3, pinned + 1e-3)})
    assert free.upper is not None
    assert tight.upper is not None
    assert bool((tight.upper - tight.lower < free.upper - free.lower).all())
    y = graph(sets.centre_point)[0]
    assert bool((tight.lower <= y).all() and (tight.upper >= y).all())


def test_an_operator_without_parallel_bounds_falls_back_to_its_interval() -> None:
    graph = random_graph(3, "dense")
    last = len(graph.nodes)
    graph = Graph((*graph.nodes, Node("p", Softmax(), (graph.output,), graph.output_shape)), last)
    sets = random_box(graph, 4, batch=2)
    assert_encloses(graph, sets, _push(graph, sets))
