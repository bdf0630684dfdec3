"""The table of faults fits the source; what a run makes of a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mutation
from benchmarks.faults import AREAS, Fault

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [fault for faults in AREAS.values() for fault in faults]


def test_faults_have_names_of_their_own() -> None:
    assert len(FAULTS) >= 60
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted(fault: Fault) -> None:
    assert fault.trouble(ROOT) == ""
    source = (ROOT / fault.file).read_text("utf-8").replace(fault.old, fault.new)
    compile(source, fault.file, "exec")
    assert all((ROOT / test).is_file() for test in fault.tests)


def test_a_table_that_rots_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = x\nz = x\n")
    once, twice, never = (Fault("name", "a.py", "unsound", "", old, "", ("t.py",)) for old in ("= 1", "= x", "= 2"))
    assert once.trouble(tmp_path) == "" and "2 times" in twice.trouble(tmp_path)
    assert "0 times" in never.trouble(tmp_path)
    once.plant(tmp_path)
    assert (tmp_path / "a.py").read_text() == "x \ny = x\nz = x\n"


SOURCE = "def twice(x):\n    return 2 * x\n"
TEST = "from bounds.model import twice\n\ndef test_twice():\n    assert twice(3) == 6\n"
FAULTY = {"killed": "3 * x", "survived": "x * 2", "broken": "2 *"}


@pytest.mark.parametrize("outcome", FAULTY)
def test_only_a_failing_test_kills(tmp_path: Path, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("bounds/model.py", SOURCE), ("tests/bounds/test_model.py", TEST),
                       ("verifier/strategy.py", "")):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text)
    plugin = tmp_path / "checkout/benchmarks/faults/noticed.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text((ROOT / "benchmarks/faults/noticed.py").read_text())
    monkeypatch.setattr(mutation, "SUITE", ("tests/bounds",))
    fault = Fault("name", "bounds/model.py", "unsound", "", "2 * x", FAULTY[outcome], ("tests/bounds/test_model.py",))
    bench = mutation.Bench(tmp_path / "checkout", tmp_path, 60.0, suite=False)
    run = bench.trial(fault, tmp_path / "copy")
    assert run.outcome == outcome, run.said
    assert run.failed == ("tests/bounds/test_model.py::test_twice" if outcome == "killed" else "")
