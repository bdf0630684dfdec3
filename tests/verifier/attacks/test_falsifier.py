"""Attacks: points stay in the set, margins are what they say, planted and known counterexamples are found."""

from __future__ import annotations

import csv
import math
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.sign import Sign
from tests.bounds.networks import GraphBuilder
from verifier.attacks.falsifier import Falsifier
from verifier.attacks.property_search import Outcome, Problem, PropertyAttack
from verifier.deadline import Deadline
from verifier.property import Branch, Property, Region, Row, robustness
from verifier.vnnlib import read_vnnlib
from verifier.witness import OnnxReplayer, Witness, confirm

ONE = Fraction(1)


class GraphReplayer:
    """The graph itself as the original."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.graph(torch.from_numpy(x)).flatten(1).numpy()


def network(sizes: tuple[int, ...], seed: int = 0) -> Graph:
    g = torch.Generator().manual_seed(seed)
    build = GraphBuilder((sizes[0],), torch.float32)
    for k, (a, b) in enumerate(pairwise(sizes)):
        if k:
            build.add(Relu())
        build.add(Linear(torch.randn(b, a, generator=g) / math.sqrt(a), 0.1 * torch.randn(b, generator=g)))
    return build.graph()


def run(graph: Graph, prop: Property, attack: PropertyAttack | None = None, *, seed: int = 0, gate: bool = True,
        limit_s: float = 20.0) -> Outcome:
    def confirmed(x: Tensor) -> Witness | None:
        return confirm(x, prop, GraphReplayer(graph))
    return (attack or Falsifier()).run(graph, prop.tensors(graph.input_shape, dtype=torch.float32),
                                 deadline=Deadline.starting_now(limit_s), gate=confirmed if gate else None,
                                 generator=torch.Generator().manual_seed(seed))


def least_margin(graph: Graph, prop: Property, count: int = 20000) -> float:
    """Sampling oracle: the least margin over random points of every region."""
    t = prop.tensors(graph.input_shape, dtype=torch.float32)
    best = math.inf
    for u, points in enumerate(t.replay_sets.sample(count, torch.Generator().manual_seed(9))):
        margin = t.branch_margin(t.violation(points, graph(points)))
        best = min(best, float(margin[:, t.branch_region == u].min()))
    return best


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_the_attack_beats_sampling_and_stays_inside(norm: float) -> None:
    graph = network((12, 30, 30, 5))
    x = torch.rand(12, generator=torch.Generator().manual_seed(1))
    label = int(graph(x.unsqueeze(0)).argmax())
    eps = {1.0: 0.05, 2.0: 0.03, math.inf: 0.01}[norm]
    prop = robustness(x.numpy(), label, eps, classes=5, norm=norm, clip=(0.0, 1.0))
    outcome = run(graph, prop, gate=False)
    assert outcome.witness is None, "without a gate nothing is confirmed"
    assert outcome.margin <= least_margin(graph, prop)
    found = outcome.candidates
    assert found.margin.tolist() == sorted(found.margin.tolist())
    t = prop.tensors((12,), dtype=torch.float32)
    assert bool(t.replay_sets.contains(found.x, torch.zeros(len(found.branch), dtype=torch.long)).all())
    again = t.branch_margin(t.violation(found.x, graph(found.x)))[torch.arange(len(found.branch)), found.branch]
    assert again.tolist() == pytest.approx(found.margin.tolist(), abs=1e-6)


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_a_reachable_unsafe_set_is_found_and_confirmed(norm: float) -> None:
    graph = network((12, 30, 30, 5), seed=2)
    x = torch.rand(12, generator=torch.Generator().manual_seed(3))
    label = int(graph(x.unsqueeze(0)).argmax())
    prop = robustness(x.numpy(), label, {1.0: 9.0, 2.0: 2.5, math.inf: 0.8}[norm], classes=5, norm=norm)
    outcome = run(graph, prop)
    assert outcome.witness is not None
    assert prop.holds_unsafe(outcome.witness.x, outcome.witness.y)
    assert outcome.witness.margin <= 0


def test_fixed_inputs_never_move_and_few_calls_are_counted() -> None:
    graph = network((6, 20, 3), seed=4)
    x = np.linspace(0, 1, 6, dtype=np.float32)
    mask = np.array([True, False, True, False, True, False])
    prop = robustness(x, 0, 0.2, classes=3, mask=mask)
    outcome = run(graph, prop, Falsifier(restarts=4, steps=5, rounds=1, samples=16), gate=False)
    assert bool((outcome.candidates.x[:, ~mask] == torch.from_numpy(x[~mask])).all())
    assert 0 < outcome.backward_calls <= 2 * (4 * 5 + 4 * 5)
    assert outcome.forward_calls >= outcome.backward_calls


def test_disjunctive_regions_and_input_rows() -> None:
    """y = relu(x) summed; only the second region and the input row together reach the unsafe set."""
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.eye(2)))
    build.add(Relu())
    build.add(Linear(torch.ones(1, 2)))
    graph = build.graph()
    row = Row(((0, ONE),), ((0, Fraction(-3)),), Fraction("-0.9"))  # Y_0 - 3 X_0 <= -0.9
    prop = Property((Branch(Region(("-1", "-1"), ("0", "0")), (row,)),
                     Branch(Region(("0", "0.2"), ("0.6", "0.9")), (row,))), 2, 1)
    outcome = run(graph, prop)
    assert outcome.witness is not None
    assert outcome.witness.branch == 1


def test_a_conjunction_of_rows_needs_all_of_them() -> None:
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    graph = build.graph()
    rows = (Row(((0, -ONE),), (), Fraction("-0.9")), Row(((1, ONE),), (), Fraction("-0.96")),
            Row(((0, ONE), (1, ONE)), (), Fraction("0.05")), Row(((0, -ONE), (1, -ONE)), (), Fraction("0.05")))

    def question(high: str) -> Property:  # |X_0 + X_1| <= 0.05 with X_1 <= -0.96 needs X_0 >= 0.91
        return Property((Branch(Region(("-1", "-1"), (high, "1")), rows),), 2, 2)

    assert run(graph, question("0.915")).witness is not None
    missed = run(graph, question("0.905"), Falsifier(rounds=1))
    assert missed.witness is None
    assert 0 < missed.margin < 0.02


def test_thresholds_met_exactly_at_a_corner_are_found() -> None:
    """A small satisfiability problem as a network: Y_0 counts satisfied clauses, met exactly at a corner only."""
    g = torch.Generator().manual_seed(5)
    n, clauses = 12, 40
    hidden = torch.randint(0, 2, (n,), generator=g)
    weight, bias = torch.zeros(clauses, n), torch.zeros(clauses)
    for c in range(clauses):
        chosen = torch.randperm(n, generator=g)[:3]
        signs = torch.randint(0, 2, (3,), generator=g)
        signs[0] = hidden[chosen[0]]  # the planted point satisfies every clause
        for i, s in zip(chosen.tolist(), signs.tolist(), strict=True):
            weight[c, i] = -1.0 if s else 1.0  # relu(1 - number of true literals)
            bias[c] -= 1.0 if not s else 0.0
        bias[c] += 1.0
    build = GraphBuilder((n,), torch.float32)
    build.add(Linear(weight, bias))
    build.add(Relu())
    build.add(Linear(-torch.ones(1, clauses), torch.tensor([float(clauses)])))
    graph = build.graph()
    assert float(graph(hidden.float().unsqueeze(0))) == clauses
    prop = Property((Branch(Region(("0",) * n, ("1",) * n), (Row(((0, -ONE),), (), Fraction(-clauses)),)),), n, 1)
    outcome = run(graph, prop, Falsifier(rounds=4))
    assert outcome.witness is not None
    assert outcome.witness.margin == 0.0


def test_a_branch_without_rows_is_unsafe_everywhere() -> None:
    prop = Property((Branch(Region(("0",) * 6, ("1",) * 6), (Row(((0, ONE),), (), Fraction(-10**6)),)),
                     Branch(Region(("2",) * 6, ("3",) * 6), ())), 6, 3)
    outcome = run(network((6, 5, 3)), prop)
    assert outcome.witness is not None
    assert outcome.witness.branch == 1


def test_the_same_seed_gives_the_same_candidates() -> None:
    graph, x = network((6, 20, 3), seed=6), np.full(6, 0.5, dtype=np.float32)
    prop = robustness(x, int(graph(torch.from_numpy(x)[None]).argmax()), 0.01, classes=3)
    first, second = (run(graph, prop, Falsifier(rounds=1), seed=7, gate=False).candidates for _ in range(2))
    assert torch.equal(first.x, second.x)
    other = run(graph, prop, Falsifier(rounds=1), seed=8, gate=False).candidates
    assert other.margin[0] == pytest.approx(float(first.margin[0]), abs=0.05)


def test_the_deadline_is_kept() -> None:
    graph, x = network((50, 400, 400, 3), seed=9), np.full(50, 0.5, dtype=np.float32)
    prop = robustness(x, int(graph(torch.from_numpy(x)[None]).argmax()), 1e-5, classes=3)
    start = time.monotonic()
    run(graph, prop, Falsifier(rounds=10**6, time_limit_s=math.inf), limit_s=0.3)
    assert time.monotonic() - start < 1.5
    start = time.monotonic()
    run(graph, prop, Falsifier(rounds=10**6, time_limit_s=0.1))
    assert time.monotonic() - start < 1.5


def test_a_gate_that_refuses_everything_is_not_asked_for_ever() -> None:
    graph, asked = network((6, 5, 3)), []
    prop = Property((Branch(Region(("0",) * 6, ("1",) * 6), (Row(((0, ONE),), (), Fraction(100)),)),), 6, 3)

    def never(x: Tensor) -> None:
        asked.append(x)

    outcome = Falsifier().run(graph, prop.tensors((6,), dtype=torch.float32), gate=never)
    assert outcome.witness is None
    assert 0 < len(asked) < 200


def test_many_branches_are_chunked_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network((3, 10, 300), seed=10)
    prop = robustness(np.full(3, 0.5, dtype=np.float32), 0, 0.3, classes=300)
    whole = run(graph, prop, Falsifier(rounds=1, restarts=4, steps=6, samples=8), gate=False)
    monkeypatch.setattr(Problem, "points_at_once", lambda self: 64)
    chunked = run(graph, prop, Falsifier(rounds=1, restarts=4, steps=6, samples=8), gate=False)
    assert chunked.margin == pytest.approx(whole.margin, abs=0.05)
    monkeypatch.setattr("verifier.attacks.property_search.DENSE_ROWS", 0)
    gathered = run(graph, prop, Falsifier(rounds=1, restarts=4, steps=6, samples=8), gate=False)
    assert gathered.margin == pytest.approx(chunked.margin, abs=1e-4)


def test_the_best_point_of_each_branch_is_kept() -> None:
    """Two inputs in one property: each branch gets the point of its own region at which its margin was seen."""
    graph = network((8, 20, 4))
    points = torch.rand(2, 8, generator=torch.Generator().manual_seed(3))
    alone = [robustness(x.numpy(), 0, 0.1, classes=4) for x in points]
    prop = Property(tuple(b for p in alone for b in p.branches), 8, 4)
    t = prop.tensors((8,), dtype=torch.float32)
    attack = Falsifier(restarts=4, steps=10, rounds=1, samples=16)
    found = attack.best_of_each(graph, t, generator=torch.Generator().manual_seed(0))
    assert found.branch.tolist() == list(range(6))
    region = t.branch_region[found.branch]
    assert region.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(t.replay_sets.project(found.x, region), found.x)
    violation = t.violation(found.x, graph(found.x)).gather(1, found.branch.unsqueeze(1)).squeeze(1)
    assert torch.allclose(violation, found.margin, atol=1e-6)
    for u, p in enumerate(alone):
        assert float(found.margin[region == u].min()) <= least_margin(graph, p) + 1e-6


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="restarts must be >= 1"):
        Falsifier(restarts=0)
    with pytest.raises(ValueError, match="samples must be >= 0"):
        Falsifier(samples=-1)
    with pytest.raises(ValueError, match=r"property is in torch\.float64"):
        Falsifier().run(network((2, 2)), robustness(np.zeros(2), 0, 1.0, classes=2).tensors((2,), dtype=torch.float64))


@pytest.mark.shared
@pytest.mark.parametrize("benchmark", ["acasxu", "safenlp", "rl_benchmarks", "collins_rul_cnn", "mnist_fc", "sat_relu",
                                       "marabou_cifar10_2021"])
def test_known_counterexamples_are_found(shared: Path, benchmark: str) -> None:
    """The first known falsifiable instances of each family: at least three of four within the default effort."""
    folder = shared / "vnncomp" / benchmark
    with (folder / "expected.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["verdict"] == "sat"][:4]
    found = 0
    for row in rows:
        graph = Graph.from_onnx(folder / row["onnx"]).simplify()
        prop = read_vnnlib(folder / row["vnnlib"], inputs=math.prod(graph.input_shape))
        replayer = OnnxReplayer(folder / row["onnx"])
        outcome = Falsifier().run(graph, prop.tensors(graph.input_shape, dtype=graph.dtype),
                            deadline=Deadline.starting_now(5.0), generator=torch.Generator().manual_seed(0),
                            gate=lambda x, prop=prop, replayer=replayer: confirm(x, prop, replayer))
        if outcome.witness is not None:
            found += 1
            assert prop.holds_unsafe(outcome.witness.x.reshape(-1), outcome.witness.y)
    assert found >= min(3, len(rows))


def test_binarised_networks_are_searched_through_a_stand_in_gradient() -> None:
    """Two layers of signs: the true gradient is zero everywhere, and in sixty dimensions samples alone find nothing."""
    g = torch.Generator().manual_seed(1)
    build = GraphBuilder((60,), torch.float32)
    build.add(Linear(torch.randn(80, 60, generator=g), torch.zeros(80)))
    build.add(Sign())
    build.add(Linear(torch.randn(2, 80, generator=g), torch.zeros(2)))
    graph = build.graph()
    x = torch.randn(40, 60, generator=g)
    label = graph(x).argmax(1)
    found, sampled = 0, 0
    for i in range(40):
        prop = robustness(x[i].numpy(), int(label[i]), 0.15, classes=2)
        sampled += least_margin(graph, prop, 2000) <= 0
        found += run(graph, prop, Falsifier(rounds=1, samples=0), limit_s=60).witness is not None
    assert found >= sampled + 10, (found, sampled)


def test_the_stand_in_slope_is_largest_at_the_jump_and_changes_no_value() -> None:
    x = torch.tensor([[-2.0, -0.01, 0.0, 0.01, 3.0]], requires_grad=True)
    y = Sign().forward(x)
    assert y.tolist() == [[-1.0, -1.0, 0.0, 1.0, 1.0]]
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    assert slope.argmax() == 2
    assert float(slope[0, 0]) < 0.01 * float(slope[0, 2])
