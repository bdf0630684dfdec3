"""Linear programmes as a bound method, and progressive tightening: theorems, truth and equal answers in every mode."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import crown
from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet, LpBall
from milp.certificate import UnsafeRows, certified_value
from milp.lp import LpBounds
from milp.mixed import CLEAR, MixedAnswer, MixedProgram
from milp.planet import Planet
from milp.problem import Status
from milp.questions import extreme
from milp.solvers.highs_mixed import HighsMixed
from milp.tighten import Tightening
from tests.bounds.networks import KINDS, GraphBuilder, random_box, random_graph
from tests.milp.test_encoder import asked
from tests.verifier.test_oracle import draw_graph, draw_property

ATOL = 1e-6


def some_rows(graph: Graph, count: int, seed: int, batch: int = 1) -> LinearRows:
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(count, math.prod(graph.output_shape), generator=generator, dtype=torch.float64)
    D = torch.randn(count, math.prod(graph.input_shape), generator=generator, dtype=torch.float64)
    return LinearRows(C, torch.arange(count) % batch, D, torch.randn(count, generator=generator, dtype=torch.float64))


def values(graph: Graph, rows: LinearRows, x: Tensor) -> Tensor:
    """"N points" of every row at points "points *input"."""
    assert rows.D is not None and rows.offset is not None
    return rows.C @ graph(x).flatten(1).T + rows.D @ x.flatten(1).T + rows.offset.unsqueeze(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "mixed"])
@pytest.mark.parametrize("seed", range(2))
def test_no_linear_relaxation_is_tighter(kind: str, activation: str, seed: int) -> None:
    """crown <= lp-last with its intermediate bounds, lp-last <= lp, and nothing passes a sample."""
    graph = random_graph(seed, kind, activation)
    sets = random_box(graph, seed, 2, 0.6)
    rows = some_rows(graph, 5, seed, 2)
    crown = compute_bounds(graph, sets, rows, "crown")
    last = LpBounds(layers=False).bound(graph, sets, rows)
    every = LpBounds().bound(graph, sets, rows)
    assert bool((last.lower >= crown.lower - ATOL).all())
    if activation == "Relu":  # tangents of smooth functions change with their intervals
        assert bool((every.lower >= last.lower - ATOL).all())
    for b in range(2):
        x = sets.index(torch.tensor([b])).sample(500, torch.Generator().manual_seed(seed))[0]
        mine = rows.owner == b
        assert bool((every.lower[mine] <= values(graph, rows, x)[mine].amin(1) + ATOL).all())
        for i, z in enumerate(graph.values(x)):
            if i in every.intervals:
                assert bool((z >= every.intervals[i].lower[b] - ATOL).all())
                assert bool((z <= every.intervals[i].upper[b] + ATOL).all())


def test_a_programme_is_worth_more_than_crown() -> None:
    """Not the fallback: CROWN's rows are beaten by more than rounding on most networks."""
    better = 0
    for seed in range(6):
        graph = random_graph(seed, "dense", "Relu")
        sets, rows = random_box(graph, seed, 1, 1.0), some_rows(graph, 3, seed)
        gain = LpBounds(layers=False).bound(graph, sets, rows).lower - compute_bounds(graph, sets, rows, "crown").lower
        better += int(bool((gain > 1e-4).any()))
    assert better >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [False, True])
def test_minima_over_one_domain_are_those_of_its_copies(kind: str, inputs: bool) -> None:
    for seed in range(3):
        graph = random_graph(seed, kind, "mixed")
        sets = random_box(graph, seed, 1, 0.7)
        asked_rows = some_rows(graph, 6, seed)
        assert asked_rows.D is not None and asked_rows.offset is not None
        rows = UnsafeRows(asked_rows.C.unsqueeze(1), -asked_rows.offset.unsqueeze(1),
                          asked_rows.D.unsqueeze(1) if inputs else None)
        intervals = {i: x for i, x in Tightening().refine(graph, sets).items() if i in graph.relaxed_inputs}
        once = Planet(graph).minima(sets, intervals, rows)
        copies = sets.index(torch.zeros(6, dtype=torch.long))
        many = {i: x.map(lambda t: t.expand(6, *t.shape[1:])) for i, x in intervals.items()}
        assert once is not None
        each = Planet(graph).solve(copies, many, rows)
        torch.testing.assert_close(once.value, each.value, atol=ATOL, rtol=ATOL)
        worth = certified_value(graph, copies, intervals, rows, once.certificate)
        assert bool((worth >= once.value - ATOL).all())
        other = certified_value(graph, copies, many, rows, each.certificate)
        torch.testing.assert_close(worth, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_never_below(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind).simplify()
    prop, truths = draw_property(random, graph)
    for branch in prop.branches:
        sets, unsafe = asked(graph, branch)
        assert unsafe.D is not None
        rows = LinearRows(unsafe.C[0], None, unsafe.D[0], -unsafe.bound[0])
        lower = LpBounds().bound(graph, sets, rows).lower
        for row, value in zip(branch.rows, lower.tolist(), strict=True):
            assert value <= float(truths[branch.region].minimum(row)) + ATOL


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_mixed_programmes_find_the_range_of_every_neuron(kind: str) -> None:
    """Of undecided ones, with the layers before them exact as well; and never less."""
    exact = 0
    for seed in range(3):
        graph = random_graph(seed, kind, "Relu")
        sets = random_box(graph, seed, 1, 0.8)
        found = Tightening(milp_s=10.0).refine(graph, sets)
        points = sets.sample(4000, torch.Generator().manual_seed(seed))[0]
        for i, z in enumerate(graph.values(points)):
            if i not in graph.relaxed_inputs:
                continue
            x = found[i]
            assert bool((z >= x.lower - ATOL).all() and (z <= x.upper + ATOL).all())
            for k in ((x.lower < 0) & (x.upper > 0)).flatten().nonzero().flatten().tolist()[:3]:
                part = Graph(nodes=graph.nodes[:i + 1], output=i, source="part")
                least = extreme(part, sets, found, k, HighsMixed()).answer.value
                assert float(x.lower.flatten()[k]) == pytest.approx(least, abs=1e-4)
                exact += 1
    assert exact > 3


def test_bounds_of_neurons_allow_for_the_tolerances_of_their_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boaster(HighsMixed):
        def solve(self, program: MixedProgram, **settings: Any) -> MixedAnswer:
            answer = super().solve(program, **settings)
            return replace(answer, bound=answer.bound + 0.9 * CLEAR * (1 + abs(answer.bound)))
    compared = 0
    for seed in range(3):
        graph = random_graph(seed, "dense", "Relu")
        sets = random_box(graph, seed, 1, 0.8)
        found = Tightening(milp_s=10.0).refine(graph, sets)
        with monkeypatch.context() as patched:
            patched.setattr("milp.tighten.HighsMixed", Boaster)
            boasted = Tightening(milp_s=10.0).refine(graph, sets)
        for i in graph.relaxed_inputs:
            x, part = boasted[i], Graph(nodes=graph.nodes[:i + 1], output=i, source="part")
            for k in ((x.lower < 0) & (x.upper > 0)).flatten().nonzero().flatten().tolist()[:3]:
                least = extreme(part, sets, found, k, HighsMixed()).answer.value
                assert float(x.lower.flatten()[k]) <= least + 1e-7
                compared += 1
    assert compared > 3


def test_processes_find_what_one_finds() -> None:
    graph = random_graph(2, "dense", "Relu")
    sets, rows = random_box(graph, 2, 2, 0.9), some_rows(graph, 4, 2, 2)
    alone, two = (LpBounds(jobs=jobs).bound(graph, sets, rows) for jobs in (1, 2))
    torch.testing.assert_close(alone.lower, two.lower, atol=ATOL, rtol=ATOL)


def test_a_batch_is_its_sets() -> None:
    graph = random_graph(3, "conv", "Relu")
    sets, rows = random_box(graph, 3, 3, 0.5), some_rows(graph, 6, 3, 3)
    together = LpBounds().bound(graph, sets, rows).lower
    assert rows.D is not None and rows.offset is not None
    for b in range(3):
        mine = rows.owner == b
        alone = LpBounds().bound(graph, sets.index(torch.tensor([b])),
                                 LinearRows(rows.C[mine], None, rows.D[mine], rows.offset[mine])).lower
        torch.testing.assert_close(together[mine], alone, atol=ATOL, rtol=ATOL)


def test_no_time_leaves_crown() -> None:
    graph = random_graph(1, "dense", "Relu")
    sets, rows = random_box(graph, 1), some_rows(graph, 3, 1)
    found = LpBounds(time_limit_s=1e-9).bound(graph, sets, rows)
    torch.testing.assert_close(found.lower, compute_bounds(graph, sets, rows, "crown").lower)
    known = Tightening(milp_s=1.0, time_limit_s=1e-9).refine(graph, sets)
    assert all(bool(torch.isfinite(x.lower).all()) for x in known.values())


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_over_balls_it_is_sound_and_no_worse_than_crown(p: float) -> None:
    graph = random_graph(4, "dense", "Relu")
    centre = torch.randn(1, *graph.input_shape, generator=torch.Generator().manual_seed(4)).double()
    ball, rows = LpBall(centre, 0.8, p=p), some_rows(graph, 4, 4)
    lower = LpBounds().bound(graph, ball, rows).lower
    assert bool((lower >= compute_bounds(graph, ball, rows, "crown").lower - ATOL).all())
    x = ball.sample(2000, torch.Generator().manual_seed(0))[0]
    assert bool((lower <= values(graph, rows, x).amin(1) + ATOL).all())


def test_float32_bounds_are_rounded_down() -> None:
    graph = random_graph(5, "dense", "Relu").to(dtype=torch.float32)
    box = random_box(graph, 5)
    sets = InputSet(box.lower.float(), box.upper.float())
    rows = LinearRows(torch.eye(math.prod(graph.output_shape)))
    single = LpBounds().bound(graph, sets, rows)
    assert single.lower.dtype == torch.float32
    double = LpBounds().bound(graph.to(dtype=torch.float64), sets.to(dtype=torch.float64),
                              LinearRows(rows.C.double())).lower
    assert bool((single.lower.double() <= double + 1e-4).all() and (single.lower.double() >= double - 1e-3).all())


def test_known_intervals_are_tightened_further() -> None:
    """And nothing of them is lost."""
    graph = random_graph(6, "dense", "Relu")
    sets = random_box(graph, 6, 1, 0.8)
    first = min(graph.relaxed_inputs)
    known = Tightening(milp_s=10.0).refine(graph, sets)
    found = Tightening().refine(graph, sets, {first: known[first]})
    plain = Tightening().refine(graph, sets)
    for i in graph.relaxed_inputs:
        assert bool((found[i].lower >= plain[i].lower - ATOL).all() and (found[i].upper <= plain[i].upper + ATOL).all())
    assert torch.equal(found[first].lower, known[first].lower)


def test_intervals_that_contradict_each_other_prove_nothing_more() -> None:
    """By rounding, say: a programme without a point is then no proof of anything."""
    graph = random_graph(1, "dense", "Relu")
    point = random_box(graph, 1).centre_point
    sets, rows = InputSet(point, point), some_rows(graph, 4, 1)
    values_at = graph.values(point)
    given = {i: Interval(values_at[i] + 1e-3, values_at[i] + 2e-3) for i in graph.relaxed_inputs}
    found = LpBounds().bound(graph, sets, rows, given=given)
    assert torch.equal(found.lower, crown.bound(graph, sets, rows, given=given).lower)


def test_a_ray_that_rounding_made_empties_no_domain() -> None:
    """Intervals in float32 that miss the truth by a few units in the last place, which rows are loosened by."""
    graph = random_graph(1, "dense", "Relu")
    point = random_box(graph, 1).centre_point
    sets, eps = InputSet(point, point), torch.finfo(torch.float32).eps
    off = {i: graph.values(point)[i] for i in graph.relaxed_inputs}
    given = {i: Interval((z + 4 * eps * (1 + z.abs())).float(), (z + 6 * eps * (1 + z.abs())).float())
             for i, z in off.items()}
    rows = UnsafeRows(torch.ones(1, 1, math.prod(graph.output_shape)).double(), torch.zeros(1, 1).double())
    assert Planet(graph).solve(sets, given, rows).status.tolist() != [int(Status.INFEASIBLE)]


@pytest.mark.parametrize("ball", [False, True])
def test_a_network_whose_first_neurons_read_sums_is_tightened(ball: bool) -> None:
    """The first encoding has no rows; an l_2 ball has none that HiGHS could take."""
    build = GraphBuilder((3,), torch.float64)
    generator = torch.Generator().manual_seed(0)
    first, second = (build.add(Linear(torch.randn(4, 3, generator=generator).double()), 0) for _ in range(2))
    build.add(Add(), first, second)
    build.add(Relu())
    build.add(Linear(torch.randn(2, 4, generator=generator).double()))
    graph, centre = build.graph("sum"), torch.zeros(1, 3).double()
    sets = LpBall(centre, 1.0, p=2.0) if ball else InputSet(centre - 1, centre + 1)
    found = Tightening(milp_s=1.0).refine(graph, sets)
    for i, z in enumerate(graph.values(sets.sample(500, generator)[0])):
        assert bool((z >= found[i].lower - ATOL).all() and (z <= found[i].upper + ATOL).all())
