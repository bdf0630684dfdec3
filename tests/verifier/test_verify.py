"""The strategy: right verdicts where the truth is known by hand, and nothing broken that turns into `verified`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bounds import Graph, UnsupportedOperator
from bounds.bounds import Bounds, LinearRows
from bounds.interval import Interval
from tests.verifier.models import absolute_value, save_network, spec
from verifier import read_vnnlib, stages, verify
from verifier.problem import Problem, State
from verifier.property import robustness
from verifier.stages import BoundStage
from verifier.strategy import Result
from verifier.verdict import Evidence, Falsified, Reason, Unknown, Verified

WIDE = [(-1.0, 2.0)]


def ask(path: Path, text: str, **settings: object) -> Result:
    return verify(Graph.from_onnx(path), read_vnnlib(text.encode()), replayer=path, **settings)  # type: ignore[arg-type]


@pytest.fixture
def absolute(tmp_path: Path) -> Path:
    return absolute_value(tmp_path / "abs.onnx")


# Y_0 = |X_0|: the truth of each line can be read off.
TRUTH = [
    ("(>= Y_0 2.5)", "verified"),
    ("(>= Y_0 2.0)", "falsified"),      # met with equality at the end of the box
    ("(<= Y_0 0.05)", "falsified"),
    ("(<= Y_0 0.0)", "falsified"),      # met with equality at one point inside, which the search closes in on
    ("(<= Y_0 (- 0.01))", "verified"),
    ("(or (and (<= Y_0 (- 1.0))) (and (>= Y_0 3.0)))", "verified"),
    ("(or (and (<= Y_0 (- 1.0))) (and (>= Y_0 1.5)))", "falsified"),
    ("(and (>= Y_0 1.5) (<= Y_1 0.5))", "verified"),   # one row of the branch is out of reach
    ("(and (>= Y_0 1.5) (>= Y_1 0.5))", "falsified"),
    ("(>= Y_0 Y_1)", "falsified"),
]


@pytest.mark.parametrize(("unsafe", "verdict"), [(u.replace("(- 0.01)", "-0.01").replace("(- 1.0)", "-1.0"), v)
                                                 for u, v in TRUTH])
def test_verdicts_of_the_absolute_value(absolute: Path, unsafe: str, verdict: str) -> None:
    result = ask(absolute, spec(WIDE, 2, unsafe))
    assert result.name == verdict
    if isinstance(result.verdict, Verified):
        assert result.lower > 0
        assert result.upper == float("inf")
    if isinstance(result.verdict, Falsified):
        assert result.upper <= 0
        assert -1 <= float(result.verdict.witness.x.ravel()[0]) <= 2
        assert result.lower <= result.upper


def test_parameters_stored_in_float64_are_never_rounded() -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 1, 1, bias=False, dtype=torch.float64), torch.nn.Flatten())
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[[1 + 2.0**-25], [-1.0]]], dtype=torch.float64))
    unsafe = read_vnnlib(spec([(1, 1), (1, 1)], 1, f"(>= Y_0 {2.0**-26:.20f})").encode())
    result = verify(Graph.from_torch(module, (2, 1)), unsafe, replayer=module, method="crown")
    assert result.name == "unknown"  # with the weights in float32 the output is 0


@pytest.mark.parametrize("method", ["ibp", "zonotope", "fastlin", "crown-ibp", "crown", "alpha-crown", "meet"])
def test_one_method_alone_answers_and_never_attacks(absolute: Path, method: str) -> None:
    verified = ask(absolute, spec(WIDE, 2, "(>= Y_0 4.5)"), method=method)
    assert (verified.name, verified.method) == ("verified", method)
    assert [s.name for s in verified.stages] == [method]
    reachable = ask(absolute, spec(WIDE, 2, "(>= Y_0 1.0)"), method=method)
    assert (reachable.name, reachable.reason) == ("unknown", Reason.INCOMPLETE)


def test_an_unknown_method_is_wrong_use(absolute: Path) -> None:
    with pytest.raises(ValueError, match="method"):
        ask(absolute, spec(WIDE, 2, "(>= Y_0 4.5)"), method="magic")


def test_thousands_of_branches_with_own_boxes_are_chunked(absolute: Path) -> None:
    parts = [f"(and (>= X_0 {k / 1000}) (<= X_0 {(k + 1) / 1000}) (>= Y_0 {(k + 2) / 1000}))" for k in range(1500)]
    text = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n" \
           f"(assert (or {' '.join(parts)}))\n"
    result = ask(absolute, text)
    assert result.name == "verified"
    assert result.lower == pytest.approx(0.001, abs=1e-6)
    parts[1234] = "(and (>= X_0 1.234) (<= X_0 1.235) (>= Y_0 1.2345))"
    assert ask(absolute, text.replace(" ".join(parts[1233:1236]), "")).name == "verified"
    text = f"{text[:text.index('(assert')]}(assert (or {' '.join(parts)}))\n"
    assert ask(absolute, text).name == "falsified"


def test_sizes_that_do_not_fit_are_wrong_use(absolute: Path) -> None:
    with pytest.raises(ValueError, match="2 input"):
        ask(absolute, spec([(0, 1), (0, 1)], 2, "(>= Y_0 4.5)"))
    with pytest.raises(ValueError, match="3 output"):
        ask(absolute, spec(WIDE, 3, "(>= Y_0 4.5)"))


# ---------------------------------------------------------------- a softmax at the end

def softmax_network(path: Path) -> Path:
    return save_network(path, [(np.array([[1.0], [-1.0]]), np.zeros(2)), (np.eye(2), np.array([0.0, 0.0]))],
                        last="Softmax")


def test_a_final_softmax_is_dropped_where_outputs_are_only_compared(tmp_path: Path) -> None:
    path = softmax_network(tmp_path / "softmax.onnx")
    assert ask(path, spec([(0.5, 1.0)], 2, "(>= Y_1 Y_0)")).name == "verified"
    assert ask(path, spec([(-0.5, 1.0)], 2, "(>= Y_1 Y_0)")).name == "falsified"


def test_a_final_softmax_is_refused_where_its_values_matter(tmp_path: Path) -> None:
    path = softmax_network(tmp_path / "softmax.onnx")
    with pytest.raises(UnsupportedOperator, match="Softmax"):
        ask(path, spec([(0.5, 1.0)], 2, "(>= Y_1 0.9)"))


# ---------------------------------------------------------------- planted faults

class FakeMethod:
    """Answers a fixed lower bound for every row, with intermediate bounds of choice."""

    def __init__(self, lower: float, interval: tuple[float, float] = (-9.0, 9.0)) -> None:
        self.lower, self.interval = lower, interval

    def bound(self, graph: Graph, sets: object, rows: LinearRows, **_: object) -> Bounds:
        lower = torch.full((len(rows.C),), self.lower, dtype=rows.C.dtype)
        ends = [torch.full((1, 2), v, dtype=rows.C.dtype) for v in self.interval]
        return Bounds(lower, intervals={1: Interval(*ends)})


@pytest.mark.parametrize(("method", "reason"), [
    (FakeMethod(float("nan")), Reason.NUMERICAL),
    (FakeMethod(float("inf")), Reason.INCOMPLETE),
    (FakeMethod(1.0, (1.0, -1.0)), Reason.NUMERICAL),
    (FakeMethod(1.0, (float("nan"), 1.0)), Reason.NUMERICAL),
    (FakeMethod(1.0), Reason.NUMERICAL),   # above the network's value at a real point
    (FakeMethod(0.0), Reason.INCOMPLETE),  # a closed row needs more than zero
])
def test_a_broken_bound_method_never_verifies(
        absolute: Path, monkeypatch: pytest.MonkeyPatch, method: FakeMethod, reason: Reason) -> None:
    monkeypatch.setattr("verifier.stages.method_named", lambda name, **_: method)
    result = ask(absolute, spec(WIDE, 2, "(>= Y_0 1.9)"), method="crown")
    assert (result.name, result.reason) == ("unknown", reason)


@pytest.mark.parametrize("interval", [(float("nan"), 1.0), (-1.0, float("nan")), (1.0, -1.0)], ids=str)
def test_true_bounds_beside_intervals_that_are_wrong_prove_nothing(
        absolute: Path, monkeypatch: pytest.MonkeyPatch, interval: tuple[float, float]) -> None:
    """No point of the network contradicts them: the intervals alone show that something is wrong."""
    monkeypatch.setattr("verifier.stages.method_named", lambda name, **_: FakeMethod(0.3, interval))
    result = ask(absolute, spec(WIDE, 2, "(>= Y_0 2.5)"), method="crown")
    assert (result.name, result.reason) == ("unknown", Reason.NUMERICAL)


def test_what_float32_bounds_is_what_float64_makes_of_it(absolute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CROWN's least margins of both are 0.5 and -0.1, whatever was said in float32."""
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", 0)
    monkeypatch.setattr("verifier.stages.method_named", lambda name, **_: FakeMethod(0.3))
    safe, unsafe = (ask(absolute, spec(WIDE, 2, f"(>= Y_0 {end})"), method="crown") for end in (2.5, 1.9))
    assert safe.name == "verified" and safe.lower == pytest.approx(0.5, abs=1e-6)
    assert (unsafe.name, unsafe.reason) == ("unknown", Reason.INCOMPLETE)
    assert unsafe.lower == pytest.approx(-0.1, abs=1e-6)


def test_a_strict_row_is_verified_at_exactly_zero(absolute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.stages.method_named", lambda name, **_: FakeMethod(0.0))
    assert ask(absolute, spec(WIDE, 2, "(> Y_0 2.0)"), method="crown").name == "verified"


class Raises:
    """A stage that improves the bound and then fails."""

    name = "fails"

    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def run(self, problem: Problem, state: State) -> None:
        BoundStage("ibp").run(problem, state)
        self.fail()

    def is_rounded(self, problem: Problem) -> bool:
        return False


class Decides:
    """A stage that knows of one row what is true, with or without an account of its rounding."""

    def __init__(self, row: int, rounded: bool) -> None:
        self.name, self.row, self.rounded = f"row {row}", row, rounded

    def run(self, problem: Problem, state: State) -> None:
        state.improve(torch.tensor([self.row]), torch.ones(1, dtype=torch.float64))

    def is_rounded(self, problem: Problem) -> bool:
        return self.rounded


@pytest.mark.parametrize("rounded", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_evidence_is_that_of_the_weakest_branch(absolute: Path, monkeypatch: pytest.MonkeyPatch,
                                                rounded: tuple[bool, bool]) -> None:
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: [Decides(k, r) for k, r in enumerate(rounded)])
    text = spec(WIDE, 2, "(or (and (>= Y_0 4.0)) (and (<= Y_0 -1.5)))")
    result, asked = ask(absolute, text), ask(absolute, text, evidence=Evidence.ROUNDED)
    assert result.name == "verified" and result.evidence == (Evidence.ROUNDED if all(rounded) else Evidence.FLOAT)
    assert (asked.name, asked.reason) == (("verified", None) if all(rounded) else ("unknown", Reason.ROUNDING))


def _raise(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error
    return fail


def _spin() -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass


FAILURES = [
    (_raise(MemoryError("no")), Reason.MEMORY),
    (_raise(torch.cuda.OutOfMemoryError("no")), Reason.MEMORY),
    (_raise(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")), Reason.MEMORY),
    (_raise(RuntimeError("surprise")), Reason.ERROR),
    (_raise(ValueError("surprise")), Reason.ERROR),
    (_raise(AssertionError("surprise")), Reason.ERROR),
    (_raise(UnsupportedOperator("no relaxation")), Reason.UNSUPPORTED),
    (_raise(KeyboardInterrupt()), Reason.INTERRUPTED),
    (_spin, Reason.TIME_LIMIT),
]


@pytest.mark.parametrize(("fail", "reason"), FAILURES)
def test_whatever_fails_is_unknown_with_its_reason_and_the_bounds_so_far(
        absolute: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], object], reason: Reason) -> None:
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: [Raises(fail)])
    start = time.monotonic()
    result = ask(absolute, spec(WIDE, 2, "(>= Y_0 1.9)"), time_limit_s=0.5)
    assert time.monotonic() - start < 2.5
    assert isinstance(result.verdict, Unknown)
    assert result.reason is reason
    assert result.lower == pytest.approx(1.9 - 3.0, abs=1e-6)  # IBP: |x| <= 2 + 1
    assert [s.name for s in result.stages] == ["fails"]


def test_results_print_as_one_line(absolute: Path) -> None:
    assert str(ask(absolute, spec(WIDE, 2, "(>= Y_0 2.5)"))).startswith("verified  margin 0.5  real/rounded  ")
    assert str(ask(absolute, spec(WIDE, 2, "(>= Y_0 1.0)"))).startswith("falsified  margin -")
    unknown = str(ask(absolute, spec(WIDE, 2, "(>= Y_0 2.5)"), method="ibp"))
    assert unknown.startswith("unknown  incomplete  margin in [-0.5, inf]  ")


def test_the_same_seed_gives_the_same_counterexample(absolute: Path) -> None:
    runs = [ask(absolute, spec(WIDE, 2, "(>= Y_0 1.0)"), seed=7).verdict for _ in range(2)]
    assert all(isinstance(v, Falsified) for v in runs)
    assert (runs[0].witness.x == runs[1].witness.x).all()  # type: ignore[union-attr]


def test_a_module_is_verified_and_replayed_as_itself() -> None:
    from verifier import robustness
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    x = np.array([0.2, 0.4, 0.6], np.float32)
    label = int(module(torch.tensor(x)[None]).argmax())
    graph = Graph.from_torch(module, (3,))
    small = verify(graph, robustness(x, label, 1e-4, classes=2), replayer=module)
    large = verify(graph, robustness(x, label, 50.0, classes=2), replayer=module)
    assert (small.name, large.name) == ("verified", "falsified")


@pytest.mark.parametrize("method", ["auto", "crown", "attack"])
def test_a_ball_is_not_falsified_at_the_float32_beyond_its_end(absolute: Path, method: str) -> None:
    """|x| reaches 0.1 (1 + 1.4e-8) only at the float32 next to 0.1, which is further from 0 than 0.1."""
    beyond = save_network(absolute.with_name("beyond.onnx"), [
        (np.array([[1.0], [-1.0]]), np.zeros(2)), (np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0.1, 0.0]))])
    result = verify(Graph.from_onnx(beyond), robustness(np.zeros(1, np.float32), 0, 0.1, classes=2), replayer=beyond,
                    method=method)
    assert result.name == ("unknown" if method == "attack" else "verified")
    wider = robustness(np.zeros(1, np.float32), 0, 0.1000001, classes=2)
    found = verify(Graph.from_onnx(beyond), wider, replayer=beyond, method="attack").verdict
    assert isinstance(found, Falsified)
    assert found.witness.excess == 0.0


def test_a_final_softmax_over_an_axis_of_length_one_is_not_dropped() -> None:
    """It makes every output one, whatever the order of its inputs."""
    dense = torch.nn.Linear(2, 3)
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.copy_(torch.tensor([3.0, 1.0, 0.0]))
    module = torch.nn.Sequential(dense, torch.nn.Unflatten(1, (1, 3)), torch.nn.Softmax(dim=1))
    question = robustness(np.zeros(2), 0, 0.1, classes=3)
    with pytest.raises(UnsupportedOperator, match="Softmax"):
        verify(Graph.from_torch(module, (2,)), question, replayer=module)
    module[2] = torch.nn.Softmax(dim=2)
    assert verify(Graph.from_torch(module, (2,)), question, replayer=module).name == "verified"


@pytest.mark.parametrize("unsafe", ["(<= Y_0 -1.0)", "(>= Y_0 -1.0)"])
def test_large_numbers_that_cancel_in_float32_prove_nothing(unsafe: str) -> None:
    """Y_0 = (X_0 + 1e8) - (1e8 + 3) = X_0 - 3 over the reals; float32 loses the 3 and sees X_0 or X_0 - 8."""
    layers = [torch.nn.Conv2d(1, 1, 1) for _ in range(3)]
    with torch.no_grad():
        for layer, bias in zip(layers, (-3.0, 1e8, -1e8), strict=True):
            layer.weight.fill_(1)
            layer.bias.fill_(bias)  # type: ignore[union-attr]
    module = torch.nn.Sequential(*layers[:2], torch.nn.ReLU(), layers[2], torch.nn.Flatten())
    question = read_vnnlib(spec([(0.0, 0.5)], 1, unsafe).encode())
    result = verify(Graph.from_torch(module, (1, 1, 1)), question, replayer=module, method="crown")
    assert result.name == "unknown", "over the reals Y_0 lies in [-3, -2.5]"


def test_rows_are_held_against_the_points_of_their_own_regions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many regions with many rows: all rows at all points would take gigabytes."""
    generator = torch.Generator().manual_seed(0)
    text = spec([(-1, 1)] * 2, 3, "(or " + " ".join(
        f"(and (>= X_0 0.{k}) (<= X_0 0.{k + 1}) (<= Y_0 {k}) (>= (+ Y_1 X_1) (* 2 Y_2)))" for k in range(1, 8)) + ")")
    tensors = read_vnnlib(text.encode()).tensors((2,), dtype=torch.float64)
    points = torch.rand(7, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(35, 3, generator=generator, dtype=torch.float64)
    rows = torch.arange(14)
    everything = tensors.violation(points.flatten(0, 1), y).view(7, 5, 14)
    for entries in (1, 1000):
        monkeypatch.setattr(stages, "PIECE_ENTRIES", entries)
        own = stages._at_own_points(tensors, rows, tensors.region[rows], points, y)
        assert torch.allclose(own, everything[tensors.region[rows], :, rows])


def test_few_regions_are_bounded_together_where_layers_are_wide(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    net = absolute_value(tmp_path / "net.onnx")
    text = spec([(-1, 1)], 2, "(or " + " ".join(
        f"(and (>= X_0 0.{k}) (<= X_0 0.{k + 1}) (>= Y_0 0.{k + 2}))" for k in range(1, 8)) + ")")
    seen: list[int] = []
    real = BoundStage._take_over

    def noted(self: BoundStage, problem: Problem, state: State, regions: torch.Tensor, *rest: Any) -> None:
        seen.append(len(regions))
        real(self, problem, state, regions, *rest)
    monkeypatch.setattr(BoundStage, "_take_over", noted)
    for entries, sizes in ((2**25, {7}), (20, {2, 1}), (1, {1})):
        seen.clear()
        monkeypatch.setattr(stages, "CHUNK_ENTRIES", entries)
        result = verify(Graph.from_onnx(net), read_vnnlib(text.encode()), replayer=net, method="ibp")
        assert result.name == "verified" and sum(seen) == 7 and set(seen) == sizes
