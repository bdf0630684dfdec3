"""Tilted chords as a stage: what it proves is true, what it leaves alone stays as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bounds.graph import Graph
from bounds.graph.reduce import reduce_to
from bounds.tilted import Tilted
from tests.bounds.networks import random_graph
from verifier.branch_and_bound.tilted_tree import TiltedTree
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
    monkeypatch.setattr("verifier.tilted.confirm", lambda *_: None)
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

    def confirm(x: torch.Tensor, *_: object) -> object:
        offered.append(x)
        return SimpleNamespace(margin=-1.0)
    monkeypatch.setattr("verifier.tilted.confirm", confirm)
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


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_a_tree_proves_what_a_dense_sample_allows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits reach a target well below the smallest value seen, and no bound passes it."""
    monkeypatch.setattr("verifier.branch_and_bound.tilted_tree.ITERATIONS", 60)
    decided = 0
    for seed in range(0, 4000, 1000):
        problem, state = bounded(*question(seed, kind, 0.8))
        tensors, graph = problem.tensors, problem.graph
        sources = [i for i in graph.relaxed_inputs if i in state.intervals]
        if len(sources) < len(graph.relaxed_inputs):
            continue
        intervals = {i: state.intervals[i] for i in sources}
        reduced = reduce_to(graph, intervals)
        points = tensors.sets.sample(5_000, problem.generator).flatten(0, 1)
        least = tensors.violation(points, graph(points)).amin(0)
        for row in range(len(least)):
            C, bound = tensors.C[row:row + 1], tensors.bound[row:row + 1]
            target = least[row:row + 1] - 0.1 * (1 + least[row].abs())
            method = Tilted(iterations=20)
            found = method.bound(reduced, tensors.sets, reduced.intervals(intervals), C, -bound, target)
            assert found is not None
            if 0 in found.starts:
                calls = iter(range(12))
                tree = TiltedTree(method, reduced, tensors.sets, reduced.intervals(intervals), C, -bound, None, target,
                                  lambda x: False, lambda calls=calls: next(calls, None) is None)
                lower, domains = tree.decide(found.take(0), found.starts[0])
                assert lower <= float(least[row]) + 1e-9
                decided += int(lower > float(target) and domains > 0)
    assert decided > 0 or kind != "dense"
