"""Descent from minimisers: points of the sets, margins that are theirs, and counterexamples that minimisers are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.verifier.branch_and_bound.cases import problem_of
from tests.verifier.branch_and_bound.test_leaves import INPUTS, network
from tests.verifier.test_oracle import GraphReplayer
from verifier import robustness
from verifier.branch_and_bound import search
from verifier.branch_and_bound.bounding import Question
from verifier.branch_and_bound.descent import descended
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.problem import Problem, State
from verifier.stages import BoundStage


def asked(radius: float, norm: float = math.inf, seed: int = 0) -> Problem:
    graph = network("Relu", seed)
    x = np.random.default_rng(1).uniform(-1, 1, INPUTS).astype(np.float32)
    label = int(GraphReplayer(graph).run(x[None])[0].argmax())
    return problem_of(graph, robustness(x, label, radius, classes=3, norm=norm))


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_points_stay_in_their_sets_and_only_get_better(norm: float) -> None:
    problem = asked(0.3, norm)
    question, sets = Question.of(problem.tensors), problem.tensors.sets
    x = sets.sample(20, torch.Generator().manual_seed(0)).reshape(20, *sets.shape)
    branch = torch.arange(20) % problem.tensors.branches
    points, margin = descended(problem.graph, question, x, branch)
    region = problem.tensors.branch_region[branch]
    assert bool(sets.contains(points, region).all())
    t = problem.tensors
    for points_, values, slack in ((points, margin, 1e-9), (x, None, 0.0)):
        y = problem.graph(points_).flatten(1)
        for k, b in enumerate(branch.tolist()):
            rows = (t.branch == b).nonzero().flatten()
            own = float((t.C[rows] @ y[k] - t.bound[rows]).max())
            if values is not None:
                assert float(values[k]) == pytest.approx(own, abs=slack)
            else:
                assert float(margin[k]) <= own + 1e-9, "never worse than where it began"
    alone = [descended(problem.graph, question, x[k:k + 1], branch[k:k + 1])[1] for k in range(20)]
    torch.testing.assert_close(torch.cat(alone), margin, rtol=1e-9, atol=1e-9)


def test_a_search_finds_counterexamples_that_no_minimiser_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minimisers are not offered here: what is found, descents have found."""
    monkeypatch.setattr(search, "DESCENT_SHARE", math.inf)
    monkeypatch.setattr(search.Search, "_candidates", lambda self, bounded: None)
    found = 0
    for seed in range(4):
        problem = asked(0.6, seed=seed)
        state = State.of(problem)
        BoundStage("crown", keep=True).run(problem, state)
        BranchAndBoundStage(plan_for(problem)).run(problem, state)
        if bool(state.open_branches(problem.tensors).any()):
            assert state.witness is not None and state.witness.margin <= 0
            found += 1
    assert found >= 2


def test_descents_take_their_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    before = search.descended
    monkeypatch.setattr(search, "descended", lambda *a: calls.append(1) or before(*a))
    monkeypatch.setattr(search.Search, "_candidates", lambda self, bounded: None)
    counts = []
    for share in (-1.0, math.inf):
        monkeypatch.setattr(search, "DESCENT_SHARE", share)
        problem = asked(0.3)
        state = State.of(problem)
        BoundStage("crown", keep=True).run(problem, state)
        BranchAndBoundStage(plan_for(problem)).run(problem, state)
        counts.append(len(calls))
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("trained", [False, True])
def test_where_nothing_depends_on_the_input_points_stay(trained: bool) -> None:
    problem = asked(0.3)
    weight = torch.ones(3, requires_grad=trained, dtype=torch.float64)  # as a graph that shares a module's parameters

    def constant(x: torch.Tensor) -> torch.Tensor:
        return weight.expand(len(x), 3)
    x = problem.tensors.sets.centre_point.expand(2, *problem.tensors.sets.shape)
    points, margin = descended(constant, Question.of(problem.tensors), x, torch.zeros(2, dtype=torch.long))
    assert torch.equal(points, x) and bool(torch.isfinite(margin).all())
