"""What does rmax do with files that are broken? Thousands of mutants, each read by the command line as it is.

    python benchmarks/fuzz.py                                            # 2,000 networks, 2,000 properties, others
    python benchmarks/fuzz.py --onnx 100 --vnnlib 100 --seed 7
    python benchmarks/fuzz.py --replay out/fuzz/onnx_17.zip              # one failure again, with all that it says

Good are: exit code 2 with one sentence on stderr; an answer that a second opinion (`mutants/second_opinion.py`) does
not refute; `unknown` for a reason that is not an error. Bad are: a traceback, a crash, no answer within 10 s, more than
2 GiB, an internal error, a wrong answer. Each bad mutant is saved for replay, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # try the checkout that this file lies in, installed or not

from benchmarks.machine import available_cores, calibration, commit, finite, hardware, markdown  # noqa: E402
from benchmarks.mutants.campaign import KINDS, mutants  # noqa: E402
from benchmarks.mutants.mutant import Mutant  # noqa: E402
from benchmarks.mutants.sources import all_sources  # noqa: E402
from benchmarks.mutants.trial import Outcome, Trial, warm_up  # noqa: E402

COUNTS = {"onnx": 2000, "vnnlib": 2000, "bounds": 300, "input": 300, "sweep": 100}
PAUSE_S = 0.005
PROGRESS_S = 20.0


def outcomes(waiting: Iterator[tuple[str, Mutant]], jobs: int) -> Iterator[tuple[str, Mutant, Outcome]]:
    """The outcome of each mutant as it comes, from `jobs` processes at a time."""
    running: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        try:
            while True:
                while len(running) < jobs and (following := next(waiting, None)) is not None:
                    name, mutant = following
                    running[name] = Trial(mutant, Path(scratch) / name)
                if not running:
                    return
                for name, trial in list(running.items()):
                    if (outcome := trial.poll()) is not None:
                        del running[name]
                        yield name, trial.mutant, outcome
                        shutil.rmtree(trial.folder)
                time.sleep(PAUSE_S)
        finally:
            for trial in running.values():
                trial.stop()


def table(results: list[dict[str, Any]]) -> str:
    """Outcomes by kind."""
    counts = Counter((r["kind"], r["word"] if r["good"] else f"BAD: {r['word']}") for r in results)
    kinds = [k for k in KINDS if any(kind == k for kind, _ in counts)]
    words = sorted({w for _, w in counts}, key=lambda w: (w.startswith("BAD"), w))
    lines = [[w, *(str(counts[k, w] or "") for k in kinds)] for w in words]
    lines.append(["all", *(str(sum(n for (kind, _), n in counts.items() if kind == k)) for k in kinds)])
    return markdown(["outcome", *kinds], lines, left=1)


def replay(path: Path) -> int:
    """One saved mutant: its files, the command, what it wrote, and the judgement."""
    mutant = Mutant.load(path)
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    trial = Trial(mutant, folder)
    while (outcome := trial.poll()) is None:
        time.sleep(PAUSE_S)
    print(f"{mutant.kind} of {mutant.source}: {mutant.change}\nin {folder}: rmax {' '.join(mutant.arguments)}")
    for name in ("stdout", "stderr", "harness.txt"):
        if (folder / name).exists():
            print(f"--- {name}\n{(folder / name).read_text('utf-8', 'replace')[-4000:]}")
    print(f"--- {'good' if outcome.good else 'BAD'}: {outcome}")
    return 0 if outcome.good else 1


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="Mutated files through the command line.")
    for kind, count in COUNTS.items():
        p.add_argument(f"--{kind}", type=int, metavar="N", help=f"mutants [{count}; 0 where another is named]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--time-limit", type=float, default=3.0, metavar="S", help="of each command [3]")
    p.add_argument("--jobs", type=int, help="processes [as many as cores]")
    p.add_argument("--shared", type=Path, default=shared, help=f"benchmark data [{shared}]")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz.json",
                   help="JSON; bad mutants lie in a folder beside it")
    p.add_argument("--replay", type=Path, metavar="FILE", help="one saved mutant again")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    warm_up()
    if arguments.replay is not None:
        return replay(arguments.replay)
    named = {kind: getattr(arguments, kind) for kind in COUNTS}
    counts = COUNTS if all(n is None for n in named.values()) else {kind: n or 0 for kind, n in named.items()}
    before, start, told = hardware(), time.monotonic(), time.monotonic()
    sources = all_sources(arguments.shared)
    waiting = chain.from_iterable(
        ((f"{kind}_{i}", m) for i, m in enumerate(mutants(kind, count, sources, seed=arguments.seed,
                                                          time_limit_s=arguments.time_limit)))
        for kind, count in counts.items())
    folder = arguments.out.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    results: list[dict[str, Any]] = []
    for name, mutant, outcome in outcomes(waiting, arguments.jobs or available_cores()):
        results.append({"name": name, "kind": mutant.kind, "source": mutant.source, "change": mutant.change,
                        **asdict(outcome)})
        if not outcome.good:
            mutant.save(folder / f"{name}.zip")
            print(f"BAD {name} {mutant.source} {mutant.change}: {outcome.word}: {' '.join(outcome.why.split())[-300:]}",
                  flush=True)
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"{len(results)}/{sum(counts.values())}  {told - start:.0f} s", file=sys.stderr, flush=True)
    print(table(results))
    bad = sum(not r["good"] for r in results)
    seconds = time.monotonic() - start
    decided = [r["why"] == "checked" for r in results if r["word"] in ("verified", "falsified")]
    print(f"{len(results)} mutants, {bad} bad, {seconds:.0f} s; longest {max(r['seconds'] for r in results):.1f} s, "
          f"largest {max(r['mib'] for r in results):.0f} MiB; {sum(decided)} of {len(decided)} verdicts have a second "
          "opinion")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(finite({
        "benchmark": "fuzz", "commit": commit(), "seed": arguments.seed, "counts": counts,
        "sources": [s.name for s in sources], "hardware": before, "calibration": calibration(1), "seconds": seconds,
        "results": results}), allow_nan=False) + "\n")
    print(arguments.out)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
