"""What does `rmax verify` decide, how fast, and does it agree with what is known? Whole processes, start-up included.

    python benchmarks/complete.py --families acasxu,rl_benchmarks --time-limit 60
    python benchmarks/complete.py --peers                                # the instances other tools were timed on

Every instance of a VNN-COMP-style folder (a folder a family: instances.csv, expected.csv) is one process. Prints a
row a family, compares with published verdicts and other tools' times, stores JSON (versions, hardware, calibration)
and a cactus plot. Each finished instance is a line of a file beside the JSON, so a killed run can be resumed.
`benchmarks/README.md` explains the columns.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import available_cores, calibration, commit, environment, hardware, markdown  # noqa: E402

LATE_S = 1.0    # an answer this long after the limit still counts
KILL_S = 30.0   # a process this long after its limit is stopped
HARD_S = 5.0    # instances on which a tool's own solver took longer are summed up apart
LOUD = "!" * 20
WORDS = {"verified": "unsat", "falsified": "sat"}  # ours -> the competition's
Key = tuple[str, str, str]


# ---------------------------------------------------------------------- instances


@dataclass(frozen=True)
class Task:
    """One instance: paths as instances.csv has them, relative to the family's folder."""

    family: str
    onnx: str
    vnnlib: str
    limit_s: float

    @property
    def key(self) -> Key:
        return (self.family, self.onnx, self.vnnlib)


def families_in(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/instances.csv"))


def tasks_of(root: Path, families: Iterable[str], *, limit_s: float, match: str = "", first: int | None = None,
             verdict: str | None = None) -> list[Task]:
    """The instances whose names contain `match` and whose published verdict is `verdict`, at most `first` a family,
    each with the same limit."""
    from verifier.sweep import read_instances
    tasks = []
    for family in families:
        known = {} if verdict is None else published(root, [family])
        found = [Task(family, i.onnx, i.vnnlib, limit_s) for i in read_instances(root / family / "instances.csv")]
        tasks += [t for t in found if match in " ".join(t.key) and verdict in (None, known.get(t.key))][:first]
    return tasks


def published(root: Path, families: Iterable[str]) -> dict[Key, str]:
    """sat, unsat, unknown or conflict, where the family has an expected.csv."""
    from verifier.sweep import read_expected
    return {(family, *key): verdict for family in families
            for key, verdict in read_expected(root / family / "expected.csv").items()}


# ---------------------------------------------------------------------- one instance

Runner = Callable[[Task], Entry | None]


class Verify:
    """Runs `rmax verify` on a task in a process of its own; `stop` ends what is running."""

    def __init__(self, root: Path, *, threads: int, flags: Sequence[str] = ()) -> None:
        self.root, self.threads, self.flags = root, threads, list(flags)
        self._running: set[int] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def __call__(self, task: Task) -> Entry | None:
        """The instance's entry, or None if it was stopped."""
        folder = self.root / task.family
        with tempfile.TemporaryDirectory(prefix="complete-") as scratch:
            out = Path(scratch) / "result.json"
            said = Path(scratch) / "stderr"
            command = [sys.executable, "-m", "verifier.cli", "verify", str(folder / task.onnx),
                       str(folder / task.vnnlib), "--time-limit", f"{task.limit_s:g}", "--json", str(out), *self.flags]
            cost = self._run(command, said, task.limit_s + KILL_S)
            if self._stopped:
                return None
            return {**dict(zip(("family", "onnx", "vnnlib"), task.key, strict=True)), "limit_s": task.limit_s,
                    **answer_in(out, said.read_text(errors="replace"), cost.pop("code"), cost["wall_s"], task.limit_s),
                    **cost}

    def _run(self, command: list[str], said: Path, kill_after_s: float) -> Entry:
        """Exit code, seconds (wall and processor) and peak memory of a process, stopped if it does not end."""
        with said.open("wb") as stderr:
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, env=environment(self.threads), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
            with self._lock:
                self._running.add(process.pid)
                if self._stopped:
                    _kill(process.pid)
            timer = threading.Timer(kill_after_s, _kill, [process.pid])
            timer.start()
            try:
                _, status, used = os.wait4(process.pid, 0)
            finally:
                timer.cancel()
                with self._lock:
                    self._running.discard(process.pid)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return {"code": process.returncode, "wall_s": round(wall, 3), "cpu_s": round(used.ru_utime + used.ru_stime, 3),
                "peak_mib": round(used.ru_maxrss / unit)}

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for pid in self._running:
                _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself


def answer_in(out: Path, said: str, code: int, wall_s: float, limit_s: float) -> Entry:
    """What a process answered, from its JSON, exit code and last words. No answer, and one that says so itself, is an
    `error` with the reason."""
    try:
        answer = json.loads(out.read_text())
    except (OSError, ValueError):
        words = said.strip().splitlines()
        reason = words[-1] if words else f"the process ended with code {code} and wrote no JSON"
        if wall_s > limit_s + KILL_S:
            reason = f"stopped {KILL_S:g} s after its limit"
        return {"verdict": "error", "reason": "", "detail": reason[:300], "domains": 0, "method": ""}
    if answer.get("reason") == "error":  # an `unknown` that no limit explains
        answer["verdict"] = "error"
    kept = ("verdict", "reason", "detail", "lower", "upper", "time_s", "domains", "method")
    return {**{name: answer.get(name) for name in kept}, "stages": answer.get("stages", [])}


def run_all(tasks: Sequence[Task], runner: Runner, jobs: int, on_entry: Callable[[Entry], None],
            stop: Callable[[], None] = lambda: None) -> bool:
    """Run the tasks, `jobs` at a time; true if the user interrupted them. Entries come in the order they finish."""
    waiting = iter(tasks)
    with ThreadPoolExecutor(jobs) as pool:
        running: set[Future[Entry | None]] = set()
        try:
            while True:
                while len(running) < jobs and (task := next(waiting, None)) is not None:
                    running.add(pool.submit(runner, task))
                if not running:
                    return False
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    if (entry := future.result()) is not None:
                        on_entry(entry)
        except KeyboardInterrupt:
            stop()
            return True


# ---------------------------------------------------------------------- figures of a family


def key_of(entry: Entry) -> Key:
    return (entry["family"], entry["onnx"], entry["vnnlib"])


def verdict_in(entry: Entry, limit_s: float | None = None) -> str:
    """The competition's word (sat, unsat) for an answer that came within the limit [its own]; else unknown or error."""
    limit_s = entry["limit_s"] + LATE_S if limit_s is None else limit_s
    word = WORDS.get(entry["verdict"], entry["verdict"])
    return "unknown" if word in WORDS.values() and entry["wall_s"] > limit_s else str(word)


def is_solved(entry: Entry) -> bool:
    return verdict_in(entry) in WORDS.values()


def contradicts(entry: Entry, known: str | None) -> bool:
    """Is the answer, however late, the opposite of a known verdict?"""
    return {WORDS.get(entry["verdict"]), known} == {"sat", "unsat"}


def par2(entries: Sequence[Entry]) -> float:
    """Mean seconds an instance, twice the limit for one that was not solved (penalised average runtime)."""
    return statistics.fmean(e["wall_s"] if is_solved(e) else 2 * e["limit_s"] for e in entries)


def figures(entries: Sequence[Entry], expected: dict[Key, str]) -> Entry:
    """Counts and times over some instances (at least one). Seconds are whole processes, solved or not."""
    words = Counter(verdict_in(e) for e in entries)
    known = [e for e in entries if expected.get(key_of(e)) in ("sat", "unsat")]
    seconds = [e["wall_s"] for e in entries]
    return {
        "instances": len(entries), "solved": words["sat"] + words["unsat"], "verified": words["unsat"],
        "falsified": words["sat"], "unknown": words["unknown"], "error": words["error"],
        "known": len(known), "agree": sum(verdict_in(e) == expected[key_of(e)] for e in known),
        "contradictions": sum(contradicts(e, expected.get(key_of(e))) for e in entries),
        "late": sum(e["wall_s"] > e["limit_s"] + LATE_S for e in entries),
        "sum_s": sum(seconds), "median_s": statistics.median(seconds), "longest_s": max(seconds),
        "cpu_s": sum(e.get("cpu_s", 0.0) for e in entries), "peak_mib": max(e.get("peak_mib", 0) for e in entries),
        "domains": sum(e["domains"] or 0 for e in entries), "par2_s": par2(entries),
    }


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "solved": lambda f: f"{f['solved']}/{f['instances']}",
    "verified": lambda f: str(f["verified"]),
    "falsified": lambda f: str(f["falsified"]),
    "unknown": lambda f: str(f["unknown"]),
    "error": lambda f: str(f["error"]),
    "agree": lambda f: f"{f['agree']}/{f['known']}",
    "contradict": lambda f: str(f["contradictions"]),
    "late": lambda f: str(f["late"]),
    "sum s": lambda f: f"{f['sum_s']:.1f}",
    "median s": lambda f: f"{f['median_s']:.2f}",
    "longest s": lambda f: f"{f['longest_s']:.1f}",
    "PAR-2 s": lambda f: f"{f['par2_s']:.2f}",
    "domains": lambda f: str(f["domains"]),
    "peak MiB": lambda f: str(f["peak_mib"]),
}


def by_family(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry["family"], []).append(entry)
    return groups


def table(results: dict[str, Entry]) -> str:
    return markdown(["family", *COLUMNS], [[name, *(show(f) for show in COLUMNS.values())]
                                           for name, f in results.items()], left=1)


# ---------------------------------------------------------------------- other tools


@dataclass(frozen=True)
class Peer:
    """One run of another tool: whole-process and own solver's seconds (None where it says none), and its cap."""

    tool: str
    key: Key
    verdict: str
    wall_s: float
    solver_s: float | None
    cap_s: float

    @property
    def decided(self) -> bool:
        return self.verdict in ("sat", "unsat")


def read_peers(path: Path) -> list[Peer]:
    """The rows of `cpu_baseline.csv`: tool,benchmark,onnx,vnnlib,verdict,wall_s,solver_s,cap_s."""
    with path.open(newline="") as file:
        return [Peer(row["tool"], (row["benchmark"], row["onnx"], row["vnnlib"]), row["verdict"], float(row["wall_s"]),
                     float(row["solver_s"]) if row["solver_s"] else None, float(row["cap_s"]))
                for row in csv.DictReader(file)]


def tasks_of_peers(peers: Sequence[Peer]) -> list[Task]:
    """Every instance once, with the largest cap that a tool had on it."""
    caps: dict[Key, float] = {}
    for peer in peers:
        caps[peer.key] = max(peer.cap_s, caps.get(peer.key, 0.0))
    return [Task(*key, limit_s=cap) for key, cap in caps.items()]


def geometric_mean(ratios: Sequence[float]) -> float | None:
    return statistics.geometric_mean(ratios) if ratios else None


def compare(entries: dict[Key, Entry], peers: Sequence[Peer]) -> dict[str, Entry]:
    """Each tool's figures against ours on the instances that both ran.

    missed: decided by the tool, not by us within its cap. ratio: our whole-process seconds over theirs (geometric
    mean) where both decided; the hard ones are those on which its solver alone took more than HARD_S.
    """
    answer: dict[str, Entry] = {}
    for tool in dict.fromkeys(p.tool for p in peers):
        pairs = [(entries[p.key], p) for p in peers if p.tool == tool and p.key in entries]
        both = [(e, p) for e, p in pairs if p.decided and verdict_in(e, p.cap_s) in WORDS.values()]
        hard = [(e, p) for e, p in both if p.solver_s is not None and p.solver_s > HARD_S]
        answer[tool] = {
            "instances": len(pairs), "decided": sum(p.decided for _, p in pairs), "both": len(both),
            "within_cap": sum(verdict_in(e, p.cap_s) in WORDS.values() for e, p in pairs),
            "missed": [list(p.key) for e, p in pairs if p.decided and verdict_in(e, p.cap_s) not in WORDS.values()],
            "disagree": [list(p.key) for e, p in pairs if contradicts(e, p.verdict)],
            "ratio": geometric_mean([e["wall_s"] / p.wall_s for e, p in both]),
            "hard": len(hard),
            "hard_ratio": geometric_mean([e["wall_s"] / p.wall_s for e, p in hard]),
            "hard_ratio_to_solver": geometric_mean([e["wall_s"] / p.solver_s for e, p in hard if p.solver_s]),
        }
    return answer


def peers_table(compared: dict[str, Entry]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"
    header = ["tool", "instances", "it decided", "we in its cap", "it alone", "disagree", "both", "ratio",
              f"hard (> {HARD_S:g} s)", "hard ratio", "to its solver"]
    return markdown(header, [[tool, str(c["instances"]), str(c["decided"]), str(c["within_cap"]), str(len(c["missed"])),
                              str(len(c["disagree"])), str(c["both"]), number(c["ratio"]), str(c["hard"]),
                              number(c["hard_ratio"]), number(c["hard_ratio_to_solver"])]
                             for tool, c in compared.items()], left=1)


def instances_table(entries: dict[Key, Entry], peers: Sequence[Peer]) -> str:
    """Each instance: our answer and seconds, and each tool's seconds with our ratio to them."""
    tools = list(dict.fromkeys(p.tool for p in peers))
    theirs = {(p.tool, p.key): p for p in peers}

    def cell(tool: str, key: Key) -> str:
        peer = theirs.get((tool, key))
        if peer is None:
            return ""
        if not peer.decided:
            return f"{peer.verdict} ({peer.cap_s:g})"
        ours = entries[key]
        decided = verdict_in(ours, peer.cap_s) in WORDS.values()
        return f"{peer.wall_s:.2f} " + (f"({ours['wall_s'] / peer.wall_s:.2f})" if decided else "(alone)")
    keys = [k for k in dict.fromkeys(p.key for p in peers) if k in entries]
    return markdown(["family", "network", "property", "ours", "s", "domains", *tools],
                    [[key[0], Path(key[1]).name.removesuffix(".onnx"), Path(key[2]).name.removesuffix(".vnnlib"),
                      verdict_in(entries[key]), f"{entries[key]['wall_s']:.2f}", str(entries[key]["domains"]),
                      *(cell(tool, key) for tool in tools)] for key in keys], left=4)


# ---------------------------------------------------------------------- picture


def cactus(seconds: Iterable[float]) -> tuple[list[int], list[float]]:
    """(k, seconds within which k instances are solved each): the sorted times of the solved ones."""
    ordered = sorted(seconds)
    return list(range(1, len(ordered) + 1)), ordered


def draw(entries: Sequence[Entry], peers: Sequence[Peer], path: Path) -> None:
    """Cactus plots: a panel a tool on the instances it ran, or one panel with a line a family."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ours = {key_of(e): e for e in entries}
    tools = list(dict.fromkeys(p.tool for p in peers if p.key in ours))
    panels = tools or [""]
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    size = (5.5 * across, 4 * down) if tools else (9, 6)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, tool in zip(axes.flat, panels, strict=False):
        if tool:
            ran = [p for p in peers if p.tool == tool and p.key in ours]
            lines = {"rmax": [ours[p.key]["wall_s"] for p in ran
                              if verdict_in(ours[p.key], p.cap_s) in WORDS.values()],
                     tool: [p.wall_s for p in ran if p.decided]}
            totals = dict.fromkeys(lines, len(ran))
        else:
            groups = {"all": list(entries), **by_family(entries)}
            lines = {name: [e["wall_s"] for e in group if is_solved(e)] for name, group in groups.items()}
            totals = {name: len(group) for name, group in groups.items()}
        for number, (name, seconds) in enumerate(lines.items()):
            axis.plot(*cactus(seconds), marker=".", markersize=3, color="k" if name == "all" else f"C{number % 10}",
                      linestyle=("-", "--", ":")[number // 10 % 3], linewidth=1,
                      label=f"{name}  {len(seconds)}/{totals[name]}")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlim(0, max(totals.values()) + 1)
        axis.set_ylim(0.5, max([e["limit_s"] for e in entries]) * 1.3)
        axis.set_xlabel("instances solved")
        axis.set_ylabel("seconds each, whole process")
        axis.legend(fontsize=7 if len(lines) > 8 else 8, ncols=1 if len(lines) <= 14 else 2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="What rmax verify decides, whole processes.")
    p.add_argument("--root", type=Path, help=f"folder of the families [{shared / 'vnncomp'}]")
    p.add_argument("--families", default="all", metavar="A,B", help="names of folders in it [all]")
    p.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds an instance [60]; with --peers "
                   "the largest cap of a tool on it counts instead")
    p.add_argument("--match", default="", metavar="TEXT", help="only instances with it in \"FAMILY NET SPEC\"")
    p.add_argument("--verdict", metavar="WORD", help="only instances with this published verdict: sat, unsat, unknown")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N instances of each family")
    p.add_argument("--peers", type=Path, nargs="?", const=shared / "peers", metavar="FOLDER",
                   help="run the instances of FOLDER/cpu_baseline.csv, and compare")
    p.add_argument("--flags", default="", metavar="TEXT", help='more flags of rmax verify, as one word: --flags="..."')
    p.add_argument("--jobs", type=int, default=1, help="processes at a time [1]")
    p.add_argument("--threads", type=int, help="of each process [all cores, shared out among the jobs]")
    p.add_argument("--resume", action="store_true", help="go on with a run: skip what is answered")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "complete.json",
                   help="JSON; finished instances lie beside it, one a line (.jsonl)")
    p.add_argument("--plot", type=Path, nargs="?", const=Path(), metavar="PNG", help="cactus plot [beside the JSON]")
    p.set_defaults(shared=shared)
    return p


def chosen(arguments: argparse.Namespace) -> tuple[list[Task], list[Peer]]:
    """The tasks and the other tools' runs; SystemExit with one sentence where something is missing."""
    if not arguments.root.is_dir():
        raise SystemExit(f"{arguments.root} not found; --root names the folder of the families")
    families = families_in(arguments.root)
    asked = families if arguments.families == "all" else [f for f in arguments.families.split(",") if f]
    if unknown := [f for f in asked if f not in families]:
        raise SystemExit(f"--families: {', '.join(unknown)} not in {arguments.root}, which has {', '.join(families)}")
    if arguments.peers is None:
        tasks = tasks_of(arguments.root, asked, limit_s=arguments.time_limit, match=arguments.match,
                         first=arguments.limit, verdict=arguments.verdict)
        return tasks, []
    path = arguments.peers / "cpu_baseline.csv"
    if not path.is_file():
        raise SystemExit(f"{path} not found; --peers names its folder")
    peers = [p for p in read_peers(path) if p.key[0] in asked and arguments.match in " ".join(p.key)]
    tasks = [t for group in asked for t in [t for t in tasks_of_peers(peers) if t.family == group][:arguments.limit]]
    return tasks, peers


class Progress:
    """One line an instance on stderr: how far, what came, and the time left if the rest takes as long."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.here, self.start = total, done, 0, time.monotonic()
        self.solved = 0

    def __call__(self, entry: Entry, wrong: bool) -> None:
        self.done += 1
        self.here += 1
        self.solved += is_solved(entry)
        left = (time.monotonic() - self.start) / self.here * (self.total - self.done)
        why = f" ({entry['detail'] or entry['reason']})" if entry["verdict"] not in WORDS else ""
        print(f"{self.done}/{self.total}  solved here {self.solved}/{self.here}  left {left:.0f} s  |  "
              f"{entry['verdict']}{why}  {entry['wall_s']:.2f} s  domains {entry['domains']}  "
              f"{entry['family']}  {entry['onnx']}  {entry['vnnlib']}{f'  {LOUD} CONTRADICTION' if wrong else ''}",
              file=sys.stderr, flush=True)


def summary(entries: Sequence[Entry], expected: dict[Key, str], peers: Sequence[Peer]) -> tuple[Entry, bool]:
    """(figures for the JSON, whether they are as they must be), printed on the way."""
    results = {name: figures(group, expected) for name, group in by_family(entries).items()}
    if len(results) > 1:
        results["all"] = figures(entries, expected)
    if results:
        print(table(results))
    ours = {key_of(e): e for e in entries}
    answer: Entry = {"families": results}
    wrong = [f"CONTRADICTION {' '.join(k)}: {e['verdict']}, published {expected[k]}" for k, e in ours.items()
             if contradicts(e, expected.get(k))]
    if peers:
        compared = compare(ours, peers)
        print("\n" + instances_table(ours, peers) + "\n\n" + peers_table(compared))
        answer["peers"] = compared
        for tool, c in compared.items():
            for k in c["disagree"]:
                verdict, known = ours[tuple(k)]["verdict"], expected.get(tuple(k))
                if known in ("sat", "unsat") and not contradicts(ours[tuple(k)], known):
                    print(f"{' '.join(k)}: {verdict}, as published; {tool} found the opposite")
                else:
                    wrong.append(f"CONTRADICTION {' '.join(k)}: {verdict}, {tool} found the opposite")
        missed: dict[Key, list[str]] = {}
        for tool, c in compared.items():
            for k in c["missed"]:
                missed.setdefault(tuple(k), []).append(tool)
        wrong += [f"MISSED {' '.join(k)}: decided by {', '.join(tools)}" for k, tools in missed.items()]
    for e in entries:
        if e["verdict"] == "error":
            print(f"error: {' '.join(key_of(e))}: {e['detail']}", file=sys.stderr)
    for line in wrong:
        print(f"{LOUD} {line}", file=sys.stderr)
    return {**answer, "wrong": wrong}, not wrong


def main(argv: list[str] | None = None, runner: Runner | None = None) -> int:
    """0; 1 after a contradiction or, with --peers, an instance that another tool decided and we did not."""
    arguments = parser().parse_args(argv)
    if arguments.time_limit <= 0 or arguments.jobs < 1 or (arguments.threads or 1) < 1 or (arguments.limit or 1) < 1:
        raise SystemExit("--time-limit must be positive, --jobs, --threads and --limit at least 1")
    if arguments.root is None:
        arguments.root = arguments.shared / "vnncomp"
        if not arguments.root.is_dir():
            print(f"skipped: {arguments.root} not found; --root names the folder of the families", file=sys.stderr)
            return 0
    tasks, peers = chosen(arguments)
    if not tasks:
        raise SystemExit("no instance left: see --families and --match")
    threads = arguments.threads or max(1, available_cores() // arguments.jobs)
    settings = {"time_limit_s": "caps of the tools" if peers else arguments.time_limit, "flags": arguments.flags,
                "threads": threads, "jobs": arguments.jobs}
    verify = Verify(arguments.root.resolve(), threads=threads, flags=shlex.split(arguments.flags))
    wanted = {t.key for t in tasks}
    expected = published(arguments.root, dict.fromkeys(t.family for t in tasks))
    before, version = hardware(), commit()
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        machine = calibration(threads)
        finished = {key_of(e) for e in lines.entries}
        waiting = [t for t in tasks if t.key not in finished]
        progress = Progress(len(tasks), len(tasks) - len(waiting))

        def take(entry: Entry) -> None:
            entry["commit"] = version
            lines.add(entry)
            progress(entry, contradicts(entry, expected.get(key_of(entry))))
        interrupted = run_all(waiting, runner or verify, arguments.jobs, take, verify.stop)
        order = {t.key: n for n, t in enumerate(tasks)}
        entries = sorted((e for e in lines.entries if key_of(e) in wanted), key=lambda e: order[key_of(e)])
    results, as_it_must_be = summary(entries, expected, peers)
    state = f"interrupted after {len(entries)} of {len(tasks)} instances; --resume goes on" if interrupted else ""
    answer = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commits": sorted({str(e["commit"]) for e in entries}),
              "settings": settings, "hardware": before, "calibration": machine, "interrupted": interrupted,
              **results, "instances": entries}
    arguments.out.write_text(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    if arguments.plot is not None and entries:
        picture = arguments.out.with_suffix(".png") if arguments.plot == Path() else arguments.plot
        draw(entries, peers, picture)
    print("\n" + "  ".join(filter(None, [state, str(arguments.out)])), file=sys.stderr)
    return 0 if as_it_must_be else 1


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(main())
