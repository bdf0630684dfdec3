"""Results as lines: nothing that was stored is lost, and two kinds of run are never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lines import Lines

SETTINGS = {"limit": 60.0, "flags": ""}


def test_a_resumed_run_has_what_the_first_one_stored(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    with Lines(path, SETTINGS, resume=False) as lines:
        lines.add({"index": 0}, {"index": 1})
    with Lines(path, SETTINGS, resume=True) as lines:
        assert lines.entries == [{"index": 0}, {"index": 1}]
        lines.add({"index": 2})
    with Lines(path, SETTINGS, resume=True) as lines:
        assert [e["index"] for e in lines.entries] == [0, 1, 2]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Lines(path, SETTINGS, resume=False) as lines:
        lines.add({"index": 0})
    with path.open("a") as file:
        file.write('{"index": 1, "verd')
    with Lines(path, SETTINGS, resume=True) as lines:
        assert lines.entries == [{"index": 0}]
        lines.add({"index": 1})
    with Lines(path, SETTINGS, resume=True) as lines:
        assert lines.entries == [{"index": 0}, {"index": 1}]


def test_a_run_killed_before_its_first_line_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"settings"')
    with Lines(path, SETTINGS, resume=True) as lines:
        lines.add({"index": 0})
    with Lines(path, SETTINGS, resume=True) as lines:
        assert lines.entries == [{"index": 0}]


def test_runs_are_not_overwritten_or_mixed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Lines(path, SETTINGS, resume=False):
        pass
    with pytest.raises(SystemExit, match="already holds a run"):
        Lines(path, SETTINGS, resume=False)
    with pytest.raises(SystemExit, match=r"was run with limit 60\.0, not 5"):
        Lines(path, {**SETTINGS, "limit": 5}, resume=True)
    path.write_text("index,verdict\n")
    with pytest.raises(SystemExit, match="not a file of results"):
        Lines(path, SETTINGS, resume=True)
