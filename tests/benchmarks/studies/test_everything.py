"""All studies and their page: it is made of the records alone, and a study that fails costs nothing that was there."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import everything
from benchmarks.studies.everything import ON_MNIST, STUDIES, command, introduction, main, page, parser, runs
from benchmarks.studies.study import HOME, MNIST, Context, perform
from tests.benchmarks.studies.toy import STUDY

TOY = "from dataclasses import replace\nfrom tests.benchmarks.studies.toy import STUDY\n" \
      "from benchmarks.studies.study import run\n"
SCRIPTS = {"good": TOY + "raise SystemExit(run(replace(STUDY, name='good')))\n",
           "bad": TOY + "raise SystemExit(run(replace(STUDY, name='bad', measure=lambda s, c: 1 / 0)))\n"}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two studies, of which one fails; returns the folder of their records."""
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(everything, "__file__", str(tmp_path / "everything.py"))
    monkeypatch.setattr(everything, "STUDIES", tuple(SCRIPTS))
    return tmp_path / "docs" / "studies"


def record_of(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """A record of the toy under another name."""
    from dataclasses import replace
    record = perform(replace(STUDY, name=name), "quick", folder, Context(lambda text: None)) | more
    (folder / f"{name}.json").write_text(json.dumps(record))
    return record


def test_a_study_that_fails_leaves_its_record_and_the_others(scripts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = record_of(scripts, "bad")
    assert main(["--only", "good,bad,good", "--out", str(scripts)]) == 1
    told = capfd.readouterr()
    assert told.out.count("=== good: done") == 1 and "=== bad: FAILED, exit code 1" in told.out
    assert "failed: bad" in told.out and "ZeroDivisionError" in told.err and "good: measuring" in told.err
    assert json.loads((scripts / "bad.json").read_text()) == before
    assert json.loads((scripts / "good.json").read_text())["mode"] == "default"
    text = (scripts.parent / "studies.md").read_text()
    assert text == page(scripts) and text.count("## A toy") == 2


def test_redrawing_all_measures_nothing(scripts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The study whose measurement fails is redrawn too."""
    record_of(scripts, "bad")
    assert main(["--only", "bad", "--redraw", "--out", str(scripts)]) == 0
    assert "=== bad: done" in capfd.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
def test_data_that_are_not_there_are_missed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            damaged: bool) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("a study was begun")
    monkeypatch.setattr(everything, "script", measured)
    if damaged:
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (tmp_path / f"{part}-ubyte").write_bytes(b"no images")
    with pytest.raises(SystemExit, match=f"--data-dir {tmp_path}: .*ubyte"):
        main(["--data-dir", str(tmp_path), "--out", str(tmp_path / "docs" / "studies")])


def test_another_folder_has_its_own_page(scripts: Path) -> None:
    (scripts.parent.parent / "there").mkdir()
    elsewhere = scripts.parent.parent / "there" / "page.md"
    assert main(["--only", "good", "--mode", "quick", "--out", str(scripts), "--page", str(elsewhere)]) == 0
    assert "](../docs/studies/good-line.png)" in elsewhere.read_text()
    assert not (scripts.parent / "studies.md").exists()


def test_wrong_names_and_numbers_are_refused() -> None:
    with pytest.raises(SystemExit, match="unknown foscs; known: fosc, "):
        main(["--only", "fosc,foscs"])
    with pytest.raises(SystemExit, match="--jobs must be at least 1"):
        main(["--jobs", "0"])


def test_the_page_is_computed_from_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "studies"
    monkeypatch.setattr(everything, "STUDIES", ("one", "two", "three"))
    two = record_of(folder, "two", title="The second")
    one = record_of(folder, "one", title="The first")
    text = page(folder)
    assert text.index("## The first") < text.index("## The second"), "in the order of the list, not of the files"
    for record in (one, two):
        (verdict,), (caption,) = record["verdicts"], record["figures"].values()
        assert f"- **Seen**: {verdict['claim']} ({verdict['place']}).\n\n  {verdict['why']}\n" in text
        assert record["table"] in text and f"*{caption}*" in text
        assert f"](studies/{record['study']}-line.png)" in text and f"commit {record['commit']}" in text
    one["verdicts"][0] |= {"outcome": "not seen", "why": "From 3 to 2."}
    (folder / "one.json").write_text(json.dumps(one))
    assert "- **Not seen**: Values grow (Figure 1).\n\n  From 3 to 2.\n" in page(folder)
    row = next(line for line in page(folder).splitlines() if "[The first](#the-first)" in line)
    assert [cell.strip() for cell in row.split("|")][2:-1] == ["`one`", "0", "0", "1"]


def test_the_introduction_says_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "STUDIES", ("one", "two"))
    one, two = ({"study": name, "mode": "default", "overriding": {}} for name in ("one", "two"))
    mnist = {**two, "mode": "mnist"}

    def said(*records: dict[str, Any]) -> str:
        return " ".join(introduction(records).split())
    text = said(one, two, mnist)
    assert "Measured in mode default: one, two. Measured in mode mnist: two. Mode paper" in text
    assert text.endswith("was not run.") and "check that scripts run" not in text and "Not measured" not in text
    text = said({**one, "mode": "paper"}, two)
    assert "Measured in mode default: two. Measured in mode paper: one." in text and "was not run" not in text
    text = said({**one, "mode": "quick", "overriding": {"seeds": [1]}})
    assert "in mode quick: one (some settings otherwise). Mode quick is a check" in text
    assert text.endswith("Not measured: two.")
    assert said().endswith("Not measured: one, two.")


def test_the_page_says_what_measures_the_same_again(tmp_path: Path) -> None:
    record = record_of(tmp_path, "one")
    assert command(record) == "python benchmarks/studies/one.py --mode quick"
    record |= {"mode": "default", "overriding": {"seeds": [0, 1]}}
    record["hardware"]["accelerator"] = "a GPU"
    assert command(record) == "python benchmarks/studies/one.py --set 'seeds=[0, 1]' --device cuda"


def test_mnist_runs_beside_the_digits_where_its_files_are_named(tmp_path: Path) -> None:
    plain, there = parser().parse_args([]), parser().parse_args(["--data-dir", "D"])
    assert sorted(runs(STUDIES, plain)) == sorted((name, "default") for name in STUDIES)
    assert runs(["zeroth_order", "fosc", "certified"], plain)[0][0] == "certified", "the longest first"
    assert [mode for _, mode in runs(STUDIES, there)] == ["mnist"] * len(ON_MNIST) + ["default"] * len(STUDIES)
    assert sorted(runs(STUDIES, there)) == sorted([(name, "default") for name in STUDIES]
                                                  + [(name, "mnist") for name in ON_MNIST])
    assert runs(["ascent"], there) == [("ascent", "default")]
    paper = parser().parse_args(["--mode", "paper", "--data-dir", "D"])
    assert runs(["escape"], paper) == [("escape", "paper")]
    redrawn = parser().parse_args(["--redraw", "--out", str(tmp_path)])
    assert runs(["escape"], redrawn) == [("escape", "default")]
    (tmp_path / "escape-mnist.json").write_text("{}")
    assert runs(["escape"], redrawn) == [("escape", "mnist"), ("escape", "default")]


def test_a_record_of_mnist_stands_beside_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace
    monkeypatch.setattr(everything, "STUDIES", ("one",))
    both = replace(STUDY, name="one", modes={**STUDY.modes, "mnist": {**STUDY.modes["default"], "data": "mnist"}})
    for mode in ("default", "mnist"):
        perform(both, mode, tmp_path, Context(lambda text: None))
    assert {file.name for file in tmp_path.iterdir()} == {
        "one.json", "one-line.png", "one-mnist.json", "one-mnist-line.png"}
    text = page(tmp_path)
    assert text.index("## A toy\n") < text.index("## A toy, MNIST\n")
    assert "`python benchmarks/studies/one.py --mode mnist --data-dir D`" in text and "one-mnist-line.png" in text


def test_every_study_is_in_the_list() -> None:
    files = Path(everything.__file__).parent.glob("*.py")
    found = {file.stem for file in files if "\nSTUDY = Study(" in file.read_text(encoding="utf-8")}
    assert set(found) == set(STUDIES)
    assert {name for name in found if MNIST in import_module(f"benchmarks.studies.{name}").STUDY.modes} == set(ON_MNIST)


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    written = HOME.parent / "studies.md"
    if not written.exists():
        pytest.skip("no study has been measured yet")
    assert written.read_text(encoding="utf-8") == page()
    named = {file for record in HOME.glob("*.json")
             for file in json.loads(record.read_text(encoding="utf-8"))["figures"]}
    assert {file.name for file in HOME.glob("*.png")} == named, "figures of records, all of them and no others"
