"""Mixed-integer programmes beside branch and bound: the same questions, both answers, both times; and exact radii.

    python benchmarks/exact.py                                 # all parts, 20 images each, 300 s a question
    python benchmarks/exact.py --parts digits --count 5
    python benchmarks/exact.py --resume                        # go on after a kill or Ctrl-C

Parts: `golden`, images of the network with a published answer that CROWN and PGD leave open at l_inf 0.1; `acas`,
properties 1 to 4 of three networks; `digits` and `mnist`, the exact l_inf radius of test images of the bundled MLP and
of a small MNIST network that is trained here; `encoding`, how large the golden network's programmes are and what they
cost before they are solved. What is asked is drawn with `--seed`. Exit code 1 where two methods contradict each other
or an exact radius lies outside of what CROWN and PGD say.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks import encoding  # noqa: E402
from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import available_cores, calibration, commit, finite, hardware, markdown  # noqa: E402
from milp.workers import workers  # noqa: E402

PARTS = ("golden", "acas", "digits", "mnist", "encoding")
METHODS = ("milp", "auto", "bab")  # auto: branch and bound behind attacks, leaning planes and tilted chords
PROPERTIES = (1, 2, 3, 4)
MOST = 0.5            # no radius beyond this is looked for
BISECTIONS = 10
BESIDE = 0.01         # branch and bound is asked at radii this share below and above the exact one
MNIST_HIDDEN, MNIST_EPOCHS, MNIST_EPS, MNIST_STEPS, MNIST_BATCH = (24, 16), 2, 0.1, 4, 128
Task = tuple[str, str, str]  # part, item, method


# ---------------------------------------------------------------------- verdicts


@lru_cache(maxsize=1)
def golden_cascade(shared: str) -> Any:
    from benchmarks.golden import CLIP, EPS, NAME, data_set
    from certify.evaluation.asked import Asked
    from certify.evaluation.cascade import Cascade
    from verifier.network import Network
    return Cascade(Network.read(f"{shared}/golden/{NAME}"), data_set(Path(shared) / "datasets" / "mnist"),
                   Asked(EPS, clip=CLIP, method="bab", attacks=()))


def golden_open(shared: str) -> list[int]:
    """All images that cheap bounds and the attack leave open."""
    from benchmarks.golden import CHUNK
    from certify.evaluation.cascade import OPEN
    cascade, found = golden_cascade(shared), []
    for first in range(0, len(cascade.data), CHUNK):
        standings = cascade.batched(range(first, min(first + CHUNK, len(cascade.data))))
        found += [i for i, standing in standings.items() if standing.verdict == OPEN]
        print(f"golden: {first + CHUNK} images, {len(found)} open", file=sys.stderr)
    return found


def verdict(shared: str, part: str, item: str, method: str, limit_s: float) -> Entry:
    """One question by one method."""
    from verifier import verify
    from verifier.deadline import Deadline
    from verifier.network import Network
    from verifier.vnnlib import read_vnnlib
    if part == "golden":
        cascade = golden_cascade(shared)
        network, asked = cascade.network, cascade.property_of(int(item))
    else:
        net, prop = item.split(" prop_")
        folder = Path(shared) / "vnncomp" / "acasxu"
        network = Network.read(str(next(folder.glob(f"onnx/*run2a_{net}_batch*"))))
        asked = read_vnnlib(next(folder.glob(f"vnnlib/prop_{prop}.vnnlib*")))
    result = verify(network.graph, asked, replayer=network.replayer, method=method, simplified=network.simplified,
                    deadline=Deadline.starting_now(limit_s))
    return {"verdict": result.name, "seconds": result.time_s, "lower": result.lower, "upper": result.upper,
            "domains": result.domains, "choices": result.choices.get("milp", {})}


# ---------------------------------------------------------------------- radii


@lru_cache(maxsize=2)
def images_of(shared: str, part: str) -> tuple[Any, Any, Any, Any]:
    """(graph, replayer, images, labels) of a network with radii to find."""
    import torch

    from bounds.graph import Graph
    from verifier.network import Network
    from verifier.witness import ModuleReplayer
    torch.set_num_threads(1)
    if part == "digits":
        from benchmarks.make_examples import digits
        network = Network.read(str(ROOT / "verifier" / "examples" / "digits_mlp.onnx"))
        _, _, x, y = digits()
        return network.graph, network.replayer, x.numpy(), y.numpy()
    from benchmarks.golden import read_images
    net = trained(Path(shared))
    x, y = read_images(Path(shared) / "datasets" / "mnist")
    return Graph.from_torch(net, (1, 28, 28)), ModuleReplayer(net), x, y


def trained(shared: Path) -> Any:
    """A small dense network for MNIST, trained on PGD examples: seconds, the same on one kind of machine."""
    import torch
    from torch import nn

    from benchmarks.make_examples import attack
    from certify.data.idx import read_images
    from certify.models.mlp import mlp
    x, y = (torch.from_numpy(t) for t in read_images(shared / "datasets" / "mnist", "train"))
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = mlp((1, 28, 28), 10, hidden=MNIST_HIDDEN)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(MNIST_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(MNIST_BATCH):
            moved = attack(net, x[rows], y[rows], MNIST_EPS * (epoch + 1) / MNIST_EPOCHS, MNIST_STEPS, generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(moved), y[rows]).backward()
            optimiser.step()
    return net.eval()


def radius(shared: str, part: str, item: str, limit_s: float) -> Entry:
    """Both ends by mixed programmes, CROWN's lower and PGD's upper end, branch and bound just inside and outside."""
    import torch

    from verifier import verify
    from verifier.property import robustness
    from verifier.radius.safe_radius import safe_radius
    torch.set_num_threads(1)
    graph, replayer, images, labels = images_of(shared, part)
    x, label = images[int(item)], int(labels[int(item)])
    simplified = graph.simplify()

    def asked(eps: float, method: str) -> Any:
        prop = robustness(x, label, eps, classes=10, clip=(0.0, 1.0))
        return verify(graph, prop, replayer=replayer, method=method, time_limit_s=limit_s, simplified=simplified)
    begin = time.monotonic()
    found = safe_radius(graph, x, label, replayer=replayer, clip=(0.0, 1.0), method="milp", time_limit_s=limit_s)
    seconds = time.monotonic() - begin
    low, high = 0.0, MOST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if asked(middle, "crown").name == "verified" else (low, middle)
    inside, outside = (asked(max(0.0, end), method) for end, method in
                       (((1 - BESIDE) * found.lower, "bab"), ((1 + BESIDE) * min(found.upper, MOST), "auto")))
    return {"lower": found.lower, "upper": found.upper, "seconds": seconds, "crown": low,
            "pgd": pgd_upper(graph, x, label, replayer), "inside": inside.name, "inside_s": inside.time_s,
            "outside": outside.name, "outside_s": outside.time_s}


def pgd_upper(graph: Any, x: Any, label: int, replayer: Any) -> float:
    """The least radius at which a brief attack succeeds, by bisection."""
    from verifier.attacks.falsifier import Falsifier
    from verifier.deadline import Deadline
    from verifier.problem import make_problem
    from verifier.property import robustness
    from verifier.witness import confirm
    best, low, high = math.inf, 0.0, MOST
    for k in range(BISECTIONS):
        middle = high if not k else (low + high) / 2
        prop = robustness(x, label, middle, classes=10, clip=(0.0, 1.0))
        problem = make_problem(graph, prop, replayer=replayer, deadline=Deadline.starting_now(), seed=1)
        outcome = Falsifier().run(problem.graph, problem.tensors, generator=problem.generator,
                            gate=lambda p, prop=prop: confirm(p, prop, replayer))
        if outcome.witness is None:
            low = middle
        else:
            best = high = min(middle, float(abs(outcome.witness.x.astype(float) - x.astype(float)).max()))
    return best


# ---------------------------------------------------------------------- all of them


def tasks_of(part: str, shared: Path, count: int, seed: int, lines: Lines) -> list[Task]:
    """What a part asks, drawn with the seed."""
    draw = random.Random(seed)
    if part in ("golden", "encoding"):
        known = [e for e in lines.entries if e.get("part") == "golden open"]
        if not known:
            known = [{"part": "golden open", "images": golden_open(str(shared))}]
            lines.add(*known)
        images = known[0]["images"]
        methods = METHODS if part == "golden" else encoding.BOUNDS
        return [(part, str(i), m) for i in draw.sample(images, min(count, len(images))) for m in methods]
    if part == "acas":
        nets = sorted(p.name.split("run2a_")[1].split("_batch")[0] for p in
                      (shared / "vnncomp" / "acasxu" / "onnx").glob("*run2a_*"))
        return [(part, f"{net} prop_{p}", m) for net in draw.sample(nets, 3) for p in PROPERTIES for m in METHODS]
    return [(part, str(i), "radius") for i in range(count)]


def missing(part: str, shared: Path) -> str:
    """What a part needs and is not there; '' where all is."""
    needs = {"golden": ["golden", "datasets/mnist"], "acas": ["vnncomp/acasxu"], "digits": [],
             "mnist": ["datasets/mnist"], "encoding": ["golden", "datasets/mnist"]}[part]
    return next((str(shared / n) for n in needs if not (shared / n).exists()), "")


def run(task: Task, shared: str, limit_s: float) -> Entry:
    part, item, method = task
    import torch
    torch.set_num_threads(1)
    if part == "encoding":
        cascade = golden_cascade(shared)
        found = encoding.weighed(cascade.network, cascade.property_of(int(item)), method)
    elif method == "radius":
        found = radius(shared, part, item, limit_s)
    else:
        found = verdict(shared, part, item, method, limit_s)
    return finite({"part": part, "item": item, "method": method, **found})


def report(entries: list[Entry]) -> tuple[str, list[str]]:
    """(tables, contradictions)."""
    out, wrong = [], []
    for part in PARTS:
        mine = [e for e in entries if e.get("part") == part]
        if part in ("golden", "acas"):
            lines = list(verdict_lines(part, mine, wrong))
            if lines:
                header = [part, *(cell for m in METHODS for cell in (m, "s"))]
                out.append(f"\n{part}\n\n" + markdown(header, lines, left=1))
                out.append(summary(mine))
        elif part == "encoding":
            out += ["\nencoding\n\n" + markdown(["bounds", "images", *encoding.FIGURES, *encoding.SECONDS],
                                                 encoding.lines_of(mine), left=1)] if mine else []
        elif mine:
            out.append(f"\n{part}\n\n" + markdown(
                ["image", "CROWN", "r1", "r2", "PGD", "s", "bab below", "s", "above", "s"],
                list(radius_lines(part, mine, wrong)), left=0))
            times = [e["seconds"] for e in mine]
            closed = sum(e["upper"] is not None and e["upper"] - e["lower"] <= 1e-5 for e in mine)
            out.append(f"ends meet within 1e-5 on {closed} of {len(mine)} images; "
                       f"median {statistics.median(times):.1f} s, longest {max(times):.1f} s")
    return "\n".join(out), wrong


def verdict_lines(part: str, entries: list[Entry], wrong: list[str]) -> Iterator[list[str]]:
    by = {(e["item"], e["method"]): e for e in entries}
    for item in dict.fromkeys(e["item"] for e in entries):
        pair = [by.get((item, m)) for m in METHODS]
        names = {e["verdict"] for e in pair if e} - {"unknown"}
        if len(names) > 1:
            wrong.append(f"{part} {item}: {' and '.join(sorted(names))}")
        yield [item, *(cell for e in pair for cell in ((e["verdict"], f"{e['seconds']:.1f}") if e else ("", "")))]


def summary(entries: list[Entry]) -> str:
    times = {m: {e["item"]: max(e["seconds"], 1e-3) for e in entries if e["method"] == m and e["verdict"] != "unknown"}
             for m in METHODS}
    said = [f"{m} decides {len(times[m])} of {len({e['item'] for e in entries})}" for m in METHODS]
    for m in METHODS[1:]:
        both = times["milp"].keys() & times[m].keys()
        if both:
            ratio = math.exp(statistics.mean(math.log(times["milp"][i] / times[m][i]) for i in both))
            said.append(f"milp takes {ratio:.2f} of {m}'s time (geometric mean of {len(both)})")
    return "; ".join(said)


def radius_lines(part: str, entries: list[Entry], wrong: list[str]) -> Iterator[list[str]]:
    for e in sorted(entries, key=lambda e: int(e["item"])):
        upper, pgd = (math.inf if e[k] is None else e[k] for k in ("upper", "pgd"))
        if not (e["crown"] <= upper + 1e-6 and e["lower"] <= pgd + 1e-6) \
                or (e["inside"] == "falsified" and upper > 0) or (e["outside"] == "verified" and upper < MOST):
            wrong.append(f"{part} image {e['item']}: the radius contradicts another method")
        yield [e["item"], f"{e['crown']:.4f}", f"{e['lower']:.6f}", f"{upper:.6f}", f"{pgd:.4f}", f"{e['seconds']:.1f}",
               e["inside"], f"{e['inside_s']:.1f}", e["outside"], f"{e['outside_s']:.1f}"]


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="Mixed-integer programmes beside branch and bound, and exact radii.")
    p.add_argument("--parts", default=",".join(PARTS), help=f"[{','.join(PARTS)}]")
    p.add_argument("--shared", type=Path, default=shared, help=f"benchmark data [{shared}]")
    p.add_argument("--count", type=int, default=20, help="images of a part [20]")
    p.add_argument("--time-limit", type=float, default=300.0, metavar="S", help="seconds a question [300]")
    p.add_argument("--jobs", type=int, help="processes of one thread each [as many as cores]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on with a run")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "exact.json",
                   help="JSON; finished questions lie beside it, one a line (.jsonl)")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    parts = arguments.parts.split(",")
    if set(parts) - set(PARTS) or arguments.count < 1 or not arguments.time_limit > 0:
        raise SystemExit(f"--parts: names of {', '.join(PARTS)}; --count and --time-limit must be positive")
    settings = {"count": arguments.count, "time_limit": arguments.time_limit, "seed": arguments.seed}
    before, start = hardware(), time.monotonic()
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        tasks: list[Task] = []
        for part in parts:
            if lacks := missing(part, arguments.shared):
                print(f"{part} skipped: {lacks} not found", file=sys.stderr)
            else:
                tasks += tasks_of(part, arguments.shared, arguments.count, arguments.seed, lines)
        known = {(e["part"], e.get("item"), e.get("method")) for e in lines.entries}
        work(sorted(set(tasks) - known, key=tasks.index), lines,
             lambda task: (task, str(arguments.shared), arguments.time_limit), arguments.jobs or available_cores())
        text, wrong = report(lines.entries)
        results = [e for e in lines.entries if e["part"] in PARTS]
    print(text)
    for sentence in wrong:
        print(f"!!! {sentence}")
    arguments.out.write_text(json.dumps({
        "benchmark": "exact", "commit": commit(), "settings": settings, "hardware": before,
        "calibration": calibration(1), "seconds": time.monotonic() - start, "results": results}, allow_nan=False))
    print(arguments.out)
    return 1 if wrong else 0


def work(tasks: list[Task], lines: Lines, arguments: Callable[[Task], Any], jobs: int) -> None:
    if not tasks:
        return
    with workers(jobs) as pool:
        futures = {pool.submit(run, *arguments(task)): task for task in tasks}
        for done, future in enumerate(as_completed(futures), 1):
            lines.add(future.result())
            print(f"{done}/{len(tasks)} {' '.join(futures[future])}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
