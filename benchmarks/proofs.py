"""Is every recorded proof accepted, how large is it, and what does checking cost beside searching?

    python benchmarks/proofs.py                                   # all families, 60 s an instance
    python benchmarks/proofs.py --families acasxu safenlp --step 4 --time-limit 30
    python benchmarks/proofs.py --resume                          # go on after a kill or Ctrl-C

Whole commands are compared: `rmax verify NET SPEC --proof P` and `rmax check NET SPEC P`, one process each, on the
instances whose published verdict is unsat. Exit code 1 where a written proof is not accepted.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.lines import Lines  # noqa: E402
from benchmarks.machine import calibration, commit, environment, hardware, markdown  # noqa: E402

FAMILIES = ("acasxu", "rl_benchmarks", "safenlp", "collins_rul_cnn", "cersyve", "tllverifybench", "mnist_fc", "oval21",
            "sri_resnet_a", "eran_2021", "dist_shift")
MOST_OF = {"safenlp": 50}
ONLY = {"eran_2021": "SIGMOID"}  # of its networks
LARGEST = {"tllverifybench": 5_000_000}  # bytes of a network, unpacked
PATIENCE_S = 600.0               # for one check
Entry = dict[str, Any]


def instances(root: Path, family: str, step: int) -> Iterator[tuple[Path, Path]]:
    """Networks and specifications published as unsat."""
    with (root / family / "expected.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["verdict"] == "unsat"]
    rows = [row for row in rows if ONLY.get(family, "") in row["onnx"]
            and size(root / family / row["onnx"]) <= LARGEST.get(family, 1 << 40)]
    for row in rows[:MOST_OF.get(family)][::step]:
        yield root / family / row["onnx"], root / family / row["vnnlib"]


def size(net: Path) -> int:
    """Bytes of a network once it is unpacked."""
    from bounds.files import read_bytes
    return len(read_bytes(net))


def measure(family: str, net: Path, spec: Path, limit_s: float, threads: int) -> Entry:
    """One instance: verify, then check what it wrote."""
    entry: Entry = {"family": family, "net": net.name, "spec": spec.name}
    with tempfile.TemporaryDirectory() as folder:
        proof, out = Path(folder) / "proof", Path(folder) / "out.json"
        start = time.monotonic()
        run(["verify", str(net), str(spec), "--time-limit", str(limit_s), "--proof", str(proof), "--json", str(out)],
            threads, limit_s + PATIENCE_S)
        entry["verify_s"] = round(time.monotonic() - start, 3)
        answer = json.loads(out.read_text()) if out.exists() else {"verdict": "error", "choices": {}}
        entry |= {"verdict": answer["verdict"], "domains": answer.get("domains"),
                  "recorded": answer["choices"].get("proof", {"written": False, "reason": "not verified"})}
        if not proof.exists():
            return entry
        start = time.monotonic()
        code, said = run(["check", str(net), str(spec), str(proof)], threads, PATIENCE_S)
        return entry | {"check_s": round(time.monotonic() - start, 3), "bytes": proof.stat().st_size,
                        "accepted": code == 0, "said": said[-300:].replace(folder, "")}


def run(arguments: Sequence[str], threads: int, limit_s: float) -> tuple[int, str]:
    """(exit code, last words) of a command of this checkout."""
    try:
        done = subprocess.run([sys.executable, "-m", "verifier.cli", *arguments], env=environment(threads),
                              capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return -1, f"not done after {limit_s:.0f} s"
    return done.returncode, (done.stdout + done.stderr).strip()


def figures(entries: Sequence[Entry]) -> Entry:
    verified = [e for e in entries if e["verdict"] == "verified"]
    written = [e for e in verified if "accepted" in e]
    accepted = [e for e in written if e["accepted"]]
    ratios = sorted(e["check_s"] / e["verify_s"] for e in accepted)
    sizes = sorted(e["bytes"] for e in written)
    return {"instances": len(entries), "verified": len(verified), "recorded": len(written), "accepted": len(accepted),
            "median_bytes": statistics.median(sizes) if sizes else None, "most_bytes": sizes[-1] if sizes else None,
            "median_ratio": round(statistics.median(ratios), 2) if ratios else None,
            "worst_ratio": round(ratios[-1], 2) if ratios else None}


def table(entries: Sequence[Entry]) -> str:
    families = list(dict.fromkeys(e["family"] for e in entries))
    results = {family: figures([e for e in entries if e["family"] == family]) for family in families}
    results["all"] = figures(entries)
    names = list(results["all"])
    return markdown(["family", *names], [[family, *(str(found[name]) for name in names)]
                                         for family, found in results.items()], left=1)


def main() -> int:
    arguments = parser().parse_args()
    out = Path(arguments.out)
    machine = {"hardware": hardware(), "commit": commit(), "calibration": calibration(arguments.threads)}
    settings = {name: getattr(arguments, name) for name in ("time_limit", "step", "threads")}
    with Lines(out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        done = {(e["family"], e["net"], e["spec"]) for e in lines.entries}
        for family in arguments.families:
            for net, spec in instances(Path(arguments.shared) / "vnncomp", family, arguments.step):
                if (family, net.name, spec.name) not in done:
                    entry = measure(family, net, spec, arguments.time_limit, arguments.threads)
                    lines.add(entry)
                    print(family, net.name, spec.name, entry["verdict"], entry["verify_s"], "s,", entry.get("bytes"),
                          "bytes, check", entry.get("check_s"), "s:", entry.get("said", entry["recorded"]),
                          file=sys.stderr, flush=True)
        entries = [e for e in lines.entries if e["family"] in arguments.families]
    out.write_text(json.dumps({**machine, "settings": settings, "entries": entries}, indent=1) + "\n")
    print(table(entries))
    return int(any(not e.get("accepted", True) for e in entries))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", default=str(ROOT.parent / "shared"), help="folder with vnncomp/")
    p.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="NAME")
    p.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="of each search [60]")
    p.add_argument("--step", type=int, default=1, metavar="K", help="every K-th instance [1]")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="of each command [1]")
    p.add_argument("--out", default=str(ROOT / "out" / "proofs.json"))
    p.add_argument("--resume", action="store_true", help="keep what the .jsonl beside --out holds")
    return p


if __name__ == "__main__":
    sys.exit(main())
