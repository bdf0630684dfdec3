"""`method="milp"`: the whole way from a property to a verdict, held against the rational oracle."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from bounds.graph import Graph
from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from tests.verifier.test_oracle import GraphReplayer, assert_agrees, draw_graph, draw_property
from verifier import verify
from verifier.deadline import Deadline
from verifier.milp_stage import MilpStage
from verifier.property import robustness
from verifier.stages import BoundStage
from verifier.verdict import Reason

EXAMPLES = Path(__file__).resolve().parents[2] / "verifier" / "examples"

CLOSE = 1e-3  # margins nearer to zero may stay undecided


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(10))
def test_verdicts_are_those_of_the_oracle(kind: str, seed: int) -> None:
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


class Liar:
    """Says that nothing exists."""

    name = "liar"

    def solve(self, program: MixedProgram, **_: object) -> MixedAnswer:
        return MixedAnswer(MixedStatus.INFEASIBLE, bound=float("inf"))


def test_infeasible_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box is never empty: a solver that says so is wrong."""
    random = np.random.default_rng(7)
    graph = draw_graph(random, "dense")
    prop, _ = draw_property(random, graph)
    monkeypatch.setattr("verifier.strategy.stages_for",
                        lambda *_: [BoundStage("ibp", keep=True), MilpStage(solver=Liar)])
    result = verify(graph, prop, replayer=GraphReplayer(graph), time_limit_s=20)
    assert result.name == "unknown" and "no point at all" in result.detail


@pytest.mark.parametrize("method", ["milp", "bab", "alpha-crown"])
def test_what_ends_for_want_of_time_says_so(method: str) -> None:
    """Optimisers and searches stop a little before the deadline, which is not the same as bounds that are too loose."""
    net, digits = EXAMPLES / "digits_mlp.onnx", np.load(EXAMPLES / "digits.npz")
    asked = robustness(digits["x"][0], int(digits["y"][0]), 0.2, classes=10, clip=(0.0, 1.0))
    almost_over = Deadline(limit_s=100, start=time.monotonic() - 99.79)
    result = verify(Graph.from_onnx(net), asked, replayer=net, method=method, deadline=almost_over)
    assert result.reason is Reason.TIME_LIMIT
