"""Results survive: each recorded row is committed, settings cannot be mixed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from verifier.run_folder import SettingsDiffer
from verifier.store import Row, Store, read_results

SETTINGS = {"time limit": 5.0, "method": "auto"}


def test_recorded_rows_are_there_without_closing(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS, resume=False)
    store.record(Row("a.onnx", "b.vnnlib", "verified", lower=0.5, witness_x=b"\x00\x01"))
    assert list(read_results(tmp_path)) == [Row("a.onnx", "b.vnnlib", "verified", lower=0.5, witness_x=b"\x00\x01")]


def test_resume_with_the_same_settings_finds_what_was_finished(tmp_path: Path) -> None:
    with Store(tmp_path, SETTINGS, resume=False) as store:
        store.record(Row("a", "b", "unknown"))
    with Store(tmp_path, dict(SETTINGS), resume=True) as store:
        assert [row.key for row in store.rows()] == [("a", "b")]


@pytest.mark.parametrize(("settings", "resume", "says"), [
    ({**SETTINGS, "method": "crown"}, True, "method auto, not crown"),
    ({**SETTINGS, "time limit": None}, True, "time limit 5.0, not None"),
    ({"method": "auto"}, True, "time limit"),
    (SETTINGS, False, "--resume"),
])
def test_other_settings_are_refused(tmp_path: Path, settings: dict[str, object], resume: bool, says: str) -> None:
    with Store(tmp_path, SETTINGS, resume=False):
        pass
    with pytest.raises(SettingsDiffer, match=says):
        Store(tmp_path, settings, resume=resume)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "results.sqlite").write_text("not a database, but long enough to be read as a header " * 40)
    with pytest.raises(ValueError, match=r"results\.sqlite: not a result store"):
        Store(tmp_path, SETTINGS, resume=True)


def test_csv_has_one_line_a_row_and_no_none(tmp_path: Path) -> None:
    with Store(tmp_path, SETTINGS, resume=False) as store:
        store.record(Row("a", "b", "error", detail='comma, "quote"', upper=None))
        path = store.export_csv()
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["detail"] == 'comma, "quote"'
    assert row["upper"] == ""
    assert "witness_x" not in row
