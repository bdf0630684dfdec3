"""`method="milp"`: the whole way from a property to a verdict, held against the rational oracle."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from bounds.ops.linear import Linear
from milp.mixed import CLEAR, MixedAnswer, MixedProgram, MixedStatus
from milp.questions import MixedSolver
from milp.solvers import mixed_solver
from milp.tighten import Tightening
from tests.bounds.networks import GraphBuilder
from tests.verifier.test_oracle import GraphReplayer, assert_agrees, draw_graph, draw_property
from verifier import verify
from verifier.branch_and_bound.domains import Layout
from verifier.branch_and_bound.plan import plan_for
from verifier.check import check
from verifier.deadline import Deadline
from verifier.milp_stage import MilpStage, Pieces
from verifier.problem import make_problem
from verifier.property import robustness
from verifier.stages import BoundStage
from verifier.verdict import Reason
from verifier.vnnlib import read_vnnlib, write_vnnlib

EXAMPLES = Path(__file__).resolve().parents[2] / "verifier" / "examples"

CLOSE = 1e-3  # margins nearer to zero may stay undecided


def only_milp(monkeypatch: pytest.MonkeyPatch, way: str, solver: MixedSolver | None = None, first: str = "ibp") -> None:
    """No attack before it, so that the solver decides: branches over whole sets, or pieces of some size."""
    if way == "whole sets":
        monkeypatch.setattr("verifier.milp_stage.plan_for", lambda problem: replace(plan_for(problem), inputs=False))
    stage = MilpStage(solver or mixed_solver("highs"), most_undecided=3 if way == "small pieces" else 1000)
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: [BoundStage(first, keep=True), stage])


WAYS = ["whole sets", "small pieces", "large pieces"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_those_of_the_oracle(kind: str, seed: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_milp(monkeypatch, way)
    random = np.random.default_rng(100 + seed)
    graph = draw_graph(random, kind)
    prop, truths = draw_property(random, graph)
    margins = [truths[b.region].margin(b.rows) for b in prop.branches]
    result = verify(graph, prop, replayer=GraphReplayer(graph), method="milp", time_limit_s=20)
    assert_agrees(result, prop, margins, graph)
    least = min(float(m) for m in margins)
    if least < -CLOSE:
        assert result.name == "falsified"
    elif least > CLOSE:
        assert result.name == "verified" and result.lower <= least
    if result.method == "milp":
        assert result.choices["milp"]["solver"] == "highs"
        assert way == "whole sets" or result.choices["milp"]["pieces"] >= 0


class Liar:
    """Says that nothing exists."""

    name = "liar"

    def solve(self, program: MixedProgram, **_: object) -> MixedAnswer:
        return MixedAnswer(MixedStatus.INFEASIBLE, bound=float("inf"))


@pytest.mark.parametrize("way", WAYS)
def test_infeasible_is_no_proof(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box is never empty: a solver that says so is wrong. (Small pieces may all be closed by their bounds.)"""
    only_milp(monkeypatch, way, Liar())
    undecided = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        graph = draw_graph(random, "dense")
        prop, truths = draw_property(random, graph)
        result = verify(graph, prop, replayer=GraphReplayer(graph), time_limit_s=20)
        assert_agrees(result, prop, [truths[b.region].margin(b.rows) for b in prop.branches], graph)
        undecided += result.name == "unknown"
        assert way != "whole sets" or result.name != "unknown" or "no point at all" in result.detail
    assert undecided > 0


class Boaster:
    """Says of every programme that it is above zero, by no more than its tolerances."""

    name = "boaster"

    def solve(self, program: MixedProgram, **_: object) -> MixedAnswer:
        return MixedAnswer(MixedStatus.OPTIMAL, bound=CLEAR / 2)


@pytest.mark.parametrize("way", WAYS)
def test_what_tolerances_explain_is_no_proof(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_milp(monkeypatch, way, Boaster())
    undecided = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        graph = draw_graph(random, "dense")
        prop, truths = draw_property(random, graph)
        result = verify(graph, prop, replayer=GraphReplayer(graph), time_limit_s=20)
        assert_agrees(result, prop, [truths[b.region].margin(b.rows) for b in prop.branches], graph)
        undecided += result.name == "unknown"
        assert way != "whole sets" or (result.name, result.method) != ("verified", "milp")
        assert result.reason in (None, Reason.INCOMPLETE), "nothing contradicts what is proved"
    assert undecided > 0


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
def test_a_piece_is_decided_over_all_of_its_box(kind: str) -> None:
    """Bounds, points and their signs against the oracle, with a search neither before nor behind the solver."""
    signs = set()
    for seed in range(12):
        random = np.random.default_rng(200 + seed)
        graph = draw_graph(random, kind)
        prop, truths = draw_property(random, graph)
        problem = make_problem(graph, prop, replayer=GraphReplayer(graph), deadline=Deadline.starting_now(60))
        sets = problem.tensors.sets
        intervals = Tightening().refine(problem.graph, sets)
        for k, branch in enumerate(prop.branches):
            region = int(problem.tensors.branch_region[k])
            known = {i: intervals[i].map(lambda t, r=region: t[r:r + 1]) for i in problem.graph.relaxed_inputs}
            domain = SimpleNamespace(
                low=sets.lower[region:region + 1].flatten(1), high=sets.upper[region:region + 1].flatten(1),
                lower=torch.full((1,), -torch.inf), intervals=lambda _, known=known: known)
            bounder = SimpleNamespace(graph=problem.graph, layout=None)
            lower, x = Pieces(mixed_solver("highs"), problem, 40).solve(bounder, domain, k)  # type: ignore[arg-type]
            margin = float(truths[branch.region].margin(branch.rows))
            assert lower <= margin
            if margin < -CLOSE:
                assert x is not None
                at = x.unsqueeze(0)
                found = problem.tensors.branch_margin(problem.tensors.violation(at, problem.graph(at)))[0, k]
                assert float(found) < 1e-6
            assert margin < CLOSE or lower > 0
            signs.add(margin > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("name", ["cbc", "scip"])
def test_other_solvers_decide_the_same(name: str) -> None:
    if name == "scip":
        pytest.importorskip("pyscipopt")
    random = np.random.default_rng(3)
    graph = draw_graph(random, "dense")
    prop, truths = draw_property(random, graph)
    result = verify(graph, prop, replayer=GraphReplayer(graph), method="milp", time_limit_s=20, solver=name)
    assert_agrees(result, prop, [truths[b.region].margin(b.rows) for b in prop.branches], graph)
    assert result.name != "unknown"


@pytest.mark.parametrize("method", ["milp", "bab", "alpha-crown"])
def test_what_ends_for_want_of_time_says_so(method: str) -> None:
    """Optimisers and searches stop a little before the deadline, which is not the same as bounds that are too loose."""
    net, digits = EXAMPLES / "digits_mlp.onnx", np.load(EXAMPLES / "digits.npz")
    asked = robustness(digits["x"][0], int(digits["y"][0]), 0.2, classes=10, clip=(0.0, 1.0))
    almost_over = Deadline(limit_s=100, start=time.monotonic() - 99.79)
    result = verify(Graph.from_onnx(net), asked, replayer=net, method=method, deadline=almost_over)
    assert result.reason is Reason.TIME_LIMIT


@pytest.mark.parametrize("way", WAYS)
def test_a_proof_rests_on_no_solver(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the solver decides is proved once more, by multipliers; without that there is no file."""
    only_milp(monkeypatch, way, first="crown")
    net, digits = EXAMPLES / "digits_mlp.onnx", np.load(EXAMPLES / "digits.npz")
    mask = np.zeros(64, dtype=bool)
    mask[18:36] = True  # few inputs move
    spec = tmp_path / "p.vnnlib"
    spec.write_text(write_vnnlib(robustness(digits["x"][0], int(digits["y"][0]), 0.5, classes=10, clip=(0.0, 1.0),
                                            mask=mask)))
    asked, proof = read_vnnlib(spec), tmp_path / "p.proof"
    result = verify(Graph.from_onnx(net), asked, replayer=net, method="milp", proof=proof, time_limit_s=60)
    assert result.name == "verified" and result.method == "milp"
    assert result.choices["proof"]["written"]
    assert check(str(net), str(spec), str(proof)).startswith("verified")


def test_a_piece_without_neurons_is_small() -> None:
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.ones(2, 2).double()))
    graph = build.graph("affine")
    domains = SimpleNamespace(node=torch.zeros(3, dtype=torch.long), intervals=lambda layout: {})
    bounder = SimpleNamespace(graph=graph, layout=Layout.of(graph))
    taken = Pieces(mixed_solver("highs"), SimpleNamespace(), 0).takes(bounder, domains)  # type: ignore[arg-type]
    assert taken.tolist() == [True] * 3
