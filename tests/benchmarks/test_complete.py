"""The benchmark of whole processes: what it runs, what it counts, and how it compares with other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import complete
from benchmarks.complete import Peer, Task, Verify, cactus, compare, figures, par2, verdict_in
from benchmarks.tightness import EXAMPLES

EXPECTED = "onnx,vnnlib,verdict\na.onnx,1.vnnlib,unsat\na.onnx,2.vnnlib,sat\nb.onnx,1.vnnlib,unknown\n"
PEERS = """tool,benchmark,onnx,vnnlib,verdict,wall_s,solver_s,cap_s,domains
fast,nets,a.onnx,1.vnnlib,unsat,2.0,0.5,30,
fast,nets,a.onnx,2.vnnlib,sat,8.0,6.0,30,
fast,nets,b.onnx,1.vnnlib,timeout,30.1,,30,
slow,nets,a.onnx,1.vnnlib,unsat,40.0,,90,7
slow,other,c.onnx,9.vnnlib,error,1.0,,90,
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two families, the second without published verdicts."""
    for family, rows in (("nets", ["a.onnx,1.vnnlib,116", "a.onnx,2.vnnlib,20", "b.onnx,1.vnnlib"]),
                         ("other", ["c.onnx,9.vnnlib,600"])):
        (tmp_path / "data" / family).mkdir(parents=True)
        (tmp_path / "data" / family / "instances.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "data/nets/expected.csv").write_text(EXPECTED)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "calibration", lambda threads: {"threads": threads})


def entry(onnx: str = "a.onnx", vnnlib: str = "1.vnnlib", verdict: str = "verified", wall_s: float = 1.0,
          **changes: Any) -> dict[str, Any]:
    return {"family": "nets", "onnx": onnx, "vnnlib": vnnlib, "limit_s": 10.0, "verdict": verdict, "reason": None,
            "detail": None, "domains": 3, "wall_s": wall_s, **changes}


class Fake:
    """Answers from a table, in place of processes."""

    def __init__(self, **verdicts: str) -> None:
        self.verdicts = verdicts
        self.asked: list[Task] = []

    def __call__(self, task: Task) -> dict[str, Any]:
        self.asked.append(task)
        name = task.onnx[0] + task.vnnlib[0]
        return entry(task.onnx, task.vnnlib, self.verdicts.get(name, "verified"), family=task.family,
                     limit_s=task.limit_s)


def run(root: Path, out: Path, *flags: str, runner: Any = None) -> int:
    return complete.main(["--root", str(root), "--out", str(out), *flags], runner or Fake(a2="falsified"))


# ---------------------------------------------------------------------- what is run


def test_families_match_and_limit_choose_the_instances(root: Path, tmp_path: Path) -> None:
    for number, (flags, expected) in enumerate([
        ([], ["a1", "a2", "b1", "c9"]), (["--families", "other"], ["c9"]), (["--match", "a.onnx"], ["a1", "a2"]),
        (["--limit", "1"], ["a1", "c9"]), (["--families", "nets,other", "--match", "1.vnnlib"], ["a1", "b1"]),
    ]):
        fake = Fake(a2="falsified")
        assert run(root, tmp_path / f"{number}.json", *flags, runner=fake) == 0
        assert [t.onnx[0] + t.vnnlib[0] for t in fake.asked] == expected
        assert {t.limit_s for t in fake.asked} == {60.0}  # not the limits of the file, which are for other machines


@pytest.mark.parametrize(("flags", "said"), [
    (["--families", "nets,nothing"], "nothing not in .*, which has nets, other"),
    (["--match", "zzz"], "no instance left"),
    (["--time-limit", "0"], "--time-limit must be positive"),
    (["--jobs", "0"], "at least 1"),
    (["--peers", "absent"], r"cpu_baseline\.csv not found; --peers"),
])
def test_bad_arguments_are_refused_in_one_sentence(root: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run(root, tmp_path / "out.json", *flags)


def test_without_the_data_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RMAX_SHARED", str(tmp_path / "absent"))
    assert complete.main(["--out", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().err.startswith(f"skipped: {tmp_path}/absent/vnncomp not found; --root names")
    with pytest.raises(SystemExit, match="not found; --root names"):
        run(tmp_path / "absent", tmp_path / "out.json")


def test_one_process_verifies_one_instance(tmp_path: Path) -> None:
    """The bundled network, once for real: verdict, both clocks and memory."""
    family = tmp_path / "digits"
    family.mkdir()
    for name in ("digits_mlp.onnx", "mlp_image0_small.vnnlib"):
        (family / name).write_bytes((EXAMPLES / name).read_bytes())
    answer = Verify(tmp_path, threads=1)(Task("digits", "digits_mlp.onnx", "mlp_image0_small.vnnlib", 30.0))
    assert answer is not None
    assert (answer["verdict"], answer["limit_s"], answer["method"]) == ("verified", 30.0, answer["stages"][-1]["name"])
    assert answer["wall_s"] >= answer["time_s"] > 0
    assert answer["cpu_s"] > 0 and answer["peak_mib"] > 50
    json.dumps(answer, allow_nan=False)


def test_a_process_that_cannot_answer_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    answer = Verify(tmp_path, threads=1)(Task("digits", "absent.onnx", "absent.vnnlib", 5.0))
    assert answer is not None
    assert answer["verdict"] == "error" and "absent.onnx" in answer["detail"]
    assert complete.answer_in(tmp_path / "none", "", -9, 5.1, 5.0)["detail"] == (
        "the process ended with code -9 and wrote no JSON")
    assert complete.answer_in(tmp_path / "none", "", -9, 35.1, 5.0)["detail"] == "stopped 30 s after its limit"


def test_a_process_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "KILL_S", 0.2)
    verify = Verify(tmp_path, threads=1)
    cost = verify._run(["sleep", "60"], tmp_path / "stderr", 0.2)
    assert cost["code"] == -9 and 0.2 <= cost["wall_s"] < 10
    verify.stop()
    assert verify._run(["sleep", "60"], tmp_path / "stderr", 60)["wall_s"] < 10


def test_several_jobs_answer_every_task_once() -> None:
    fake, got = Fake(), []
    tasks = [Task("nets", "a.onnx", f"{n}.vnnlib", 1.0) for n in range(9)]
    assert not complete.run_all(tasks, fake, 3, got.append)
    assert sorted(e["vnnlib"] for e in got) == [t.vnnlib for t in tasks]


# ---------------------------------------------------------------------- killed and resumed


def test_an_interrupted_run_is_resumed_where_it_stopped(root: Path, tmp_path: Path) -> None:
    class Impatient(Fake):
        def __call__(self, task: Task) -> dict[str, Any]:
            if task.onnx == "b.onnx":
                raise KeyboardInterrupt
            return super().__call__(task)
    out = tmp_path / "out.json"
    assert run(root, out, runner=Impatient(a2="falsified")) == 0
    stored = json.loads(out.read_text())
    assert stored["interrupted"] and len(stored["instances"]) == 2
    with pytest.raises(SystemExit, match="already holds a run"):
        run(root, out)
    with pytest.raises(SystemExit, match=r"time_limit_s 60\.0, not 5"):
        run(root, out, "--resume", "--time-limit", "5")
    rest = Fake(a2="falsified")
    assert run(root, out, "--resume", runner=rest) == 0
    assert [t.onnx for t in rest.asked] == ["b.onnx", "c.onnx"]
    stored = json.loads(out.read_text())
    assert not stored["interrupted"] and stored["families"]["all"]["solved"] == 4
    assert stored["calibration"] and stored["hardware"]["cores"] >= 1 and len(stored["commits"]) == 1


# ---------------------------------------------------------------------- figures


def test_answers_after_the_limit_do_not_count() -> None:
    assert verdict_in(entry(wall_s=10.9)) == "unsat"
    assert verdict_in(entry(wall_s=11.1)) == "unknown"
    assert verdict_in(entry(verdict="falsified", wall_s=5.1), 5.0) == "unknown"
    assert verdict_in(entry(verdict="error", wall_s=50.0)) == "error"


def test_par2_counts_the_unsolved_with_twice_their_limit() -> None:
    assert par2([entry(wall_s=1.0), entry(verdict="falsified", wall_s=3.0)]) == 2.0
    assert par2([entry(wall_s=1.0), entry(verdict="unknown", wall_s=2.0)]) == pytest.approx((1 + 20) / 2)
    assert par2([entry(wall_s=12.0)]) == 20.0


def test_figures_of_a_family() -> None:
    expected = {("nets", "a.onnx", "1.vnnlib"): "unsat", ("nets", "a.onnx", "2.vnnlib"): "sat",
                ("nets", "b.onnx", "1.vnnlib"): "unknown"}
    entries = [entry(wall_s=1.0), entry(vnnlib="2.vnnlib", wall_s=4.0, peak_mib=300),
               entry("b.onnx", verdict="unknown", wall_s=12.0, domains=None)]
    assert figures(entries, expected) == {
        "instances": 3, "solved": 2, "verified": 2, "falsified": 0, "unknown": 1, "error": 0, "known": 2, "agree": 1,
        "contradictions": 1, "late": 1, "sum_s": 17.0, "median_s": 4.0, "longest_s": 12.0, "cpu_s": 0.0,
        "peak_mib": 300, "domains": 6, "par2_s": pytest.approx(25 / 3)}


def test_a_contradiction_is_loud(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, tmp_path / "out.json", runner=Fake(a1="falsified", a2="falsified")) == 1
    said = capsys.readouterr().err
    assert "!!!! CONTRADICTION nets a.onnx 1.vnnlib: falsified, published unsat" in said
    assert json.loads((tmp_path / "out.json").read_text())["wrong"] == [
        "CONTRADICTION nets a.onnx 1.vnnlib: falsified, published unsat"]


def test_a_run_prints_a_row_a_family_and_draws(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert run(root, out, "--plot", runner=Fake(a2="falsified", b1="unknown")) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:9] == ["nets", "2/3", "1", "1", "1", "0", "2/2", "0"]
    assert lines[-1].startswith("| all    |    3/4 |")
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_a_cactus_has_the_sorted_times() -> None:
    assert cactus([3.0, 1.0, 2.0]) == ([1, 2, 3], [1.0, 2.0, 3.0])
    assert cactus([]) == ([], [])


# ---------------------------------------------------------------------- other tools


def test_peers_are_read_with_the_largest_cap_of_each_instance(tmp_path: Path) -> None:
    (tmp_path / "cpu_baseline.csv").write_text(PEERS)
    peers = complete.read_peers(tmp_path / "cpu_baseline.csv")
    assert peers[0] == Peer("fast", ("nets", "a.onnx", "1.vnnlib"), "unsat", 2.0, 0.5, 30.0)
    assert peers[2].solver_s is None and not peers[2].decided
    assert {t.key[1:]: t.limit_s for t in complete.tasks_of_peers(peers)} == {
        ("a.onnx", "1.vnnlib"): 90.0, ("a.onnx", "2.vnnlib"): 30.0, ("b.onnx", "1.vnnlib"): 30.0,
        ("c.onnx", "9.vnnlib"): 90.0}


def test_tools_are_compared_where_both_decided() -> None:
    def peer(vnnlib: str, verdict: str, wall_s: float, solver_s: float | None) -> Peer:
        return Peer("tool", ("nets", "a.onnx", vnnlib), verdict, wall_s, solver_s, 30.0)
    peers = [peer("1", "unsat", 4.0, 1.0), peer("2", "sat", 16.0, 10.0), peer("3", "unsat", 2.0, None),
             peer("4", "timeout", 30.0, 30.0), peer("5", "unsat", 9.0, 8.0), peer("6", "sat", 1.0, 0.1),
             peer("not run", "sat", 1.0, 0.1)]
    ours = [entry(vnnlib="1", wall_s=1.0), entry(vnnlib="2", verdict="falsified", wall_s=1.0),
            entry(vnnlib="3", verdict="unknown", wall_s=1.0), entry(vnnlib="4", wall_s=2.0),
            entry(vnnlib="5", wall_s=40.0, limit_s=90.0), entry(vnnlib="6", wall_s=1.0)]
    (found,) = compare({complete.key_of(e): e for e in ours}, peers).values()
    assert (found["instances"], found["decided"], found["within_cap"], found["both"]) == (6, 5, 4, 3)
    assert [key[2] for key in found["missed"]] == ["3", "5"]
    assert [key[2] for key in found["disagree"]] == ["6"]
    assert found["ratio"] == pytest.approx((1 / 4 * 1 / 16 * 1) ** (1 / 3))
    assert found["hard"] == 1
    assert (found["hard_ratio"], found["hard_ratio_to_solver"]) == (pytest.approx(1 / 16), pytest.approx(1 / 10))


def test_a_run_beside_peers_lists_what_only_they_decided(root: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cpu_baseline.csv").write_text(PEERS)
    fake = Fake(a1="unknown", a2="falsified")
    assert run(root, tmp_path / "out.json", "--peers", str(tmp_path), "--plot", runner=fake) == 1
    assert {t.key[1:]: t.limit_s for t in fake.asked}[("a.onnx", "1.vnnlib")] == 90.0
    printed = capsys.readouterr()
    assert "MISSED nets a.onnx 1.vnnlib: decided by fast, slow" in printed.err
    assert "8.00 (0.12)" in printed.out and "2.00 (alone)" in printed.out and "timeout (30)" in printed.out
    assert json.loads((tmp_path / "out.json").read_text())["peers"]["fast"]["ratio"] == pytest.approx(1 / 8)
    assert run(root, tmp_path / "again.json", "--peers", str(tmp_path), "--families", "other") == 0


@pytest.mark.shared
def test_every_instance_of_the_peers_lies_in_the_shared_folder(shared: Path) -> None:
    if not (shared / "peers" / "cpu_baseline.csv").is_file():
        pytest.skip("no peers/cpu_baseline.csv in the shared folder")
    tasks = complete.tasks_of_peers(complete.read_peers(shared / "peers" / "cpu_baseline.csv"))
    families = dict.fromkeys(t.family for t in tasks)
    listed = {t.key for t in complete.tasks_of(shared / "vnncomp", families, limit_s=60.0)}
    assert listed.issuperset(t.key for t in tasks)


def test_an_answer_that_ended_in_an_error_counts_as_one(tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    out.write_text(json.dumps({"verdict": "unknown", "reason": "error", "detail": "RuntimeError: no"}))
    assert complete.answer_in(out, "", 3, 1.0, 20.0)["verdict"] == "error"
    out.write_text(json.dumps({"verdict": "unknown", "reason": "time limit", "detail": ""}))
    assert complete.answer_in(out, "", 3, 1.0, 20.0)["verdict"] == "unknown"
