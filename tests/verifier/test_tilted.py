"""Tilted chords as a stage: what it proves is true, what it leaves alone stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bounds.graph import Graph
from bounds.graph.reduce import reduce_to
from bounds.interval import Interval
from bounds.tilted import Tilted, TiltedBounds
from tests.bounds.networks import random_graph
from verifier.branch_and_bound.tilted_tree import Leaves, TiltedTree
from verifier.deadline import Deadline
from verifier.problem import Problem, State, make_problem
from verifier.property import Property, robustness
from verifier.stages import BoundStage
from verifier.tilted import TiltedStage, open_rows


def question(seed: int, kind: str, eps: float, activation: str = "Relu") -> tuple[Graph, Property]:
    for k in range(seed, seed + 1000):
        graph = random_graph(k, kind, activation)
        classes = torch.Size(graph.output_shape).numel()
        if classes >= 3:
            break
    x = torch.randn(graph.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = int(graph(x.unsqueeze(0)).argmax())
    return graph, robustness(x.numpy(), label, eps, classes=classes)


def bounded(graph: Graph, asked: Property) -> tuple[Problem, State]:
    problem = make_problem(graph, asked, replayer=SimpleNamespace(), deadline=Deadline.starting_now(30.0))  # type: ignore[arg-type]
    state = State.of(problem)
    BoundStage("ibp").run(problem, state)
    BoundStage("crown", keep=True).run(problem, state)
    return problem, state


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_the_stage_proves_only_what_holds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.problem.confirm", lambda *_, **__: None)
    better = 0
    for seed in range(0, 8000, 1000):
        problem, state = bounded(*question(seed, kind, 0.6))
        before = state.row_lower.clone()
        TiltedStage().run(problem, state)
        points = problem.tensors.sets.sample(500, problem.generator).flatten(0, 1)
        value = problem.tensors.violation(points, problem.graph(points))
        assert bool((state.row_lower <= value.amin(0) + 1e-6).all())
        better += int((state.row_lower > before + 1e-3).sum())
    assert better > 0


def test_a_counterexample_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, state = bounded(*question(1000, "dense", 6.0))
    offered = []

    def confirm(x: torch.Tensor, *_: object, **__: object) -> object:
        offered.append(x)
        return SimpleNamespace(margin=-1.0, real_agrees=None)
    monkeypatch.setattr("verifier.problem.confirm", confirm)
    assert len(open_rows(problem, state))
    TiltedStage().run(problem, state)
    assert state.witness is not None
    x = offered[-1].view(1, *problem.graph.input_shape)
    assert float(problem.tensors.branch_margin(problem.tensors.violation(x, problem.graph(x))).min()) <= 0


@pytest.mark.parametrize(("kind", "activation"), [("pooling", "Relu"), ("dense", "Sigmoid"), ("dense", "mixed")])
def test_other_networks_are_left_as_they_are(kind: str, activation: str) -> None:
    problem, state = bounded(*question(2, kind, 0.5, activation))
    before = state.row_lower.clone()
    TiltedStage().run(problem, state)
    assert torch.equal(state.row_lower, before)


def test_open_rows_are_the_best_of_their_branches() -> None:
    problem, state = bounded(*question(1, "dense", 3.0))
    rows = open_rows(problem, state)
    branches = state.open_branches(problem.tensors).nonzero().flatten()
    assert problem.tensors.branch[rows].tolist() == branches.tolist()


def tree_of(problem: Problem, state: State, row: int, target: torch.Tensor, stop: Callable[[], bool]
            ) -> tuple[TiltedTree, TiltedBounds] | None:
    """The tree of one row and its root's bound; None where a layer has no bounds, or the root is above the target."""
    tensors, graph = problem.tensors, problem.graph
    if not set(graph.relaxed_inputs) <= set(state.intervals):
        return None
    reduced = reduce_to(graph, {i: state.intervals[i] for i in graph.relaxed_inputs},
                        Interval(tensors.sets.lower, tensors.sets.upper))
    intervals = reduced.intervals(state.intervals)
    C, bound = tensors.C[row:row + 1], tensors.bound[row:row + 1]
    method = Tilted(iterations=20)
    root = method.bound(reduced, tensors.sets, intervals, C, -bound, target)
    assert root is not None
    tree = TiltedTree(method, reduced, tensors.sets, intervals, C, -bound, None, target, lambda x: False, stop)
    return (tree, root.take(0)) if 0 in root.starts else None


def some_trees(kind: str, stop: Callable[[], bool]) -> Iterator[tuple[TiltedTree, TiltedBounds, float]]:
    """Trees whose targets lie well below the smallest value of their row that a dense sample finds, and that value."""
    for seed in range(0, 4000, 1000):
        problem, state = bounded(*question(seed, kind, 0.8))
        points = problem.tensors.sets.sample(5_000, problem.generator).flatten(0, 1)
        least = problem.tensors.violation(points, problem.graph(points)).amin(0)
        for row in range(len(least)):
            target = least[row:row + 1] - 0.1 * (1 + least[row].abs())
            found = tree_of(problem, state, row, target, stop)
            if found is not None:
                yield *found, float(least[row])


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_a_tree_proves_what_a_dense_sample_allows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits reach a target well below the smallest value seen, and no bound passes it."""
    monkeypatch.setattr("verifier.branch_and_bound.tilted_tree.ITERATIONS", 60)
    decided = 0
    for tree, root, least in some_trees(kind, bool):
        calls = iter(range(12))
        tree = replace(tree, stop=lambda calls=calls: next(calls, None) is None)
        lower, domains = tree.decide(root, root.starts[0])
        assert lower <= least + 1e-9
        decided += int(lower > float(tree.target) and domains > 0)
    assert decided > 0 or kind != "dense"


def test_the_halves_of_a_domain_meet_where_it_is_split() -> None:
    tree, root, _ = next(some_trees("dense", bool))
    layers = [tree.intervals[layer.reduced] for layer in tree.reduced.layers]
    low, high = torch.cat([x.lower for x in layers], 1), torch.cat([x.upper for x in layers], 1)
    leaf = Leaves(low, high, torch.zeros_like(low, dtype=torch.int8), root.lower, root.gaps)
    halves = tree._children(leaf)
    assert halves is not None and len(halves.lower) == 2
    (at,) = (halves.sides != 0).any(0).nonzero().flatten().tolist()
    assert low[0, at] < 0 < high[0, at]
    assert halves.low[:, at].tolist() == [0.0, low[0, at]] and halves.high[:, at].tolist() == [high[0, at], 0.0]
    assert halves.sides[:, at].tolist() == [1, -1]
    others = torch.arange(low.shape[1]) != at
    assert bool((halves.low[:, others] == low[:, others]).all() and (halves.high[:, others] == high[:, others]).all())
    again = tree._children(halves)
    assert again is not None
    assert torch.equal(again.low[:, at], halves.low[[0, 1, 0, 1], at])


class NoNumber(Tilted):
    """Bounds that are not a number in half of the domains."""

    def bound(self, *args: object, **settings: object) -> TiltedBounds | None:
        found = super().bound(*args, **settings)  # type: ignore[arg-type]
        assert found is not None
        found.lower[::2] = torch.nan
        return found


def test_a_bound_that_is_no_number_closes_nothing() -> None:
    """What a tree proves is then what its root had."""
    for tree, root, _ in some_trees("dense", bool):
        calls = iter(range(3))
        tree = replace(tree, method=NoNumber(iterations=20), stop=lambda calls=calls: next(calls, None) is None)
        lower, domains = tree.decide(root, root.starts[0])
        assert domains > 0 and lower == float(root.lower)
