"""Killed sweeps: nothing finished is lost, nothing is counted twice; and what would be is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import killed
from tests.verifier.models import absolute_value, spec
from verifier.store import Row, Store

groups = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@groups
def test_a_sweep_that_is_killed_a_few_times(tmp_path: Path) -> None:
    absolute_value(tmp_path / "net.onnx")
    rows = []
    for k in range(30):
        (tmp_path / f"{k}.vnnlib").write_text(spec([(-1, 2)], 2, f"(>= Y_0 {k / 10})"))
        rows.append(f"net.onnx,{k}.vnnlib,20\n")
    (tmp_path / "instances.csv").write_text("".join(rows))
    found = killed.trial(tmp_path, kills=4, seed=1, table=tmp_path / "instances.csv")
    assert found["kills"] == 4 and found["runs"] >= 1 and found["faults"] == []
    assert found["verdicts"] == {"falsified": 21, "verified": 9}


@groups
def test_processes_that_outlive_the_first_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed, "GONE_S", 0.3)
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; print(1, flush=True); " \
             "time.sleep(60)'])"
    for alone, faults in ((True, 1), (False, 0)):
        process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            assert len(killed.kill(process, alone)) == faults


def test_what_is_lost_or_changed_is_noticed() -> None:
    a, b = Row("n", "a", "verified"), Row("n", "b", "falsified")
    changed = Row("n", "b", "verified")
    assert not list(killed.lost({a.key: a}, {a.key: a, b.key: b}, [b.key]))
    assert len(list(killed.lost({a.key: a, b.key: b}, {b.key: changed}, [a.key]))) == 3


def test_what_differs_at_the_end_is_noticed(tmp_path: Path) -> None:
    with Store(tmp_path / "run", {}, resume=False) as store:
        store.record(Row("n", "a", "verified"))
        store.export_csv()
    sweep = killed.Sweep(tmp_path / "instances.csv", tmp_path / "run", told=[("n", "a")])
    sweep.log = tmp_path / "run.log"
    sweep.log.write_text("1/1  verified 1  falsified 0  unknown 0  error 0  left 0 s  |  verified  0.1 s  n  a\n")
    assert sweep.note() == [("n", "a")]
    sweep.told.pop()
    expected = {("n", "a"): "verified"}
    assert not list(killed.differences(sweep, expected, sweep.told))
    sweep.told.append(("n", "a"))
    assert list(killed.differences(sweep, expected, sweep.told)) == ["n a was finished 2 times"]
    assert len(list(killed.differences(sweep, {("n", "a"): "falsified", ("n", "b"): "verified"}, sweep.told))) == 5
