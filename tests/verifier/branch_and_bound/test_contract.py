"""Contraction loses no unsafe point, thresholds met exactly included, and does what unit propagation does."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.beta_crown import Groups
from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder, random_box, random_graph, samples
from tests.verifier.models import save_network, spec
from verifier import read_vnnlib, verify
from verifier.branch_and_bound.clip import SLACK
from verifier.branch_and_bound.contract import Contractor, Payoff
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout

DOMAINS, ROWS = 12, 3


def wide_box(graph: Graph) -> InputSet:
    reach = torch.full((1, *graph.input_shape), 10.0, dtype=graph.dtype)
    return InputSet(-reach, reach)


def contractor_of(graph: Graph) -> Contractor:
    layout = Layout.of(graph)
    affine = AffineNeurons.of(graph, layout, wide_box(graph))
    assert affine is not None
    return Contractor(graph, layout, affine)


def domains_of(layout: Layout, low: Tensor, high: Tensor) -> Domains:
    """Boxes "B n" of which nothing else is known, each with one open branch."""
    B, neurons = len(low), layout.total - layout.inputs
    longs, inf = torch.zeros(B, dtype=torch.long), low.new_full((B, neurons), torch.inf)
    return Domains(
        region=longs, open=torch.ones(B, 1, dtype=torch.bool), lower=low.new_full((B,), -torch.inf), depth=longs,
        node=longs, low=low, high=high, z_low=-inf, z_high=inf, sides=torch.zeros(B, neurons, dtype=torch.int8),
        slopes=low.new_zeros(B, 0), multipliers=low.new_zeros(B, neurons), choice=longs + NO_CHOICE,
        point=low.new_zeros(B), plane=low.new_zeros(B, 0), fences=low.new_zeros(B, 2, 0), cuts=low.new_zeros(B, 2, 0))


def conjunctions(graph: Graph, points: Tensor, seed: int, *, inputs: bool) -> Groups:
    """Random rows for every domain, met with equality at the one of its points "B P *shape" that makes few others
    unsafe."""
    generator = torch.Generator().manual_seed(seed)
    B, P = points.shape[:2]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(graph.dtype)
    y = graph(points.flatten(0, 1)).flatten(1).view(B, P, -1)
    C = random(B, ROWS, y.shape[2])
    D = random(B, ROWS, torch.Size(graph.input_shape).numel()) if inputs else None
    rows = torch.einsum("brm,bpm->bpr", C, y)
    if D is not None:
        rows = rows + torch.einsum("brn,bpn->bpr", D, points.flatten(2))
    threshold = rows.argsort(1)[:, P // 20]  # a point with a low first row, say
    offset = -rows[torch.arange(B), threshold[:, 0]]
    mask = torch.ones(B, ROWS, dtype=torch.bool)
    mask[::3, -1] = False
    return Groups(C, offset, mask, torch.arange(B), D)


def unsafe(graph: Graph, groups: Groups, points: Tensor) -> Tensor:
    """bool "B P": the points of each domain at which all its rows are at most 0."""
    B, P = points.shape[:2]
    y = graph(points.flatten(0, 1)).flatten(1).view(B, P, -1)
    rows = torch.einsum("brm,bpm->bpr", groups.C, y) + groups.offset.unsqueeze(1)
    if groups.D is not None:
        rows = rows + torch.einsum("brn,bpn->bpr", groups.D, points.flatten(2))
    return ((rows <= 0) | ~groups.mask.unsqueeze(1)).all(2)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "mixed"])
def test_no_unsafe_point_is_removed(kind: str, activation: str) -> None:
    removed = kept = 0
    for seed in range(12):
        graph = random_graph(seed, kind, activation)
        layout = Layout.of(graph)
        if AffineNeurons.of(graph, layout, wide_box(graph)) is None:
            continue
        sets = random_box(graph, seed, DOMAINS, radius=1.5)
        points = samples(sets, 400, seed)
        groups = conjunctions(graph, points, seed, inputs=seed % 2 == 1)
        domains = domains_of(layout, sets.lower.flatten(1), sets.upper.flatten(1))
        after, gone = contractor_of(graph).contract(domains, groups)
        bad = unsafe(graph, groups, points)
        assert not bool((bad.any(1) & gone).any())
        x = points.flatten(2)
        inside = ((x >= after.low.unsqueeze(1)) & (x <= after.high.unsqueeze(1))).all(2)
        values = graph.values(points.flatten(0, 1))
        z = layout.flat({i: values[i] for i in layout.nodes}).view(*points.shape[:2], -1)
        # The ends of neurons are as computed by interval arithmetic: right up to rounding.
        slack = 1e-9 * (1 + z.abs())
        inside &= ((z >= after.z_low.unsqueeze(1) - slack) & (z <= after.z_high.unsqueeze(1) + slack)).all(2)
        assert bool(inside[bad].all())
        removed += int((~inside | gone.unsqueeze(1)).sum())
        kept += int(bad.sum())
    assert removed > kept > 0, "the test would see nothing"


def test_a_batch_is_contracted_like_single_domains() -> None:
    for seed in range(8):
        graph = random_graph(seed)
        layout, contractor = Layout.of(graph), contractor_of(graph)
        sets = random_box(graph, seed, DOMAINS, radius=1.5)
        groups = conjunctions(graph, samples(sets, 50, seed), seed, inputs=False)
        domains = domains_of(layout, sets.lower.flatten(1), sets.upper.flatten(1))
        after, gone = contractor.contract(domains, groups)
        for b in range(DOMAINS):
            single = replace(groups.take(slice(b, b + 1)), owner=torch.zeros(1, dtype=torch.long))
            alone, empty = contractor.contract(domains.take(torch.tensor([b])), single)
            assert bool(empty[0]) == bool(gone[b])
            if not gone[b]:
                for name in ("low", "high", "z_low", "z_high"):
                    torch.testing.assert_close(getattr(alone, name)[0], getattr(after, name)[b], rtol=1e-9, atol=1e-9)


def test_the_domains_given_are_left_as_they_are() -> None:
    graph = random_graph(1)
    sets = random_box(graph, 1, DOMAINS)
    domains = domains_of(Layout.of(graph), sets.lower.flatten(1).clone(), sets.upper.flatten(1).clone())
    before = domains.map(torch.clone)
    contractor_of(graph).contract(domains, conjunctions(graph, samples(sets, 50, 1), 1, inputs=False))
    for name, value in vars(before).items():
        assert torch.equal(getattr(domains, name), value), name


# ---------------------------------------------------------------------- clauses

Clauses = list[list[int]]  # literals as in DIMACS: +v or -v, variables from 1


def clause_layers(clauses: Clauses, variables: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Y_0, the sum over clauses of how far all literals are false, and Y_1, of min(x, 1 - x) over variables:
    both are at most 0 exactly where x solves the clauses."""
    weight = np.zeros((len(clauses) + 2 * variables, variables))
    bias = np.zeros(len(weight))
    for k, clause in enumerate(clauses):
        for literal in clause:
            weight[k, abs(literal) - 1] = -np.sign(literal)
        bias[k] = 1 - sum(literal < 0 for literal in clause)
    for v in range(variables):
        weight[len(clauses) + v, v] = 1
        weight[len(clauses) + variables + v, v] = 2
        bias[len(clauses) + variables + v] = -1
    last = np.zeros((2, len(weight)))
    last[0, :len(clauses)] = 1
    last[1, len(clauses):-variables] = 1
    last[1, -variables:] = -1
    return [(weight, bias), (last, np.zeros(2))]


def clause_graph(clauses: Clauses, variables: int) -> Graph:
    build = GraphBuilder((variables,), torch.float64)
    (weight, bias), (last, _) = clause_layers(clauses, variables)
    build.add(Linear(torch.from_numpy(weight), torch.from_numpy(bias)))
    build.add(Relu())
    build.add(Linear(torch.from_numpy(last), torch.zeros(2, dtype=torch.float64)))
    return build.graph()


def solvable(clauses: Clauses) -> bool:
    """By trying both values of the first literal of a shortest clause."""
    if not clauses:
        return True
    shortest = min(clauses, key=len)
    return bool(shortest) and any(
        solvable([[i for i in clause if i != -literal] for clause in clauses if literal not in clause])
        for literal in (shortest[0], -shortest[0]))


def random_clauses(seed: int, variables: int, count: int) -> Clauses:
    random = np.random.default_rng(seed)
    return [[int(v + 1) * int(random.choice([-1, 1])) for v in random.choice(variables, 3, replace=False)]
            for _ in range(count)]


def whole_cube(clauses: Clauses, variables: int) -> tuple[Contractor, Domains, Groups]:
    graph = clause_graph(clauses, variables)
    eye = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    groups = Groups(eye, eye.new_zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    cube = torch.zeros(1, variables, dtype=torch.float64)
    return contractor_of(graph), domains_of(Layout.of(graph), cube, cube + 1), groups


def test_unit_clauses_are_propagated() -> None:
    contractor, domains, groups = whole_cube([[1], [-1, 2], [-2, -3], [3, 4, 5]], 5)
    after, gone = contractor.contract(domains, groups)
    assert not bool(gone.any())
    slack = 100 * SLACK[torch.float64]
    torch.testing.assert_close(after.low[0], torch.tensor([1., 1, 0, 0, 0]).double(), rtol=0, atol=slack)
    torch.testing.assert_close(after.high[0], torch.tensor([1., 1, 0, 1, 1]).double(), rtol=0, atol=slack)
    assert bool((after.low <= torch.tensor([1., 1, 0, 0, 1])).all()), "solutions stay, exactly"
    assert bool((after.high >= torch.tensor([1., 1, 0, 1, 1])).all())


def test_contradicting_units_leave_nothing() -> None:
    contractor, domains, groups = whole_cube([[1], [-1, 2], [-2, -3], [3]], 3)
    assert bool(contractor.contract(domains, groups)[1].all())


@pytest.mark.parametrize("seed", range(6))
def test_solutions_of_random_clauses_stay(seed: int) -> None:
    clauses = [*random_clauses(seed, 6, 14), [1 + seed % 6]]
    contractor, domains, groups = whole_cube(clauses, 6)
    after, gone = contractor.contract(domains, groups)
    for x in product((0.0, 1.0), repeat=6):
        if all(any(x[abs(i) - 1] == (i > 0) for i in clause) for clause in clauses):
            point = torch.tensor([x], dtype=torch.float64)
            assert not bool(gone.any())
            assert bool(((after.low <= point) & (point <= after.high)).all())


@pytest.mark.parametrize(("seed", "variables", "count"), [
    *((s, 5, 24) for s in range(3)), *((s, 16, 80) for s in range(3)), *((s, 22, 110) for s in range(4)), (0, 22, 40)])
def test_clauses_are_decided(tmp_path: Path, seed: int, variables: int, count: int) -> None:
    clauses = random_clauses(seed, variables, count)
    path = save_network(tmp_path / "clauses.onnx", clause_layers(clauses, variables))
    text = spec([(0.0, 1.0)] * variables, 2, "(<= Y_0 0.0)", "(<= Y_1 0.0)")
    result = verify(Graph.from_onnx(path), read_vnnlib(text.encode()), replayer=path, time_limit_s=60.0)
    assert result.name == ("falsified" if solvable(clauses) else "verified")


def test_contraction_that_does_not_pay_rests() -> None:
    graph = random_graph(1)
    sets = random_box(graph, 1, 300)
    same = domains_of(Layout.of(graph), sets.lower.flatten(1), sets.upper.flatten(1))
    nothing = torch.zeros(300, dtype=torch.bool)
    idle, busy = Payoff(), Payoff()
    idle.note(same, same, nothing)
    busy.note(same, same, ~nothing)
    assert sum(idle.wanted() for _ in range(64)) == 2
    assert all(busy.wanted() for _ in range(64))
