"""Searches that split smooth neurons and max-pools, against fine grids and the exact oracle of tiny networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import verifier.strategy
from bounds.backward import Backward
from bounds.beta_crown import BetaCrown, Groups, Reached, Start
from bounds.graph import Graph
from bounds.ops.base import Elementwise
from bounds.ops.clip import Clip
from bounds.ops.elu import Elu
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.softplus import Softplus
from bounds.ops.tanh import Tanh
from tests.bounds.networks import GraphBuilder
from tests.verifier.test_oracle import GraphReplayer, assert_agrees, draw_graph, draw_property
from verifier import verify
from verifier.branch_and_bound.bounding import Bounder, Question
from verifier.branch_and_bound.domains import BOTH_SET, LOWER_SET, UPPER_SET, Domains, Layout
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage, root_domains, with_splittable_pools
from verifier.deadline import Deadline
from verifier.problem import Problem, State, make_problem
from verifier.property import Branch, Property, Region, Row
from verifier.stages import BRIEF, AttackStage, BoundStage, Stage
from verifier.strategy import Result

GRID = 201
SMOOTH: list[Elementwise] = [Sigmoid(), Tanh(), Softplus(), Elu(1.0), Elu(3.0), Clip(-0.5, 0.5)]
every_smooth = pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.kind)


def smooth_network(op: Elementwise, seed: int) -> Graph:
    """Two inputs, two hidden layers, one output."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    build = GraphBuilder((2,), torch.float64)
    for width in (4, 3):
        build.add(Linear(random(width, build.shape[0]), random(width)))
        build.add(op)
    build.add(Linear(random(1, 3)))
    return build.graph("smooth")


@dataclass(frozen=True)
class Least:
    """The least output over [-1, 1]^2: `low` is proved by a grid and a Lipschitz constant, `high` was seen."""

    low: float
    high: float

    @staticmethod
    def of(graph: Graph) -> Least:
        steps = torch.linspace(-1, 1, GRID, dtype=torch.float64)
        seen = float(graph(torch.cartesian_prod(steps, steps)).min())
        reach = torch.full((2,), 1 / (GRID - 1), dtype=torch.float64)  # from the nearest point of the grid
        for node in graph.nodes[1:]:
            if isinstance(node.op, Linear):
                reach = node.op.weight.abs() @ reach
            elif isinstance(node.op, Elu):
                reach = reach * max(1.0, node.op.alpha)
        return Least(seen - float(reach), seen)


def above(threshold: float) -> Property:
    """Unsafe: the output is at most the threshold."""
    region = Region((Fraction(-1),) * 2, (Fraction(1),) * 2)
    return Property((Branch(region, (Row(((0, Fraction(1)),), (), Fraction(threshold)),)),), 2, 1, "above")


def searched(graph: Graph, prop: Property, monkeypatch: pytest.MonkeyPatch, *, batch: int | None = None,
             time_limit_s: float = 10.0) -> Result:
    """What CROWN at the root, an attack (a plane's minimisers are corners) and a search over neurons alone say."""
    def stages(_: str, problem: Problem, *__: str) -> list[Stage]:
        plan = replace(plan_for(problem), inputs=False, neurons=True, refresh=True, clips=False, joint=False,
                       cuts=False)
        plan = plan if batch is None else replace(plan, batch=batch)
        return [BoundStage("crown", keep=True), AttackStage("pgd-brief", BRIEF), BranchAndBoundStage(plan)]
    with monkeypatch.context() as patch:
        patch.setattr(verifier.strategy, "stages_for", stages)
        return verify(graph, prop, replayer=GraphReplayer(graph), time_limit_s=time_limit_s)


@every_smooth
def test_neuron_splits_decide_smooth_networks_as_a_fine_grid_does(op: Elementwise, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    graph = smooth_network(op, 1)
    least = Least.of(graph)
    spread = 0.05 * (1 + abs(least.high))
    safe = searched(graph, above(least.low - spread), monkeypatch)
    assert safe.name == "verified"
    assert safe.lower <= least.high - (least.low - spread) + 1e-9
    unsafe = searched(graph, above(least.high + spread), monkeypatch)
    assert unsafe.name == "falsified"


@every_smooth
def test_batches_of_two_and_of_many_agree(op: Elementwise, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = smooth_network(op, 1)
    least = Least.of(graph)
    for threshold in (least.low - 0.1, least.high + 0.1):
        few, many = (searched(graph, above(threshold), monkeypatch, batch=n) for n in (2, 512))
        assert few.name == many.name != "unknown"


@pytest.mark.parametrize("threshold", [-0.02, 0.02])
@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=lambda op: op.kind)
def test_near_the_least_value_verdicts_are_right(op: Elementwise, threshold: float, monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    for seed in range(3, 6):
        graph = smooth_network(op, seed)
        least = Least.of(graph)
        result = searched(graph, above(least.high + threshold), monkeypatch, time_limit_s=3.0)
        assert result.name != ("verified" if threshold > 0 else "falsified")


# ---------------------------------------------------------------------- domains split more than once at a neuron


def rooted(graph: Graph, prop: Property, *, fenced: bool = False) -> tuple[Bounder, Domains]:
    problem = make_problem(graph, prop, replayer=GraphReplayer(graph), deadline=Deadline.starting_now(60))
    state = State.of(problem)
    BoundStage("crown", keep=True).run(problem, state)
    question, layout = Question.of(problem.tensors), Layout.of(problem.graph)
    bounder = Bounder(problem.graph, question, layout, BetaCrown(), refresh=False, clips=False, warm=True,
                      fenced=fenced)
    plan = replace(plan_for(problem), joint=False)
    return bounder, root_domains(problem, state, state.intervals, bounder, plan)


def test_children_remember_which_bounds_splits_have_set() -> None:
    graph = smooth_network(Tanh(), 0)
    bounder, root = rooted(graph, above(50.0))
    j = bounder.layout.inputs + 1
    middle = (root.z_low[:, 1] + root.z_high[:, 1]) / 2
    first = dataclasses.replace(root, choice=torch.tensor([j]), point=middle).children(bounder.layout)
    assert first.sides[:, 1].tolist() == [UPPER_SET, LOWER_SET]
    first.multipliers[:, 1] = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    centre = (first.z_low[:, 1] + first.z_high[:, 1]) / 2
    second = dataclasses.replace(first, choice=torch.tensor([j, j]), point=centre).children(bounder.layout)
    assert second.sides[:, 1].tolist() == [UPPER_SET, BOTH_SET, BOTH_SET, LOWER_SET]
    # Where a new split sets the other bound, the multiplier on the old one stays.
    assert second.multipliers[:, 1].tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert (second.z_low[1, 1], second.z_high[1, 1]) == (middle[0], centre[1])


@every_smooth
def test_bounds_of_repeatedly_split_domains_hold_at_every_point_they_contain(op: Elementwise) -> None:
    graph = smooth_network(op, 1)
    bounder, domains = rooted(graph, above(50.0))  # never closed, so that every split is made
    layout = bounder.layout
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, 2, generator=generator, dtype=torch.float64) * 2 - 1
    values = graph.values(x)
    z, y = torch.cat([values[i] for i in layout.nodes], 1), values[graph.output][:, 0] - 50
    for _ in range(5):
        bounded = bounder.bound(domains)
        for k in range(len(domains)):
            inside = ((z >= domains.z_low[k]) & (z <= domains.z_high[k])).all(1)
            if bool(inside.any()):
                assert not bool(bounded.empty[k])
                assert float(bounded.group_lower[k]) <= float(y[inside].min()) + 1e-9
        domains = bounded.domains
        # Multipliers of any sign and size are valid; two neurons, so that each is split again and again.
        domains.multipliers = torch.randn(domains.multipliers.shape, generator=generator, dtype=torch.float64)
        domains.choice = layout.inputs + torch.randint(0, 2, (len(domains),), generator=generator)
        at = (domains.choice - layout.inputs).unsqueeze(1)
        share = torch.rand(len(domains), 1, generator=generator, dtype=torch.float64) * 0.8 + 0.1
        domains.point = torch.lerp(domains.z_low.gather(1, at), domains.z_high.gather(1, at), share).squeeze(1)
        domains = domains.children(layout)


def test_bounds_that_are_no_numbers_close_nothing_and_are_told() -> None:
    class NoNumber(BetaCrown):
        def bound(self, engine: Backward, groups: Groups, target: Tensor, start: Start | None = None) -> Reached:
            reached = super().bound(engine, groups, target, start)
            return replace(reached, lower=torch.full_like(reached.lower, torch.nan))
    bounder, root = rooted(smooth_network(Tanh(), 0), above(50.0))
    bounded = replace(bounder, method=NoNumber()).bound(root)
    assert bounded.numerical and bool(bounded.domains.open.all()) and not bool(bounded.closed.any())
    assert not bool((bounded.group_lower > 0).any())


@every_smooth
def test_boxes_of_fenced_children_hold_all_of_their_points(op: Elementwise) -> None:
    """Neurons are split anywhere, not only at zero, and several domains at once."""
    graph = smooth_network(op, 1)
    bounder, domains = rooted(graph, above(50.0), fenced=True)
    layout = bounder.layout
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, 2, generator=generator, dtype=torch.float64) * 2 - 1
    values = graph.values(x)
    z = torch.cat([values[i] for i in layout.nodes], 1)
    smaller = 0
    for _ in range(4):
        bounded = bounder.bound(domains)
        domains = bounded.domains
        domains.choice = layout.inputs + torch.randint(0, 4, (len(domains),), generator=generator)
        at = (domains.choice - layout.inputs).unsqueeze(1)
        share = torch.rand(len(domains), 1, generator=generator, dtype=torch.float64) * 0.8 + 0.1
        domains.point = torch.lerp(domains.z_low.gather(1, at), domains.z_high.gather(1, at), share).squeeze(1)
        domains.fences = bounder.fences(bounded, torch.arange(len(domains)), domains.choice, domains.point)
        parents, domains = domains, domains.children(layout)
        smaller += int((domains.high - domains.low < 0.99 * (parents.high - parents.low).repeat(2, 1)).any(1).sum())
        for k in range(len(domains)):
            mine = x[((z >= domains.z_low[k]) & (z <= domains.z_high[k])).all(1)]
            assert bool(((mine >= domains.low[k] - 1e-9) & (mine <= domains.high[k] + 1e-9)).all())
    assert smaller > 5


# ---------------------------------------------------------------------- max-pools


@pytest.mark.parametrize("seed", range(16))
def test_neuron_splits_decide_max_pools_as_the_oracle_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, "pooling")
    prop, truths = draw_property(random, graph)
    margins = [truths[b.region].margin(b.rows) for b in prop.branches]
    result = searched(graph, prop, monkeypatch)
    assert_agrees(result, prop, margins, graph)
    if min(margins) > 1e-3:
        assert result.name == "verified"


def test_a_search_over_neurons_sees_no_max_pool() -> None:
    graph = draw_graph(np.random.default_rng(0), "pooling")
    region = Region((Fraction(-1),) * 9, (Fraction(1),) * 9)
    prop = Property((Branch(region, (Row(((0, Fraction(1)),), (), Fraction(0)),)),), 9, 2, "open")
    problem = make_problem(graph, prop, replayer=GraphReplayer(graph), deadline=Deadline.starting_now(60))
    state = State.of(problem)
    BoundStage("crown", keep=True).run(problem, state)
    assert any(isinstance(n.op, MaxPool) for n in problem.graph.nodes)
    rewritten, intervals = with_splittable_pools(problem, state)
    assert not any(isinstance(n.op, MaxPool) for n in rewritten.graph.nodes)
    assert set(intervals) == set(rewritten.graph.relaxed_inputs)
