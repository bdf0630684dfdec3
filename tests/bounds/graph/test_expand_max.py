"""Max-pools as chains of ReLUs: the same function, and enclosures that hold."""

from __future__ import annotations

import pytest
import torch

from bounds.graph import Graph
from bounds.graph.expand_max import candidates, expand_max
from bounds.ibp import propagate
from bounds.interval import Interval
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder

POOLS = [
    MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), MaxPool((3, 2), (1, 2), (1, 1), (1, 1)),
    MaxPool((2, 2), (1, 1), (0, 1), (2, 2)), MaxPool((3, 3), (2, 2), (1, 0), (1, 1), True),
    MaxPool((5, 6), (1, 1), (0, 0), (1, 1)), MaxPool((1, 1), (1, 1), (0, 0), (1, 1)),
]
every_pool = pytest.mark.parametrize("pool", POOLS, ids=repr)


def network(pool: MaxPool, *, relu_first: bool, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    build = GraphBuilder((1, 6, 7), torch.float64)
    build.add(conv_of(random(3, 1, 2, 2), random(3)))
    if relu_first:
        build.add(Relu())
    build.add(pool)
    if not relu_first:
        build.add(Relu())
    build.add(Reshape((torch.Size(build.shape).numel(),)))
    build.add(Linear(random(2, build.shape[0]), random(2)))
    return build.graph("pooled")


def boxes(radius: float, seed: int = 1) -> InputSet:
    centre = torch.randn(3, 1, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return InputSet(centre - radius, centre + radius)


@every_pool
@pytest.mark.parametrize("relu_first", [False, True])
@pytest.mark.parametrize("radius", [0.0, 0.1, 1.0])
def test_a_chain_computes_the_pool_and_what_is_known_of_it_holds(pool: MaxPool, relu_first: bool, radius: float
                                                                 ) -> None:
    graph, sets = network(pool, relu_first=relu_first), boxes(radius)
    enclosures = propagate(graph, sets)
    intervals = {i: enclosures[i] for i in graph.relaxed_inputs}
    expanded = expand_max(graph, intervals)
    assert expanded is not None
    assert not any(isinstance(n.op, MaxPool) for n in expanded.graph.nodes)
    generator = torch.Generator().manual_seed(2)
    for x in (sets.sample(40, generator), sets.lower.unsqueeze(1), sets.upper.unsqueeze(1)):
        flat = x.flatten(0, 1)
        assert torch.allclose(expanded.graph(flat), graph(flat), rtol=1e-12, atol=1e-12)
        values = expanded.graph.values(flat)
        for i, known in expanded.known.items():
            v = values[i].view(*x.shape[:2], *known.lower.shape[1:])
            assert bool((v >= known.lower.unsqueeze(1) - 1e-9).all())
            assert bool((v <= known.upper.unsqueeze(1) + 1e-9).all())


def test_only_inputs_that_can_be_the_largest_enter_the_likeliest_first() -> None:
    pool = MaxPool((1, 4), (1, 4), (0, 0), (1, 1))
    lower = torch.tensor([[[[0.0, -1.0, 0.5, -3.0, 5.0, 0.0, 0.0, 0.0]]]])
    upper = torch.tensor([[[[1.0, 0.4, 2.0, 0.6, 6.0, 1.0, 1.0, 1.0]]]])
    index, count = candidates(pool, Interval(lower, upper))
    assert index.tolist() == [[2, 0, 3], [4, 4, 4]] and count.tolist() == [3, 1]
    # Over two domains, what can be the largest in either.
    index, count = candidates(pool, Interval(torch.cat([lower, lower.flip(-1)]), torch.cat([upper, upper.flip(-1)])))
    assert count.tolist() == [3, 3]


def test_pools_without_known_inputs_stay() -> None:
    graph = network(POOLS[0], relu_first=True)
    assert expand_max(graph, {}) is None
