"""Tilted chords as a stage: what it proves is true, what it leaves alone stays as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bounds.graph import Graph
from bounds.graph.reduce import reduce_to
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.rounding import priced
from bounds.tilted import Tilted, TiltedBounds
from tests.bounds.networks import random_graph
from tests.bounds.rational import Rising
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.tilted_tree import Leaves, TiltedTree
from verifier.deadline import Deadline
from verifier.leaning import LeaningStage
from verifier.problem import Problem, State, make_problem
from verifier.property import Property, robustness
from verifier.stages import BoundStage, stages_for
from verifier.strategy import verify
from verifier.tilted import TiltedStage, open_rows
from verifier.verdict import Evidence, Verified


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


def test_trees_never_exceed_the_exact_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numbers of a million cancel, in rationals; without the price trees are above it now and then."""
    monkeypatch.setattr("verifier.branch_and_bound.tilted_tree.ITERATIONS", 1)
    wrong = {True: 0, False: 0}
    never = torch.full((1,), torch.inf, dtype=torch.float64)
    for seed, pays in itertools.product(range(20), (True, False)):
        network = Rising(seed // 2, 2, folds=seed % 2 == 0, width=1)
        sets, asked, D = network.sets, (network.C[:1], network.offset[:1]), network.D[:1]
        with priced(pays):
            reduced = reduce_to(network.graph, network.known, Interval(sets.lower, sets.upper))
            intervals = reduced.intervals(network.known)
            root = Tilted(iterations=1).bound(reduced, sets, intervals, *asked, never, D)
            assert root is not None
            calls = iter(range(3))
            tree = TiltedTree(Tilted(), reduced, sets, intervals, *asked, D, never, lambda x: False,
                              lambda calls=calls: next(calls, None) is None)
            lower, domains = tree.decide(replace(root, lower=-never), root.starts[0])  # what the leaves prove alone
        assert domains == 6
        wrong[pays] += network.above(never.new_tensor([lower]), slice(0, 1))
    assert wrong[True] == 0
    assert wrong[False] > 1


STAGES = [TiltedStage(), LeaningStage()]


@pytest.mark.parametrize("stage", STAGES, ids=["tilted", "leaning"])
@pytest.mark.parametrize("small", [0, 10_000], ids=["float32", "float64"])
def test_what_these_stages_decide_is_rounded(stage: TiltedStage | LeaningStage, small: int,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched in float64, or in float32 with a twin in float64."""
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", small)
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: (BoundStage("crown", keep=True), stage))
    decided = 0
    for seed, kind, eps in ((8000, "dense", 0.15), (8000, "dense", 0.2), (2000, "conv", 0.25)):
        graph, asked = question(seed, kind, eps)
        graph = graph.to(dtype=torch.float32)
        for evidence in (None, Evidence.FLOAT):
            replayer = SimpleNamespace(run=lambda x, graph=graph: graph(torch.from_numpy(x)).numpy())
            result = verify(graph, asked, replayer=replayer, time_limit_s=20.0, evidence=evidence)  # type: ignore[arg-type]
            if isinstance(result.verdict, Verified) and result.method == stage.name:
                decided += 1
                assert result.evidence is (Evidence.ROUNDED if evidence is None else Evidence.FLOAT)
    assert decided > 2


@pytest.mark.parametrize("stage", STAGES, ids=["tilted", "leaning"])
def test_a_stage_is_rounded_where_its_enclosures_are_proved(stage: TiltedStage | LeaningStage,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    double, _ = bounded(*question(1, "dense", 0.5))
    assert double.graph.dtype == torch.float64 and stage.is_rounded(double)
    assert not stage.is_rounded(replace(double, rounded=False))
    with monkeypatch.context() as patch:
        patch.setattr(Relu, "rounding_known", False)
        assert not stage.is_rounded(double)
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", 0)
    graph, asked = question(1, "dense", 0.5)
    single, _ = bounded(graph.to(dtype=torch.float32), asked)
    assert single.graph.dtype == torch.float32 and single.double is not None and stage.is_rounded(single)
    monkeypatch.setattr("verifier.problem._same_question", lambda *_: False)
    alone, _ = bounded(graph.to(dtype=torch.float32), asked)
    assert alone.double is None and not stage.is_rounded(alone)


def test_stages_that_do_not_account_for_rounding_are_left_out_where_that_is_demanded(monkeypatch: pytest.MonkeyPatch
                                                                                     ) -> None:
    """Else they would decide what a later stage decides with its rounding. Attacks stay; where no stage accounts for
    it, all stay, and the answer says what is missing."""
    def names(problem: Problem, evidence: Evidence | None) -> list[str]:
        return [s.name for s in stages_for("auto", problem, evidence=evidence)]
    monkeypatch.setattr("verifier.stages.plan_for", lambda problem, branching: replace(
        plan_for(problem, branching), inputs=False))
    problem, _ = bounded(*question(1, "dense", 0.5))
    planes = {"leaning", "tilted"}
    assert planes <= set(names(problem, Evidence.ROUNDED)) and names(problem, None) == names(problem, Evidence.ROUNDED)
    monkeypatch.setattr(TiltedStage, "is_rounded", lambda self, problem: False)
    left = names(problem, Evidence.ROUNDED)
    assert "tilted" not in left and "tilted" in names(problem, None)
    assert {"pgd-brief", "pgd", "pgd-long", "leaning", "branch-and-bound"} <= set(left)
    monkeypatch.setattr(Relu, "rounding_known", False)
    assert names(problem, Evidence.ROUNDED) == names(problem, None)
