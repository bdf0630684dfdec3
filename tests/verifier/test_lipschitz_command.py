"""`rmax lipschitz`: constants and ranges of a network whose own are known, resuming, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.verifier.models import save_network, spec
from verifier.cli import lipschitz as command
from verifier.cli import run
from verifier.demo import EXAMPLES
from verifier.lipschitz import certified
from verifier.lipschitz import data as module
from verifier.network import Network

Output = Callable[[], tuple[str, str]]
KEYS = {"index", "norm", "certified", "estimate", "range_lower", "range_upper", "method"}
BALL = ["net.onnx", "data.npz", "--eps", "0.1", "--clip", "0", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx: y_0 = 3 |x_0 - 1/2| + x_1, y_1 = 0. data.npz: points around which the margin of class 0 has the l_inf
    constant 4, and its least value in the balls of radius 0.1 is 0.9, 1.35 and 0.9."""
    save_network(tmp_path / "net.onnx", [(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.array([-0.5, 0.5, 1.0])),
                                         (np.array([[3.0, 3.0, 1.0], [0.0, 0.0, 0.0]]), np.array([-1.0, 0.0]))])
    x = np.array([[0.75, 0.55], [0.25, 1.0], [0.9, 0.0]], np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(3, np.int64))
    (tmp_path / "box.vnnlib").write_text(spec([(0, 1), (-0.5, 0.5)], 2, "(>= Y_0 100.0)"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_command_line_names_every_method_and_function() -> None:
    """The names are spelled out there, so that `--help` does not load PyTorch."""
    assert {*command.LOCAL, *command.EVERYWHERE} == {*certified.METHODS, *module.SEVERAL}
    assert set(command.EVERYWHERE) == {*certified.GLOBAL, "global"}
    assert set(command.FUNCTIONS) == set(module.FUNCTIONS)


def test_constants_and_ranges_over_balls(here: Path, output: Output) -> None:
    assert run(["lipschitz", *BALL, "--json", "found.jsonl", "--csv", "found.csv", "--error", "1e-6"]) == 0
    *records, total = lines("found.jsonl")
    assert [r["index"] for r in records] == [0, 1, 2]
    for r, low, high in zip(records, (0.9, 1.35, 0.9), (1.7, 2.05, 1.6), strict=True):
        assert set(r) >= KEYS
        assert (r["norm"], r["method"], r["evidence"], r["range_evidence"]) == ("inf", "jacobian", "rounded", "rounded")
        assert r["certified"] == pytest.approx(4, rel=1e-9)
        assert r["estimate"] == pytest.approx(4, rel=1e-9)
        assert 4 * (1 - 1e-6) < r["slope"] <= r["certified"]
        assert low - 2e-6 <= r["range_lower"] <= low + 1e-6
        assert high - 1e-6 <= r["range_upper"] <= high + 2e-6
        assert r["range_complete"]
    assert (total["count"], total["left"], total["least_evidence"]) == (3, 0, "rounded")
    with Path("found.csv").open(newline="") as file:
        assert [row["index"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    out, err = output()
    assert "constant 4 (jacobian, rounded)" in out
    assert "3 constants  from 4 to 4" in out
    assert err == ""


@pytest.mark.parametrize(("norm", "constant"), [("1", 3.0), ("2", math.sqrt(10))])
def test_norms_methods_and_functions(here: Path, norm: str, constant: float) -> None:
    for method in ("fastlip", "recurjac", "exact", "best"):
        assert run(["lipschitz", *BALL, "--norm", norm, "--method", method, "--index", "1", "--json", "a.jsonl"]) == 0
        record, _ = lines("a.jsonl")
        assert record["index"] == 1
        assert record["certified"] == pytest.approx(constant, rel=1e-6)
    for function, share in (("logit", 1.0), ("confidence", 0.25)):
        assert run(["lipschitz", *BALL, "--norm", norm, "--function", function, "--count", "1", "--json",
                    "a.jsonl"]) == 0
        record, _ = lines("a.jsonl")
        assert record["estimate"] <= record["certified"] <= share * constant * (1 + 1e-9)


def test_only_chosen_features_move(here: Path) -> None:
    np.save("mask.npy", np.array([False, True]))
    for flags in (["--mask", "mask.npy"], ["--features", "1"]):
        assert run(["lipschitz", *BALL, *flags, "--index", "0", "--json", "a.jsonl"]) == 0
        record, _ = lines("a.jsonl")
        assert record["certified"] == pytest.approx(1)
        assert (record["range_lower"], record["range_upper"]) == (pytest.approx(1.2, abs=0.02),
                                                                  pytest.approx(1.4, abs=0.02))


def test_boxes_of_a_property(here: Path) -> None:
    assert run(["lipschitz", "net.onnx", "box.vnnlib", "--method", "exact", "--json", "a.jsonl"]) == 0
    *records, total = lines("a.jsonl")
    assert [(r["region"], r["output"]) for r in records] == [(0, 0), (0, 1)]
    assert [r["certified"] for r in records] == pytest.approx([4, 0])
    assert records[0]["range_lower"] == pytest.approx(-0.5, abs=0.02)
    assert records[0]["range_upper"] == pytest.approx(2.0, abs=0.02)
    assert total["left"] == 0


def test_the_whole_network(here: Path, output: Output) -> None:
    assert run(["lipschitz", "net.onnx", "data.npz", "--json", "a.jsonl"]) == 0
    *records, total = lines("a.jsonl")
    assert [r["method"] for r in records] == ["norms", "eclipse-fast"]
    for r in records:
        assert set(r) >= KEYS
        assert (r["norm"], r["range_lower"]) == ("2", None)
        assert r["estimate"] == pytest.approx(math.sqrt(10))
        assert r["certified"] >= r["estimate"] * (1 - 1e-9)
    assert total["count"] == 2
    assert run(["lipschitz", "net.onnx", "--method", "lipsdp", "--json", "-"]) == 0
    record, _ = (json.loads(line) for line in output()[0].splitlines()[-2:])
    assert record["estimate"] is None
    assert math.sqrt(10) <= record["certified"] < records[0]["certified"]
    assert run(["lipschitz", "net.onnx", "--norm", "inf", "--method", "norms", "--json", "a.jsonl"]) == 0
    assert lines("a.jsonl")[0]["certified"] >= 4


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_bundled_networks_stay_within_what_is_certified(tmp_path: Path, norm: str) -> None:
    net, data = EXAMPLES / "digits_cnn.onnx", EXAMPLES / "digits.npz"
    found = tmp_path / "a.jsonl"
    assert run(["lipschitz", str(net), str(data), "--eps", "0.05", "--clip", "0", "1", "--norm", norm, "--count", "2",
                "--method", "fastlip", "--json", str(found)]) == 0
    *records, _ = lines(found)
    graph = Network.read(net).simplified.to(dtype=torch.float64)
    with np.load(data) as arrays:
        x, y = torch.from_numpy(arrays["x"].astype(np.float64)).view(-1, *graph.input_shape), arrays["y"]
    for r in records:
        assert r["slope"] <= r["certified"]
        assert r["estimate"] <= r["certified"]
        step = torch.rand(300, *graph.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 0.05 * (2 * step - 1)
        length = torch.linalg.vector_norm(step.flatten(1), ord=float(norm), dim=1)
        step = step * (0.05 / length).clamp(max=1).view(-1, *(1,) * len(graph.input_shape))
        logits = graph((x[r["index"]] + step).clamp(0, 1)).flatten(1)
        label = int(y[r["index"]])
        others = logits.clone()
        others[:, label] = -math.inf
        margin = logits[:, label] - others.amax(1)
        assert r["range_lower"] <= float(margin.min())
        assert float(margin.max()) <= r["range_upper"]


def test_a_killed_run_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    whole = ["lipschitz", *BALL, "--json", "b.jsonl"]
    part = [*whole[:-1], "a.jsonl", "--out", "run"]
    original, calls = module._record, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)
    monkeypatch.setattr(module, "_record", interrupted)
    assert run(part) == 0
    *records, total = lines("a.jsonl")
    assert (len(records), total["interrupted"], total["left"]) == (1, True, 2)
    assert run(part) == 2
    assert "already holds a run" in output()[1]
    monkeypatch.setattr(module, "_record", original)
    assert run([*part, "--resume"]) == 0
    assert run(whole) == 0

    def without_times(path: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k != "time_s"} for r in lines(path)]
    assert without_times("a.jsonl") == without_times("b.jsonl")
    assert run([*part, "--resume", "--norm", "2"]) == 2
    assert "norm" in output()[1]


@pytest.mark.parametrize(("what", "flags", "words"), [
    ("no network", ["none.onnx"], "none.onnx"),
    ("no data", ["net.onnx", "none.npz", "--eps", "0.1"], "none.npz"),
    ("no property", ["net.onnx", "none.vnnlib"], "none.vnnlib"),
    ("damaged data", ["net.onnx", "bad.npz", "--eps", "0.1"], "bad.npz"),
    ("negative eps", ["net.onnx", "data.npz", "--eps", "-1"], "--eps"),
    ("eps without data", ["net.onnx", "--eps", "0.1"], "--eps"),
    ("eps with a property", ["net.onnx", "box.vnnlib", "--eps", "0.1"], "--eps"),
    ("a function of everything", ["net.onnx", "data.npz", "--function", "logit"], "--function"),
    ("a local method everywhere", ["net.onnx", "--method", "recurjac"], "--method recurjac"),
    ("l_2 methods elsewhere", ["net.onnx", "--method", "lipsdp", "--norm", "inf"], "l_2"),
    ("mask and features", [*BALL, "--mask", "m.npy", "--features", "1"], "--features"),
    ("features out of range", [*BALL, "--features", "7"], "--features 7"),
    ("features in words", [*BALL, "--features", "a"], "--features"),
    ("clip that excludes the data", ["net.onnx", "data.npz", "--eps", "0.1", "--clip", "0", "0.5"], "clip"),
    ("no time", [*BALL, "--time-limit", "0"], "--time-limit"),
    ("wrong error", [*BALL, "--error", "-1"], "--error"),
    ("resume without a run", [*BALL, "--resume"], "--resume"),
    ("index out of range", [*BALL, "--index", "9"], "index 9"),
    ("no folder", [*BALL, "--json", "none/a.jsonl"], "--json"),
    ("unknown norm", [*BALL, "--norm", "3"], "--norm"),
])
def test_wrong_use_is_one_sentence(here: Path, output: Output, what: str, flags: list[str], words: str) -> None:
    (here / "bad.npz").write_bytes(b"PK nonsense")
    assert run(["lipschitz", *flags]) == 2
    out, err = output()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
