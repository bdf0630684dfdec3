"""AutoAttack over a data set: robust accuracy, time, and the same verdicts as torchattacks' on the hardest images?

    python benchmarks/autoattack.py --net ../shared/golden/wk17a_mnist_eps0.1.onnx --data-dir ../shared/datasets/mnist
    make peers
    python benchmarks/autoattack.py --net NET.onnx --data-dir ../shared/datasets/mnist --hardest 300

The first is `rmax attack --attack autoattack --skip-proved`, one process on all cores: what CROWN proves to stand needs
no attack, since none can succeed. `--attack-all` attacks that as well. The hardest images are, of those that the
network gets right, the ones that fell, then those that stand with the least margin; torchattacks gets the same settings
there (100 iterations, 9 targets, 5,000 queries). A run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.golden import read_images  # noqa: E402
from benchmarks.machine import calibration, commit, environment, hardware  # noqa: E402

PEERS = ROOT / "benchmarks" / "peers"


def main() -> None:
    arguments = parser().parse_args()
    import numpy as np
    before = hardware()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    x, y = read_images(arguments.data_dir)
    x, y = x[: arguments.count], y[: arguments.count]
    data = arguments.out.with_suffix(".data.npz")
    np.savez(data, x=x, y=y)
    begin = time.monotonic()
    records, total = attacked(data, arguments)
    seconds = time.monotonic() - begin
    answer: dict[str, Any] = {
        "net": Path(arguments.net).name, "eps": arguments.eps, "count": len(records), "robust": total["robust"],
        "clean": total["clean"], "proved": total["proved"], "by": Counter(r["by"] or "clean" for r in records
                                                                         if r["success"]),
        "seconds": seconds, "threads": arguments.threads, "commit": commit(), "hardware": before,
        "calibration": calibration(arguments.threads)}
    print(f"robust accuracy {100 * total['robust']:.2f} % of {len(records)} images, {total['proved']} of them proved; "
          f"fell to {dict(answer['by'])}; {seconds:.0f} s")
    if arguments.hardest:
        answer["hardest"] = compared(records, x, y, arguments)
    arguments.out.write_text(json.dumps(answer, indent=1))
    print(f"-> {arguments.out}")


def attacked(data: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The command's records by number, and its summary."""
    lines = arguments.out.with_suffix(".jsonl")
    command = [sys.executable, "-m", "verifier.cli", "attack", arguments.net, data, "--attack", "autoattack", "--eps",
               arguments.eps, "--norm", arguments.norm, "--clip", 0, 1, "--json", lines, "--out",
               arguments.out.with_suffix(".run")]
    command += [] if arguments.attack_all else ["--skip-proved"]
    command += ["--resume"] if arguments.resume else []
    subprocess.run([str(c) for c in command], check=True, cwd=ROOT, env=environment(arguments.threads))
    *records, total = [json.loads(line) for line in lines.read_text().splitlines()]
    return sorted(records, key=lambda r: r["index"]), total


def compared(records: list[dict[str, Any]], x: Any, y: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The hardest images under torchattacks' AutoAttack."""
    import numpy as np
    right = [r for r in records if r["predicted"] == r["label"] and not r["proved"]]
    # The fallen by how much, then the standing by how little is left: margins are negative where an image fell.
    hardest = sorted(right, key=lambda r: r["margin"])[: arguments.hardest]
    chosen = [r["index"] for r in hardest]
    images, ready, out = (arguments.out.with_suffix(f".{name}.npz") for name in ("hardest", "ready", "peers"))
    np.savez(images, x=x[chosen], y=y[chosen])
    subprocess.run([sys.executable, PEERS / "data.py", "--net", arguments.net, "--data-dir", images, "--count",
                    str(len(chosen)), "--out", ready], check=True, env=environment(1))
    subprocess.run([arguments.peers_python, PEERS / "run_attacks.py", "--net", arguments.net, "--data", ready,
                    "--library", "torchattacks", "--attacks", "autoattack", "--norm", arguments.norm, "--eps",
                    str(arguments.eps), "--steps", "100", "--seed", "0", "--threads", str(arguments.threads), "--out",
                    out], check=True, env=environment(arguments.threads))
    with np.load(out, allow_pickle=False) as stored:
        theirs, seconds = stored["success"][0], float(stored["seconds"][0])
    ours = np.array([r["success"] for r in hardest])
    print(f"of the {len(chosen)} hardest images {int((~ours).sum())} stand here, {int((~theirs).sum())} under "
          f"torchattacks ({seconds:.0f} s); {int((ours & ~theirs).sum())} fell here only, "
          f"{int((theirs & ~ours).sum())} there only")
    return {"images": chosen, "stand": int((~ours).sum()), "stand_torchattacks": int((~theirs).sum()),
            "only_here": int((ours & ~theirs).sum()), "only_there": int((theirs & ~ours).sum()),
            "torchattacks_s": seconds}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--net", required=True, metavar="NET.onnx", type=Path)
    p.add_argument("--data-dir", metavar="FOLDER", type=Path, required=True, help="of the MNIST files")
    p.add_argument("--count", type=int, metavar="N", help="only the first N images")
    p.add_argument("--eps", type=float, default=0.1)
    p.add_argument("--norm", default="inf")
    p.add_argument("--attack-all", action="store_true", help="attack also what is proved to stand")
    p.add_argument("--hardest", type=int, default=0, metavar="N", help="compare with torchattacks on so many images")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--peers-python", default=ROOT / ".venv-peers" / "bin" / "python", metavar="PYTHON")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "autoattack.json")
    return p


if __name__ == "__main__":
    main()
