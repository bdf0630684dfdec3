"""About which function an answer speaks: the stored network over the reals, or what float32 makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds import Graph
from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph import UnsupportedOperator
from bounds.sets import InputSet
from tests.verifier.models import save_network, spec
from tests.verifier.test_adversarial import NAMES, NETWORKS, Layers, absorbed, exactly, ordered
from verifier import read_vnnlib, verify
from verifier.deadline import Deadline
from verifier.leaning import LeaningStage
from verifier.problem import State, make_problem
from verifier.property import Branch, Property, Region, Row, robustness
from verifier.real_value import real_agrees, real_value
from verifier.stages import BoundStage
from verifier.strategy import Result, as_json
from verifier.tilted import TiltedStage
from verifier.verdict import Claim, Evidence, Falsified, Verified
from verifier.witness import ModuleReplayer, OnnxReplayer

METHODS = ["auto", "ibp", "crown", "alpha-crown", "bab"]


def ask(net: Path, text: str, claim: Claim, method: str = "auto") -> Result:
    return verify(Graph.from_onnx(net), read_vnnlib(text.encode()), replayer=net, method=method, claim=claim,
                  time_limit_s=5.0)


def search_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large networks are: their neurons are split, and what is found is confirmed in float64."""
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", 0)
    monkeypatch.setattr("verifier.branch_and_bound.plan.FEW_INPUTS", 0)
    monkeypatch.setattr("verifier.branch_and_bound.cut.MOST_ENTRIES", 0)


def in_single(layers: Layers, x: float, order: Callable[[int], np.ndarray]) -> float:
    """The network in float32, the terms of each sum (the bias is the last) in some order."""
    values = np.array([x], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k, (weight, bias) in enumerate(layers):
            w, b = weight.astype(np.float32), bias.astype(np.float32)
            terms = np.concatenate([w * values, b[:, None]], 1)
            total = np.zeros(len(b), np.float32)
            for j in order(terms.shape[1]):
                total = total + terms[:, j]
            values = total if k == len(layers) - 1 else np.maximum(total, np.float32(0))
    return float(values[0])


@pytest.mark.parametrize("search", ["float32", "float64", "neurons"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", NETWORKS, ids=NAMES)
def test_what_some_order_of_summation_makes_unsafe_is_not_verified_about_float32(
        make: Callable[[], Layers], method: str, search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if search == "float32":
        search_in_float32(monkeypatch)
    elif search == "neurons":  # after leaning planes and tilted chords
        monkeypatch.setattr("verifier.branch_and_bound.plan.FEW_INPUTS", 0)
    layers = make()
    net = save_network(tmp_path / "net.onnx", layers)
    rng = np.random.default_rng(0)
    orders: list[Callable[[int], np.ndarray]] = [np.arange, lambda n: np.arange(n)[::-1]]
    orders += [rng.permutation] * 6
    reached = [in_single(layers, x, order) for order in orders for x in np.linspace(-1, 1, 9)]
    finite = [v for v in reached if np.isfinite(v)]
    wanted = [(">=", max(finite)), ("<=", min(finite))] if finite else [(">=", 0.0)]
    for sign, end in wanted:
        text = spec([(-1.0, 1.0)], 1, f"({sign} Y_0 {Decimal(end):f})")
        result = ask(net, text, Claim.FLOAT32, method)
        assert not isinstance(result.verdict, Verified), (sign, end, str(result))


def test_the_order_of_a_sum_decides_about_float32_alone(tmp_path: Path) -> None:
    """Over the reals the output is x; the runtime's sums give multiples of 64."""
    net = save_network(tmp_path / "net.onnx", ordered(0))
    safe = spec([(-1.0, 1.0)], 1, "(>= Y_0 1.5)")
    assert isinstance(ask(net, safe, Claim.REAL).verdict, Verified)
    assert not isinstance(ask(net, safe, Claim.FLOAT32).verdict, Verified)


def test_a_witness_of_float32_alone_answers_no_question_about_the_reals(tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.onnx", absorbed())
    # (x + B) - B is x over the reals, between 0.25 and 1, and zero in float32.
    text = spec([(0.25, 1.0)], 1, "(<= Y_0 0.125)")
    real = ask(net, text, Claim.REAL)
    assert isinstance(real.verdict, Verified) and real.claim is Claim.REAL
    single = ask(net, text, Claim.FLOAT32)
    assert isinstance(single.verdict, Falsified)
    assert (single.claim, single.evidence, single.verdict.witness.real_agrees) == (
        Claim.FLOAT32, Evidence.ROUNDED, False)
    assert as_json(single)["claim"] == "float32" and as_json(single)["witness"]["real_agrees"] is False


@pytest.mark.parametrize("claim", list(Claim))
def test_a_clear_witness_stands_for_both(claim: Claim, tmp_path: Path) -> None:
    layers = [(np.array([[1.0], [-1.0]]), np.zeros(2)), (np.ones((1, 2)), np.zeros(1))]
    net = save_network(tmp_path / "net.onnx", layers)
    result = ask(net, spec([(-1.0, 1.0)], 1, "(>= Y_0 0.5)"), claim)
    assert isinstance(result.verdict, Falsified)
    assert (result.claim, result.evidence, result.verdict.witness.real_agrees) == (claim, Evidence.ROUNDED, True)
    assert f"{claim.value}/rounded" in str(result)


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_that_float32_meets_exactly_are_decided_in_rationals(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(4, 1)), rng.normal(size=4)), (rng.normal(size=(1, 4)), rng.normal(size=1))]
    net = save_network(tmp_path / "net.onnx", layers)
    y = OnnxReplayer(net).node_by_node().run(np.array([[np.float32(0.5)]]))[0, 0]  # fused, it may differ
    text = spec([(0.5, 0.5)], 1, f"(>= Y_0 {Decimal(float(y)):f})")
    reached = exactly(layers, Fraction(1, 2)) >= Fraction(float(y))
    single = ask(net, text, Claim.FLOAT32)
    assert isinstance(single.verdict, Falsified)
    assert single.verdict.witness.real_agrees is reached
    assert reached or not isinstance(ask(net, text, Claim.REAL).verdict, Falsified)


def test_a_large_network_at_its_threshold_answers_for_what_was_run(tmp_path: Path) -> None:
    """No enclosure decides, and rationals would take too long."""
    rng = np.random.default_rng(0)
    net = save_network(tmp_path / "net.onnx", [(rng.normal(size=(600, 1)), rng.normal(size=600)),
                                               (rng.normal(size=(600, 600)) / 20, rng.normal(size=600)),
                                               (rng.normal(size=(1, 600)) / 20, rng.normal(size=1))])
    graph = Graph.from_onnx(net)
    x = np.array([0.5], np.float32)
    inside = real_value(graph.to(dtype=torch.float64), x)
    middle = Fraction(float(inside.lower)) + (Fraction(float(inside.upper)) - Fraction(float(inside.lower))) / 2
    prop = Property((Branch(Region((Fraction(1, 2),), (Fraction(1, 2),)), (Row(((0, Fraction(-1)),), (), -middle),)),),
                    1, 1)
    assert float(inside.lower) < float(inside.upper)
    assert real_agrees(graph.to(dtype=torch.float64), prop, x, 0) is None


def test_margins_about_float32_are_smaller_and_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(30, 4)), rng.normal(size=30)), (rng.normal(size=(30, 30)) / 5, rng.normal(size=30)),
              (rng.normal(size=(1, 30)), np.array([50.0]))]
    net = save_network(tmp_path / "net.onnx", layers)
    text = spec([(-0.1, 0.1)] * 4, 1, "(<= Y_0 0.0)")
    real, single = (ask(net, text, claim, "crown") for claim in (Claim.REAL, Claim.FLOAT32))
    assert isinstance(single.verdict, Verified) and single.verdict.evidence is Evidence.ROUNDED
    assert single.claim is Claim.FLOAT32
    loss = single.choices["margin_loss"]
    assert 0 < loss < 1e-2
    assert real.lower - single.lower == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "bab"])
def test_searches_in_float32_are_confirmed_with_the_noise(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                          ) -> None:
    """At a threshold between what holds with the noise and what holds without it, nothing is verified; below it is, and
    the margin is what float64 proves."""
    search_in_float32(monkeypatch)
    rng = np.random.default_rng(3)
    layers = [(rng.normal(size=(40, 30)), rng.normal(size=40)), (rng.normal(size=(40, 40)) / 6, rng.normal(size=40)),
              (rng.normal(size=(1, 40)), np.array([500.0]))]
    net = save_network(tmp_path / "net.onnx", layers)
    graph = Graph.from_onnx(net)
    box = InputSet(-0.01 * torch.ones(1, 30, dtype=torch.float64), 0.01 * torch.ones(1, 30, dtype=torch.float64))
    noisy = graph.simplify(fold=False).evaluated_in(torch.float32).to(dtype=torch.float64)
    row = LinearRows(torch.ones(1, 1, dtype=torch.float64))
    name = "crown" if method == "bab" else method
    with_noise, without = (float(compute_bounds(g, box, row, name).lower)
                           for g in (noisy, replace(noisy, arithmetic=None)))
    assert with_noise < without - 1e-5
    between, below = (with_noise + 3 * without) / 4, with_noise - 0.01

    def asked(threshold: float) -> Result:
        return ask(net, spec([(-0.01, 0.01)] * 30, 1, f"(<= Y_0 {threshold:.9f})"), Claim.FLOAT32, method)
    verified = asked(below)
    assert isinstance(verified.verdict, Verified) and verified.evidence is Evidence.ROUNDED
    assert 0 < verified.lower <= 0.01 + 1e-5 or method in ("alpha-crown", "bab")
    if method != "bab":  # which may split its way there
        assert not isinstance(asked(between).verdict, Verified)


def test_inputs_about_float32_are_float32_numbers(tmp_path: Path) -> None:
    """The box of a decimal that is no float32 is the nearest float32, not the decimal."""
    net = save_network(tmp_path / "net.onnx", [(np.array([[1.0]]), np.zeros(1))])
    near = float(np.float32(0.1))
    assert near > 0.1
    text = spec([(0.1, 0.1)], 1, f"(<= Y_0 {np.nextafter(np.float32(0.1), np.float32(0)):.12f})")
    assert isinstance(ask(net, text, Claim.FLOAT32, "crown").verdict, Verified) is False, "a unit is within the noise"
    wide = spec([(0.1, 0.1)], 1, "(<= Y_0 0.0999)")
    assert isinstance(ask(net, wide, Claim.FLOAT32, "crown").verdict, Verified)


def test_outputs_of_a_softmax_may_be_equal_in_float32(tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.onnx", [(np.array([[1.0], [0.0]]), np.zeros(2))], last="Softmax")
    text = spec([(1.0, 2.0)], 2, "(<= Y_0 Y_1)")
    assert isinstance(ask(net, text, Claim.REAL).verdict, Verified)
    with pytest.raises(UnsupportedOperator, match="Softmax"):
        ask(net, text, Claim.FLOAT32)


def test_methods_that_know_nothing_of_it_are_refused(tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.onnx", [(np.array([[1.0]]), np.zeros(1))])
    for method in ("zonotope", "lp", "sdp", "milp", "meet"):
        with pytest.raises(ValueError, match="float32"):
            ask(net, spec([(0.0, 1.0)], 1, "(<= Y_0 -1.0)"), Claim.FLOAT32, method)


def test_stages_of_the_callers_own_are_refused(tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.onnx", [(np.array([[1.0]]), np.zeros(1))])
    with pytest.raises(ValueError, match="name a method"):
        verify(Graph.from_onnx(net), read_vnnlib(spec([(0.0, 1.0)], 1, "(<= Y_0 -1.0)").encode()), replayer=net,
               method=lambda problem: (), claim=Claim.FLOAT32)


def test_a_module_is_asked_about_in_float32_as_well() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    graph = Graph.from_torch(module, (3,))
    y = module(torch.zeros(1, 3))[0]
    label = int(y.argmax())
    prop = robustness(np.zeros(3, np.float32), label, 1e-3, classes=2)
    result = verify(graph, prop, replayer=module, claim=Claim.FLOAT32)
    assert isinstance(result.verdict, Verified) and result.claim is Claim.FLOAT32


@pytest.mark.parametrize("claim", list(Claim))
def test_witnesses_about_float32_are_run_as_the_file_is_stored(claim: Claim, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    net = save_network(tmp_path / "net.onnx", [(np.array([[1.0]]), np.zeros(1))])
    started: list[bool] = []
    start = OnnxReplayer._start

    def noted(self: OnnxReplayer) -> object:
        started.append(self.optimised)
        return start(self)
    monkeypatch.setattr(OnnxReplayer, "_start", noted)
    assert isinstance(ask(net, spec([(0.0, 1.0)], 1, "(>= Y_0 0.5)"), claim).verdict, Falsified)
    assert started == [claim is Claim.REAL]


@pytest.mark.parametrize("single", [True, False], ids=["float32", "float64"])
@pytest.mark.parametrize("stage", [LeaningStage(), TiltedStage()], ids=["leaning", "tilted"])
def test_planes_about_float32_pay_for_its_noise(stage: LeaningStage | TiltedStage, single: bool,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large terms cancel: what float32 may make of their sum lowers the bounds."""
    if single:
        search_in_float32(monkeypatch)
    over_reals = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        big = 2.0 ** 18
        module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(),
                                     torch.nn.Linear(8, 1))
        with torch.no_grad():
            for k, layer in enumerate(m for m in module if isinstance(m, torch.nn.Linear)):
                layer.weight.copy_(torch.from_numpy(rng.normal(size=layer.weight.shape)))
                layer.bias.copy_(torch.from_numpy(rng.normal(size=layer.bias.shape) * (1 if k else 0.3)))
            module[2].weight[0], module[2].weight[1] = 0.0, 0.0     # two neurons of size 2^18 that cancel
            module[2].bias[0] = module[2].bias[1] = big
            module[4].weight[0, 0], module[4].weight[0, 1] = 1.0, -1.0
        graph = Graph.from_torch(module, (3,))
        prop = read_vnnlib(spec([(-0.5, 0.5)] * 3, 1, "(<= Y_0 -1000.0)").encode())
        problem = make_problem(graph, prop, replayer=ModuleReplayer(module), deadline=Deadline.starting_now(20.0),
                               claim=Claim.FLOAT32)
        assert stage.is_rounded(problem)
        state = State.of(problem)
        BoundStage("crown", keep=True).run(problem, state)
        state.row_lower[:] = -torch.inf
        stage.run(problem, state)
        lower = float(state.row_lower[0])
        if lower == -np.inf:
            continue
        assert problem.graph.dtype == (torch.float32 if single else torch.float64)
        real = replace(problem, graph=replace(problem.graph, arithmetic=None), claim=Claim.REAL)
        free = State.of(real)
        BoundStage("crown", keep=True).run(real, free)
        free.row_lower[:] = -torch.inf
        stage.run(real, free)
        noise = 2 * big * 2.0 ** -24   # of the two large terms of the last sum alone
        assert lower < float(free.row_lower[0]) - noise / 2
        over_reals += 1
    assert over_reals
