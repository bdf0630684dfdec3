"""The frame of a study: which settings it takes, what it writes and when, and that redrawing measures nothing."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.studies.study import (
    NOT_SEEN,
    SEEN,
    Context,
    Study,
    Verdict,
    perform,
    run,
)
from tests.benchmarks.studies.toy import MODES, STUDY

QUIET = Context(lambda text: None)


def broken(*_: Any) -> Any:
    raise RuntimeError("broken")


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---------------------------------------------------------------------- settings


def test_unknown_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="steepness: unknown; toy knows seeds, slope"):
        perform(STUDY, "quick", tmp_path, QUIET, {"steepness": 1})
    with pytest.raises(SystemExit, match="steepness"):
        run(STUDY, ["--mode", "quick", "--out", str(tmp_path), "--set", "steepness=1"])
    with pytest.raises(SystemExit, match="expected KEY=VALUE"):
        run(STUDY, ["--mode", "quick", "--out", str(tmp_path), "--set", "slope"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "expected"), [
    ("seeds=0,1", "a list"), ("seeds=3", "a list"), ("slope=steep", "a number"), ("slope=true", "a number"),
    ("slope=null", "a number"), ("data=1", "a word")])
def test_settings_of_another_type_are_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SystemExit, match=f"--set {text.partition('=')[0]}=.*expected {expected}"):
        run(replace(STUDY, measure=broken), ["--mode", "quick", "--out", str(tmp_path), "--set", text])


def test_settings_are_taken_and_kept(tmp_path: Path) -> None:
    given = ["slope=2", "seeds=[4, 7]", "most=5"]
    run(STUDY, ["--mode", "quick", "--out", str(tmp_path), *(word for text in given for word in ("--set", text))])
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["settings"] == {"seeds": [4, 7], "slope": 2, "data": "digits", "most": 5}
    assert record["numbers"]["values"] == [8, 14]
    assert record["overriding"] == {"slope": 2, "seeds": [4, 7], "most": 5}
    assert record["mode"] == "quick" and record["hardware"]["cores"] >= 1 and record["seconds"] >= 0


def test_modes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="modes are quick, default, paper"):
        replace(STUDY, modes={"quick": {}})
    with pytest.raises(ValueError, match="same settings"):
        replace(STUDY, modes={**MODES, "paper": {}})


def test_help_shows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(replace(STUDY, modes={mode: {**settings, "share": "50 %"} for mode, settings in MODES.items()}), ["--help"])
    assert "share 50 %" in capsys.readouterr().out


# ---------------------------------------------------------------------- verdicts


def test_an_outcome_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="'seen in part'"):
        Verdict("claim", "place", "perhaps", "why")


def test_verdicts_follow_the_numbers(tmp_path: Path) -> None:
    assert perform(STUDY, "quick", tmp_path, QUIET)["verdicts"][0]["outcome"] == SEEN
    assert perform(STUDY, "paper", tmp_path, QUIET)["verdicts"][0]["outcome"] == NOT_SEEN


# ---------------------------------------------------------------------- what is written


def test_redrawing_gives_the_same_without_measuring(tmp_path: Path) -> None:
    whole = perform(STUDY, "quick", tmp_path, QUIET)
    before = bytes_in(tmp_path)
    assert set(before) == {"toy.json", "toy-line.png"}
    assert json.loads(before["toy.json"]) == whole
    assert run(replace(STUDY, measure=broken), ["--redraw", "--out", str(tmp_path)]) == 0
    assert bytes_in(tmp_path) == before


def test_redrawing_takes_new_figures_and_verdicts_of_old_numbers(tmp_path: Path) -> None:
    perform(STUDY, "quick", tmp_path, QUIET)
    file = tmp_path / "toy.json"
    file.write_text(file.read_text().replace("1.5", "-1.5"))
    other = replace(STUDY, measure=broken, title="Another title")
    run(other, ["--redraw", "--out", str(tmp_path)])
    record = json.loads(file.read_text())
    assert record["title"] == "Another title" and record["verdicts"][0]["outcome"] == NOT_SEEN
    assert "-1.5" in record["verdicts"][0]["why"] and "-1.5" in record["table"]


def test_redrawing_needs_a_record_and_takes_no_settings(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run without --redraw first"):
        run(STUDY, ["--redraw", "--out", str(tmp_path)])
    perform(STUDY, "quick", tmp_path, QUIET)
    with pytest.raises(SystemExit, match="no use for --set"):
        run(STUDY, ["--redraw", "--out", str(tmp_path), "--set", "slope=2"])


@pytest.mark.parametrize("part", ["measure", "draw", "judge", "table"])
def test_a_study_that_fails_leaves_the_record_before_it(tmp_path: Path, part: str) -> None:
    perform(STUDY, "quick", tmp_path, QUIET)
    before = bytes_in(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        perform(replace(STUDY, **{part: broken}), "paper", tmp_path, QUIET)
    after = bytes_in(tmp_path)
    assert {name: after[name] for name in before} == before


def test_what_was_measured_outlives_a_figure_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        perform(replace(STUDY, draw=broken), "paper", tmp_path, QUIET)
    assert any("toy.json.part" in note for note in caught.value.__notes__)
    (tmp_path / "toy.json.part").rename(tmp_path / "toy.json")
    run(replace(STUDY, measure=broken), ["--redraw", "--out", str(tmp_path)])
    redrawn, again = json.loads((tmp_path / "toy.json").read_text()), perform(STUDY, "paper", tmp_path, QUIET)
    for key in ("numbers", "settings", "mode", "verdicts", "table", "figures"):
        assert redrawn[key] == again[key]


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    perform(STUDY, "quick", tmp_path, QUIET)
    before = (tmp_path / "toy.json").read_bytes()
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            perform(replace(STUDY, measure=lambda s, c, wrong=wrong: {"values": [wrong]}), "quick", tmp_path, QUIET)
    assert (tmp_path / "toy.json").read_bytes() == before


def test_missing_data_are_told_in_a_sentence(tmp_path: Path) -> None:
    def missing(*_: Any) -> Any:
        raise FileNotFoundError("data mnist needs four files")
    with pytest.raises(SystemExit, match="needs four files"):
        run(replace(STUDY, measure=missing), ["--out", str(tmp_path)])


def test_the_command_line_tells_table_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(STUDY, ["--mode", "quick", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "| 1.5 |" in told.out and "SEEN: Values grow (Figure 1)" in told.out
    assert told.err == "toy: measuring\n"


# ---------------------------------------------------------------------- the commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True,
                       capture_output=True)
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/written.png"):
        (tmp_path / name).write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


def test_a_checkout_is_none_the_worse_for_what_studies_wrote(checkout: Path) -> None:
    clean = machine.commit()
    assert clean is not None and not clean.endswith("+")
    (checkout / "docs" / "written.png").write_text("two")
    assert machine.commit() == clean + "+"
    assert machine.commit(apart=("docs",)) == clean
    (checkout / "code.py").write_text("two")
    assert machine.commit(apart=("docs",)) == clean + "+"


def test_outside_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None


def test_settings_are_drawn_as_files_give_them_back(tmp_path: Path) -> None:
    """Else a figure could be drawn from a tuple now and from a list later."""
    seen: list[Any] = []

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda numbers, settings: (seen.append((settings, numbers)), function(numbers, settings))[1]
    study: Study = replace(STUDY, draw=looking(STUDY.draw))
    perform(study, "quick", tmp_path, QUIET)
    run(study, ["--redraw", "--out", str(tmp_path)])
    assert seen[0] == seen[1] and isinstance(seen[0][0]["seeds"], list)
