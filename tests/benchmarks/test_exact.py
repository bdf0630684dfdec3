"""The benchmark of exact methods: what it draws, what it calls a contradiction, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import encoding, exact
from verifier.demo import EXAMPLES
from verifier.network import Network
from verifier.vnnlib import read_vnnlib


def entry(part: str, item: str, method: str, **more: object) -> dict[str, object]:
    return {"part": part, "item": item, "method": method, "seconds": 1.0, **more}


def test_contradicting_verdicts_are_told() -> None:
    agree = [entry("acas", "1_1 prop_1", m, verdict="verified") for m in exact.METHODS]
    unknown = [entry("acas", "1_1 prop_2", "milp", verdict="unknown"),
               entry("acas", "1_1 prop_2", "bab", verdict="falsified")]
    text, wrong = exact.report([*agree, *unknown])
    assert not wrong and "milp decides 1 of 2; auto decides 1 of 2; bab decides 2 of 2" in text
    clash = [entry("golden", "7", "milp", verdict="verified"), entry("golden", "7", "bab", verdict="falsified")]
    assert exact.report(clash)[1] == ["golden 7: falsified and verified"]


@pytest.mark.parametrize(("change", "ok"), [
    ({}, True), ({"crown": 0.3}, False), ({"pgd": 0.1}, False), ({"inside": "falsified"}, False),
    ({"inside": "falsified", "lower": 0.0, "upper": 0.0, "crown": 0.0}, True), ({"outside": "verified"}, False)])
def test_radii_outside_of_other_methods_are_told(change: dict[str, object], ok: bool) -> None:
    good = {"lower": 0.2, "upper": 0.200001, "crown": 0.15, "pgd": 0.21, "inside": "verified", "inside_s": 0.1,
            "outside": "falsified", "outside_s": 0.1}
    _, wrong = exact.report([entry("digits", "0", "radius", **{**good, **change})])
    assert (not wrong) == ok


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "calibration", lambda threads: {})


@pytest.mark.usefixtures("uncalibrated")
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image with little time: an interval, not a point; nothing is asked twice."""
    out = tmp_path / "exact.json"
    arguments = ["--parts", "digits", "--count", "1", "--time-limit", "1", "--jobs", "1", "--out", str(out)]
    assert exact.main(arguments) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert 0 <= result["lower"] <= result["upper"] and result["crown"] <= result["upper"]
    capsys.readouterr()
    assert exact.main([*arguments, "--resume"]) == 0
    assert "1/1" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="already holds"):
        exact.main(arguments)


@pytest.mark.usefixtures("uncalibrated")
def test_absent_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--parts", "acas,golden,mnist", "--shared", str(tmp_path), "--out", str(tmp_path / "e.json")]
    assert exact.main(arguments) == 0
    assert capsys.readouterr().err.count("skipped") == 3


def test_tighter_bounds_make_smaller_programmes() -> None:
    """One binary for each neuron that is left undecided; at least one row for each of them."""
    network = Network.read(EXAMPLES / "digits_mlp.onnx")
    asked = read_vnnlib(EXAMPLES / "mlp_image0_large.vnnlib")
    loose, tight = (encoding.weighed(network, asked, bounds) for bounds in encoding.BOUNDS)
    for e in (loose, tight):
        assert e["relus"] >= e["undecided"] == e["binaries"] <= e["rows"] <= e["nonzeros"]
        assert e["encode_s"] > 0 and e["hand_over_s"] > 0
    assert tight["undecided"] < loose["undecided"] and tight["nonzeros"] < loose["nonzeros"]
    text, wrong = exact.report([{"part": "encoding", "item": "0", "method": m, **e} for m, e in
                                zip(encoding.BOUNDS, (loose, tight), strict=True)])
    assert "| crown" in text and not wrong
