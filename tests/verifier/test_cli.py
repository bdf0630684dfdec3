"""The command line's contract: exit codes, what goes to stdout and stderr, JSON, and one sentence for bad input."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from milp.methods import METHODS
from tests.verifier.models import absolute_value, save_network, spec
from verifier.cli import PLANNED, run
from verifier.cli.verify import BOUND_METHODS
from verifier.demo import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
SAFE, UNSAFE = "(>= Y_0 2.5)", "(>= Y_0 1.0)"
JSON_KEYS = {"verdict", "reason", "claim", "evidence", "lower", "upper", "time_s", "domains", "method", "witness"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.onnx (Y_0 = |X_0|, Y_1 = 1), a safe and an unsafe property, and an input."""
    absolute_value(tmp_path / "net.onnx")
    (tmp_path / "safe.vnnlib").write_text(spec([(-1, 2)], 2, SAFE))
    (tmp_path / "unsafe.vnnlib").write_text(spec([(-1, 2)], 2, UNSAFE))
    np.save(tmp_path / "x.npy", np.array([0.25], np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Output = Callable[[], tuple[str, str]]


# ---------------------------------------------------------------- verdicts and their outlets

def test_the_command_line_names_every_bound_method() -> None:
    """The names are spelled out there, so that `--help` does not load PyTorch."""
    assert set(BOUND_METHODS) == set(METHODS)


def test_verified_prints_one_line_and_exits_with_0(here: Path, output: Output) -> None:
    assert run(["verify", "net.onnx", "safe.vnnlib"]) == 0
    out, err = output()
    assert re.fullmatch(r"verified  margin 0\.5  real/rounded  [\d.]+ s\n", out)
    assert err == ""


def test_falsified_exits_with_1_and_writes_its_witness(here: Path, output: Output) -> None:
    outputs = ["--witness", "w.npz", "--vnncomp", "v.txt", "--json", "r.json"]
    assert run(["verify", "net.onnx", "unsafe.vnnlib", *outputs]) == 1
    assert output()[0].startswith("falsified  margin -")
    with np.load("w.npz") as witness:
        x, y = witness["x"], witness["y"]
    assert x.dtype == np.float32
    assert abs(x.ravel()[0]) == y.ravel()[0] >= 1
    text = Path("v.txt").read_text()
    assert text.startswith("sat\n((X_0 ")
    values = {name: np.float32(value) for name, value in re.findall(r"\((\w+) ([^()\s]+)\)", text)}
    assert values == {"X_0": x.ravel()[0], "Y_0": y.ravel()[0], "Y_1": y.ravel()[1]}
    answer = json.loads(Path("r.json").read_text())
    assert np.float32(answer["witness"]["x"][0]) == x.ravel()[0]
    assert answer["upper"] <= 0


def test_a_witness_with_the_suffix_npy_holds_x_alone(here: Path) -> None:
    assert run(["verify", "net.onnx", "unsafe.vnnlib", "--witness", "w.npy"]) == 1
    assert abs(float(np.load("w.npy").ravel()[0])) >= 1


def test_evidence_is_what_was_asked_for(here: Path, output: Output) -> None:
    def answer(*flags: str) -> tuple[int, dict[str, object]]:
        code = run(["verify", "net.onnx", "safe.vnnlib", "--json", "-", *flags])
        return code, json.loads(output()[0])
    assert answer()[1]["evidence"] == answer("--evidence", "rounded")[1]["evidence"] == "rounded"
    assert answer("--evidence", "float")[1]["evidence"] == "float"
    code, weaker = answer("--evidence", "rounded", "--method", "sdp")  # whose bounds are not known to account for it
    assert (code, weaker["verdict"], weaker["reason"]) == (3, "unknown", "rounding")


def test_unknown_exits_with_3_and_names_a_remedy(here: Path, output: Output) -> None:
    outputs = ["--vnncomp", "v.txt", "--witness", "w.npz"]
    assert run(["verify", "net.onnx", "safe.vnnlib", "--method", "ibp", *outputs]) == 3
    out, err = output()
    assert out.startswith("unknown  incomplete  margin in [-0.5, inf]")
    assert "tighter method" in err
    assert "not written" in err
    assert not Path("w.npz").exists()
    assert Path("v.txt").read_text() == "unknown\n"


def test_a_passed_deadline_is_a_timeout(here: Path) -> None:
    # The clock runs from process start, which lies further back than this.
    outputs = ["--vnncomp", "v.txt", "--json", "r.json"]
    assert run(["verify", "net.onnx", "safe.vnnlib", "--time-limit", "0.001", *outputs]) == 3
    assert Path("v.txt").read_text() == "timeout\n"
    assert json.loads(Path("r.json").read_text())["reason"] == "time limit"


@pytest.mark.parametrize(("property", "code", "verdict"), [("safe", 0, "verified"), ("unsafe", 1, "falsified")])
def test_json_on_stdout_is_one_object_and_nothing_else(
        here: Path, output: Output, property: str, code: int, verdict: str) -> None:
    assert run(["verify", "net.onnx", f"{property}.vnnlib", "--json", "-"]) == code
    answer = json.loads(output()[0])
    assert set(answer) >= JSON_KEYS
    assert answer["verdict"] == verdict
    assert answer["claim"] == "real"
    assert answer["evidence"] == "rounded"
    assert answer["time_s"] > 0
    assert answer["first_bound_s"] is None or 0 < answer["first_bound_s"] <= answer["time_s"]
    assert (answer["witness"] is None) == (verdict == "verified")
    assert (answer["upper"] is None) == (verdict == "verified")


def test_compressed_files_are_read_under_both_names(here: Path) -> None:
    for name in ("net.onnx", "safe.vnnlib"):
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
        Path(name).unlink()
    assert run(["verify", "net.onnx", "safe.vnnlib"]) == 0
    assert run(["verify", "net.onnx.gz", "safe.vnnlib.gz"]) == 0


def test_networks_that_do_nothing_are_answered(here: Path) -> None:
    point = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    copy = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "copy", point[:1], point[1:])
    empty = helper.make_graph([], "empty", point[:1], point[:1])
    head = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(assert (>= X_0 0))\n(assert (<= X_0 1))\n"
    for graph in (copy, empty):
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "same.onnx")
        for rows, code in (("(assert (>= Y_0 1.5))", 0), ("(assert (>= Y_0 0.5))", 1)):
            Path("rows.vnnlib").write_text(head + rows)
            assert run(["verify", "same.onnx", "rows.vnnlib"]) == code


def test_a_table_of_bounds_fits_its_terminal(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["bounds", str(EXAMPLES / "digits_mlp.onnx"), str(EXAMPLES / "mlp_image0_small.vnnlib"),
                 "--method", "ibp,crown"]
    assert run(arguments) == 0
    assert "Y_9" in output()[0]
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "80")
    assert run(arguments) == 0
    out, _ = output()
    assert "mean width" in out
    assert "Y_9" not in out
    assert "10 outputs; --json shows each of them" in out


# ---------------------------------------------------------------- the property from flags

@pytest.mark.parametrize(("flags", "code"), [
    (["--label", "1", "--eps", "0.7"], 0),                          # |x| <= 0.95 < 1
    (["--label", "1", "--eps", "0.8"], 1),                          # |1.05| > 1
    (["--label", "1", "--eps", "0.8", "--clip", "0", "0.9"], 0),
    (["--label", "1", "--eps", "0.8", "--target", "0"], 1),
    (["--label", "1", "--eps", "0.7", "--norm", "2"], 0),
    (["--label", "1", "--eps", "0.8", "--norm", "1"], 1),
    (["--label", "0", "--eps", "0.0"], 1),                          # the label is wrong to begin with
    (["--label", "1", "--eps", "5", "--mask", "still.npy"], 0),
    (["--label", "1", "--eps", "5", "--mask", "moves.npy"], 1),
])
def test_a_ball_around_an_input(here: Path, flags: list[str], code: int) -> None:
    np.save("still.npy", np.array([False]))
    np.save("moves.npy", np.array([[1]]))
    assert run(["verify", "net.onnx", "--input", "x.npy", *flags]) == code


# ---------------------------------------------------------------- bad input: exit code 2 and one sentence

def _bad_onnx(here: Path) -> None:
    whole = (here / "net.onnx").read_bytes()
    (here / "truncated.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    (here / "text.onnx").write_text("this is not a network\n")
    (here / "empty.onnx").write_bytes(b"")
    (here / "broken.onnx.gz").write_bytes(gzip.compress(whole)[:40])
    save_network(here / "nan.onnx", [(np.array([[1.0], [np.nan]]), np.zeros(2)), (np.eye(2), np.zeros(2))])
    save_network(here / "foreign.onnx", [(np.ones((2, 1)), np.zeros(2))], last="Erf")


def _bad_vnnlib(here: Path) -> None:
    good = spec([(-1, 2)], 2, SAFE)
    for name, text in {
        "variable": good + "(assert (<= Y_7 0))\n",
        "unbounded": good.replace("(assert (<= X_0 2))", ""),
        "syntax": good.replace("(assert (>= Y_0 2.5))", "(assert (>= Y_0 2.5)"),
        "operator": good + "(assert (sin Y_0))\n",
        "inputs": spec([(0, 1), (0, 1)], 2, SAFE),
        "text": "dear reader\n",
    }.items():
        (here / f"{name}.vnnlib").write_text(text)


def _bad_arrays(here: Path) -> None:
    np.save(here / "wide.npy", np.zeros((3, 1), np.float32))
    np.save(here / "nan.npy", np.array([np.nan], np.float32))
    np.save(here / "words.npy", np.array(["seven"]))
    np.save(here / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(here / "several.npz", x=np.zeros(1))
    np.save(here / "half.npy", np.array([0.5]))
    (here / "text.npy").write_text("0.25")
    whole = (here / "x.npy").read_bytes()
    (here / "header.npy").write_bytes(whole.replace(b"(1,)", b"((((", 1))
    with (here / "terabytes.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    (here / "torn.npy").write_bytes((here / "several.npz").read_bytes()[:-30])
    (here / "empty.npy").write_bytes(b"")


BALL = ["--label", "1", "--eps", "0.1"]
BAD_INPUT: list[tuple[str, list[str], list[str]]] = [
    # what, arguments after `rmax verify`, what the sentence must name
    ("truncated onnx", ["truncated.onnx", "safe.vnnlib"], ["truncated.onnx"]),
    ("text as onnx", ["text.onnx", "safe.vnnlib"], ["text.onnx"]),
    ("empty onnx", ["empty.onnx", "safe.vnnlib"], ["empty.onnx"]),
    ("broken gzip", ["broken.onnx.gz", "safe.vnnlib"], ["broken.onnx.gz"]),
    ("NaN weights", ["nan.onnx", "safe.vnnlib"], ["nan.onnx", "NaN|finite|W0"]),
    ("operator we lack", ["foreign.onnx", "safe.vnnlib"], ["Erf", "the_Erf|last"]),
    ("missing network", ["absent.onnx", "safe.vnnlib"], ["absent.onnx", "no such file"]),
    ("folder as network", [".", "safe.vnnlib"], ["directory"]),
    ("missing property", ["net.onnx", "absent.vnnlib"], ["absent.vnnlib", "no such file"]),
    ("unknown variable", ["net.onnx", "variable.vnnlib"], ["variable.vnnlib", "Y_7", r"line 7|:7"]),
    ("unbounded input", ["net.onnx", "unbounded.vnnlib"], ["unbounded.vnnlib", "X_0"]),
    ("syntax error", ["net.onnx", "syntax.vnnlib"], ["syntax.vnnlib", r"line 6|:6"]),
    ("operator of vnnlib", ["net.onnx", "operator.vnnlib"], ["operator.vnnlib", "sin", r"line 7|:7"]),
    ("other network's property", ["net.onnx", "inputs.vnnlib"], ["inputs.vnnlib", "2|X_1"]),
    ("text as property", ["net.onnx", "text.vnnlib"], ["text.vnnlib", r"line 1|:1"]),
    ("missing input", ["net.onnx", "--input", "absent.npy", *BALL], ["absent.npy", "no such file"]),
    ("wrong shape", ["net.onnx", "--input", "wide.npy", *BALL], ["wide.npy", r"\(3, 1\)", r"\(1,\)"]),
    ("NaN input", ["net.onnx", "--input", "nan.npy", *BALL], ["nan.npy", "NaN"]),
    ("words as input", ["net.onnx", "--input", "words.npy", *BALL], ["words.npy", "numbers"]),
    ("pickled input", ["net.onnx", "--input", "objects.npy", *BALL], ["objects.npy"]),
    ("a header that is no Python", ["net.onnx", "--input", "header.npy", *BALL], ["header.npy", "not a .npy file"]),
    ("a header of terabytes", ["net.onnx", "--input", "terabytes.npy", *BALL], ["terabytes.npy", "not a .npy file"]),
    ("a torn archive", ["net.onnx", "--input", "torn.npy", *BALL], ["torn.npy", "not a .npy file"]),
    ("an empty array file", ["net.onnx", "--input", "empty.npy", *BALL], ["empty.npy", "not a .npy file"]),
    ("a mask of terabytes", ["net.onnx", "--input", "x.npy", *BALL, "--mask", "terabytes.npy"], ["terabytes.npy"]),
    ("npz as input", ["net.onnx", "--input", "several.npz", *BALL], ["several.npz", "one"]),
    ("text as npy", ["net.onnx", "--input", "text.npy", *BALL], ["text.npy"]),
    ("label too large", ["net.onnx", "--input", "x.npy", "--label", "2", "--eps", "0.1"], ["--label 2", "2 outputs"]),
    ("negative label", ["net.onnx", "--input", "x.npy", "--label", "-1", "--eps", "0.1"], ["--label -1", "2 outputs"]),
    ("target is label", ["net.onnx", "--input", "x.npy", *BALL, "--target", "1"], ["--target", "--label"]),
    ("negative eps", ["net.onnx", "--input", "x.npy", "--label", "1", "--eps", "-0.1"], ["--eps", "-0.1"]),
    ("eps nan", ["net.onnx", "--input", "x.npy", "--label", "1", "--eps", "nan"], ["--eps", "nan"]),
    ("clip reversed", ["net.onnx", "--input", "x.npy", *BALL, "--clip", "1", "0"], ["--clip"]),
    ("clip without end", ["net.onnx", "--input", "x.npy", *BALL, "--clip", "0", "inf"], ["--clip"]),
    ("eps beyond float32", ["net.onnx", "--input", "x.npy", "--label", "1", "--eps", "1e39"], ["x.npy", "float32"]),
    ("seed", ["net.onnx", "safe.vnnlib", "--seed", "-1"], ["--seed"]),
    ("full disk", ["net.onnx", "safe.vnnlib", "--json", "/dev/full"], ["--json /dev/full", "cannot be written"]),
    ("clip excludes input", ["net.onnx", "--input", "x.npy", *BALL, "--clip", "0.5", "1"], ["x.npy", "clip"]),
    ("mask of fractions", ["net.onnx", "--input", "x.npy", *BALL, "--mask", "half.npy"], ["half.npy"]),
    ("no property", ["net.onnx"], ["SPEC.vnnlib", "--input"]),
    ("two properties", ["net.onnx", "safe.vnnlib", "--input", "x.npy", *BALL], ["--input", "safe.vnnlib"]),
    ("label of a file", ["net.onnx", "safe.vnnlib", "--label", "1"], ["--label", "safe.vnnlib"]),
    ("input without eps", ["net.onnx", "--input", "x.npy", "--label", "1"], ["--eps"]),
    ("time limit", ["net.onnx", "safe.vnnlib", "--time-limit", "0"], ["--time-limit"]),
    ("method", ["net.onnx", "safe.vnnlib", "--method", "magic"], ["--method", "magic"]),
    ("output folder", ["net.onnx", "safe.vnnlib", "--json", "absent/r.json"], ["--json", "absent"]),
    # in the contract, not in this version
    ("norm 0", ["net.onnx", "--input", "x.npy", *BALL, "--norm", "0"], ["--norm 0", "not built"]),
    ("claim and method", ["net.onnx", "safe.vnnlib", "--claim", "float32", "--method", "zonotope"],
     ["claim float32", "zonotope"]),
    ("claim and evidence", ["net.onnx", "safe.vnnlib", "--claim", "float32", "--evidence", "float"], ["claim float32"]),
    ("claim and proof", ["net.onnx", "safe.vnnlib", "--claim", "float32", "--proof", "p"], ["claim float32", "proof"]),
    ("solver", ["net.onnx", "safe.vnnlib", "--method", "milp", "--solver", "gurobi"], ["--solver gurobi", "install"]),
    ("l2 by milp", ["net.onnx", "--input", "x.npy", *BALL, "--norm", "2", "--method", "milp"], ["--norm 2", "scip"]),
    ("proof", ["net.onnx", "safe.vnnlib", "--proof", "no/p"], ["--proof", "does not exist"]),
]


@pytest.mark.parametrize(("arguments", "names"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_gets_one_sentence(here: Path, output: Output, arguments: list[str], names: list[str]) -> None:
    _bad_onnx(here)
    _bad_vnnlib(here)
    _bad_arrays(here)
    assert run(["verify", *arguments]) == 2
    out, err = output()
    assert out == ""
    sentences = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1
    assert "Traceback" not in err
    for name in names:
        assert re.search(name, sentences[0]), f"{sentences[0]!r} should name {name}"


def test_a_network_that_its_runtime_refuses_is_bad_input(here: Path, output: Output) -> None:
    """Two nodes of one name, says onnxruntime; no counterexample on such a file could be replayed."""
    proto = onnx.load(here / "net.onnx")
    for node in proto.graph.node:
        node.name = "one"
    onnx.save(proto, here / "net.onnx")
    assert run(["verify", "net.onnx", "unsafe.vnnlib"]) == 2
    out, err = output()
    assert out == "" and len(err.splitlines()) == 1 and "net.onnx: onnxruntime cannot load it" in err


def test_files_are_read_within_the_time_limit(here: Path, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        time.sleep(20)
    monkeypatch.setattr("verifier.vnnlib.read_vnnlib", slow)
    start = time.monotonic()
    assert run(["verify", "net.onnx", "safe.vnnlib", "--time-limit", "0.5", "--json", "-"]) == 3
    assert time.monotonic() - start < 5
    answer = json.loads(output()[0])
    assert (answer["reason"], answer["detail"]) == ("time limit", "the time was up while the files were read")


def test_bounds_refuses_a_property_that_has_no_tensors(here: Path, output: Output) -> None:
    (here / "odd.vnnlib").write_text(spec([(-1, 2)], 2, "(<= (* 1e400 Y_0) 1)"))
    assert run(["bounds", "net.onnx", "odd.vnnlib", "--method", "ibp"]) == 2
    assert "odd.vnnlib: the coefficient inf" in output()[1]


@pytest.mark.parametrize("command", PLANNED)
def test_commands_that_are_not_built_are_refused(command: str, output: Output) -> None:
    assert run([command, "net.onnx"]) == 2
    assert f"rmax {command} is not built yet" in output()[1]


# ---------------------------------------------------------------- what may go wrong around it

def test_an_unexpected_error_is_neither_verified_nor_falsified(
        here: Path, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")
    stage = type("S", (), {"name": "s", "run": fail, "is_rounded": lambda *_: False})()
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: [stage])
    assert run(["verify", "net.onnx", "safe.vnnlib"]) == 3
    out, err = output()
    assert out.startswith("unknown  error")
    assert "surprise" in err
    monkeypatch.setattr("verifier.strategy.verify", fail)
    assert run(["verify", "net.onnx", "safe.vnnlib"]) == 3


def test_debug_shows_where_an_unexpected_error_came_from(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")
    monkeypatch.setattr("verifier.strategy.verify", fail)
    with pytest.raises(RuntimeError, match="surprise"):
        run(["--debug", "verify", "net.onnx", "safe.vnnlib"])


def test_help_teaches_with_examples(output: Output) -> None:
    for command in ("verify", "bounds", "sweep"):
        assert run([command, "--help"]) == 0
        assert f"rmax {command} " in output()[0].split("Examples")[1]
    assert run(["--help"]) == 0
    out, _ = output()
    assert all(name in out for name in ("verify", "bounds", "sweep", "demo"))


def rmax(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "verifier.cli", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, **settings)  # type: ignore[call-overload, no-any-return]


def test_the_process_itself_keeps_the_contract(here: Path) -> None:
    done = rmax("verify", str(here / "net.onnx"), str(here / "unsafe.vnnlib"), "--json", "-")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["verdict"] == "falsified"
    assert done.stderr == ""
    assert rmax("verify", str(here / "absent.onnx"), "x").returncode == 2


def test_an_interrupt_answers_unknown(here: Path) -> None:
    """Ctrl-C in a process that works: exit code 3 and reason interrupted, with bounds."""
    code = """
import time, verifier.stages, verifier.strategy
class Slow:
    name = "slow"
    def run(self, problem, state):
        verifier.stages.BoundStage("ibp").run(problem, state)
        print("working", flush=True)
        time.sleep(30)
    def is_rounded(self, problem):
        return False
verifier.strategy.stages_for = lambda *_: [Slow()]
from verifier.cli import main
main()
"""
    files = [str(here / "net.onnx"), str(here / "safe.vnnlib")]
    process = subprocess.Popen([sys.executable, "-c", code, "verify", *files], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 3
    assert out.startswith("unknown  interrupted  margin in [-0.5, inf]")


# ---------------------------------------------------------------- rmax bounds

def test_bounds_has_one_row_a_method(here: Path, output: Output) -> None:
    assert run(["bounds", "net.onnx", "safe.vnnlib", "--method", "ibp,crown", "--json", "-"]) == 0
    answer = json.loads(output()[0])
    assert [row["method"] for row in answer["methods"]] == ["ibp", "crown"]
    ibp, crown = answer["methods"]
    assert ibp["lower"] == pytest.approx([0.0, 1.0])
    assert ibp["upper"] == pytest.approx([3.0, 1.0])
    assert crown["upper"][0] == pytest.approx(2.0)      # the chord of |x| on [-1, 2] at its higher end
    assert crown["margin_lower"] == pytest.approx(0.5)
    assert all(row["time_s"] >= 0 for row in answer["methods"])
    assert run(["bounds", "net.onnx", "safe.vnnlib", "--method", "ibp"]) == 0
    assert re.search(r"(0|-\d\S*e-1\d) \.\. 3 ", output()[0])  # |x| >= 0, rounding included


@pytest.mark.parametrize("methods", ["", "magic", "ibp,milp"])
def test_bounds_refuses_unknown_methods(here: Path, output: Output, methods: str) -> None:
    assert run(["bounds", "net.onnx", "safe.vnnlib", "--method", methods]) == 2
    assert "--method" in output()[1]


def test_bounds_of_the_bundled_network(output: Output) -> None:
    files = [str(EXAMPLES / name) for name in ("digits_mlp.onnx", "mlp_image0_small.vnnlib")]
    assert run(["bounds", *files]) == 0
    assert "alpha-crown" in output()[0]


def test_linear_programmes_are_bound_methods(output: Output) -> None:
    files = [str(EXAMPLES / name) for name in ("digits_mlp.onnx", "mlp_image0_middle.vnnlib")]
    assert run(["bounds", *files, "--method", "crown,lp-last,lp", "--json", "-"]) == 0
    crown, last, every = (row["margin_lower"] for row in json.loads(output()[0])["methods"])
    assert crown <= last + 1e-6 and last <= every + 1e-6 and every > crown
    assert run(["verify", *files, "--method", "lp"]) == 0


def test_a_relaxation_that_is_too_large_is_refused_in_a_sentence(output: Output) -> None:
    files = [str(EXAMPLES / name) for name in ("digits_cnn.onnx", "cnn_image0_middle.vnnlib")]
    assert run(["bounds", *files, "--method", "sdp"]) == 2
    said = output()[1]
    assert said.count("\n") == 1 and "more than 110" in said and "unexpected" not in said


def test_a_network_of_two_inputs_is_refused(here: Path, output: Output) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1]) for n in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "two", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "two.onnx")
    assert run(["verify", "two.onnx", "safe.vnnlib"]) == 2
    assert "two.onnx" in output()[1]
