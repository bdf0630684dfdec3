"""The table of training methods: what it averages, what it lists as failed, and one row in earnest."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks.training import in_process, main, spread, table


def entry(method: str, seed: int = 0, **more: object) -> dict[str, object]:
    return {"method": method, "seed": seed, "clean": 0.9, "attacked": 0.5, "certified": 0.4, "train_s": 2.0,
            "test": {"ibp": 0.3}, **more}


def test_seeds_are_averaged_and_failures_counted() -> None:
    text = table([entry("ibp"), entry("ibp", 1, clean=0.8, train_s=4.0), {"method": "ibp", "seed": 2, "error": "Boom"},
                  entry("pgd")])
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[3:-1]] for line in text.splitlines()[2:]}
    assert rows["ibp"] == ["85.0 ± 7.1", "50.0 ± 0.0", "40.0 ± 0.0", "30.0 ± 0.0", "3.0 ± 1.4", "2", "1"]
    assert rows["pgd"] == ["90.0", "50.0", "40.0", "30.0", "2.0", "1", "0"]
    assert spread([]) == ""


def test_a_certified_image_that_fell_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.training.in_process", lambda arguments, method, seed: entry(
        method, seed, counts={"contradiction": 2}))
    assert main(["--methods", "ibp", "--out", str(tmp_path / "t.json")]) == 1
    assert "2 certified images fell" in capsys.readouterr().out


def test_a_training_that_died_without_a_word_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.subprocess.run", lambda *a, **k: CompletedProcess([], -9, "", ""))
    assert "-9" in in_process(Namespace(given=[]), "ibp", 0)["error"]


def test_a_method_is_trained_attacked_and_certified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.json"
    flags = ["--methods", "ibp", "--epochs", "3", "--images", "20", "--eps", "0.02", "--attacks", "fgsm", "--out",
             str(out)]
    assert main(flags) == 0
    (found,) = json.loads(out.read_text())["results"]
    assert found["clean"] > 0.5 and found["certified"] <= found["attacked"] <= found["clean"]
    assert found["epochs"] == 3 and "rmax train --method ibp" in found["command"]
    assert main([*flags, "--resume"]) == 0
    assert len(json.loads(out.read_text())["results"]) == 1, "what is finished is not trained again"
    with pytest.raises(SystemExit, match="unknown fast"):
        main(["--methods", "fast", "--out", str(out)])
    assert "certified" in capsys.readouterr().out
