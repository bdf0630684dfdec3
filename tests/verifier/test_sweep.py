"""A sweep finishes whatever its instances do, keeps deadlines, survives a kill, and compares published verdicts."""

from __future__ import annotations

import csv
import gzip
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.verifier.models import absolute_value, spec
from verifier import verify as real_verify
from verifier.cli import run
from verifier.network import NetworkCache
from verifier.run_folder import UnusableStore
from verifier.store import Store, read_results
from verifier.sweep import InvalidInstances, read_expected, read_instances, sweep

ROOT = Path(__file__).resolve().parents[2]
SPECS = {"safe": "(>= Y_0 2.5)", "unsafe": "(>= Y_0 1.0)", "far": "(>= Y_0 9.0)"}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """instances.csv with three good rows, two bad ones and a double."""
    folder = tmp_path / "toy"
    folder.mkdir()
    absolute_value(folder / "net.onnx")
    for name, unsafe in SPECS.items():
        (folder / f"{name}.vnnlib").write_text(spec([(-1, 2)], 2, unsafe))
    zipped = folder / "far.vnnlib"
    zipped.with_name("far.vnnlib.gz").write_bytes(gzip.compress(zipped.read_bytes()))
    zipped.unlink()
    (folder / "broken.onnx").write_text("no network")
    (folder / "instances.csv").write_text(
        "net.onnx,safe.vnnlib,30\nbroken.onnx,safe.vnnlib,30\nnet.onnx,unsafe.vnnlib,30\n\n"
        "net.onnx,absent.vnnlib,30\nnet.onnx,far.vnnlib,30\nnet.onnx,safe.vnnlib,30\n")
    return folder / "instances.csv"


def verdicts(folder: Path) -> dict[tuple[str, str], str]:
    return {row.key: row.verdict for row in read_results(folder)}


EXPECTED = {
    ("net.onnx", "safe.vnnlib"): "verified", ("broken.onnx", "safe.vnnlib"): "error",
    ("net.onnx", "unsafe.vnnlib"): "falsified", ("net.onnx", "absent.vnnlib"): "error",
    ("net.onnx", "far.vnnlib"): "verified",
}


def test_every_instance_gets_a_row_and_a_bad_one_its_sentence(benchmark: Path, tmp_path: Path) -> None:
    result = sweep(benchmark, tmp_path / "run")
    assert verdicts(tmp_path / "run") == EXPECTED
    assert (result.tally.done, result.tally.total, result.interrupted) == (5, 5, False)
    with result.csv_path.open(newline="") as file:
        rows = {(r["onnx"], r["vnnlib"]): r for r in csv.DictReader(file)}
    assert "broken.onnx" in rows["broken.onnx", "safe.vnnlib"]["detail"]
    assert "absent.vnnlib" in rows["net.onnx", "absent.vnnlib"]["detail"]
    assert float(rows["net.onnx", "safe.vnnlib"]["lower"]) == pytest.approx(0.5)


def test_a_stored_witness_is_unsafe(benchmark: Path, tmp_path: Path) -> None:
    sweep(benchmark, tmp_path / "run")
    row = next(r for r in read_results(tmp_path / "run") if r.verdict == "falsified")
    assert row.witness_x is not None
    assert row.witness_y is not None
    x, y = np.frombuffer(row.witness_x, "<f4"), np.frombuffer(row.witness_y, "<f4")
    assert abs(x[0]) == y[0] >= 1


def test_networks_are_read_once(benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifier.network import Network
    reads: list[str] = []
    real = Network.read.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Network], path: Path) -> Network:
        reads.append(Path(path).name)
        return real(cls, path)  # type: ignore[no-any-return]
    monkeypatch.setattr(Network, "read", classmethod(counted))
    sweep(benchmark, tmp_path / "run")
    assert reads.count("net.onnx") == 1


def test_the_cache_forgets_what_does_not_fit(benchmark: Path) -> None:
    other = benchmark.parent / "other.onnx"
    absolute_value(other)
    cache = NetworkCache(limit_bytes=1)
    first = cache.get(benchmark.parent / "net.onnx")
    assert cache.get(benchmark.parent / "net.onnx") is first
    cache.get(other)
    assert cache.get(benchmark.parent / "net.onnx") is not first
    assert NetworkCache().get(other).bytes > 1


# ---------------------------------------------------------------- deadlines

def test_the_deadline_holds_even_for_a_stage_that_never_looks_at_the_clock(
        benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spin:
        name = "spin"

        def run(self, problem: object, state: object) -> None:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                pass

        def is_rounded(self, problem: object) -> bool:
            return False
    monkeypatch.setattr("verifier.strategy.stages_for", lambda *_: [Spin()])
    start = time.monotonic()
    sweep(benchmark, tmp_path / "run", time_limit_s=0.3)
    rows = [r for r in read_results(tmp_path / "run") if r.verdict != "error"]
    assert {(r.verdict, r.reason) for r in rows} == {("unknown", "time limit")}
    assert all(r.time_s < 1.3 for r in rows)
    assert time.monotonic() - start < 8


def test_the_smaller_time_limit_counts(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_text("a,b,10\nc,d,3\ne,f\n")
    assert [i.timeout_s for i in read_instances(path, 5)] == [5, 3, 5]
    assert [i.timeout_s for i in read_instances(path)] == [10, 3, 60]


@pytest.mark.parametrize(("text", "says"), [
    ("a,b,10\nonly-one\n", "line 2"), ("a,b,soon\n", "line 1: expected a positive timeout, got 'soon'"),
    ("a,b,-1\n", "line 1"), ("a,b,nan\n", "line 1"), ("", "no instance"), ("a,,1\n", "line 1"),
])
def test_a_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "instances.csv").write_text(text)
    with pytest.raises(InvalidInstances, match=says):
        read_instances(tmp_path / "instances.csv")


def test_a_csv_may_have_marks_blanks_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_bytes(b'\xef\xbb\xbfonnx,vnnlib,timeout\r\n\r\n"a" , "b", 3\r\n\r\n# more\r\nc,d,4\r\n')
    assert [(i.onnx, i.vnnlib, i.timeout_s) for i in read_instances(path)] == [("a", "b", 3), ("c", "d", 4)]


def test_published_verdicts_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "expected.csv"
    assert read_expected(path) == {}
    path.write_bytes(b"\xef\xbb\xbfverdict, vnnlib ,onnx,more\nsat,b,a,1\n\nunsat,d,c,2\n")
    assert read_expected(path) == {("a", "b"): "sat", ("c", "d"): "unsat"}


@pytest.mark.parametrize(("data", "says"), [
    (b"network,property,verdict\n", "line 1: expected a column 'onnx'"),
    (b"onnx,vnnlib,verdict\na,b\n", "line 2: expected 3 cells, got 2"),
    (b"onnx,vnnlib,verdict\na,\xe9,sat\n", "not a CSV file in UTF-8"),
])
def test_bad_published_verdicts_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "expected.csv").write_bytes(data)
    with pytest.raises(InvalidInstances, match=says):
        read_expected(tmp_path / "expected.csv")


def test_one_run_has_one_process(benchmark: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "run", {}, resume=False), pytest.raises(UnusableStore, match="another process"):
        sweep(benchmark, tmp_path / "run", resume=True)


def test_a_file_in_the_place_of_the_results_is_named(
        benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("")
    assert run(["sweep", str(benchmark), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path / 'run'}: no folder for results")


# ---------------------------------------------------------------- interruptions

def test_an_interrupt_keeps_what_is_finished_and_a_resumed_run_does_the_rest(
        benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def interrupted(*arguments: object, **settings: object) -> object:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real_verify(*arguments, **settings)  # type: ignore[arg-type]
    monkeypatch.setattr("verifier.sweep.verify", interrupted)
    result = sweep(benchmark, tmp_path / "run")
    assert result.interrupted
    assert result.csv_path.is_file()
    assert verdicts(tmp_path / "run") == dict(list(EXPECTED.items())[:2])
    assert sweep(benchmark, tmp_path / "run", resume=True).tally.done == 5
    assert verdicts(tmp_path / "run") == EXPECTED
    assert len(asked) == 4  # nothing finished was asked again


def scaled_up(net: Path, times: float, **saving: object) -> None:
    """The same network with its first weights times a number."""
    model = onnx.load(net)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights * np.float32(times),
                                                                     model.graph.initializer[0].name))
    net.with_name("net.data").unlink(missing_ok=True)  # or it would be written behind what is there
    onnx.save(model, net, **saving)


BESIDE = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}


@pytest.mark.parametrize(("changed", "saving"), [("net.onnx", {}), ("net.data", BESIDE), ("safe.vnnlib", {}),
                                                 ("far.vnnlib.gz", {})])
def test_a_resumed_run_asks_again_about_files_that_have_changed(
        benchmark: Path, tmp_path: Path, changed: str, saving: dict[str, object],
        caplog: pytest.LogCaptureFixture) -> None:
    """What was proved of a network that is no longer there would be a wrong answer."""
    folder = benchmark.parent
    scaled_up(folder / "net.onnx", 1, **saving)
    sweep(benchmark, tmp_path / "run")
    assert verdicts(tmp_path / "run") == EXPECTED
    stored = (folder / "net.onnx").read_bytes()
    if changed.startswith("net"):
        scaled_up(folder / "net.onnx", 100, **saving)
        now = {key: "falsified" if key[0] == "net.onnx" and verdict != "error" else verdict
               for key, verdict in EXPECTED.items()}
    else:
        text = spec([(-1, 2)], 2, SPECS["unsafe"]).encode()
        (folder / changed).write_bytes(gzip.compress(text) if changed.endswith("gz") else text)
        now = EXPECTED | {("net.onnx", changed.removesuffix(".gz")): "falsified"}
    if saving:
        assert (folder / "net.onnx").read_bytes() == stored, "the weights alone are others"
    again = sweep(benchmark, tmp_path / "run", resume=True)
    assert verdicts(tmp_path / "run") == now and again.tally.done == 5
    # A property is what the row of the broken network is about as well.
    assert again.tally.done_here == {"safe.vnnlib": 2, "far.vnnlib.gz": 1}.get(changed, 4)
    assert "asked again" in caplog.text
    assert sweep(benchmark, tmp_path / "run", resume=True).tally.done_here == 0


def test_a_file_that_was_not_there_is_asked_about_when_it_is(benchmark: Path, tmp_path: Path) -> None:
    sweep(benchmark, tmp_path / "run")
    (benchmark.parent / "absent.vnnlib").write_text(spec([(-1, 2)], 2, SPECS["unsafe"]))
    assert sweep(benchmark, tmp_path / "run", resume=True).tally.done_here == 1
    assert verdicts(tmp_path / "run") == EXPECTED | {("net.onnx", "absent.vnnlib"): "falsified"}


@pytest.mark.parametrize(("reason", "seconds", "asked"), [("time limit", 90, 1), ("time limit", 60, 0),
                                                          ("time limit", 30, 0), ("memory", 90, 0)])
def test_what_ran_out_of_time_is_asked_again_when_it_has_more(
        benchmark: Path, tmp_path: Path, reason: str, seconds: int, asked: int,
        caplog: pytest.LogCaptureFixture) -> None:
    benchmark.write_text("net.onnx,safe.vnnlib,60\nnet.onnx,unsafe.vnnlib,60\n")
    sweep(benchmark, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as db:
        db.execute("UPDATE results SET verdict = 'unknown', reason = ? WHERE vnnlib = 'safe.vnnlib'", [reason])
    db.close()
    benchmark.write_text(f"net.onnx,safe.vnnlib,{seconds}\nnet.onnx,unsafe.vnnlib,{seconds}\n")
    assert sweep(benchmark, tmp_path / "run", resume=True).tally.done_here == asked
    assert verdicts(tmp_path / "run")["net.onnx", "safe.vnnlib"] == ("verified" if asked else "unknown")
    assert ("have more of it now" in caplog.text) == bool(asked)


SLOW_SWEEP = """
import sys, time
from pathlib import Path
from verifier.sweep import sweep
def wait(row, tally):
    print("stored", flush=True)
    time.sleep(0.2 if tally.done < 3 else 60)
sweep(Path(sys.argv[1]), Path(sys.argv[2]), on_row=wait)
"""


def test_a_killed_run_loses_nothing_finished(benchmark: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW_SWEEP, str(benchmark), str(tmp_path / "run")], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "stored\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    process.stdout.close()
    before = {row.key: row for row in read_results(tmp_path / "run")}
    assert len(before) == 3
    sweep(benchmark, tmp_path / "run", resume=True)
    after = {row.key: row for row in read_results(tmp_path / "run")}
    assert {k: after[k] for k in before} == before
    assert verdicts(tmp_path / "run") == EXPECTED


def test_resuming_with_other_settings_is_refused(
        benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", str(benchmark), "--out", str(tmp_path / "run")]
    assert run([*arguments, "--method", "crown"]) == 0
    for more, says in (([], "--resume"), (["--resume"], "method crown, not auto"),
                       (["--resume", "--method", "crown", "--time-limit", "3"], "time limit None, not 3.0")):
        capsys.readouterr()
        assert run([*arguments, *more]) == 2
        assert says in capsys.readouterr().err
    assert run([*arguments, "--resume", "--method", "crown"]) == 0


# ---------------------------------------------------------------- the command

def test_the_command_reports_counts_and_progress(
        benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", str(benchmark), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "5 of 5  verified 2  falsified 1  unknown 0  error 2" in out
    assert len(err.splitlines()) == 5
    assert err.splitlines()[1].startswith("2/5  verified 1  falsified 0  unknown 0  error 1  left ")
    assert "published" not in out


@pytest.mark.parametrize(("published", "says"), [
    ("unsat", "published verdicts: 1 agree, 0 contradict"), ("sat", "published verdicts: 0 agree, 1 contradict"),
])
def test_published_verdicts_are_compared_loudly(benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                published: str, says: str) -> None:
    (benchmark.parent / "expected.csv").write_text(f"onnx,vnnlib,verdict\nnet.onnx,safe.vnnlib,{published}\n"
                                                   "net.onnx,unsafe.vnnlib,unknown\n")
    assert run(["sweep", str(benchmark), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert says in out
    assert ("CONTRADICTION net.onnx safe.vnnlib: verified, published sat" in err) == (published == "sat")


@pytest.mark.parametrize("bad", [["absent.csv"], ["instances.csv", "--time-limit", "0"]])
def test_wrong_use_exits_with_2(benchmark: Path, capsys: pytest.CaptureFixture[str], bad: list[str]) -> None:
    assert run(["sweep", str(benchmark.parent / bad[0]), *bad[1:]]) == 2
    assert capsys.readouterr().err.startswith("Error: ")


# ---------------------------------------------------------------- published verdicts of the competition

SLICE: list[tuple[str, Callable[[int], bool], float]] = [
    # benchmark, which instances, seconds each
    ("acasxu", lambda i: i % 12 == 0, 3.0),
    ("safenlp", lambda i: i % 60 == 0, 3.0),
    ("rl_benchmarks", lambda i: i % 20 == 0, 3.0),
    ("mnist_fc", lambda i: i in (0, 20), 6.0),
    ("collins_rul_cnn", lambda i: i in (0, 14), 6.0),
    ("oval21", lambda i: i == 0, 6.0),
    ("sat_relu", lambda i: i in (0, 30), 3.0),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "chosen", "seconds"), SLICE, ids=[s[0] for s in SLICE])
def test_no_verdict_contradicts_the_published_ones(
        shared: Path, tmp_path: Path, name: str, chosen: Callable[[int], bool], seconds: float) -> None:
    source = shared / "vnncomp" / name
    with (source / "instances.csv").open(newline="") as file:
        rows = [r for i, r in enumerate(csv.reader(file)) if chosen(i)]
    folder = tmp_path / name
    folder.mkdir()
    for part in ("onnx", "vnnlib", "expected.csv"):
        (folder / part).symlink_to(source / part)
    with (folder / "instances.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = sweep(folder / "instances.csv", tmp_path / "run", time_limit_s=seconds)
    assert result.tally.contradictions == []
    assert result.tally.counts["error"] == 0
    assert all(r.time_s < seconds + 1.5 for r in read_results(tmp_path / "run"))
