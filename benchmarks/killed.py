"""What does a killed sweep lose? `rmax sweep` is killed at random times and resumed, again and again.

    python benchmarks/killed.py                              # 20 kills
    python benchmarks/killed.py --kills 5 --seed 3

The sweep runs over small generated instances. `kill -9` hits its whole process group, as a power cut would, or every
fourth time the first process alone; then nothing of the group may live on. After each kill, what was told as finished
must be stored, and what was stored must be as it was. Once a run ends, its results must be those of a run that was left
alone, each instance once in the store, once in the CSV and once in the counts. Further kills begin a new run. The exit
code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # try the checkout that this file lies in, installed or not

from benchmarks.machine import calibration, commit, environment, hardware, markdown  # noqa: E402
from benchmarks.mutants.sources import box_spec, generated  # noqa: E402

LIMITS = (-1e3, 0.0, 0.2, 0.5, 1.0, 1e3)  # of Y_0: each network gets one instance each, some safe and some not
PARENT_ALONE = 4      # every so many kills only the first process
GONE_S = 5.0          # within which the rest of the group must be gone then
END_S = 120.0
TOLD = re.compile(r"^\d+/\d+ .* s  (?P<onnx>\S+)  (?P<vnnlib>\S+)$", re.MULTILINE)
Key = tuple[str, str]


def instances(folder: Path) -> Path:
    """A benchmark of small networks: instances.csv with its files."""
    folder.mkdir(parents=True)
    rows = []
    for source in generated():
        (folder / f"{source.name}.onnx").write_bytes(source.network)
        text = source.spec.decode()
        inputs, outputs = (text.count(f"(declare-const {letter}_") for letter in "XY")
        for k, limit in enumerate(LIMITS):
            (folder / f"{source.name}_{k}.vnnlib").write_text(box_spec(inputs, outputs, f"(>= Y_0 {limit})"))
            rows.append(f"{source.name}.onnx,{source.name}_{k}.vnnlib,20\n")
    table = folder / "instances.csv"
    table.write_text("".join(rows))
    return table


@dataclass
class Sweep:
    """`rmax sweep` over a table into a folder, in a process group of its own."""

    table: Path
    out: Path
    told: list[Key] = field(default_factory=list)  # as finished, by all processes so far

    def start(self) -> subprocess.Popen[bytes]:
        resume = ["--resume"] if (self.out / "results.sqlite").exists() else []
        self.log = self.out.with_suffix(".log")
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "verifier.cli", "sweep", str(self.table), "--out", str(self.out), *resume],
                stdout=subprocess.DEVNULL, stderr=log, env=environment(1), start_new_session=True)

    def note(self) -> list[Key]:
        """What the last process told as finished."""
        now = [(m["onnx"], m["vnnlib"]) for m in TOLD.finditer(self.log.read_text("utf-8", "replace"))]
        self.told += now
        return now

    def stored(self) -> dict[Key, Any]:
        from verifier.store import read_results
        return {row.key: row for row in read_results(self.out)} if (self.out / "results.sqlite").exists() else {}


def kill(process: subprocess.Popen[bytes], alone: bool) -> list[str]:
    """End the process, or its whole group; what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + GONE_S
    while _group_lives(process.pid):
        if time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL)
            return ["processes lived on after the first one was killed"]
        time.sleep(0.01)
    return []


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs; one that is dead and waits for its parent to notice does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, of_group, *_ = stat.read_text("ascii", "replace").rpartition(")")[2].split()
            if int(of_group) == group and state not in "ZX":
                return True
    return False


def lost(before: dict[Key, Any], after: dict[Key, Any], told: list[Key]) -> Iterator[str]:
    """What a kill took away or changed."""
    for key in told:
        if key not in after:
            yield f"{' '.join(key)} was told as finished and is not stored"
    for key, row in before.items():
        if after.get(key) != row:
            yield f"{' '.join(key)} was stored and is lost or changed"


def differences(sweep: Sweep, expected: dict[Key, str], last: list[Key]) -> Iterator[str]:
    """Of a run that has ended, against one that was left alone."""
    verdicts = {key: row.verdict for key, row in sweep.stored().items()}
    for key in sorted(expected.keys() | verdicts.keys()):
        if expected.get(key) != verdicts.get(key):
            yield f"{' '.join(key)}: {verdicts.get(key)}, left alone {expected.get(key)}"
    with (sweep.out / "results.csv").open(newline="", encoding="utf-8") as file:
        written = Counter((row["onnx"], row["vnnlib"]) for row in csv.DictReader(file))
    if written != Counter(expected.keys()):
        yield "results.csv does not hold each instance once"
    for key, times in Counter(sweep.told).items():
        if times > 1:
            yield f"{' '.join(key)} was finished {times} times"
    counted = re.findall(r"^(\d+)/(\d+) ", sweep.log.read_text("utf-8", "replace"), re.MULTILINE)
    if last and counted[-1] != (str(len(expected)),) * 2:
        yield f"counted {'/'.join(counted[-1])} at the end, expected {len(expected)}"


def trial(folder: Path, kills: int, seed: int, table: Path | None = None) -> dict[str, Any]:
    """Kill and resume until there were so many kills, and let the last run end; counts and faults."""
    draw, table = random.Random(seed), table or instances(folder / "benchmark")
    start = time.monotonic()
    alone = Sweep(table, folder / "alone")
    assert alone.start().wait(END_S) == 0, alone.log.read_text()
    whole_s = time.monotonic() - start
    expected = {key: row.verdict for key, row in alone.stored().items()}
    faults, progress, runs, done = [], [], 0, 0
    sweep = Sweep(table, folder / "run0")
    while True:
        before, process = sweep.stored(), sweep.start()
        left = kills - done
        try:
            # From the first import to past the end of what is left to do.
            process.wait(draw.uniform(0, 1.1 * whole_s) if left else END_S)
        except subprocess.TimeoutExpired:
            faults += kill(process, alone=done % PARENT_ALONE == PARENT_ALONE - 1)
            done += 1
        ended = process.returncode == 0
        told, after = sweep.note(), sweep.stored()
        faults += lost(before, after, told)
        progress.append(len(after))
        if ended:
            faults += differences(sweep, expected, told)
            runs += 1
            if not left:
                break
            sweep = Sweep(table, folder / f"run{runs}")
        elif process.returncode != -signal.SIGKILL:
            faults.append(f"a run ended with {process.returncode}: {sweep.log.read_text()[-300:]}")
            break
    return {"kills": done, "runs": runs, "instances": len(expected), "verdicts": dict(Counter(expected.values())),
            "stored_after_each": progress, "faults": faults, "seconds": round(time.monotonic() - start, 1)}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Sweeps that are killed and resumed.")
    p.add_argument("--kills", type=int, default=20, help="[20]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=ROOT / "out" / "killed.json")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    before, folder = hardware(), Path(tempfile.mkdtemp(prefix="killed"))
    try:
        found = trial(folder, arguments.kills, arguments.seed)
    finally:
        shutil.rmtree(folder)
    print(markdown(["kills", "runs", "instances", "verdicts", "faults", "s"], [[
        str(found["kills"]), str(found["runs"]), str(found["instances"]),
        ", ".join(f"{n} {name}" for name, n in found["verdicts"].items()), str(len(found["faults"])),
        str(found["seconds"])]], left=0))
    print("stored after each start:", *found["stored_after_each"])
    for fault in found["faults"]:
        print(f"!!! {fault}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"benchmark": "killed", "commit": commit(), "seed": arguments.seed,
                                         "hardware": before, "calibration": calibration(1), **found}) + "\n")
    print(arguments.out)
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
