"""Do our attacks find nearer adversarial examples than other libraries', at equal cost, and in less time? Side by side.

    make peers
    python benchmarks/attacks.py --net ../shared/golden/wk17a_mnist_eps0.1.onnx --data-dir ../shared/datasets/mnist
    python benchmarks/attacks.py --net NET.onnx --data-dir ../shared/datasets/mnist --cases fmn:2,ddn:2 --seeds 3

The images are the first `--count` test images that the network gets right. Every attack, ours and each library's, is a
process of its own with `--threads` threads, on the same images, with the same number of gradients (queries, for attacks
without gradients) an image; what it returns is judged by the same rule: another label inside [0, 1], inside the ball
where there is one. For each seed all of them run one after the other, ours first and last, so that a machine whose
speed drifts shows in the spread. Distances of failures count as infinite in medians.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import calibration, commit, environment, hardware, markdown  # noqa: E402

PEERS = ROOT / "benchmarks" / "peers"
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}
NEAREST = ("fmn:inf", "fmn:2", "fmn:1", "fmn:0", "ddn:2", "fab:inf", "fab:2", "fab:1", "fab-t:inf", "fab-t:2",
           "deepfool:inf", "deepfool:2", "cw:2", "sigma-zero:0")
INSIDE = ("pgd:inf", "pgd:2", "apgd-ce:inf", "apgd-dlr:inf", "apgd-t:inf", "apgd-ce:2", "square:inf")
EPS = {"inf": 0.1, "2": 1.5, "1": 10.0}  # of attacks inside a ball
SEARCHES = 9     # of Carlini and Wagner's constant
CLASSES = 10     # whose gradients an iteration of FAB takes, and one of DeepFool before it has crossed the boundary
CROSSED = 0.4    # of DeepFool's iterations are left to an image with as many gradients as libraries' take


def settings(attack: str, steps: int) -> dict[str, Any]:
    """Ours, so that an image costs `steps` gradients (queries)."""
    if attack == "fab":
        return {"steps": max(1, steps // CLASSES)}
    if attack in ("fab-t", "apgd-t"):
        return {"steps": max(1, steps // (CLASSES - 1))}
    if attack == "cw":
        return {"steps": max(1, steps // SEARCHES), "binary_search_steps": SEARCHES}
    if attack == "deepfool":
        return {"steps": max(1, round(CROSSED * steps))}
    return {"steps": steps}




@dataclass
class Row:
    """One attack of one library: a value a seed."""

    case: str
    library: str
    median: list[float] = field(default_factory=list)
    success: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    forwards: float = 0.0
    backwards: float = 0.0
    error: str = ""


def main() -> None:
    arguments = parser().parse_args()
    if arguments.worker:
        worker(arguments)
        return
    cases = [*NEAREST, *INSIDE] if arguments.cases == "all" else arguments.cases.split(",")
    before = hardware()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        python = arguments.peers_python
        subprocess.run([sys.executable, PEERS / "data.py", "--net", arguments.net, "--data-dir", arguments.data_dir,
                        "--count", str(arguments.count), "--out", data], check=True, env=environment(1))
        offered = json.loads(subprocess.run([python, PEERS / "run_attacks.py", "--list"], check=True,
                                            capture_output=True, text=True).stdout)
        for case in cases:
            attack, norm = case.split(":")
            libraries = sorted({row["library"] for row in offered if (row["attack"], row["norm"]) == (attack, norm)
                                and row["library"] not in arguments.without.split(",")})
            found = {name: Row(case, name) for name in ("rmax", *libraries)}
            for seed in range(arguments.seeds):
                for name in ("rmax", *libraries, "rmax"):
                    run(found[name], attack, norm, seed, data, Path(folder) / "out.npz", arguments)
            rows += found.values()
            for row in found.values():
                print(line(row), flush=True)
    report(rows, arguments, before)


def run(row: Row, attack: str, norm: str, seed: int, data: Path, out: Path, arguments: argparse.Namespace) -> None:
    """One process; its figures join the row."""
    import numpy as np
    eps = ["--eps", str(EPS[norm])] if f"{attack}:{norm}" in INSIDE else []
    common = ["--net", arguments.net, "--data", data, "--norm", norm, "--steps", str(arguments.steps), *eps,
              "--seed", str(seed), "--threads", str(arguments.threads), "--out", out]
    if row.library == "rmax":
        command = [sys.executable, __file__, "--worker", attack, *common]
    else:
        command = [arguments.peers_python, PEERS / "run_attacks.py", "--library", row.library, "--attacks", attack,
                   *common]
    out.unlink(missing_ok=True)
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          env=environment(arguments.threads))
    if done.returncode or not out.exists():
        row.error = (done.stderr.strip().splitlines() or ["no result"])[-1][:200]
        return
    with np.load(out, allow_pickle=False) as stored:
        row.median.append(float(np.median(np.where(stored["success"][0], stored["distance"][0], math.inf))))
        row.success.append(float(stored["success"][0].mean()))
        row.seconds.append(float(stored["seconds"][0]))
        row.cpu_s.append(float(stored["cpu_seconds"][0]))
        row.forwards, row.backwards = float(stored["forwards"][0]), float(stored["backwards"][0])


def worker(arguments: argparse.Namespace) -> None:
    """Ours, in this process: the same figures in the same form as `peers/run_attacks.py` stores."""
    import numpy as np
    import torch

    from bounds.graph import Graph
    from verifier.attacks.criterion import Misclassified
    from verifier.attacks.registry import attack_named
    from verifier.attacks.threat import Threat
    torch.set_num_threads(arguments.threads)
    graph = Graph.from_onnx(arguments.net).simplify()
    with np.load(arguments.data, allow_pickle=False) as data:
        x, label = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    attack = attack_named(arguments.worker, **settings(arguments.worker, arguments.steps))
    threat = Threat(NORMS[arguments.norm], arguments.eps or math.inf, (0.0, 1.0))
    if arguments.eps is None and not attack.minimum_norm:
        raise SystemExit(f"{arguments.worker} needs --eps")
    attack_named(arguments.worker, **settings(arguments.worker, 1)).run(  # loads kernels, as the libraries' runs do
        graph, x[:2], Misclassified(label[:2]), threat)
    start, cpu = time.perf_counter(), time.process_time()
    result = attack.run(graph, x, Misclassified(label), threat, seed=arguments.seed)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    with torch.no_grad():
        success = (graph(result.x).argmax(1) != label) & result.success
    np.savez(arguments.out, success=success.numpy()[None], distance=result.distance.numpy()[None],
             seconds=np.array([seconds]), cpu_seconds=np.array([cpu_s]),
             forwards=np.array([result.forward_calls.double().mean()]),
             backwards=np.array([result.backward_calls.double().mean()]))


def line(row: Row) -> str:
    if row.error:
        return f"{row.case:14s} {row.library:13s} failed: {row.error}"
    return (f"{row.case:14s} {row.library:13s} median {statistics.median(row.median):.5g}  success "
            f"{100 * statistics.median(row.success):.1f} %  gradients {row.backwards:.0f}  forwards "
            f"{row.forwards:.0f}  {min(row.seconds):.2f} s  cpu {min(row.cpu_s):.2f} s")


def report(rows: list[Row], arguments: argparse.Namespace, before: dict[str, Any]) -> None:
    """The table, a line a case: ours, the best of the libraries in median (inside a ball: in success), the fastest."""
    table = []
    for case in dict.fromkeys(row.case for row in rows):
        ours, *others = [row for row in rows if row.case == case and row.median]
        if ours.library != "rmax":
            continue
        table.append(compared(case, ours, others))
    heads = ["attack", "ours", "best library", "ratio", "spread", "success", "theirs", "gradients", "theirs", "cpu s",
             "fastest", "ratio"]
    print(markdown(heads, table, 3))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({
        "net": Path(arguments.net).name, "count": arguments.count, "steps": arguments.steps, "seeds": arguments.seeds,
        "threads": arguments.threads, "rows": [vars(row) for row in rows], "commit": commit(), "hardware": before,
        "calibration": calibration(arguments.threads)}, indent=1))
    print(f"-> {arguments.out}")


def compared(case: str, ours: Row, others: list[Row]) -> list[str]:
    inside = case in INSIDE
    mine = statistics.median(ours.median)
    cells = [case, "" if inside else f"{mine:.5g}"]
    if not others:
        return [*cells, *[""] * 3, f"{100 * statistics.median(ours.success):.1f} %", "", f"{ours.backwards:.0f}", "",
                f"{min(ours.cpu_s):.2f}", "", ""]
    if inside:
        best = max(others, key=lambda row: statistics.median(row.success))
        cells += [best.library, "", ""]
    else:
        best = min(others, key=lambda row: statistics.median(row.median))
        theirs = statistics.median(best.median)
        ratio = mine / theirs if math.isfinite(theirs) else 0.0
        cells += [f"{best.library} {theirs:.5g}", f"{ratio:.4f}", f"{min(ours.median):.5g} to {max(ours.median):.5g}"]
    fastest = min(others, key=lambda row: min(row.cpu_s))
    return [*cells, f"{100 * statistics.median(ours.success):.1f} %", f"{100 * statistics.median(best.success):.1f} %",
            f"{ours.backwards:.0f}", f"{best.backwards:.0f}", f"{min(ours.cpu_s):.2f}",
            f"{fastest.library} {min(fastest.cpu_s):.2f}", f"{min(ours.cpu_s) / min(fastest.cpu_s):.2f}"]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--net", required=True, metavar="NET.onnx")
    p.add_argument("--data-dir", metavar="FOLDER", help="of the MNIST files")
    p.add_argument("--count", type=int, default=500, metavar="N", help="images [500]")
    p.add_argument("--steps", type=int, default=200, help="gradients (queries) an image [200]")
    p.add_argument("--seeds", type=int, default=1, help="runs with other seeds [1]")
    p.add_argument("--threads", type=int, default=1, help="of each process [1]")
    p.add_argument("--cases", default="all", metavar="ATTACK:NORM,..", help="what to compare [all]")
    p.add_argument("--without", default="art", metavar="LIBRARY,..", help="libraries left out [art: minutes an attack]")
    p.add_argument("--peers-python", default=ROOT / ".venv-peers" / "bin" / "python", metavar="PYTHON",
                   help="of the libraries' environment [.venv-peers]")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "attacks.json")
    for flag, kind in (("--worker", str), ("--data", Path), ("--norm", str), ("--eps", float), ("--seed", int)):
        p.add_argument(flag, type=kind, help=argparse.SUPPRESS)
    return p


if __name__ == "__main__":
    main()
