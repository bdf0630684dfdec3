"""Leaning planes with their rounding accounted for: against rationals, and in float32 against float64."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.bounds import LinearRows
from bounds.graph import FoldError, Graph
from bounds.interval import Interval
from bounds.leaning import Leaning, _Climb, first_layer
from bounds.leaning_rounding import missing, price
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.rounding import Prices, priced, sum_down
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder
from tests.bounds.rational import Rising, exact, outward, values
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


@pytest.mark.parametrize("sign", [1, -1], ids=["lower lines", "planes"])
def test_what_a_fold_was_off_is_paid_at_the_first_layer(sign: int) -> None:
    """A bias that lies by its whole radius beside what is stored, on the side that lowers the row: under a neuron that
    is active throughout, whose coefficient takes its lower line, and under one whose coefficient takes a plane."""
    off = 1e-3
    wrong = {True: 0, False: 0}
    for seed in range(10):
        network = Rising(seed, 1, folds=False)
        first = network.graph.nodes[1].op
        assert isinstance(first, Linear) and first.bias is not None
        lifted = first.bias + torch.tensor([4.0, 0.0, 0.0]).double()
        stored, moved = (one_layer(first.weight, bias) for bias in (lifted, lifted - sign * off))
        ends = values(moved, network.low), values(moved, network.high)
        known = {1: outward(ends[0][1] - 1, ends[1][1])}  # not tight below: then it is sup(v - g x) that counts
        C = torch.tensor([[1.0, 0.0, 0.0]] if sign > 0 else [[0.0, -1.0, 0.0]]).double()
        least = (exact(C) @ ends[0 if sign > 0 else 1][-1])[0]
        rows = LinearRows(C, torch.zeros(1, dtype=torch.long), None, torch.zeros(1).double())
        never = torch.full((1,), torch.inf, dtype=torch.float64)
        for pays in (True, False):
            radius = {1: FoldError(bias=torch.full((3,), off).double())} if pays else {}
            lower = Leaning(iterations=1).bound(replace(stored, fold_errors=radius), network.sets, rows, never, known)
            assert lower is not None
            wrong[pays] += Fraction(float(lower)) > least
    assert wrong[True] == 0
    assert wrong[False] == 10


def one_layer(weight: Tensor, bias: Tensor) -> Graph:
    """relu(weight x + bias)."""
    build = GraphBuilder((weight.shape[1],), torch.float64)
    build.add(Linear(weight, bias))
    build.add(Relu())
    build.add(Linear(torch.eye(len(weight)).double(), torch.zeros(len(weight)).double()))
    return build.graph("one layer")


def engine(graph: Graph, sets: InputSet, given: dict[int, Interval], *, rounded: bool) -> Backward:
    made = Backward(graph, sets, rounded=rounded)
    for i, x in given.items():
        made.enclose(i, x)
    return made
