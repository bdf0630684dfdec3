"""Leaning planes with their rounding accounted for: against rationals, and in float32 against float64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bounds.backward import Backward
from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.leaning import Leaning, _Climb, first_layer
from bounds.leaning_rounding import missing, price
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.rounding import Prices, priced, sum_down
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder
from tests.bounds.rational import Rising, outward, values
from tests.bounds.test_leaning import conv_network, dense_network, question


@pytest.mark.parametrize("layers", [1, 2])
def test_bounds_never_exceed_the_exact_minimum(layers: int) -> None:
    """Where numbers of a million cancel, evaluation in float64 alone is often above it."""
    wrong = {True: 0, False: 0}
    loss = 0.0
    for seed in range(15):
        network = Rising(seed, layers, folds=False)
        rows = LinearRows(network.C, torch.zeros(4, dtype=torch.long), network.D, network.offset)
        never = torch.full((4,), torch.inf, dtype=torch.float64)
        found = {}
        for pays in (True, False):
            with priced(pays):
                lower = Leaning(iterations=1 + seed % 3).bound(network.graph, network.sets, rows, never, network.known)
            assert lower is not None
            wrong[pays] += network.above(lower)
            found[pays] = lower
        loss = max(loss, float((found[False] - found[True]).max()))
    assert wrong[True] == 0
    assert wrong[False] > 10
    assert 0 < loss < 1e-6, "the price is of the size of what cancels"


@pytest.mark.parametrize("make", [conv_network, dense_network])
def test_single_precision_with_its_price_stays_below_double_precision(make) -> None:  # type: ignore[no-untyped-def]
    """The same planes and slopes over the same enclosures: what float32 proves, rounding paid, float64 confirms."""
    wrong, too_small = {True: 0, False: 0}, {True: 0, False: 0}
    for seed in range(20):
        graph: Graph = make(seed, torch.float32)
        sets, rows, given = question(graph, seed)
        layer = first_layer(graph, given)
        assert layer is not None
        climb = _Climb(Leaning(), layer, graph, graph.to(dtype=torch.float64), sets, rows, given)
        generator = torch.Generator().manual_seed(seed)
        planes = climb.planes + 0.3 * torch.randn(climb.planes.shape, generator=generator)
        slopes = {i: torch.lerp(climb.low[i], climb.high[i], torch.rand(p.shape, generator=generator))
                  for i, p in climb.slopes.items()}
        value = {}
        for pays in (True, False):
            climb.engine = engine(graph, sets, given, rounded=pays)
            climb.engine.pull(climb.block)
            value[pays], met = climb.value(slopes, planes)
            if pays:
                prices = climb.engine.prices
                assert isinstance(prices, Prices)
                value[True] = sum_down(value[True], -price(prices, layer, climb.seen, met))
                short = missing(prices, layer, climb.seen, met)
        with priced(False):
            climb._prepare(climb.double)
            climb.engine.pull(climb.block)
            truth, true = climb.value({i: p.double() for i, p in slopes.items()}, planes.double())
        too_small[True] += int((met.c.double() + short.double() < true.c).sum())
        too_small[False] += int((met.c.double() < true.c).sum())
        for pays in (True, False):
            wrong[pays] += int((value[pays].double() > truth).sum())
    assert wrong[True] == too_small[True] == 0
    assert wrong[False] > 10 and too_small[False] > 10


def test_lower_lines_pay_for_their_way_on() -> None:
    """A neuron that is active throughout, beside undecided ones: its coefficient leaves the layer's ReLU as it came."""
    wrong = {True: 0, False: 0}
    for seed in range(30):
        network = Rising(seed, 1, folds=False)
        first = network.graph.nodes[1].op
        assert isinstance(first, Linear) and first.bias is not None
        build = GraphBuilder((2,), torch.float64)
        build.add(Linear(first.weight, first.bias + torch.tensor([4.0, 0.0, 0.0]).double()))
        build.add(Relu())
        build.add(Linear(torch.eye(3).double()[:1], torch.zeros(1).double()))
        graph = build.graph("one active")
        ends = values(graph, network.low), values(graph, network.high)
        rows = LinearRows(torch.ones(1, 1).double(), torch.zeros(1, dtype=torch.long), None, torch.zeros(1).double())
        never, known = torch.full((1,), torch.inf, dtype=torch.float64), {1: outward(ends[0][1], ends[1][1])}
        for pays in (True, False):
            with priced(pays):
                lower = Leaning(iterations=1).bound(graph, network.sets, rows, never, known)
            assert lower is not None
            wrong[pays] += Fraction(float(lower)) > ends[0][-1][0]
    assert wrong[True] == 0
    assert wrong[False] > 4


def engine(graph: Graph, sets: InputSet, given: dict[int, Interval], *, rounded: bool) -> Backward:
    made = Backward(graph, sets, rounded=rounded)
    for i, x in given.items():
        made.enclose(i, x)
    return made
