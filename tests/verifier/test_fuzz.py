"""Broken files through the command line: a sentence and exit code 2, or an answer that a second opinion accepts.

The slice of `benchmarks/fuzz.py` that fits into every test run; each mutant is judged in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.mutants import trial
from benchmarks.mutants.campaign import KINDS, mutants
from benchmarks.mutants.mutant import Mutant
from benchmarks.mutants.second_opinion import Claim, Unreadable, wrong
from benchmarks.mutants.small_networks import model, node, normal
from benchmarks.mutants.sources import Source, box_spec, examples, generated
from bounds.graph import Graph, InvalidNetwork, UnsupportedOperator
from verifier.vnnlib import VnnlibError, read_vnnlib

SLICE = {"onnx": 60, "vnnlib": 40, "bounds": 10, "input": 20, "sweep": 5}
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

forks = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="trials need fork and /proc")


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    trial.warm_up()
    return [*examples()[:1], *generated()]


@forks
@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_the_mutants(kind: str, sources: list[Source]) -> None:
    waiting = ((f"{kind}_{i}", m) for i, m in
               enumerate(mutants(kind, SLICE[kind], sources, seed=99, time_limit_s=2.0)))
    found = list(fuzz.outcomes(waiting, 1))
    assert len(found) == SLICE[kind]
    assert not [(name, m.source, m.change, outcome) for name, m, outcome in found if not outcome.good]


# ---------------------------------------------------------------- drawn texts and graphs

def _applied(words: list[str], inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda word, parts: f"({word} {' '.join(parts)})", st.sampled_from(words),
                     st.lists(inner, min_size=0, max_size=3))


TERMS = st.recursive(
    st.sampled_from(["X_0", "X_1", "Y_0", "Y_1", "Y_2", "0", "1.5", "-2e3", "1e400", "nan", "1/2", "x"]),
    lambda inner: _applied(["+", "-", "*", "/"], inner), max_leaves=5)
FORMULAS = st.recursive(
    st.builds(lambda op, a, b: f"({op} {a} {b})", st.sampled_from(["<=", "<", ">=", ">", "="]), TERMS, TERMS),
    lambda inner: _applied(["and", "or", "not", "=>"], inner), max_leaves=6)
HEADER = box_spec(2, 2, "true")


@QUICK
@given(st.lists(FORMULAS, max_size=4), st.text("()<=>XY_019.e- ;\n", max_size=40))
@example(["(<= Y_0 1e400)"], "")
def test_a_drawn_specification_is_read_or_refused_with_its_line(formulas: list[str], noise: str) -> None:
    text = HEADER + "".join(f"(assert {f})\n" for f in formulas) + noise
    message = "specification"
    try:
        assert read_vnnlib(text.encode(), inputs=2, outputs=2).branches
    except VnnlibError as error:
        message = str(error)
    assert message.startswith("specification") and "\n" not in message and len(message) < 500


OPERATORS = ("Relu", "Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Conv", "Concat", "Flatten", "Reshape",
             "Transpose", "Neg", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad", "Clip", "Sum",
             "Max", "MaxPool", "AveragePool", "ReduceSum", "Softmax", "Shape", "Where", "Expand", "Cast",
             "BatchNormalization", "PRelu", "Erf")
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["axis", "axes", "perm", "pads", "strides", "kernel_shape", "group", "alpha", "transB", "keepdims",
                     "to"]),
    st.one_of(st.integers(-3, 5), st.sampled_from([2**40, -2**62]), st.floats(-2, 2), st.just("SAME_UPPER"),
              st.lists(st.integers(-2, 3), min_size=1, max_size=4)), max_size=2)
WEIGHTS = {"v": normal(3), "m": normal(3, 3), "k": normal(2, 1, 2, 2), "i": normal(2).astype("int64"),
           "e": normal(0, 3)}
SHAPES = st.lists(st.integers(1, 3), min_size=0, max_size=4)


@QUICK
@given(st.lists(st.tuples(st.sampled_from(OPERATORS), st.lists(st.integers(0, 9), max_size=4), ATTRIBUTES), min_size=1,
                max_size=4), SHAPES, st.sampled_from([1, 7, 9, 11, 13, 17]))
def test_a_drawn_graph_is_read_or_refused_with_its_place(
        layers: Sequence[tuple[str, list[int], dict[str, Any]]], shape: list[int], opset: int) -> None:
    nodes, names = [], ["x", *WEIGHTS]
    for k, (operator, inputs, attributes) in enumerate(layers):
        chosen = ["x" if not k else f"t{k - 1}", *(names[i % len(names)] for i in inputs[1:])][:len(inputs) or 1]
        nodes.append(node(operator, " ".join(chosen), f"t{k}", **attributes))
        names.append(f"t{k}")
    message = "ONNX bytes: "
    try:
        Graph.from_onnx(model(nodes, [1, *shape], WEIGHTS, opset)).simplify()
    except (InvalidNetwork, UnsupportedOperator) as error:
        message = str(error)
    assert message.startswith("ONNX bytes: ") and len(message) < 1500


# ---------------------------------------------------------------- the judge can tell right from wrong

def verdict_of(answer: dict[str, Any], unsafe: str) -> str:
    network = model([node("Gemm", "x w", "y")], (1, 2), {"w": normal(2, 2)})
    return wrong({"lower": None, "witness": None, **answer}, network, box_spec(2, 2, unsafe).encode())[0]


def test_wrong_answers_are_caught() -> None:
    assert verdict_of({"verdict": "verified"}, "(>= Y_0 9)") == "checked"
    assert verdict_of({"verdict": "verified"}, "(>= Y_0 -9)") == "WRONG"
    assert verdict_of({"verdict": "verified", "lower": 8.9}, "(>= Y_0 9)") == "WRONG"
    assert verdict_of({"verdict": "verified"}, "(or (>= Y_0 9) (not (<= Y_1 0.0)))") == "WRONG"
    y = {"x": [0.0, 0.0], "y": [0.0, 0.0]}
    assert verdict_of({"verdict": "falsified", "witness": y}, "(>= Y_0 0)") == "checked"
    assert verdict_of({"verdict": "falsified", "witness": y}, "(> (* 2 Y_0) 0.5)") == "WRONG"
    assert verdict_of({"verdict": "falsified", "witness": {**y, "y": [1.0, 0.0]}}, "(>= Y_0 0)") == "WRONG"
    assert verdict_of({"verdict": "falsified", "witness": {**y, "x": [1.5, 0.0]}}, "(>= Y_0 -9)") == "WRONG"


def test_the_judges_own_reader_gives_up_on_what_it_does_not_know() -> None:
    with pytest.raises(Unreadable):
        Claim.read("(declare-const X_0 Real)(assert (<= X_0 1))")
    assert verdict_of({"verdict": "verified"}, "(xor (>= Y_0 9) (>= Y_1 9))") == "unchecked"


def hangs() -> int:
    time.sleep(60)
    return 0


def crashes() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def grows() -> int:
    held = []
    while True:
        held.append(b"x" * (8 << 20))
        time.sleep(0.01)


def raises() -> int:
    print("Traceback (most recent call last):", file=sys.stderr)
    return 3


FAULTS: list[tuple[Callable[[], int], tuple[str, ...]]] = [
    (hangs, ("hang",)), (crashes, ("died",)), (grows, ("memory", "died")), (raises, ("traceback",)),
    (lambda: 2, ("no sentence",)), (lambda: 0, ("no JSON",))]


@forks
@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_faults_are_caught(fault: Callable[[], int], words: tuple[str, ...], sources: list[Source],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "HANG_S", 1.5)
    monkeypatch.setattr(trial, "MEMORY", 128 << 20)
    monkeypatch.setattr(trial, "_answer", lambda arguments: fault())
    mutant = next(mutants("onnx", 1, sources, seed=0, time_limit_s=1.0))
    ((_, _, outcome),) = fuzz.outcomes(iter([("one", mutant)]), 1)
    assert not outcome.good and outcome.word in words


@forks
def test_a_bad_mutant_is_saved_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fuzz, "calibration", lambda threads: {})
    out = tmp_path / "fuzz.json"
    flags = ["--onnx", "2", "--vnnlib", "1", "--shared", str(tmp_path), "--out", str(out), "--jobs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(trial, "_answer", lambda arguments: raises())
        assert fuzz.main(flags) == 1
    assert {r["word"] for r in json.loads(out.read_text())["results"]} == {"traceback"}
    saved = sorted(path.name for path in (tmp_path / "fuzz").iterdir())
    assert saved == ["onnx_0.zip", "onnx_1.zip", "vnnlib_0.zip"]
    assert "BAD: traceback" in capsys.readouterr().out
    assert Mutant.load(tmp_path / "fuzz" / "onnx_0.zip").arguments[0] == "verify"
    assert fuzz.main(["--replay", str(tmp_path / "fuzz" / "onnx_0.zip")]) == 0
    assert fuzz.main(flags) == 0
    assert not (tmp_path / "fuzz").exists()


def test_mutants_come_from_the_seed_alone(sources: list[Source]) -> None:
    first, second = (list(mutants("vnnlib", 5, sources, seed=3, time_limit_s=1.0)) for _ in range(2))
    assert first == second != list(mutants("vnnlib", 5, sources, seed=4, time_limit_s=1.0))
