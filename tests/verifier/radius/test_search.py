"""The search for both ends of a safe radius, held against the rational oracle; and the interval that it shrinks."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from tests.bounds.networks import GraphBuilder
from tests.verifier.radius.test_programmes import cases, truth
from tests.verifier.test_oracle import ONE, GraphReplayer, Truth
from verifier import Evidence, safe_radius
from verifier.deadline import Deadline
from verifier.demo import EXAMPLES
from verifier.property import Property, Region, Row
from verifier.radius import search
from verifier.radius.balls import Balls
from verifier.radius.engines import Engine
from verifier.radius.interval import Contradiction, RadiusInterval
from verifier.radius.safe_radius import Parts, balls_of, first_ends
from verifier.radius.search import Attempt, RadiusSearch
from verifier.radius.upper import nearest_witnesses
from verifier.witness import OnnxReplayer, Witness

NORM = {"inf": math.inf, "2": 2.0, "1": 1.0}
TOLERANCE = 1e-4


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_both_ends_enclose_the_exact_radius_and_meet(kind: str, norm: str) -> None:
    clear_ones = 0
    for graph, x, label in cases(kind, 5):
        far, clear = truth(graph, x, label, norm)
        found = safe_radius(graph, x, label, replayer=GraphReplayer(graph), norm=NORM[norm], clip=(-2.0, 2.0),
                            time_limit_s=30.0)
        inside = truth_inside(graph, x, label, norm)
        assert found.lower <= inside * (1 + 1e-12) and found.upper >= inside * (1 - 1e-12)
        if clear and far == inside:
            clear_ones += 1
            assert found.gap <= TOLERANCE, "nothing here takes long"
            assert found.lower_evidence is Evidence.ROUNDED and found.upper_evidence is Evidence.ROUNDED
    assert clear_ones >= 2 * (kind == "dense")


def truth_inside(graph: Graph, x: np.ndarray, label: int, norm: str) -> float:
    """The exact radius inside the clip range [-2, 2]."""
    centre = [Fraction(float(v)) for v in x.flatten()]
    region = Region(tuple(Fraction(-2) for _ in centre), tuple(Fraction(2) for _ in centre))
    rows = (Row(((label, ONE), (1 - label, -ONE)), (), Fraction(0)),)
    return Truth.of(graph, region).distance(rows, centre, norm)


def test_an_input_with_another_label_has_radius_zero() -> None:
    graph, x, label = cases("dense", 1)[0]
    found = safe_radius(graph, x, 1 - label, replayer=GraphReplayer(graph))
    assert (found.lower, found.upper) == (0.0, 0.0) and found.witness is not None


@pytest.mark.parametrize("method", ["auto", "crown", "milp"])
def test_where_nothing_of_the_range_is_unsafe_the_radius_is_infinite(method: str) -> None:
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.tensor([[0.1, 0.0], [0.0, 0.1]]), torch.tensor([1.0, 0.0])))
    graph = build.graph("flat")
    found = safe_radius(graph, np.array([0.5, 0.5]), 0, replayer=GraphReplayer(graph), clip=(0.0, 1.0), method=method)
    assert found.lower == math.inf and found.upper == math.inf and found.witness is None and found.gap == 0


def kinked() -> Graph:
    """Logits relu(x + 0.05) + 0.5 and 0: of a ReLU that leans to its open side CROWN's lower line falls below 0, where
    intervals stay."""
    build = GraphBuilder((1,), torch.float32)
    build.add(Linear(torch.tensor([[1.0]]), torch.tensor([0.05])))
    build.add(Relu())
    build.add(Linear(torch.tensor([[1.0], [0.0]]), torch.tensor([0.5, 0.0])))
    return build.graph("kinked")


def test_intervals_have_their_say_before_lines() -> None:
    graph = kinked()
    balls = balls_of(Parts.of(graph, GraphReplayer(graph)), np.zeros((1, 1)), np.array([0]), norm=math.inf,
                     clip=(-2.0, 2.0), mask=None, target=None)
    (found,) = first_ends(Parts.of(graph, GraphReplayer(graph)), balls, tolerance=TOLERANCE, deadline=Deadline())
    assert (found.lower, found.lower_by) == (math.inf, "ibp")
    (lines,) = first_ends(Parts.of(graph, GraphReplayer(graph)), balls, "crown", tolerance=TOLERANCE,
                          deadline=Deadline())
    assert lines.lower == pytest.approx(0.55, abs=2 * TOLERANCE)


def test_attacks_leave_time_for_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, replayer, x, y = digits()

    def slow(*where: Any, deadline: Deadline, **how: Any) -> Any:
        found = nearest_witnesses(*where, deadline=deadline, **how)
        time.sleep(deadline.left())
        return found
    monkeypatch.setattr("verifier.radius.safe_radius.nearest_witnesses", slow)
    parts = Parts.of(graph, replayer)
    balls = balls_of(parts, x[:1], y[:1], norm=math.inf, clip=(0.0, 1.0), mask=None, target=None)
    (found,) = first_ends(parts, balls, tolerance=TOLERANCE, deadline=Deadline.starting_now(2.0))
    assert found.lower > 0


def digits() -> tuple[Graph, OnnxReplayer, np.ndarray, np.ndarray]:
    data = np.load(EXAMPLES / "digits.npz")
    return Graph.from_onnx(EXAMPLES / "digits_mlp.onnx"), OnnxReplayer(EXAMPLES / "digits_mlp.onnx"), \
        data["x"], data["y"]


def searched(i: int, norm: float = math.inf, *, limit_s: float = 60.0, known: RadiusInterval | None = None,
             **settings: object) -> tuple[RadiusSearch, RadiusInterval]:
    graph, replayer, x, y = digits()
    ball = Balls(torch.from_numpy(x[i:i + 1]), torch.from_numpy(y[i:i + 1]), norm, (0.0, 1.0))
    found = RadiusSearch(graph, graph.simplify(), replayer, ball, known or RadiusInterval(), TOLERANCE,
                         Deadline.starting_now(limit_s), **settings)  # type: ignore[arg-type]
    return found, found.run()


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_reuse_changes_nothing_but_the_work(norm: float) -> None:
    reusing, with_reuse = searched(1, norm)
    _, without = searched(1, norm, reuses=False)
    assert with_reuse.gap <= TOLERANCE and without.gap <= TOLERANCE
    assert with_reuse.lower <= without.upper and without.lower <= with_reuse.upper
    assert sum(map(len, reusing.leaves.values())) > 1


def test_intervals_are_nested_as_time_goes_on() -> None:
    seen: list[RadiusInterval] = []
    _, last = searched(1, progress=lambda known, _: seen.append(known))
    seen.append(last)
    assert len(seen) >= 2
    for before, after in pairwise(seen):
        assert before.lower <= after.lower <= after.upper <= before.upper


def test_without_time_what_is_known_stays_and_holds() -> None:
    known = RadiusInterval(lower=0.01, lower_by="given")
    _, found = searched(1, limit_s=1e-3, known=known)
    assert found.lower >= 0.01 and found.upper >= found.lower


def test_a_witness_over_the_reals_outweighs_an_ordinary_verdict() -> None:
    """A witness confirmed over the reals, and a verdict in ordinary floating point that denies it."""
    witness = Witness(np.zeros(1, np.float32), np.zeros(2), 0, 0.0, 0.0, True)
    known = RadiusInterval().lowered(0.5, Evidence.ROUNDED, "attack", witness)
    assert known.raised(0.6, Evidence.FLOAT, "solver") is known
    with pytest.raises(Contradiction, match="proves a safe radius"):
        known.raised(0.6, Evidence.ROUNDED, "crown")


def test_ends_that_clash_leave_the_one_with_more_evidence() -> None:
    witness = Witness(np.zeros(1, np.float32), np.zeros(2), 0, 0.0, 0.0, None)
    float_witness = RadiusInterval().lowered(0.5, Evidence.FLOAT, "attack", witness)
    after = float_witness.raised(0.6, Evidence.ROUNDED, "crown")
    assert (after.lower, after.upper, after.witness) == (0.6, math.inf, None)
    solver = RadiusInterval().raised(0.6, Evidence.FLOAT, "milp")
    after = solver.lowered(0.5, Evidence.ROUNDED, "attack", replace(witness, real_agrees=True))
    assert (after.lower, after.upper) == (0.0, 0.5)
    assert solver.lowered(0.5, Evidence.FLOAT, "attack", witness) is solver


def test_an_interval_only_shrinks() -> None:
    known = RadiusInterval().raised(0.2, Evidence.ROUNDED, "crown")
    assert known.raised(0.1, Evidence.ROUNDED, "ibp") is known
    assert known.lowered(math.inf, Evidence.FLOAT, "", None) is known
    assert known.lowered(0.3, Evidence.FLOAT, "pgd", None).gap == pytest.approx(0.1)


def test_each_slice_is_a_share_of_the_time() -> None:
    assert 0 < search.GLANCE < search.FIRST_SHARE < 0.5


def test_time_that_runs_out_before_a_ball_ends_no_run() -> None:
    finder, _ = searched(1, limit_s=1e-3)
    finder.deadline = Deadline(1e-3, time.monotonic() - 1)
    found = finder._decide(0.01)
    assert found is not None and found.result.time_s < 5.0


def test_an_engine_whose_verdict_clashed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bound is above 0, but better evidence denied it: that removes no engine."""
    finder, _ = searched(1, limit_s=1e-3)
    finder._decide(0.01)
    names = {engine.name for engine in finder.engines}

    def answer(self: RadiusSearch, engine: Engine, prop: Property, radius: float) -> Attempt:
        after = 1.0 if engine.name == "tilted" else -0.5
        return Attempt(radius, engine.name, open_result, -1.0, after, gained=False)
    open_result = finder.attempts[-1].result
    finder.deadline, finder.slice_s, finder.beaten, finder.step = Deadline.starting_now(60.0), 0.0, False, 1.0
    finder.spent.clear()
    monkeypatch.setattr(RadiusSearch, "_ask", answer)
    assert "tilted" in names
    best = finder._decide(0.02)
    assert best is not None and best.engine == "tilted"
    assert finder.engines[0].name == "tilted"


def test_inputs_of_thousands_are_searched_as_far_as_float32_tells_them_apart() -> None:
    random = np.random.default_rng(0)
    build = GraphBuilder((4,), torch.float64)
    build.add(Linear(torch.from_numpy(random.normal(size=(8, 4)) / 1e4).float().double(),
                     torch.from_numpy(random.normal(size=8)).float().double()))
    build.add(Relu())
    build.add(Linear(torch.from_numpy(random.normal(size=(3, 8))).float().double(),
                     torch.from_numpy(random.normal(size=3)).float().double()))
    graph = build.graph("large inputs")
    replayer, met = GraphReplayer(graph), 0
    for x in random.uniform(5000, 9000, (6, 4)).astype(np.float32):
        label = int(replayer.run(x[None])[0].argmax())
        found = safe_radius(graph, x, label, replayer=replayer, clip=(0.0, 10000.0), time_limit_s=10.0)
        assert found.lower <= found.upper
        if found.witness is not None:
            met += 1
            assert found.gap <= 4 * search.ULPS * float(np.spacing(np.float32(10000)))
    assert met >= 3


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_without_a_range_nothing_unsafe_ends_where_float32_does(norm: float) -> None:
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.zeros(2, 2), torch.tensor([1.0, 0.0])))
    graph = build.graph("constant")
    found = safe_radius(graph, np.array([0.5, 0.5]), 0, replayer=GraphReplayer(graph), norm=norm, time_limit_s=10.0)
    assert 1e30 < found.lower < math.inf and found.upper == math.inf


def test_a_contradiction_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from verifier.data import DataSet
    from verifier.network import Network
    from verifier.radius import data as module

    def contradicted(*_: object, **__: object) -> RadiusInterval:
        raise Contradiction("crown proves a safe radius of 0.6")
    monkeypatch.setattr(module, "closed", contradicted)
    _, _, x, y = digits()
    asked = module.Asked(clip=(0.0, 1.0), time_limit_s=1.0)
    chosen = DataSet(x[:1], y[:1], np.array([7]), x)
    with pytest.raises(Contradiction, match="input 7: crown proves"):
        list(module.radius_data(Network.read(EXAMPLES / "digits_mlp.onnx"), chosen, asked))
