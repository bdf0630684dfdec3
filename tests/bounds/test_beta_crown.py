"""Signed multipliers: valid whatever they are, worth what a plain evaluation says, and never worse than none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.beta_crown import Ascent, BetaCrown, Groups, Start
from bounds.bounds import LinearRows
from bounds.final import final_bounds
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import Box, InputSet
from milp import Planet, Status, UnsafeRows, certified_value
from tests.bounds.networks import KINDS, GraphBuilder, random_box, random_graph, samples

DOMAINS, POINTS = 3, 400
NO_TARGET = math.inf


def split_domains(graph: Graph, seed: int, share: float = 0.3) -> tuple[Backward, Tensor, Tensor]:
    """(engine over domains with random splits at zero, points "B P *input", those that keep to the splits "B P")."""
    generator = torch.Generator().manual_seed(seed)
    box = random_box(graph, seed, 1, 1.0)
    sets = InputSet(*(t.expand(DOMAINS, *graph.input_shape).clone() for t in (box.lower, box.upper)))
    engine = Backward(graph, sets)
    refine(engine, row_bound=engine.lower)
    known, splits, sides = {}, {}, {}
    for i in graph.relaxed_inputs:
        x = engine.intervals[i]
        chosen = (torch.rand(x.lower.shape, generator=generator) < share) & (x.lower < 0) & (x.upper > 0)
        side = torch.where(torch.rand(x.lower.shape, generator=generator) < 0.5, 1, -1) * chosen
        known[i] = Interval(torch.where(side > 0, x.lower.clamp(min=0), x.lower),
                            torch.where(side < 0, x.upper.clamp(max=0), x.upper))
        splits[i], sides[i] = side != 0, side
    engine = Backward(graph, sets)
    engine.splits = splits
    refine(engine, known=known, row_bound=engine.lower)
    points = samples(sets, POINTS, seed)
    values = graph.values(points.flatten(0, 1))
    inside = torch.ones(DOMAINS, points.shape[1], dtype=torch.bool)
    for i, side in sides.items():
        z = values[i].view(*points.shape[:2], *graph.nodes[i].shape)
        inside &= ((z * side.unsqueeze(1)) >= 0).flatten(2).all(2)
    return engine, points, inside


def random_groups(graph: Graph, rows: int, seed: int, *, inputs: bool) -> Groups:
    generator = torch.Generator().manual_seed(seed)
    m, n = math.prod(graph.output_shape), math.prod(graph.input_shape)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=graph.dtype)
    mask = torch.ones(DOMAINS, rows, dtype=torch.bool)
    if rows > 1:
        mask[0, -1] = False
    return Groups(normal(DOMAINS, rows, m), normal(DOMAINS, rows), mask, torch.arange(DOMAINS),
                  normal(DOMAINS, rows, n) if inputs else None)


def combined_values(graph: Graph, groups: Groups, weights: Tensor, points: Tensor) -> Tensor:
    """"B P": the weighted rows at points."""
    y = graph(points.flatten(0, 1)).view(*points.shape[:2], -1)
    v = torch.einsum("brm,bpm->bpr", groups.C, y) + groups.offset.unsqueeze(1)
    if groups.D is not None:
        v = v + torch.einsum("brn,bpn->bpr", groups.D, points.flatten(2))
    return (v * weights.unsqueeze(1)).sum(2)


def assert_below(lower: Tensor, engine: Backward, values: Tensor, inside: Tensor) -> None:
    assert not bool((engine.empty.unsqueeze(1) & inside).any()), "a domain with points was called empty"
    gap = (values - lower.unsqueeze(1))[inside]
    assert bool((gap >= -1e-9 * (1 + values[inside].abs())).all()), float(gap.min())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "mixed"])
@pytest.mark.parametrize("seed", range(4))
def test_multipliers_of_any_sign_on_any_neuron_are_valid(kind: str, activation: str, seed: int) -> None:
    graph = random_graph(seed, kind, activation)
    engine, points, inside = split_domains(graph, seed)
    groups = random_groups(graph, 1 + seed % 3, seed, inputs=seed % 2 == 1)
    generator = torch.Generator().manual_seed(seed + 1)
    for size in (0.1, 1.0, 10.0):
        multipliers = {i: torch.randn(DOMAINS, *graph.nodes[i].shape, generator=generator, dtype=graph.dtype) * size
                       for i in graph.relaxed_inputs}
        weights = torch.rand(groups.mask.shape, generator=generator, dtype=graph.dtype) * groups.mask
        if seed == 3:
            weights[1] = 0  # a ray: what it is worth must be at most zero where there is a point
        slopes = {}
        for i, node in enumerate(graph.nodes):
            box = node.op.parameters(engine.intervals[node.inputs[0]]) if isinstance(node.op, Elementwise) else None
            if box is not None:
                t = torch.rand(box[1].shape, generator=generator, dtype=graph.dtype)
                slopes[i] = box[1] + t * (box[2] - box[1])
        lower = BetaCrown().evaluate(engine, groups, weights.new_full((DOMAINS,), NO_TARGET),
                                     Start(slopes, multipliers, weights)).lower
        assert_below(lower, engine, combined_values(graph, groups, weights, points), inside)


def test_large_multipliers_prove_no_more_in_float32_than_they_do_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their terms cancel: what rounding makes of them is charged, and the charge is needed."""
    def excess(seed: int) -> float:
        graph = random_graph(seed, "dense", "Relu")
        engine, _, _ = split_domains(graph, seed)
        groups = random_groups(graph, 1, seed, inputs=False)
        generator = torch.Generator().manual_seed(seed)
        s = {i: torch.randn(DOMAINS, *graph.nodes[i].shape, generator=generator, dtype=graph.dtype) * 1e6
             for i in graph.relaxed_inputs}
        narrow = graph.to(dtype=torch.float32)
        single = Backward(narrow, InputSet(engine.sets.lower.float(), engine.sets.upper.float()))
        double = Backward(narrow.to(dtype=torch.float64), single.sets.to(dtype=torch.float64))
        lower = []
        for one in (single, double):
            dtype = one.graph.dtype
            for i in graph.relaxed_inputs:
                one.enclose(i, engine.intervals[i].map(lambda t, d=dtype: t.float().to(d)))
            g = Groups(groups.C.float().to(dtype), groups.offset.float().to(dtype), groups.mask, groups.owner)
            at = Start({}, {i: t.float().to(dtype) for i, t in s.items()}, torch.ones(DOMAINS, 1, dtype=dtype))
            target = torch.full((DOMAINS,), NO_TARGET, dtype=dtype)
            lower.append(BetaCrown().evaluate(one, g, target, at).lower.double())
        return float((lower[0] - lower[1]).max())
    assert max(excess(seed) for seed in range(12)) <= 0
    monkeypatch.setattr("bounds.rounding.MULTIPLIER_ULPS", 0)
    assert max(excess(seed) for seed in range(12)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ascent", ["signs", "level"])
@pytest.mark.parametrize("seed", range(4))
def test_climbed_bounds_hold_and_are_never_below_their_start(kind: str, ascent: Ascent, seed: int) -> None:
    graph = random_graph(seed, kind, "Relu" if seed % 2 else "mixed")
    engine, points, inside = split_domains(graph, seed)
    groups = random_groups(graph, 1, seed, inputs=seed % 2 == 1)
    rows = LinearRows(groups.C[:, 0], groups.owner, None if groups.D is None else groups.D[:, 0], groups.offset[:, 0])
    start = final_bounds(engine, rows, {}).lower
    target = start + 1000  # levels need a finite one
    reached = BetaCrown(iterations=6, ascent=ascent).bound(engine, groups, target)
    assert bool((reached.lower >= start - 1e-9 * (1 + start.abs())).all())
    values = combined_values(graph, groups, torch.ones(DOMAINS, 1, dtype=graph.dtype), points)
    assert_below(reached.lower, engine, values, inside)
    still = reached.open  # levels may lift the bound of a domain without points beyond any target
    assert not bool(inside[reached.lower > target].any())
    plane = torch.einsum("bn,bpn->bp", reached.A.flatten(1), points[still].flatten(2)) + reached.b.unsqueeze(1)
    below = plane <= values[still] + 1e-9 * (1 + values[still].abs())
    assert bool(below[inside[still]].all()), "the plane lies below the rows"
    if not len(still):
        return
    again = BetaCrown(iterations=1).bound(engine, groups.take(still), target[still], reached.at).lower
    lower = reached.lower[still]
    assert bool((again >= lower - 1e-7 * (1 + lower.abs())).all()), "a warm start keeps the bound"


def test_levels_are_reached_where_nothing_bounds_the_multipliers() -> None:
    """A neuron with values in [0, 1] was split at 2: multipliers lift the bound beyond any target, in few steps."""
    build = GraphBuilder((1,), torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    z = build.add(Linear(one))
    build.add(Relu())
    build.add(Linear(one))
    engine = Backward(build.graph(), Box(0 * one, one))
    refine(engine, row_bound=engine.lower)
    engine.enclose(z, Interval(2 * one, 3 * one))
    engine.splits[z] = torch.ones(1, 1, dtype=torch.bool)
    groups = Groups(one.unsqueeze(0), 0 * one, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    target = torch.tensor([1000.0], dtype=torch.float64)
    assert bool(BetaCrown(iterations=4, ascent="level").bound(engine, groups, target).lower > target)
    assert bool(BetaCrown(iterations=4, ascent="signs").bound(engine, groups, target).lower < 10)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_evaluations_of_certificates_are_what_they_are_worth(kind: str, rows: int, seed: int) -> None:
    """Optimal programmes and empty ones, whose certificate has no row at all."""
    graph = random_graph(seed, kind, "Relu")
    engine, points, inside = split_domains(graph, seed, share=0.9)
    groups = random_groups(graph, rows, seed, inputs=seed % 2 == 1)
    unsafe = UnsafeRows(groups.C, -groups.offset, groups.D, groups.mask)
    intervals = {i: engine.intervals[i] for i in graph.relaxed_inputs}
    answers = Planet(graph).solve(engine.sets, intervals, unsafe)
    found = answers.certificate
    at = Start(dict(found.params), dict(found.multipliers), found.weights)
    worth = certified_value(graph, engine.sets, intervals, unsafe, found)
    reached = BetaCrown().evaluate(engine, groups, worth.new_full((DOMAINS,), NO_TARGET), at)
    torch.testing.assert_close(reached.lower, worth, rtol=1e-6, atol=1e-7)
    optimal = answers.status == Status.OPTIMAL
    assert bool((worth[optimal] >= answers.value[optimal] - 1e-5 * (1 + answers.value[optimal].abs())).all())
    assert not bool(((answers.status == Status.INFEASIBLE).unsqueeze(1) & inside & ~engine.empty.unsqueeze(1)).any())
    assert_below(reached.lower, engine, combined_values(graph, groups, found.weights, points), inside)
