"""Would the tests notice a fault of the engine? Faults are planted one at a time, and tests run until one fails.

    python benchmarks/mutation.py                            # all of `faults/`; what is finished is not run again
    python benchmarks/mutation.py --only relu-chord-low stale-lines
    python benchmarks/mutation.py --again --scope targeted   # those that nothing has noticed, with their own tests
    python benchmarks/mutation.py --list

Each fault is one exact replacement in a copy of the checkout. First run the tests that are to notice it (`-x`), then,
if these pass, all others of the engine (`tests/bounds`, `tests/milp`, `tests/verifier`, `tests/certify`). It is
*killed* by a test that fails; a copy whose modules do not load, or whose tests cannot be collected, is *broken* and
counts for nothing. At the end all killing tests must pass without a fault (the control). The exit code is 1 if a fault
survives, is broken or runs out of time, or if the control fails.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # try the checkout that this file lies in, installed or not

from benchmarks.faults import AREAS, KINDS, Fault  # noqa: E402
from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import commit, environment, hardware, markdown  # noqa: E402

SUITE = ("tests/bounds", "tests/milp", "tests/verifier", "tests/certify")
COPIED = ("bounds", "milp", "verifier", "certify", "tests", "benchmarks", "docs", "pyproject.toml", "README.md",
          "Makefile", "LICENSE", "constraints.txt")
PASSED, FAILED = 0, 1  # of pytest
SAID = 300             # last characters of what a run wrote that are kept


@dataclass(frozen=True)
class Run:
    """Tests over one copy: exit code (None: out of time), the first that failed, seconds, how, or last words."""

    code: int | None
    failed: str
    seconds: float
    said: str

    @property
    def outcome(self) -> str:
        if self.code is None:
            return "timeout"
        if self.code == FAILED and self.failed:
            return "killed"
        return "survived" if self.code == PASSED else "broken"


@dataclass(frozen=True)
class Bench:
    """Where copies come from and how tests run on them."""

    original: Path
    shared: Path
    limit_s: float
    suite: bool
    running: set[int] = field(default_factory=set)  # process groups

    def stop(self) -> None:
        """End all runs."""
        for group in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def copy(self, folder: Path) -> Path:
        """The checkout once more; compiled modules are kept, for their sources keep their times."""
        folder.mkdir(parents=True)
        for name in COPIED:
            source = self.original / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.exists():
                shutil.copy2(source, folder / name)
        return folder

    def run(self, folder: Path, module: str, tests: Iterable[str], extra: Sequence[str] = ("-x",)) -> Run:
        """pytest in a folder; `module` must load from there."""
        note = folder / "noticed.txt"
        note.unlink(missing_ok=True)
        variables = {**environment(1), "PYTHONPATH": str(folder), "HYPOTHESIS_PROFILE": "fixed",
                     "RMAX_SHARED": str(self.shared), "FAULT_MODULE": module, "FAULT_NOTE": str(note)}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider",
                   "-p", "benchmarks.faults.noticed", *extra, *tests]
        start = time.monotonic()
        with (folder / "said.txt").open("wb") as said:
            process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            self.running.add(process.pid)
            try:
                code: int | None = process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it, and what it has left behind
                process.wait()
                self.running.discard(process.pid)
        failed, _, how = note.read_text("utf-8").partition("\n") if note.exists() else ("", "", "")
        words = how or " ".join((folder / "said.txt").read_text("utf-8", "replace").split())
        return Run(code, failed, time.monotonic() - start, words[-SAID:].replace(str(folder), ""))

    def trial(self, fault: Fault, folder: Path) -> Run:
        """One fault: its own tests, then the others."""
        self.copy(folder)
        fault.plant(folder)
        Path(cache_from_source(str(folder / fault.file))).unlink(missing_ok=True)
        first = self.run(folder, fault.module, fault.tests)
        if first.outcome != "survived" or not self.suite:
            return first
        own = f"tests/{fault.file.split('/')[0]}"
        others = sorted(SUITE, key=lambda part: part != own)
        then = self.run(folder, fault.module, others, ("-x", *(f"--ignore={test}" for test in fault.tests)))
        return Run(then.code, then.failed, first.seconds + then.seconds, then.said)


def identity(fault: Fault) -> str:
    """Changes with what is planted."""
    return hashlib.sha256("\0".join((fault.file, fault.old, fault.new)).encode()).hexdigest()[:12]


def entry_of(area: str, fault: Fault, run: Run, suite: bool) -> Entry:
    killed = run.outcome == "killed"
    own = killed and any(run.failed.startswith(test) for test in fault.tests)
    return {"name": fault.name, "area": area, "kind": fault.kind, "what": fault.what, "file": fault.file,
            "identity": identity(fault), "outcome": run.outcome, "test": run.failed if killed else None,
            "scope": "suite" if suite and not own else "targeted", "seconds": round(run.seconds, 1),
            "said": run.said}


def latest(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The last entry of each fault that is planted as it was."""
    now = {fault.name: identity(fault) for faults in AREAS.values() for fault in faults}
    return {e["name"]: e for e in entries if now.get(e["name"]) == e["identity"]}


def table(entries: Sequence[Entry]) -> str:
    """Killed of planted faults, by area and kind."""
    planted = Counter((e["area"], e["kind"]) for e in entries)
    killed = Counter((e["area"], e["kind"]) for e in entries if e["outcome"] == "killed")

    def cells(areas: Sequence[str]) -> list[str]:
        each = [(sum(killed[a, k] for a in areas), sum(planted[a, k] for a in areas)) for k in KINDS]
        each.append((sum(n for n, _ in each), sum(n for _, n in each)))
        return [f"{n}/{of}" if of else "" for n, of in each]
    areas = [area for area in AREAS if any(e["area"] == area for e in entries)]
    lines = [[area, *cells([area])] for area in areas] + [["all", *cells(areas)]]
    return markdown(["area", *KINDS, "killed"], lines, left=1)


def control(bench: Bench, folder: Path, entries: Sequence[Entry]) -> Run:
    """The tests that noticed faults, without any."""
    bench.copy(folder)
    tests = sorted({e["test"] for e in entries if e["outcome"] == "killed"})
    (folder / "tests.txt").write_text("\n".join(tests), "utf-8")
    return bench.run(folder, "verifier.strategy", ["@tests.txt"], ()) if tests else Run(PASSED, "", 0.0, "")


def chosen(arguments: argparse.Namespace, entries: Iterable[Entry]) -> list[tuple[str, Fault]]:
    """(area, fault) of all that is to be run."""
    every = [(area, fault) for area, faults in AREAS.items() for fault in faults]
    if arguments.only:
        if unknown := set(arguments.only) - {fault.name for _, fault in every}:
            raise SystemExit(f"there is no fault named {', '.join(sorted(unknown))}: see --list")
        return [(area, fault) for area, fault in every if fault.name in arguments.only]
    done = {name for name, e in latest(entries).items() if e["outcome"] == "killed" or not arguments.again}
    return [(area, fault) for area, fault in every if fault.name not in done]


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", metavar="NAME", help="these faults, finished or not")
    p.add_argument("--again", action="store_true", help="those once more that were not killed")
    p.add_argument("--scope", choices=("suite", "targeted"), default="suite",
                   help="whether all tests follow those that are to notice [suite]")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="faults tried at a time [1]")
    p.add_argument("--time-limit", type=float, default=1800.0, metavar="S", help="of each run of tests [1800]")
    p.add_argument("--shared", type=Path, default=shared, help=f"benchmark data for tests [{shared}]")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "mutation.json",
                   help="JSON; the .jsonl beside it has each fault as soon as it is finished")
    p.add_argument("--no-control", action="store_true", help="do not run the killing tests without a fault")
    p.add_argument("--list", action="store_true", help="print the faults and end")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    every = [fault for faults in AREAS.values() for fault in faults]
    if arguments.list:
        print(markdown(["fault", "kind", "file", "what"], [[f.name, f.kind, f.file, f.what] for f in every], left=4))
        return 0
    if troubles := [said for fault in every if (said := fault.trouble(ROOT))]:
        raise SystemExit("\n".join(troubles))
    before, start = hardware(), time.monotonic()
    bench = Bench(ROOT, arguments.shared, arguments.time_limit, arguments.scope == "suite")
    result: dict[str, Any] = {"benchmark": "mutation", "commit": commit(), "hardware": before}
    with (Lines(arguments.out.with_suffix(".jsonl"), {"benchmark": "mutation"}, resume=True) as lines,
          tempfile.TemporaryDirectory(prefix="mutation") as scratch, ThreadPoolExecutor(arguments.jobs) as pool):
        waiting = chosen(arguments, lines.entries)
        futures = {}
        for area, fault in waiting:
            futures[pool.submit(_tried, bench, fault, Path(scratch) / fault.name)] = area, fault
        for number, future in enumerate(finished(futures, bench, pool), 1):
            area, fault = futures[future]
            entry = entry_of(area, fault, future.result(), bench.suite)
            lines.add(entry)
            print(f"{number}/{len(waiting)}  {time.monotonic() - start:.0f} s  {fault.name}: {entry['outcome']}  "
                  f"{entry['test'] or entry['said'][-120:]}  {entry['seconds']:.0f} s", file=sys.stderr, flush=True)
        order = {fault.name: k for k, fault in enumerate(every)}
        entries = sorted(latest(lines.entries).values(), key=lambda e: order[e["name"]])
        checked = Run(PASSED, "", 0.0, "") if arguments.no_control else \
            control(bench, Path(scratch) / "control", entries)
    unnoticed = [e for e in entries if e["outcome"] != "killed"]
    print(table(entries))
    for e in unnoticed:
        print(f"{e['outcome'].upper()} {e['name']} ({e['kind']}, {e['file']}, {e['scope']}): {e['what']}")
    print(f"{len(entries) - len(unnoticed)} of {len(entries)} faults killed, {len(every) - len(entries)} not tried; "
          f"median {statistics.median(e['seconds'] for e in entries) if entries else 0:.0f} s a fault; control: "
          + ("left out" if arguments.no_control else "passed" if checked.code == PASSED
             else f"FAILED {checked.failed or checked.said}"))
    result |= {"seconds": time.monotonic() - start, "entries": entries, "control": None if arguments.no_control else {
        "passed": checked.code == PASSED, "test": checked.failed, "said": checked.said}}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(arguments.out)
    return int(bool(unnoticed) or checked.code != PASSED)


def finished(futures: Iterable[Future[Run]], bench: Bench, pool: ThreadPoolExecutor) -> Iterator[Future[Run]]:
    """The trials as they end; whoever stops listening (Ctrl-C) ends those that run, and the others never begin."""
    try:
        yield from as_completed(futures)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        bench.stop()


def _tried(bench: Bench, fault: Fault, folder: Path) -> Run:
    try:
        return bench.trial(fault, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
