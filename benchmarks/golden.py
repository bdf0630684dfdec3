"""What is the exact adversarial error of a network with a published answer? Every image of a test set is decided.

    python benchmarks/golden.py                       # MNIST, l_inf eps 0.1 in [0, 1]
    python benchmarks/golden.py --clip none           # the whole ball: published exact error 4.38 %
    python benchmarks/golden.py --limit 500 --jobs 1

The network and its answers: convex outer polytope training (arXiv:1711.00851), decided by MIP in arXiv:1711.07356. An
image counts as an error when some point of its set, itself for a clean error, is given another label (a tie counts):
each such point is a witness confirmed on the original file. The work is that of `rmax evaluate` without attacks beside
the cascade's own (`certify.evaluation`); here stand the published figures, and what machine it ran on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402

from benchmarks.machine import available_cores, calibration, commit, hardware, markdown  # noqa: E402
from certify.evaluation.asked import METHODS, Asked  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from verifier.data import DataSet

NAME = "wk17a_mnist_eps0.1.onnx"
# Of NAME, all 10,000 images, eps 0.1. The exact error is that of the whole ball: inside [0, 1] every image was decided
# as well, with 4.30 % (see README.md).
PUBLISHED = {"clean": 0.0180, "attacked": 0.0411, "exact": 0.0438}
EPS, CLIP = 0.1, (0.0, 1.0)
CHUNK = 1000  # images a batch; the bound methods make smaller ones of it by memory
LOUD = "!" * 20
Entry = dict[str, Any]


# ---------------------------------------------------------------------- data


def read_images(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(x "N *shape" float32, label "N"): an .npz with x and y, or a folder with MNIST's test files (k / 255)."""
    if path.is_dir():
        from certify.data import idx
        try:
            return idx.read_images(path, "test")
        except ValueError as error:
            raise SystemExit(str(error)) from error
    with np.load(path) as data:
        return data["x"].astype(np.float32), data["y"].astype(np.int64)


def data_set(path: Path, start: int = 0, limit: int | None = None) -> DataSet:
    """Some images, under their places in the file."""
    from verifier.data import POOL, DataSet
    x, y = read_images(path)
    index = np.arange(len(y))[start : None if limit is None else start + limit]
    return DataSet(x[index], y[index], index, x[:POOL])


# ---------------------------------------------------------------------- figures


def figures(records: list[Entry], total: int) -> Entry:
    """Shares of all images asked for. attacked: errors found by attacks; the exact error lies in [exact, exact +
    undecided]."""
    from certify.evaluation.records import COUNTEREXAMPLE, MISCLASSIFIED
    clean = [r for r in records if r["reason"] == MISCLASSIFIED]
    found = [r for r in records if r["reason"] == COUNTEREXAMPLE]
    attacked = [r for r in found if r["by"].startswith(("pgd", "alone: pgd"))]
    verified = [r for r in records if r["certified"]]
    decided = Counter({"falsified clean": len(clean)}) + Counter(f"falsified {r['by']}" for r in found) \
        + Counter(f"verified {r['by']}" for r in verified)
    errors = len(clean) + len(found)
    return {"images": total, "verified": len(verified), "falsified": errors,
            "undecided": total - len(verified) - errors, "clean": len(clean) / total,
            "attacked": (len(clean) + len(attacked)) / total, "exact": errors / total, "by_step": dict(decided),
            "open": dict(Counter(r["reason"] for r in records if not r["certified"] and r not in clean + found)),
            "least_evidence": min((r["evidence"] for r in verified), default=None)}  # float before rounded


def sentence(figures: Entry) -> str:
    exact = f"{figures['exact']:.2%}"
    if figures["undecided"]:
        exact += f" to {figures['exact'] + figures['undecided'] / figures['images']:.2%}"
    return (f"{figures['images']} images: clean error {figures['clean']:.2%}, "
            f"attacked error {figures['attacked']:.2%}, exact error {exact}, {figures['undecided']} undecided")


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="Decide every image of a test set.")
    p.add_argument("--net", type=Path, help=f"[{shared / 'golden' / NAME}]")
    p.add_argument("--data", type=Path, help=f".npz with x and y, or MNIST's folder [{shared / 'datasets/mnist'}]")
    p.add_argument("--eps", type=float, default=EPS, help=f"l_inf radius [{EPS}]")
    p.add_argument("--clip", type=clip_range, default=CLIP, metavar="LOW,HIGH",
                   help="valid inputs, or none [0,1]")
    p.add_argument("--start", type=int, default=0, help="the first image [0]")
    p.add_argument("--limit", type=int, help="how many images [all]")
    p.add_argument("--time-limit", type=float, default=120.0, metavar="S", help="seconds an image [120]")
    p.add_argument("--method", choices=[m for m in METHODS if m != "none"], default="cascade",
                   help="as in `rmax evaluate`; batched leaves open what would be asked alone [cascade]")
    p.add_argument("--claim", choices=["real", "float32"], default="real", help="about which function [real]")
    p.add_argument("--evidence", choices=["float", "rounded"], help="no more, or no less [as much as there is]")
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--chunk", type=int, default=CHUNK, help=f"images a batch [{CHUNK}]")
    p.add_argument("--jobs", type=int, help="processes [as many as cores; with --device cuda 1]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true",
                   help="go on with a run; undecided images are asked again with a longer time limit")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "golden",
                   help="folder that keeps results as they come, and golden.json")
    p.set_defaults(shared=shared)
    return p


def clip_range(text: str) -> tuple[float, float] | None:
    """LOW,HIGH or none."""
    if text == "none":
        return None
    low, _, high = text.partition(",")
    if not float(low) < float(high):
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH with LOW < HIGH, or none, got {text}")
    return float(low), float(high)


def main(argv: list[str] | None = None) -> int:
    """0 if every image is decided and, for the whole published question, as often an error as published; else 1."""
    arguments = parser().parse_args(argv)
    if any(n is not None and n < 1 for n in (arguments.chunk, arguments.jobs, arguments.limit)) or arguments.start < 0:
        raise SystemExit("--chunk, --jobs and --limit must be at least 1, --start at least 0")
    net = arguments.net or arguments.shared / "golden" / NAME
    data = arguments.data or arguments.shared / "datasets" / "mnist"
    for path, flag, given in ((net, "--net", arguments.net), (data, "--data", arguments.data)):
        if not path.exists():
            if given is not None:
                raise SystemExit(f"{flag}: {path} not found")
            print(f"skipped: {path} not found; {flag} names another", file=sys.stderr)
            return 0
    try:
        asked = Asked(arguments.eps, clip=arguments.clip, method=arguments.method, attacks=(), claim=arguments.claim,
                      time_limit_s=arguments.time_limit, evidence=arguments.evidence or "", seed=arguments.seed)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    arguments.data = data
    images = data_set(data, arguments.start, arguments.limit)
    if not len(images):
        raise SystemExit(f"--start: {data} has {len(read_images(data)[1])} images")
    jobs = arguments.jobs or (1 if arguments.device == "cuda" else available_cores())
    before, version, machine = hardware(), commit(), calibration(max(1, available_cores() // jobs))
    start = time.monotonic()
    records, interrupted = run(net, images, asked, arguments, jobs)
    seconds = time.monotonic() - start
    f = figures(records, len(images))
    print(markdown(["decided by", "images"], [[name, str(n)] for name, n in f["by_step"].items()], left=1))
    print(f"\n{sentence(f)}, evidence {f['least_evidence']}, {seconds:.0f} s with {jobs} processes")
    is_published = (net.name == NAME and arguments.eps == EPS and arguments.clip is None and arguments.claim == "real"
                    and len(images) == 10_000 and not f["undecided"])
    agrees = not is_published or round(f["exact"], 6) == PUBLISHED["exact"]
    if is_published:
        print(f"published: clean {PUBLISHED['clean']:.2%}, attacked {PUBLISHED['attacked']:.2%}, "
              f"exact {PUBLISHED['exact']:.2%}" + ("" if agrees else f"  {LOUD} DIFFERS"))
    answer = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": version, "net": net.name, "data": data.name,
              "eps": arguments.eps, "clip": arguments.clip and list(arguments.clip), "claim": arguments.claim,
              "time_limit_s": arguments.time_limit, "method": arguments.method, "jobs": jobs, "hardware": before,
              "calibration": machine, "interrupted": interrupted, "seconds": round(seconds, 1), **f}
    path = arguments.out / "golden.json"
    path.write_text(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    print(f"{'interrupted; --resume goes on  ' if interrupted else ''}{path}", file=sys.stderr)
    return 0 if agrees and not f["undecided"] else 1


def run(net: Path, images: DataSet, asked: Asked, arguments: argparse.Namespace, jobs: int) -> tuple[list[Entry], bool]:
    """The records of all images that are done, and whether the run was interrupted. Earlier ones are kept."""
    from certify.evaluation.evaluate import evaluate_data
    from certify.evaluation.records import is_final
    from verifier.cli.startup import load_torch
    from verifier.example_store import ExampleStore
    from verifier.network import Network
    from verifier.run_folder import UnusableStore
    load_torch()
    network, start = Network.read(net), time.monotonic()
    settings = {"net": network.digest, "data": arguments.data.name, "eps": asked.eps,
                "clip": asked.clip and list(asked.clip), "method": asked.method, "claim": asked.claim,
                "evidence": asked.evidence, "seed": asked.seed}
    interrupted = False
    try:
        store = ExampleStore(arguments.out, settings, resume=arguments.resume)
    except UnusableStore as error:
        raise SystemExit(str(error)) from error
    with store:
        wanted = set(images.index.tolist())
        done = {i: record for i, (record, _) in store.finished(images.x.shape[1:]).items()
                if i in wanted and is_final(record, asked.time_limit_s)}
        arriving = evaluate_data(network, images, asked, device=arguments.device, jobs=jobs, batch=arguments.chunk,
                                 skip=set(done))
        try:
            with contextlib.closing(arriving):
                for piece in arriving:
                    store.record(piece.finished)
                    done |= {record["index"]: record for record, _ in piece.finished}
                    f = figures(list(done.values()), len(images))
                    print(f"{len(done)}/{len(images)}  verified {f['verified']}  falsified {f['falsified']}  open "
                          f"{sum(f['open'].values())}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            interrupted = True
    return [done[i] for i in sorted(done)], interrupted


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(main())
