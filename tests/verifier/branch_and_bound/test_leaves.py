"""Leaves of a tree over one ball as the roots of another's: they cover the space, and what is closed stays closed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from bounds.ops.linear import Linear
from tests.bounds.networks import ACTIVATIONS, GraphBuilder
from tests.verifier.branch_and_bound.cases import problem_of
from tests.verifier.test_oracle import GraphReplayer
from verifier import robustness
from verifier.branch_and_bound.bounding import Question
from verifier.branch_and_bound.domains import Layout, sets_lower, sets_upper
from verifier.branch_and_bound.leaves import Leaves
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.problem import Problem, State
from verifier.stages import BoundStage

INPUTS = 24  # more than are bisected


def network(activation: str, seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
    build = GraphBuilder((INPUTS,), torch.float64)
    for width in (6, 5):
        build.add(Linear(random(width, build.shape[0]), random(width)))
        build.add(ACTIVATIONS[activation](random, (width,)))
    build.add(Linear(random(3, 5), random(3)))
    return build.graph(activation)


def question(graph: Graph, radius: float, steps: int = 60_000) -> tuple[Problem, State, np.ndarray, int]:
    x = np.random.default_rng(1).uniform(-1, 1, INPUTS).astype(np.float32)
    label = int(GraphReplayer(graph).run(x[None])[0].argmax())
    problem = problem_of(graph, robustness(x, label, radius, classes=3), steps=steps)
    state = State.of(problem)
    BoundStage("crown", keep=True).run(problem, state)
    return problem, state, x, label


def search(graph: Graph, radius: float, leaves: Leaves, steps: int = 60_000) -> tuple[Problem, State]:
    problem, state, _, _ = question(graph, radius, steps)
    leaves.radius = radius
    BranchAndBoundStage(plan_for(problem), leaves=leaves).run(problem, state)
    return problem, state


def crown_radius(graph: Graph) -> float:
    """The largest radius that CROWN proves, nearly."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        problem, state, _, _ = question(graph, middle)
        low, high = (low, middle) if bool(state.open_branches(problem.tensors).any()) else (middle, high)
    return low


def holds(leaves: Leaves, graph: Graph, layout: Layout, points: torch.Tensor, branch: int, at: float
          ) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many leaves of a branch hold each point "P", whether one of those that were closed at `at` does)."""
    values = graph.values(points)
    z = layout.flat({i: values[i] for i in layout.nodes})
    count = torch.zeros(len(points), dtype=torch.long)
    closed = torch.zeros(len(points), dtype=torch.bool)
    for leaf in leaves.kept:
        for k in (leaf.branch == branch).nonzero().flatten().tolist():
            if leaf.cuts.shape[2]:
                low, high = leaf.cuts[k]
            else:
                low = torch.where(sets_lower(leaf.sides[k]), 0.0, -torch.inf)
                high = torch.where(sets_upper(leaf.sides[k]), 0.0, torch.inf)
            inside = ((z >= low) & (z <= high)).all(1)
            count += inside
            closed |= inside & bool(leaf.closed_at[k] >= at)
    return count, closed


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Tanh", "Clip"])
@pytest.mark.parametrize("seed", range(2))
def test_leaves_cover_the_space_and_closed_ones_are_safe(activation: str, seed: int) -> None:
    graph = network(activation, seed)
    least = crown_radius(graph)
    leaves = Leaves()
    search(graph, 1.05 * least, leaves, steps=40)
    problem, _ = search(graph, 1.6 * least, leaves, steps=40)  # not enough to end
    middle = 1.2 * least
    search(graph, middle, leaves, steps=40)
    layout = Layout.of(problem.graph)
    generator = torch.Generator().manual_seed(3)
    inside, _, _, _ = question(graph, middle)
    points = inside.tensors.sets.sample(400, generator)[0]
    values = problem.graph.values(points)
    margin = inside.tensors.branch_margin(inside.tensors.violation(points, values[problem.graph.output]))
    assert len(leaves), "a tree was kept"
    for branch in torch.cat([leaf.branch for leaf in leaves.kept]).unique().tolist():
        count, closed = holds(leaves, problem.graph, layout, points, branch, middle)
        assert bool((count >= 1).all()), "every point lies in a leaf"
        assert bool((margin[closed, branch] > 0).all()), "what was closed holds nothing unsafe"


def test_a_larger_ball_starts_from_the_leaves_of_a_smaller_one() -> None:
    graph = network("Relu", 0)
    low = 1.2 * crown_radius(graph)
    alone, reused = Leaves(), Leaves()
    search(graph, 0.95 * low, reused)
    before = len(reused)
    problem, state = search(graph, low, reused)
    _, plain = search(graph, low, alone)
    assert not bool(state.open_branches(problem.tensors).any())
    assert before > 0 and state.domains <= plain.domains + before
    assert bool(torch.cat([leaf.closed_at for leaf in reused.kept]).min() >= low)


def test_what_is_closed_at_a_radius_is_not_asked_again() -> None:
    graph = network("Relu", 0)
    low = 1.2 * crown_radius(graph)
    leaves = Leaves()
    search(graph, low, leaves)
    problem, state = search(graph, 0.95 * low, leaves)
    assert not bool(state.open_branches(problem.tensors).any())
    _, bounded, _, _ = question(graph, 0.95 * low)
    assert state.domains == bounded.domains, "nothing but CROWN was asked"


def test_leaves_that_take_too_much_memory_are_forgotten() -> None:
    graph = network("Relu", 0)
    low = 1.2 * crown_radius(graph)
    leaves = Leaves(budget=1)
    search(graph, low, leaves)
    assert len(leaves) == 0


def test_leaves_of_another_kind_of_evidence_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network("Relu", 0)
    low = 1.2 * crown_radius(graph)
    leaves = Leaves()
    search(graph, low, leaves)
    assert leaves.rounded is True
    monkeypatch.setattr(BranchAndBoundStage, "is_rounded", lambda self, problem: False)
    problem, state, _, _ = question(graph, low)
    leaves.radius = low
    seen = []
    monkeypatch.setattr(Leaves, "begin",
                        lambda self, g, l, q, roots, intervals: seen.append(len(self)) or ([roots], None))
    BranchAndBoundStage(plan_for(problem), leaves=leaves).run(problem, state)
    assert seen == [0] and leaves.rounded is False


def test_leaves_closed_without_a_price_do_not_count_where_rounding_does() -> None:
    graph = network("Relu", 0)
    problem, state, _, _ = question(graph, 0.5 * crown_radius(graph))
    leaves = Leaves(radius=0.5 * crown_radius(graph))
    BranchAndBoundStage(plan_for(problem), leaves=leaves).run(replace(problem, rounded=False), state)
    assert leaves.rounded is False
    BranchAndBoundStage(plan_for(problem), leaves=leaves).run(problem, state)
    assert leaves.rounded is True


def test_what_a_search_leaves_open_is_open_at_every_radius() -> None:
    graph = network("Relu", 0)
    least = crown_radius(graph)
    leaves = Leaves()
    problem, state = search(graph, 1.6 * least, leaves, steps=40)
    open_ = state.open_branches(problem.tensors)
    assert bool(open_.any()) and len(leaves)
    for radius in (1.6 * least, 0.5 * least, 0.0):
        leaves.radius = radius
        assert not bool((leaves.closed(len(open_)) & open_.cpu()).any())


def test_a_search_over_the_same_ball_goes_on_where_it_stopped() -> None:
    graph = network("Relu", 0)
    radius = 1.4 * crown_radius(graph)
    leaves, forgetful = Leaves(), Leaves()
    bounded, again = 0, 0
    for _ in range(400):
        problem, state = search(graph, radius, leaves, steps=12)
        bounded += state.domains
        assert leaves.paused is None or sum(map(len, leaves.paused.domains)) == sum(
            int((leaf.closed_at < radius).sum()) for leaf in leaves.kept)
        if not bool(state.open_branches(problem.tensors).any()) or state.witness is not None:
            break
    else:
        pytest.fail("never ended")
    for _ in range(400):
        forgetful.paused = None
        other, found = search(graph, radius, forgetful, steps=12)
        again += found.domains
        if not bool(found.open_branches(other.tensors).any()) or found.witness is not None:
            break
    assert (state.witness is None) == (found.witness is None)
    assert bounded < again, "what was bounded in the ball is not bounded again"


def stopped(graph: Graph, radius: float) -> Leaves:
    """A search that was stopped, with something in its pool."""
    leaves = Leaves()
    for steps in range(4, 40):
        search(graph, radius, leaves, steps=steps)
        if leaves.paused is not None and leaves.paused.pool is not None:
            return leaves
    raise AssertionError("no search was stopped in its middle")


def test_what_a_search_left_open_in_one_ball_is_bounded_anew_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network("Relu", 0)
    radius = 1.4 * crown_radius(graph)
    begin, pools = Leaves.begin, []

    def seen(self: Leaves, *given: object) -> object:
        answer = begin(self, *given)  # type: ignore[arg-type]
        pools.append(answer[1])
        return answer
    for factor, kept in ((1.0, True), (1.1, False), (0.97, False)):
        leaves = stopped(graph, radius)
        with monkeypatch.context() as patch:
            patch.setattr(Leaves, "begin", seen)
            search(graph, factor * radius, leaves, steps=12)
        assert (pools[-1] is not None) is kept


def test_what_nothing_decided_is_open_and_asked_again() -> None:
    graph = network("Relu", 0)
    radius = 1.4 * crown_radius(graph)
    paused = stopped(graph, radius).paused
    assert paused is not None and paused.pool is not None
    problem, _, _, _ = question(graph, radius)
    asked = Question.of(problem.tensors)
    leaves = Leaves(radius=radius)
    leaves.keep(paused.pool, asked)
    leaves.end(asked, [], None)
    assert len(leaves) == len(paused.pool) and leaves.paused is None
    assert not bool(leaves.closed(problem.tensors.branches).any())
