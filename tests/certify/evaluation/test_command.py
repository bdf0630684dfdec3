"""`rmax evaluate`: what it prints and stores, how it resumes, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from certify.cli.evaluate import command
from certify.evaluation import evaluate as module
from certify.evaluation.cascade import VERIFIED, Cascade, Standing
from certify.evaluation.data import examples_of
from tests.certify.evaluation.cases import CNN, half_plane
from tests.certify.evaluation.test_evaluate import LABELS, POINTS

ROOT = Path(__file__).resolve().parents[3]
KEYS = ["index", "label", "clean", "pgd-20", "attacked", "certified", "reason", "by", "lower", "evidence", "detail",
        "time_limit_s", "time_s"]
TOTALS = {"summary", "count", "clean", "attacked", "certified", "attacks", "intervals", "counts", "undecided",
          "trouble", "by", "eps", "norm", "clip", "method", "claim", "evidence", "interrupted", "left", "time_s"}
BASE = ["net.onnx", "--data", "data.npz", "--eps", "0.2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    half_plane(tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=POINTS, y=LABELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, [*BASE, *arguments])


def lines(path: str = "found.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def refused(said: str, *arguments: str) -> None:
    done = CliRunner().invoke(command, list(arguments))
    assert done.exit_code == 2 and said in done.stderr and not done.stdout, done.output


# ---------------------------------------------------------------------- answers


def test_lines_of_json_and_the_table() -> None:
    done = call("--clip", "0", "1", "--json", "found.jsonl", "--csv", "found.csv")
    assert done.exit_code == 0, done.output
    *records, total = lines()
    assert [list(r) for r in records] == [KEYS] * 7 and set(total) == TOTALS
    assert [r["index"] for r in records] == list(range(7))
    assert total["summary"] is True and total["clean"] == 5 / 7 and total["certified"] == total["attacked"] == 2 / 7
    assert (total["eps"], total["norm"], total["clip"], total["left"]) == (0.2, "inf", [0.0, 1.0], 0)
    table = done.stdout.splitlines()
    assert [line.split()[0] for line in table[:5]] == ["accuracy", "clean", "pgd-20", "attacked", "certified"]
    assert table[4].split()[1:] == ["28.57", "%", "2", "of", "7", "8.22", "to", "64.11", "%"]
    assert "real/rounded" in table[-1] and "eps 0.2" in table[-1]
    with open("found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["certified"] for r in rows] == [str(r["certified"]) for r in records]


def test_json_on_stdout_is_alone_there() -> None:
    done = call("--json", "-", "--count", "2")
    assert [json.loads(line).get("index") for line in done.stdout.splitlines()] == [0, 1, None]


def test_chosen_examples_keep_their_numbers() -> None:
    call("--index", "4", "--index", "1", "--json", "found.jsonl", "--attacks", "none")
    *records, total = lines()
    assert [r["index"] for r in records] == [1, 4] and total["attacks"] == {} and total["clip"] is None
    assert "pgd-20" not in records[0] and records[0]["by"] == "pgd"


def test_attacks_and_a_surrogate_are_columns() -> None:
    done = call("--attacks", "clean,fgsm, pgd-5", "--transfer-from", "net.onnx", "--json", "found.jsonl")
    assert done.exit_code == 0 and list(lines()[-1]["attacks"]) == ["fgsm", "pgd-5", "transfer"]
    assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == ["clean", "fgsm", "pgd-5", "transfer"]


def test_a_named_data_set_brings_its_range() -> None:
    arguments = [str(CNN), "--data", "digits", "--eps", "0.02", "--count", "3", "--attacks", "none",
                 "--json", "f.jsonl"]
    for flags, clip in (([], [0.0, 1.0]), (["--no-clip"], None), (["--clip", "-1", "2"], [-1.0, 2.0])):
        done = CliRunner().invoke(command, [*arguments, *flags])
        assert done.exit_code == 0 and lines("f.jsonl")[-1]["clip"] == clip
    data, clip, part = examples_of("digits", (64,), 10)
    assert data.x.shape == (360, 64) and clip == (0.0, 1.0) and part == "the test set"
    with pytest.raises(ValueError, match=r"has inputs of shape \(1, 8, 8\), the network expects \(3, 3\)"):
        examples_of("digits", (3, 3), 10)
    with pytest.raises(ValueError, match="10 classes, the network 4 outputs"):
        examples_of("digits", (64,), 4)


def test_of_a_file_the_test_part_and_the_stored_range_are_taken_and_told() -> None:
    def told(*flags: str) -> tuple[list[int], Any, str]:
        done = call("--json", "found.jsonl", "--attacks", "none", "--method", "ibp", *flags)
        assert done.exit_code == 0, done.output
        *records, total = lines()
        return [r["label"] for r in records], total.get("clip"), done.stderr.splitlines()[0]
    assert told() == ([0] * 7, None, "data.npz: 7 of 7 examples of x, y, no clip")
    pixels = np.array([[200, 10], [0, 255]], np.uint8)
    np.savez("data.npz", x=pixels, y=LABELS[:2], x_test=pixels[::-1], y_test=np.array([0, 1]))
    assert told() == ([0, 1], [0.0, 255.0], "data.npz: 2 of 2 examples of x_test, y_test, clip [0, 255]")
    np.savez("data.npz", x=POINTS, y=LABELS, x_test=POINTS, y_test=LABELS + 1, clip=np.array([0.25, 2]))
    stored = told("--count", "3")
    assert stored == ([1] * 3, [0.25, 2.0], "data.npz: 3 of 7 examples of x_test, y_test, clip [0.25, 2]")
    assert told("--no-clip")[1:] == (None, "data.npz: 7 of 7 examples of x_test, y_test, no clip")
    assert told("--clip", "0", "1")[1:] == ([0.0, 1.0], "data.npz: 7 of 7 examples of x_test, y_test, clip [0, 1]")
    smooth = call("--smoothing", "0.1", "--samples", "100")
    assert smooth.stderr.splitlines()[0] == "data.npz: 7 of 7 examples of x_test, y_test"
    np.savez("data.npz", x=POINTS, y=LABELS, x_test=pixels, y_test=LABELS[:2])
    refused("data.npz: x holds float32 and x_test uint8", *BASE)


def test_a_smoothed_classifier_is_estimated() -> None:
    done = call("--smoothing", "0.1", "--samples", "2000", "--json", "found.jsonl", "--seed", "1")
    assert done.exit_code == 0, done.output
    *records, total = lines()
    radius = [r["radius"] for r in records]
    true = np.abs(POINTS.astype(np.float64).sum(1) - 1) / math.sqrt(2)
    assert all(r <= t for r, t in zip(radius, true, strict=True))
    assert [r["certified"] for r in records] == [r["clean"] and r["radius"] > 0.2 for r in records]
    assert [r["reason"] for r in records] == ["small radius", None, None, "small radius", None, "misclassified",
                                              "abstained"]
    assert (total["norm"], total["claim"], total["evidence"]) == ("2", "smoothed", "estimate")
    assert total["confidence"] == 0.999
    assert total["counts"]["abstained"] == 1 and total["attacked"] is None and total["sigma"] == 0.1
    assert "abstained 1" in done.stdout and "smoothed/estimate" in done.stdout
    parts = call("--smoothing", "0.1", "--samples", "2000", "--json", "found.jsonl", "--seed", "1", "--batch", "2")
    assert parts.exit_code == 0 and [r["radius"] for r in lines()[:-1]] == radius


def test_a_wrong_class_is_not_certified_however_large_its_radius() -> None:
    call("--smoothing", "0.1", "--samples", "2000", "--json", "found.jsonl", "--eps", "0.01", "--index", "5")
    record, total = lines()
    assert record["radius"] > 0.01 and record["predicted"] == 1
    assert (record["clean"], record["certified"], record["reason"]) == (False, False, "misclassified")
    assert total["certified"] == 0 and total["evidence"] is None, "nothing is certified with any evidence"


def test_a_contradiction_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cascade, "batched", lambda cascade, places, **_: {
        p: Standing([], verdict=VERIFIED, by="crown", lower=1.0) for p in places})
    done = call("--json", "found.jsonl")
    assert done.exit_code == 2
    assert "!!!! CONTRADICTION  example 0: certified by crown" in done.stderr
    assert lines()[-1]["counts"]["contradiction"] == 3 and "contradiction 3" in done.stdout


def test_trouble_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("planted")
    monkeypatch.setattr("certify.evaluation.cascade.Batch._bound", failing)
    done = call("--method", "crown", "--attacks", "none")
    assert done.exit_code == 0 and "not certified  error 5" in done.stdout
    assert "0  error  crown: ZeroDivisionError: planted" in done.stdout


# ---------------------------------------------------------------------- runs


def test_a_run_that_was_interrupted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call("--json", "whole.jsonl", "--batch", "2")
    assert whole.exit_code == 0
    piece, done = module.Evaluator.piece, []

    def stopping(worker: Any, places: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(places)
        return piece(worker, places)
    monkeypatch.setattr(module.Evaluator, "piece", stopping)
    stopped = call("--out", "run", "--batch", "2", "--json", "found.jsonl")
    assert stopped.stdout.startswith("interrupted  3 of 7 not done\naccuracy")
    assert lines()[-1]["left"] == 3 and lines()[-1]["count"] == 4
    total = lines()[-1]
    assert total["certified"] == 1 / 7 and total["attacked"] == 4 / 7 and set(total["intervals"].values()) == {None}
    assert "attacked    57.14 %      4 of     7  at most" in stopped.stdout
    assert "already holds a run" in call("--out", "run").stderr
    assert "was run with attacks ['pgd-20'], not []" in call("--out", "run", "--resume", "--attacks", "none").stderr
    done.clear()
    resumed = call("--out", "run", "--resume", "--json", "found.jsonl", "--batch", "2")
    assert resumed.exit_code == 0 and done == [[4, 5], [6]]
    assert [r["certified"] for r in lines()[:-1]] == [r["certified"] for r in lines("whole.jsonl")[:-1]]


def test_what_stayed_undecided_is_asked_again_with_a_longer_limit() -> None:
    arguments = ["--out", "run", "--json", "found.jsonl", "--attacks", "none", "--method", "batched"]
    call(*arguments, "--time-limit", "1e-9")
    first = lines()[-1]
    assert first["undecided"] == 5 and first["certified"] == 0
    same = call(*arguments, "--resume", "--time-limit", "1e-9")
    assert same.exit_code == 0 and lines()[-1]["undecided"] == 5
    call(*arguments, "--resume", "--time-limit", "20")
    *records, total = lines()
    assert total["undecided"] == 0 and total["certified"] == 2 / 7
    assert sorted(r["index"] for r in records) == list(range(7)), "one line an example"


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("flags", "said"), [
    (["--clip", "1", "0"], "--clip needs two numbers LO <= HI"), (["--resume"], "--resume goes on with a run"),
    (["--clip", "0", "1", "--no-clip"], "exclude each other"), (["--index", "0", "--count", "1"], "exclude each other"),
    (["--attacks", "magic"], "attacks are pgd-N"), (["--norm", "2", "--attacks", "cw-inf"], "works in the norms inf"),
    (["--time-limit", "0"], "time limit must be"), (["--samples", "10"], "--samples belongs to --smoothing"),
    (["--smoothing", "0.1", "--norm", "inf"], "certifies radii in the norm 2"),
    (["--smoothing", "0.1", "--attacks", "fgsm"], "--attacks does not go with --smoothing"),
    (["--smoothing", "-1"], "sigma must be > 0"), (["--smoothing", "0.1", "--alpha", "2"], "alpha in (0, 1)"),
    (["--index", "9"], "index 9 is out of range"), (["--clip", "0", "0.6"], "outside the clip range"),
    (["--json", "absent/found.jsonl"], "the folder"), (["--transfer-from", "absent.onnx"], "absent.onnx"),
    (["--transfer-from", str(CNN)], "has inputs of shape (1, 8, 8)")])
def test_wrong_use_is_refused_in_one_sentence(flags: list[str], said: str) -> None:
    refused(said, *BASE, *flags)


@pytest.mark.parametrize(("arguments", "said"), [
    (["absent.onnx", "--data", "data.npz", "--eps", "1"], "absent.onnx"),
    (["net.onnx", "--data", "data.npz", "--eps", "-1"], "eps must be"),
    (["net.onnx", "--data", "mnost", "--eps", "1"], "neither a file (.npz with x and y) nor one of digits"),
    (["net.onnx", "--data", "absent.npz", "--eps", "1"], "absent.npz"),
    (["net.onnx", "--data", "digits", "--eps", "1"], "the network expects (2,)")])
def test_what_cannot_be_read_is_named(arguments: list[str], said: str) -> None:
    refused(said, *arguments)


def test_help_loads_no_torch() -> None:
    code = """
from click.testing import CliRunner
from certify.cli.evaluate import command
done = CliRunner().invoke(command, ["--help"])
assert done.exit_code == 0 and "autoattack" in done.output and "cascade" in done.output
import sys
assert not [m for m in ("torch", "onnx", "onnxruntime") if m in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_command_is_registered() -> None:
    import tomllib
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["rmax.commands"]
    assert entries["evaluate"] == "certify.cli.evaluate:command"
