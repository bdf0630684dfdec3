"""The maximal safe radius by mixed programmes, held against the rational oracle."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from milp.mixed import MixedAnswer, MixedProgram, MixedStatus
from milp.solvers import SolverUnsuitable, mixed_solver
from tests.verifier.test_oracle import GraphReplayer, Truth, draw_graph
from verifier.deadline import Deadline
from verifier.property import Region, Row
from verifier.radius.balls import Balls
from verifier.radius.interval import RadiusInterval
from verifier.radius.programmes import by_programmes

MOST = 2.0
ONE = Fraction(1)


def cases(kind: str, count: int) -> list[tuple[Graph, np.ndarray, int]]:
    """Networks of at most two inputs, a point, and its label."""
    found = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        graph = draw_graph(random, kind)
        inputs = math.prod(graph.input_shape)
        x = (random.integers(-8, 9, inputs) / 8).astype(np.float32).reshape(graph.input_shape)
        y = GraphReplayer(graph).run(x[None])[0]
        if inputs <= 2 and abs(float(y[0] - y[1])) > 0.1:
            found.append((graph, x, int(y.argmax())))
    return found[:count]


def truth(graph: Graph, x: np.ndarray, label: int, norm: str) -> tuple[float, bool]:
    """(distance, whether other labels lie there in more than a touch, which no float32 need meet)."""
    centre = [Fraction(float(v)) for v in x.flatten()]
    reach = Fraction(MOST)
    region = Region(tuple(c - reach for c in centre), tuple(c + reach for c in centre))
    rows = (Row(((label, ONE), (1 - label, -ONE)), (), Fraction(0)),)
    exact = Truth.of(graph, region)
    return exact.distance(rows, centre, norm), float(exact.margin(rows)) < -0.01


NORM = {"inf": math.inf, "1": 1.0, "2": 2.0}


def asked(graph: Graph, x: np.ndarray, label: int, norm: str, *, time_limit_s: float = 300.0, solver: Any = None
          ) -> RadiusInterval:
    ball = Balls(torch.from_numpy(x)[None], torch.tensor([label]), NORM[norm])
    return by_programmes(graph, graph.simplify(), GraphReplayer(graph), ball, RadiusInterval(), most=MOST,
                         deadline=Deadline.starting_now(time_limit_s), solver=solver)


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_both_ends_are_those_of_the_oracle(norm: str) -> None:
    solver = mixed_solver("highs") if norm != "2" else None
    if norm == "2":
        pytest.importorskip("pyscipopt")
        solver = mixed_solver("scip")
    finite = 0
    for graph, x, label in cases("dense", 6):
        far, clear = truth(graph, x, label, norm)
        found = asked(graph, x, label, norm, solver=solver)
        assert found.lower <= far + 1e-6 and found.upper >= far - 1e-6
        if far < MOST * 0.95 and clear:
            finite += 1
            assert found.witness is not None
            assert found.upper == pytest.approx(far, abs=2e-3) and found.lower == pytest.approx(far, abs=2e-3)
            if norm != "2":
                assert found.upper - found.lower < 1e-3
        elif far == math.inf:
            assert found.witness is None and found.lower == pytest.approx(MOST)
    assert finite >= 2


def test_without_time_nothing_is_proved() -> None:
    graph, x, label = cases("dense", 1)[0]
    far, _ = truth(graph, x, label, "inf")
    found = asked(graph, x, label, "inf", time_limit_s=1e-6)
    assert found.lower <= far <= found.upper


def test_where_nothing_says_how_far_to_look_nothing_is_asked() -> None:
    graph, x, label = cases("dense", 1)[0]
    ball, known = Balls(torch.from_numpy(x)[None], torch.tensor([label])), RadiusInterval()
    found = by_programmes(graph, graph.simplify(), GraphReplayer(graph), ball, known, deadline=Deadline.starting_now())
    assert found is known


def test_the_l2_norm_needs_a_solver_that_has_it() -> None:
    graph, x, label = next(c for c in cases("dense", 20) if truth(*c, "2") < (MOST, True))
    with pytest.raises(SolverUnsuitable, match="pyscipopt"):
        asked(graph, x, label, "2")


def test_a_solver_that_finds_no_point_of_anything_proves_nothing() -> None:
    class Liar:
        name = "liar"

        def solve(self, program: MixedProgram, **_: object) -> MixedAnswer:
            return MixedAnswer(MixedStatus.INFEASIBLE, bound=math.inf)
    graph, x, label = next(c for c in cases("dense", 20) if truth(*c, "inf") < (MOST, True))
    found = asked(graph, x, label, "inf", solver=Liar())
    assert found.lower == 0.0 and found.upper >= truth(graph, x, label, "inf")[0]
