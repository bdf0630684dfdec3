"""`rmax radius`: what it answers, prints, draws and stores, how it resumes, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bounds.compute import METHODS as BOUNDS
from tests.verifier.models import absolute_value, save_network
from verifier.cli import run
from verifier.demo import EXAMPLES
from verifier.radius import data as module
from verifier.radius.data import Asked, as_interval, summary
from verifier.radius.methods import BOUND, ESTIMATE, GRADIENT, METHODS
from verifier.radius.safe_radius import RADIUS_METHODS
from verifier.verdict import Evidence

ROOT = Path(__file__).resolve().parents[2]
Output = Callable[[], tuple[str, str]]
KEYS = ["index", "label", "norm", "r1", "r1_evidence", "r1_by", "r2", "r2_evidence", "r2_by", "exact", "claim",
        "became", "target", "method", "time_s"]
ESTIMATES = ["estimate", "estimate_low", "estimate_high", "estimate_doubtful"]
TOTALS = {"summary", "count", "exact", "never_unsafe", "no_witness", "mean_r1", "mean_r2", "median_r1", "median_r2",
          "mean_gap", "median_gap", "least_evidence", "interrupted", "left", "time_s"}
CLIP = ["--clip", "0", "1"]
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err
    return read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx: class 0 where x_0 + x_1 > 1, through ReLUs. data.npz: points 0.1, 0.2 and 0.3 from there in l_inf, and
    a wrong one."""
    save_network(tmp_path / "net.onnx", [(np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([-1.0, 1.0])),
                                         (np.array([[1.0, -1.0], [0.0, 0.0]]), np.zeros(2))])
    x = np.array([[0.6, 0.6], [0.7, 0.7], [0.8, 0.8], [0.4, 0.4]], np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(4, np.int64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def radii(*flags: str, net: str = "net.onnx", data: str = "data.npz") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(records, summary) of a run that goes well."""
    assert run(["radius", net, data, *flags, "--json", "found.jsonl"]) == 0
    *records, total = lines("found.jsonl")
    assert set(total) == TOTALS
    return records, total


def witnesses() -> Iterator[tuple[int, np.ndarray, int, int, float]]:
    with np.load("points.npz") as found:
        yield from zip(*(found[name].tolist() if name != "x" else found[name]
                         for name in ("index", "x", "y", "became", "r2")), strict=True)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(("norm", "share"), [("inf", 0.5), ("2", math.sqrt(0.5)), ("1", 1.0)])
def test_ends_meet_at_the_true_distance_and_the_witness_stands_there(here: Path, norm: str, share: float) -> None:
    records, total = radii(*CLIP, "--norm", norm, "--witnesses", "points.npz")
    assert [list(r) for r in records] == [KEYS] * 4
    assert [r["index"] for r in records] == [0, 1, 2, 3]
    x = np.load("data.npz")["x"].astype(np.float64)
    true = np.maximum(0, share * (x.sum(1) - 1))
    for record, radius in zip(records, true, strict=True):
        assert record["r1"] <= radius * (1 + 1e-12) and radius <= record["r2"] * (1 + 1e-12)
        assert record["exact"] and record["r2"] - record["r1"] <= 1e-4
        assert record["norm"] == norm and record["method"] == "auto" and record["claim"] == "real"
    assert (records[3]["r1"], records[3]["r2"], records[3]["r2_by"]) == (0, 0, "input")
    assert (total["count"], total["exact"], total["left"], total["interrupted"]) == (4, 4, 0, False)
    assert total["mean_r2"] == pytest.approx(true.mean(), abs=1e-4)
    session, told = onnxruntime.InferenceSession("net.onnx"), {r["index"]: r for r in records}
    found = list(witnesses())
    assert [index for index, *_ in found] == [0, 1, 2, 3]
    for index, point, label, became, r2 in found:
        scores = session.run(None, {"x": point.reshape(1, 2)})[0].ravel()
        assert point.dtype == np.float32 and (label, became) == (0, 1) and scores[became] >= scores[label]
        assert ((point >= 0) & (point <= 1)).all()
        distance = np.linalg.norm((point.astype(np.float64) - x[index]).ravel(), NORMS[norm])
        assert distance <= r2 == told[index]["r2"] and r2 <= distance * (1 + 1e-12)


def test_l0_counts_the_features_that_must_change(here: Path) -> None:
    """Class 0 where the sum exceeds 1: of (0.9, 0.9, 0.9) two must become zero, of (0.9, 0.2, 0.2) one."""
    save_network(here / "sum.onnx", [(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), np.array([-1.0, 0.0]))])
    x = np.array([[0.9, 0.9, 0.9], [0.9, 0.2, 0.2], [0.1, 0.1, 0.1]], np.float32)
    np.savez("three.npz", x=x, y=np.zeros(3, int))
    records, _ = radii(*CLIP, "--norm", "0", "--witnesses", "points.npz", net="sum.onnx", data="three.npz")
    assert [(r["r1"], r["r2"], r["exact"]) for r in records] == [(2, 2, True), (1, 1, True), (0, 0, True)]
    assert all(type(r[end]) is int for r in records for end in ("r1", "r2"))
    assert [int((point != x[index]).sum()) for index, point, *_ in witnesses()] == [2, 1, 0]
    attacked, _ = radii(*CLIP, "--norm", "0", "--method", "attack", "--tolerance", "5", net="sum.onnx",
                        data="three.npz")
    assert [(r["r1"], r["r2"], r["exact"]) for r in attacked] == [(0, 2, False), (0, 1, False), (0, 0, True)]


def test_a_fixed_feature_stays_and_the_other_goes_twice_as_far(here: Path) -> None:
    np.save("mask.npy", np.array([True, False]))
    records, _ = radii(*CLIP, "--mask", "mask.npy", "--index", "1", "--index", "0", "--witnesses", "points.npz")
    assert [(r["index"], r["r2"]) for r in records] == [(0, pytest.approx(0.2, abs=1e-4)),
                                                        (1, pytest.approx(0.4, abs=1e-4))]
    for index, point, *_ in witnesses():
        assert point[1] == np.float32(0.6 if index == 0 else 0.7) and point[0] < 0.41
    records, _ = radii(*CLIP, "--mask", "mask.npy", "--norm", "0", "--count", "2")
    assert [(r["r1"], r["r2"]) for r in records] == [(1, 1), (1, 1)]


def test_a_target_is_the_only_class_that_counts_and_its_own_inputs_are_left_out(here: Path) -> None:
    """Scores x_0 + x_1 - 1, 0 and 0.25: class 2 is nearer than class 1."""
    save_network(here / "three.onnx", [(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), np.array([-1.0, 0.0, 0.25]))])
    np.savez("two.npz", x=np.array([[0.8, 0.8], [0.8, 0.8], [0.1, 0.2]], np.float32), y=np.array([0, 1, 2]))
    any_, _ = radii(*CLIP, "--index", "0", net="three.onnx", data="two.npz")
    assert (any_[0]["r2"], any_[0]["became"]) == (pytest.approx(0.175, abs=1e-4), 2)
    records, total = radii(*CLIP, "--target", "1", net="three.onnx", data="two.npz")
    assert [(r["index"], r["became"], r["target"]) for r in records] == [(0, 1, 1), (2, None, 1)]
    assert records[0]["r1"] <= 0.3 + 1e-7 and records[0]["r2"] >= 0.3 - 1e-7
    assert (records[1]["r1"], records[1]["r2"], total["left"]) == (None, None, 0)  # class 2 always beats class 1


@pytest.mark.parametrize("norm", list(NORMS))
def test_where_nothing_is_unsafe_both_ends_are_infinite(here: Path, norm: str, output: Output) -> None:
    save_network(here / "safe.onnx", [(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0]))])
    (record, _, *_), total = radii(*CLIP, "--norm", norm, net="safe.onnx")
    assert (record["r1"], record["r2"], record["exact"], record["became"]) == (None, None, True, None)
    assert record["r1_evidence"] == "rounded" and record["r2_evidence"] is None and record["r2_by"] is None
    assert (total["never_unsafe"], total["no_witness"], total["exact"], total["mean_r1"]) == (4, 0, 4, None)
    out = output()[0]
    assert "r1 infinite" in out and "4 safe in the whole range" in out


def test_without_a_clip_range_ends_meet_too(here: Path) -> None:
    absolute_value(here / "abs.onnx")  # |x| against 1
    np.savez("one.npz", x=np.array([[0.0], [3.0]], np.float32), y=np.array([1, 0]))
    records, _ = radii(net="abs.onnx", data="one.npz")
    for record, true in zip(records, (1.0, 2.0), strict=True):
        assert record["r1"] <= true <= record["r2"] and record["exact"]


# ---------------------------------------------------------------------- methods


def test_method_names_agree_with_the_library() -> None:
    assert set(METHODS) == {*RADIUS_METHODS, "fastlip", "recurjac", "jacobian", "clever"}
    assert {name for name, entry in METHODS.items() if entry.kind == BOUND} == set(BOUNDS)
    assert METHODS["clever"].kind == ESTIMATE


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("auto", "attack", "clever")])
def test_every_method_brackets_the_radius(here: Path, method: str) -> None:
    records, _ = radii(*CLIP, "--method", method, "--count", "2")
    for record, true in zip(records, (0.1, 0.2), strict=True):
        assert 0 <= record["r1"] <= true + 1e-7 and true - 1e-7 <= record["r2"]
        assert record["method"] == method
        if METHODS[method].kind in (BOUND, GRADIENT):
            assert record["r1_by"] == method and record["r1"] > 0.05


@pytest.mark.parametrize("flags", [["--norm", "0"], ["--method", "fastlip"], ["--method", "clever"], []])
def test_without_time_an_answer_still_holds(here: Path, flags: list[str], output: Output) -> None:
    records, total = radii(*CLIP, *flags, "--time-limit", "1e-9")
    for record, true in zip(records, (0.1, 0.2, 0.3, 0.0), strict=True):
        assert record["r1"] <= (1 if "0" in flags else true + 1e-7)
        assert record["r2"] is None or record["r2"] >= true - 1e-7
    assert total["no_witness"] >= 3 and "without a counterexample" in output()[0]


def test_attacks_alone_prove_nothing(here: Path) -> None:
    records, total = radii(*CLIP, "--method", "attack")
    assert [r["r1"] for r in records] == [0] * 4 and all(r["r1_by"] is None for r in records)
    assert [r["exact"] for r in records] == [False, False, False, True] and total["mean_gap"] == pytest.approx(0.75)


def test_an_estimate_is_no_bound(here: Path, output: Output) -> None:
    records, _ = radii(*CLIP, "--method", "clever", "--csv", "found.csv")
    assert [list(r) for r in records] == [[*KEYS, *ESTIMATES]] * 4
    for record, true in zip(records[:3], (0.1, 0.2, 0.3), strict=True):
        assert record["estimate"] == pytest.approx(true, rel=1e-3)  # the margin's gradient is constant
        assert record["estimate_low"] <= record["estimate"] <= record["estimate_high"]
        assert record["r1_by"] == "crown" and record["r1"] <= true + 1e-7
    assert records[3]["estimate"] == 0
    assert "estimate 0.1" in output()[0]
    proved, _ = radii(*CLIP, "--method", "crown")
    assert [(r["r1"], r["r2"], r["exact"]) for r in records] == [(r["r1"], r["r2"], r["exact"]) for r in proved]
    unlimited, _ = radii("--method", "clever", "--target", "1", "--index", "0", net=str(save_network(
        here / "safe.onnx", [(np.zeros((2, 2)), np.array([1.0, 0.0]))])))
    assert [unlimited[0][name] for name in ESTIMATES] == [None] * 4  # no witness and no range: no ball to sample


# ---------------------------------------------------------------------- files


def test_stdout_holds_json_alone(here: Path, output: Output) -> None:
    assert run(["radius", "net.onnx", "data.npz", *CLIP, "--json", "-", "--count", "2"]) == 0
    out, err = output()
    *records, total = [json.loads(line) for line in out.splitlines()]
    assert [r["index"] for r in records] == [0, 1] and total["summary"] and err == ""


def test_a_table_pictures_and_a_histogram(here: Path, output: Output) -> None:
    records, _ = radii(*CLIP, "--csv", "found.csv", "--picture", "drawn", "--histogram", "radii.png")
    with Path("found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == KEYS
    assert [float(row["r2"]) for row in rows] == [r["r2"] for r in records]
    drawn = sorted(Path("drawn").iterdir())
    assert [path.name for path in drawn] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (*drawn, Path("radii.png")))
    radii(*CLIP, "--index", "2", "--picture", "one.png")
    radii(*CLIP, "--count", "2", "--picture", "of{index}.png", "--norm", "0")
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in ("one.png", "of0.png", "of1.png"))
    assert run(["radius", "net.onnx", "data.npz", *CLIP, "--picture", "two.png"]) == 2
    assert "expected a folder or a name that holds {index}" in output()[1]


def test_the_bundled_digits(here: Path) -> None:
    records, total = radii(*CLIP, "--index", "1", "--picture", "digit.png",
                           net=str(EXAMPLES / "digits_mlp.onnx"), data=str(EXAMPLES / "digits.npz"))
    assert records[0]["exact"] and records[0]["r2"] == pytest.approx(0.09879, abs=2e-4)
    assert records[0]["r1_evidence"] == "rounded" == total["least_evidence"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"method": "nothing"}, "method must be one of"), ({"norm": 0.0}, "needs a clip range"),
    ({"norm": 0.0, "clip": (0.0, 1.0), "method": "crown"}, "works with the methods auto, attack")])
def test_a_question_without_sense_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Asked(**settings)


def test_a_record_tells_its_interval() -> None:
    asked = Asked(tolerance=0.1)
    from verifier.radius.interval import RadiusInterval
    found = RadiusInterval(0.25, math.inf, Evidence.FLOAT, Evidence.ROUNDED, "crown")
    record = module.as_record(found, 3, 0, asked, 1.0)
    again = as_interval(json.loads(json.dumps(record)))
    assert (again.lower, again.upper, again.lower_evidence, again.lower_by) == (0.25, math.inf, Evidence.FLOAT, "crown")
    assert summary([record])["no_witness"] == 1 and summary([record])["least_evidence"] == "float"


# ---------------------------------------------------------------------- an end before the end

KILLED = """
import os, signal, sys
from verifier.radius import data
from verifier.cli import run
original, calls = data.closed, []
def closed(*arguments, **settings):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **settings)
data.closed = closed
run(sys.argv[1:])
"""


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if key != "time_s"} for r in records]


def test_a_killed_run_goes_on_where_it_was(here: Path, output: Output) -> None:
    flags = [*CLIP, "--picture", "drawn", "--histogram", "radii.png", "--witnesses", "points.npz"]
    command = ["radius", "net.onnx", "data.npz", *flags, "--out", "run", "--json", "found.jsonl"]
    done = subprocess.run([sys.executable, "-c", KILLED, *command], env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = lines("found.jsonl")
    assert [r["index"] for r in before] == [0, 1]
    assert run(command) == 2 and "--resume" in output()[1]
    assert lines("found.jsonl") == before  # a run that is refused leaves files alone
    for other, words in ((["--norm", "2"], "norm inf, not 2.0"), (["--tolerance", "0.01"], "tolerance"),
                         (["--index", "1"], "data"), (["--method", "crown"], "method auto, not crown")):
        assert run([*command, "--resume", *other]) == 2
        assert words in output()[1]
    records, total = radii(*flags, "--out", "run", "--resume")
    assert [r["index"] for r in records] == [0, 1, 2, 3] and records[:2] == before
    assert (total["count"], total["left"]) == (4, 0)
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    stored = list(witnesses())
    straight, _ = radii(*CLIP, "--witnesses", "points.npz")
    assert [r["r2"] for r in records] == pytest.approx([r["r2"] for r in straight], abs=1e-4)
    for (index, point, *_), (again, other_point, *_) in zip(stored, witnesses(), strict=True):
        assert index == again and np.abs(point - other_point).max() < 0.35
    again, _ = radii(*flags, "--out", "run", "--resume")  # nothing is left: told and drawn once more
    assert again == records


def test_an_interrupt_keeps_what_is_finished(here: Path, monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    original, calls = module.closed, []

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **settings)
    monkeypatch.setattr(module, "closed", interrupted)
    records, total = radii(*CLIP, "--out", "run", "--csv", "found.csv", "--histogram", "radii.png")
    assert ([r["index"] for r in records], total["left"], total["interrupted"]) == ([0, 1], 2, True)
    assert "interrupted  2 inputs" in output()[0]
    assert len(Path("found.csv").read_text().splitlines()) == 3 and Path("radii.png").exists()
    monkeypatch.setattr(module, "closed", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert radii(*CLIP)[1]["left"] == 4 and "interrupted  none of 4 inputs done" in output()[0]
    monkeypatch.setattr(module, "closed", original)
    resumed, total = radii(*CLIP, "--out", "run", "--resume")
    assert without_times(resumed[:2]) == without_times(records) and len(resumed) == 4 and not total["interrupted"]


# ---------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(("arguments", "words"), [
    (["--method", "nothing"], "nothing"),
    (["--norm", "0"], "--norm 0 needs --clip"),
    (["--norm", "0", *CLIP, "--method", "crown"], "--norm 0 works with --method auto or attack"),
    (["--time-limit", "0"], "--time-limit must be"),
    (["--time-limit", "nan"], "--time-limit must be"),
    (["--tolerance", "0"], "--tolerance must be"),
    (["--clip", "1", "0"], "--clip needs two numbers"),
    (["--clip", "0.5", "1"], "input 3 has entries from 0.4"),
    (["--clip", "0.65", "1", "--index", "2", "--index", "3"], "input 3 has entries from 0.4"),
    (["--clip", "0.5", "1", "--norm", "0"], "input 3 has entries from 0.4"),
    (["--target", "7"], "--target 7 is out of range"),
    (["--index", "9"], "index 9 is out of range"),
    (["--index", "1", "--count", "1"], "exclude each other"),
    (["--count", "0"], "--count"),
    (["--resume"], "--out"),
    (["--mask", "data.npz"], "data.npz"),
    (["--mask", "missing.npy"], "missing.npy"),
    (["--json", "no/where.jsonl"], "--json"),
    (["--csv", "no/where.csv"], "--csv"),
    (["--witnesses", "."], "--witnesses"),
    (["--histogram", "no/where.png"], "--histogram"),
    (["--picture", "no/where.png"], "--picture"),
    (["--picture", "no/folder"], "--picture"),
    (["--out", "data.npz"], "data.npz"),
    (["--norm", "2", "--method", "milp", *CLIP], "--method milp works with --norm inf or 1"),
])
def test_wrong_use_is_one_sentence(here: Path, output: Output, arguments: list[str], words: str) -> None:
    assert run(["radius", "net.onnx", "data.npz", *arguments]) == 2
    out, err = output()
    assert words in err and "Traceback" not in err
    assert out == "" and len([line for line in err.splitlines() if line.startswith("Error")]) == 1


@pytest.mark.parametrize(("arrays", "words"), [
    ({"x": np.zeros((2, 2), np.float32)}, "expected x (N, *input shape) and y"),
    ({"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.int64)}, "the network expects (N, 2)"),
    ({"x": np.zeros((2, 2), np.float32), "y": np.array([0, 5])}, "label 5 of example 1"),
    ({"x": np.full((1, 2), np.nan, np.float32), "y": np.zeros(1, np.int64)}, "NaN"),
    ({"x": np.full((1, 2), 1e39), "y": np.zeros(1, np.int64)}, "beyond float32"),
])
def test_unusable_data_are_told(here: Path, output: Output, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez("bad.npz", **arrays)  # type: ignore[arg-type]
    assert run(["radius", "net.onnx", "bad.npz"]) == 2
    err = output()[1]
    assert words in err and "bad.npz" in err


def test_unusable_files_are_told(here: Path, output: Output) -> None:
    Path("short.onnx").write_bytes(Path("net.onnx").read_bytes()[:-40])
    Path("text.npz").write_text("no archive")
    save_network(here / "one.onnx", [(np.array([[1.0, 1.0]]), np.array([0.0]))])
    np.savez("one.npz", x=np.zeros((1, 2), np.float32), y=np.zeros(1, np.int64))
    for net, data, words in (("short.onnx", "data.npz", "short.onnx"), ("missing.onnx", "data.npz", "missing.onnx"),
                             ("data.npz", "data.npz", "data.npz"), ("net.onnx", "text.npz", "text.npz"),
                             ("net.onnx", "missing.npz", "missing.npz"), ("net.onnx", "net.onnx", "net.onnx"),
                             ("one.onnx", "one.npz", "at least two outputs")):
        assert run(["radius", net, data]) == 2
        out, err = output()
        assert words in err and out == "" and "Traceback" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(here: Path, output: Output) -> None:
    Path("closed").mkdir(mode=0o500)
    for flag, path in (("--csv", "closed/a.csv"), ("--picture", "closed/a"), ("--out", "closed/a")):
        assert run(["radius", "net.onnx", "data.npz", flag, path]) == 2
        assert "closed" in output()[1]


def test_help_lists_every_method(output: Output) -> None:
    assert run(["radius", "--help"]) == 0
    text = output()[0]
    for name, entry in METHODS.items():
        assert f" {name} " in text and entry.source in text


def test_help_loads_no_torch() -> None:
    code = "import sys\nfrom verifier.cli import run\nrun(['radius', '--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
