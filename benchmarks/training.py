"""What is each training method worth, all with the same budget? A row a method: clean, attacked, certified, seconds.

    python benchmarks/training.py                                        # every method, the digits, eps 0.1
    python benchmarks/training.py --methods standard,pgd,ibp,sabr --seeds 0,1,2
    python benchmarks/training.py --resume                               # go on after a kill or Ctrl-C

Each training is a process of its own with one thread, with the recipe of its method (`certify.recipes`) but the same
network and epochs; the test set is then attacked (`--attacks`, the worst counts) and certified by `certify.evaluate`
within `--time-limit` seconds an image, evidence and all. Methods that `certify.registry` says need more passes make
them: seconds tell. Exit code 1 where a training failed, or where a certified image fell to an attack.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import calibration, commit, environment, hardware, markdown  # noqa: E402
from certify.evaluation.records import CONTRADICTION  # noqa: E402
from certify.registry import METHODS  # noqa: E402

USUAL = tuple(METHODS)
LIMIT_S = 900.0  # of one training and its evaluation, until the process is stopped


def trained(arguments: argparse.Namespace, method: str, seed: int) -> Entry:
    """One network: trained, attacked, certified. In a process of its own."""
    import torch

    from certify import evaluate, resolve, train
    from certify.data.registry import load
    torch.set_num_threads(1)
    data = load(arguments.data, arguments.data_dir)
    settings = resolve({"method": method, "model": arguments.model, "data": arguments.data, "eps": arguments.eps,
                        "seed": seed} | ({"epochs": arguments.epochs} if arguments.epochs else {}))
    with tempfile.TemporaryDirectory() as folder:
        card = train(settings, data=data, out=Path(folder) / "run").card
        test = data.test.take(slice(0, arguments.images))
        found = evaluate(Path(folder) / "run" / "model.onnx", (test.x.numpy(), test.y.numpy()), eps=arguments.eps,
                         clip=data.clip, attacks=tuple(arguments.attacks.split(",")),
                         time_limit_s=arguments.time_limit).summary
    return {**found, "method": method, "seed": seed, "train_s": card["seconds"], "epochs": card["epochs"],
            "parameters": card["parameters"], "test": card["test"], "command": card["command"]}


def worker(arguments: argparse.Namespace) -> None:
    method, seed = arguments.worker
    print(json.dumps(trained(arguments, method, int(seed))), flush=True)


def in_process(arguments: argparse.Namespace, method: str, seed: int) -> Entry:
    """The entry of a training, or what went wrong."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments.given, "--worker", method, str(seed)]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(1), timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"method": method, "seed": seed, "error": f"stopped after {LIMIT_S:g} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and not a word"]
        return {"method": method, "seed": seed, "error": said[-1][:300]}
    entry: Entry = json.loads(done.stdout.strip().splitlines()[-1])
    return entry | {"wall_s": round(time.monotonic() - begin, 2)}


def table(entries: Sequence[Entry]) -> str:
    """A row a method; over several seeds the mean, and the spread (standard deviation) behind it."""
    lines = []
    for method in dict.fromkeys(e["method"] for e in entries):
        mine = [e for e in entries if e["method"] == method and "error" not in e]
        failed = sum("error" in e for e in entries if e["method"] == method)
        shares = [spread([100 * e[name] for e in mine]) for name in ("clean", "attacked", "certified")]
        ibp = spread([100 * e["test"]["ibp"] for e in mine])
        lines.append([method, METHODS[method].source if method in METHODS else "", *shares, ibp,
                      spread([e["train_s"] for e in mine], 1), str(len(mine)), str(failed)])
    return markdown(["method", "source", "clean %", "attacked %", "certified %", "by IBP alone %", "train s", "seeds",
                     "failed"], lines, left=2)


def spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Clean, attacked and certified accuracy of every training method.")
    p.add_argument("--methods", default=",".join(USUAL), help="[all of `rmax train --help`]")
    p.add_argument("--data", default="digits")
    p.add_argument("--data-dir", metavar="D")
    p.add_argument("--model", default="mlp")
    p.add_argument("--eps", type=float, default=0.1)
    p.add_argument("--epochs", type=float, help="of every method [those of its recipe]")
    p.add_argument("--seeds", default="0", metavar="S,..")
    p.add_argument("--images", type=int, default=10_000, metavar="N", help="of the test set, the first so many")
    p.add_argument("--attacks", default="fgsm,pgd-20,cw-inf", help="the worst counts [%(default)s]")
    p.add_argument("--time-limit", type=float, default=5.0, metavar="S", help="seconds to certify an image [5]")
    p.add_argument("--resume", action="store_true", help="go on with a run")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "training.json",
                   help="JSON; finished trainings lie beside it, one a line (.jsonl) [%(default)s]")
    p.add_argument("--worker", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    arguments.given = list(sys.argv[1:] if argv is None else argv)
    if arguments.worker:
        worker(arguments)
        return 0
    methods, seeds = arguments.methods.split(","), [int(s) for s in arguments.seeds.split(",")]
    if unknown := set(methods) - set(METHODS):
        raise SystemExit(f"--methods: unknown {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in (
        "data", "model", "eps", "epochs", "images", "attacks", "time_limit")}
    before, start = hardware(), time.monotonic()
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        known = {(e["method"], e["seed"]) for e in lines.entries}
        for method, seed in [(m, s) for m in methods for s in seeds if (m, s) not in known]:
            entry = in_process(arguments, method, seed)
            lines.add(entry)
            print(f"{method} seed {seed}  " + (entry.get("error") or f"clean {entry['clean']:.3f}  attacked "
                  f"{entry['attacked']:.3f}  certified {entry['certified']:.3f}  {entry['train_s']:.1f} s"),
                  file=sys.stderr)
        entries = list(lines.entries)
    print(table(entries))
    wrong = [f"{e['method']}, seed {e['seed']}: {e['error']}" for e in entries if "error" in e]
    wrong += [f"{e['method']}, seed {e['seed']}: {clashes} certified images fell to an attack" for e in entries
              if (clashes := e.get("counts", {}).get(CONTRADICTION, 0))]
    for sentence in wrong:
        print(f"!!! {sentence}")
    arguments.out.write_text(json.dumps({
        "benchmark": "training", "commit": commit(), "settings": settings, "hardware": before,
        "calibration": calibration(1), "seconds": time.monotonic() - start, "results": entries}, allow_nan=False))
    print(arguments.out)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
