"""The benchmark of radii: what it says about stored results, and a run on a tiny network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.radius import best_uppers, disorder, figures, main, reuse, table
from tests.verifier.models import save_network


def entry(method: str, image: int = 0, wall_s: float = 1.0, **found: Any) -> dict[str, Any]:
    for end in ("lower", "upper"):
        if end in found:
            found.setdefault(f"{end}_evidence", "ROUNDED")
    return {"net": "net", "method": method, "image": image, **found, "wall_s": wall_s, "cpu_s": wall_s}


def test_a_certified_radius_above_a_witness_is_told() -> None:
    entries = [entry("attacks", upper=0.5), entry("crown", lower=0.5), entry("milp", lower=0.4, upper=0.6)]
    assert disorder(entries) == []
    (said,) = disorder([*entries, entry("ibp", lower=0.5 + 1e-9)])
    assert "ibp certifies 0.500000001 (ROUNDED), but attacks has a witness at 0.5 (ROUNDED)" in said


def test_floating_point_has_a_touch_of_slack_and_estimates_have_all() -> None:
    entries = [entry("attacks", upper=0.5), entry("milp", lower=0.5 + 1e-6, lower_evidence="FLOAT"),
               entry("clever", lower=0.9, lower_evidence="ESTIMATE")]
    assert disorder(entries) == []
    assert disorder([*entries, entry("milp", lower=0.6, lower_evidence="FLOAT")]) != []


def test_other_images_and_unknown_ends_are_not_compared() -> None:
    entries = [entry("attacks", upper=0.5), entry("attacks", image=1, upper=None), entry("crown", image=1, lower=0.9)]
    assert disorder(entries) == [] and list(best_uppers(entries)) == [("net", 0)]


def test_what_is_not_certified_counts_as_zero() -> None:
    entries = [entry("crown", lower=0.5, wall_s=1.0), entry("crown", image=1, error="Boom", wall_s=5.0),
               entry("crown", image=2, unsupported="Erf", wall_s=0.0)]
    found = figures(entries)
    assert found["lower"] == pytest.approx(0.5 / 3) and found["failed"] == 1
    assert (found["seconds"], found["median_s"], found["longest_s"]) == (2.0, 1.0, 5.0)
    assert figures([entry("attacks", upper=None)])["upper"] == math.inf


def test_the_table_measures_gaps_to_the_nearest_witness() -> None:
    text = table([entry("attacks", upper=0.5), entry("crown", lower=0.2), entry("milp", lower=0.3, upper=0.4)])
    cells = {line.split("|")[2].strip(): [c.strip() for c in line.split("|")[5:10]] for line in text.splitlines()[2:]}
    assert cells == {"attacks": ["", "0.5000", "", "", "1"], "crown": ["0.2000", "", "0.2000", "50.00%", "1"],
                     "milp": ["0.3000", "0.4000", "0.1000", "25.00%", "1"]}


def test_reuse_is_compared_where_both_know_both_ends() -> None:
    entries = [entry("exact", lower=0.5, upper=0.5, wall_s=1.0), entry("bisection", lower=0.4, upper=0.5, wall_s=4.0),
               entry("exact", image=1, lower=0.5, upper=None, wall_s=9.0), entry("bisection", image=1, lower=0.4)]
    assert "1 images, with reuse 1.0 s, without 4.0 s, ratio 0.25" in reuse(entries)
    assert reuse(entries[:1]) == ""


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """A linear network whose radius is half the difference of its two inputs, and three inputs."""
    save_network(tmp_path / "tiny.onnx", [(np.eye(2), np.zeros(2))])
    x = np.array([[0.75, 0.25], [0.5, 0.25], [0.25, 0.5]], np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(3, int))
    return ["--nets", str(tmp_path / "tiny.onnx"), "--data", str(tmp_path / "data.npz"), "--images", "3",
            "--out", str(tmp_path / "radius.json"), "--time-limit", "30"]


@pytest.mark.parametrize("method", ["attacks", "bisection"])
def test_a_worker_prints_a_line_an_image(method: str, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny, "--worker", tiny[1], method, "0,1,2"]) == 0
    started, *found = map(json.loads, capsys.readouterr().out.splitlines())
    assert started == {"started": True} and [e["image"] for e in found] == [0, 1, 2]
    for far, e in zip((0.25, 0.125, 0.0), found, strict=True):
        assert far <= e["upper"] <= far * (1 + 1e-5) and e["upper_evidence"] == "ROUNDED"
        if method == "bisection":
            assert far - 2e-4 <= e["lower"] <= far and e["lower_evidence"] == "ROUNDED"


def test_a_run_stores_every_image_and_can_be_gone_on_with(tiny: list[str], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.radius.calibration", lambda threads: {"threads": threads})
    assert main([*tiny, "--methods", "attacks", "--index", "2"]) == 0
    assert main([*tiny, "--methods", "attacks", "--index", "1,2", "--resume"]) == 0
    results = json.loads((tmp_path / "radius.json").read_text())["results"]
    assert [(e["method"], e["image"]) for e in results] == [("attacks", 2), ("attacks", 1)]
    said = capsys.readouterr()
    assert "| tiny | attacks" in said.out and "tiny attacks 1/1" in said.err
    assert main([*tiny, "--order"]) == 0


def test_stored_disorder_makes_the_exit_code_1(tiny: list[str], tmp_path: Path) -> None:
    settings = {"norm": "inf", "time_limit": 30.0, "tolerance": 1e-4, "seed": 0}
    lines = [{"settings": settings}, entry("attacks", upper=0.1), entry("crown", lower=0.2)]
    (tmp_path / "radius.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*tiny, "--order"]) == 1


def test_wrong_use_is_told(tiny: list[str]) -> None:
    with pytest.raises(SystemExit, match="unknown magic"):
        main([*tiny, "--methods", "magic"])
    with pytest.raises(SystemExit, match="no such network"):
        main([*tiny, "--nets", "nowhere"])
