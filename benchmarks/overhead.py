"""What does it cost to account for every rounding error, and to write a proof?

    python benchmarks/overhead.py                                  # all parts; an hour, --resume goes on
    python benchmarks/overhead.py --parts pass                     # a minute
    python benchmarks/overhead.py --parts search --families acasxu oval21 --most 4 --time-limit 30

pass      one pass of interval arithmetic and of CROWN that pays for its rounding, against the same pass without
search    verifications as by default against those with `--evidence float`; input splitting and neuron splitting apart
proof     verifications that record a proof against those that do not, and the bytes of a leaf
claim     by how much `--claim float32` lowers the margin that CROWN proves at the root

Both sides of a ratio run in turn in one process of one thread, and what counts is processor time: other work on the
machine is not counted. Of a search only what both sides decide counts, and the ratio is that of the sums; the ratio of
seconds a domain is that of all searches with many domains.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import calibration, commit, hardware, markdown  # noqa: E402
from benchmarks.proofs import instances  # noqa: E402

if TYPE_CHECKING:
    from bounds.bounds import LinearRows
    from bounds.graph import Graph
    from bounds.sets import InputSet
    from verifier.strategy import Result

PARTS = ("pass", "search", "proof", "claim")
FAMILIES = ("acasxu", "rl_benchmarks", "collins_rul_cnn", "cersyve", "tllverifybench", "safenlp", "mnist_fc", "oval21",
            "sri_resnet_a")
SETS = {"acasxu": 256, "mnist_fc": 16, "oval21": 4, "sri_resnet_a": 1, "eran_2021": 4}  # a pass, by family
MOST = 12           # instances of a family
REPEATS = 7         # of a pass: medians
SHORTEST_S = 0.1    # of one measured repetition
MANY_DOMAINS = 100  # of a search whose speed counts, decided or not


def spent(work: Callable[[], Any]) -> tuple[float, Any]:
    """(processor seconds, the answer)."""
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


# ---------------------------------------------------------------------- one pass


def passes(shared: Path) -> Iterator[Entry]:
    """Medians of ratios: priced to plain in each dtype, and what a confirmation in float64 costs beside float32."""
    import torch

    from bounds.bounds import LinearRows
    from verifier.network import Network
    from verifier.problem import without_final_softmax
    from verifier.vnnlib import read_vnnlib
    for family, count in SETS.items():
        net, spec = next(instances(shared, family, 1))
        network = Network.read(net)
        inputs, outputs = math.prod(network.graph.input_shape), math.prod(network.graph.output_shape)
        prop = read_vnnlib(spec, inputs=inputs, outputs=outputs)
        graph = without_final_softmax(network.simplified, prop)
        works: dict[str, Callable[[], object]] = {}
        for dtype in (torch.float64, torch.float32):
            searched = graph.to(dtype=dtype)
            tensors = prop.tensors(searched.input_shape, dtype=dtype)
            sets = tensors.sets.index(torch.zeros(count, dtype=torch.long))
            C = tensors.C[tensors.region == 0]
            rows = LinearRows(C.repeat(count, 1), torch.arange(count).repeat_interleave(len(C)))
            name = str(dtype).removeprefix("torch.")
            for paid in (True, False):
                works[f"crown {name} {paid}"] = lambda g=searched, s=sets, r=rows, p=paid: crown(g, s, r, rounded=p)
                works[f"ibp {name} {paid}"] = lambda g=searched, s=sets, p=paid: interval_pass(g, s, rounded=p)
        seconds = in_turn(works)
        for method in ("ibp", "crown"):
            for name, over in (("float64", "float64"), ("float32", "float32"), ("float64", "float32")):
                ratios = [a / b for a, b in zip(seconds[f"{method} {name} True"], seconds[f"{method} {over} False"],
                                                strict=True)]
                yield {"part": "pass", "family": family, "sets": count, "method": method, "dtype": name, "over": over,
                       "ratio": round(statistics.median(ratios), 3)}


def crown(graph: Graph, sets: InputSet, rows: LinearRows, *, rounded: bool) -> object:
    import torch

    from bounds.backward import Backward
    from bounds.final import final_bounds
    from bounds.intermediate import refine
    with torch.no_grad():
        engine = Backward(graph, sets, rounded=rounded)
        refine(engine, row_bound=engine.lower)
        return final_bounds(engine, rows, {})


def interval_pass(graph: Graph, sets: InputSet, *, rounded: bool) -> object:
    import torch

    from bounds.interval import Interval
    from bounds.rounding import Prices, Unpriced
    with torch.no_grad():
        known = (Prices if rounded else Unpriced)(graph, {0: Interval(sets.lower, sets.upper)})
        return known.at(graph.output)


def in_turn(works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each piece of work, `REPEATS` times one after the other; short ones are repeated."""
    often = {name: max(1, math.ceil(SHORTEST_S / max(1e-6, min(spent(work)[0] for _ in range(2)))))
             for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            total, _ = spent(lambda work=work, name=name: [work() for _ in range(often[name])])
            seconds[name].append(total / often[name])
    return seconds


# ---------------------------------------------------------------------- whole verifications


def pairs(part: str, shared: Path, families: Sequence[str], most: int, limit_s: float, done: set[tuple[str, str]]
          ) -> Iterator[Entry]:
    """Instances published as unsat, spread over each family: seconds and answers of both sides."""
    for family in families:
        found = list(instances(shared, family, 1))
        for net, spec in found[::math.ceil(len(found) / most)]:
            if (family, f"{net.name} {spec.name}") in done:
                continue
            yield {"part": part, "family": family, "instance": f"{net.name} {spec.name}",
                   **both(part, net, spec, limit_s)}


def both(part: str, net: Path, spec: Path, limit_s: float) -> Entry:
    from verifier.verdict import Evidence
    with tempfile.TemporaryDirectory() as folder:
        proof = Path(folder) / "proof"
        first, second = ({"proof": proof}, {}) if part == "proof" else ({}, {"evidence": Evidence.FLOAT})
        answers = [spent(lambda more=more: verified(net, spec, limit_s, more)) for more in (second, first)]
        (plain_s, plain), (paid_s, paid) = answers
        search = paid.choices.get("branch-and-bound", {})
        entry = {"plain_s": round(plain_s, 4), "paid_s": round(paid_s, 4), "plain": plain.name, "paid": paid.name,
                 "evidence": paid.evidence.name.lower(), "plain_domains": plain.domains, "paid_domains": paid.domains,
                 "splits": "inputs" if search.get("inputs") else "neurons" if search else "none"}
        if part == "proof":
            recorded = paid.choices.get("proof", {})
            entry |= {"written": recorded.get("written", False), "leaves": recorded.get("leaves"),
                      "bytes": proof.stat().st_size if proof.exists() else None}
        return entry


def verified(net: Path, spec: Path, limit_s: float, more: dict[str, Any]) -> Result:
    """Reading is counted on both sides; the network is read anew, so that nothing of the other side is kept."""
    from verifier import verify
    from verifier.deadline import Deadline
    from verifier.network import Network
    from verifier.vnnlib import read_vnnlib
    network = Network.read(net)
    prop = read_vnnlib(spec, inputs=math.prod(network.graph.input_shape),
                       outputs=math.prod(network.graph.output_shape))
    return verify(network.graph, prop, replayer=network.replayer, simplified=network.simplified,
                  deadline=Deadline.starting_now(limit_s), **more)


# ---------------------------------------------------------------------- the claim float32


def claims(shared: Path, families: Sequence[str], most: int, done: set[tuple[str, str]]) -> Iterator[Entry]:
    import torch

    from verifier.deadline import Deadline
    from verifier.network import Network
    from verifier.problem import State, make_problem
    from verifier.stages import BoundStage, margin_loss
    from verifier.verdict import Claim
    from verifier.vnnlib import read_vnnlib
    for family in families:
        found = list(instances(shared, family, 1))
        for net, spec in found[::math.ceil(len(found) / most)]:
            if (family, f"{net.name} {spec.name}") in done:
                continue
            network = Network.read(net)
            prop = read_vnnlib(spec, inputs=math.prod(network.graph.input_shape),
                               outputs=math.prod(network.graph.output_shape))
            problem = make_problem(network.graph, prop, replayer=network.replayer, deadline=Deadline.starting_now(),
                                   claim=Claim.FLOAT32, wide=True)
            state = State.of(problem)
            with torch.no_grad():
                BoundStage("crown").run(problem, state)
            yield {"part": "claim", "family": family, "instance": f"{net.name} {spec.name}", "net": net.name,
                   "margin": state.lower(problem.tensors), "loss": margin_loss(problem)}


# ---------------------------------------------------------------------- tables


def claim_table(entries: Sequence[Entry]) -> str:
    lines = []
    for key in dict.fromkeys((e["family"], e["net"]) for e in entries):
        some = [e for e in entries if (e["family"], e["net"]) == key and e["loss"] is not None]
        if some:
            losses = [e["loss"] for e in some]
            lines.append([*key, str(len(some)), f"{statistics.median(e['margin'] for e in some):.3g}",
                          f"{statistics.median(losses):.2g}", f"{max(losses):.2g}"])
    return markdown(["family", "network", "instances", "median margin", "median loss", "largest loss"], lines, left=2)


def pass_table(entries: Sequence[Entry]) -> str:
    return markdown(["family", "sets", "method", "priced", "over plain", "ratio"],
                    [[e["family"], str(e["sets"]), e["method"], e["dtype"], e["over"], f"{e['ratio']:.2f}"]
                     for e in entries], left=1)


def pair_table(entries: Sequence[Entry]) -> str:
    lines = []
    kinds = [("family " + f, [e for e in entries if e["family"] == f]) for f in dict.fromkeys(
        e["family"] for e in entries)]
    kinds += [(f"all, {s} split" if s != "none" else "all, no search", [e for e in entries if e["splits"] == s])
              for s in ("inputs", "neurons", "none")]
    for name, some in kinds:
        decided = [e for e in some if e["plain"] == e["paid"] == "verified"]
        if not decided:
            continue
        plain, paid = sum(e["plain_s"] for e in decided), sum(e["paid_s"] for e in decided)
        rates = [(e["plain_domains"] / e["plain_s"]) / (e["paid_domains"] / e["paid_s"]) for e in some
                 if min(e["plain_domains"], e["paid_domains"]) >= MANY_DOMAINS]
        sizes = [e["bytes"] / e["leaves"] for e in decided if e.get("bytes") and e.get("leaves")]
        lines.append([name, f"{len(decided)}/{len(some)}", f"{plain:.1f}", f"{paid:.1f}", f"{paid / plain:.2f}",
                      f"{statistics.median(e['paid_s'] / e['plain_s'] for e in decided):.2f}",
                      f"{statistics.median(rates):.2f} ({len(rates)})" if rates else "",
                      str(sum(e["evidence"] == "rounded" for e in decided)),
                      f"{statistics.median(sizes):.0f}" if sizes else ""])
    return markdown(["", "decided by both", "plain s", "paid s", "ratio of sums", "median ratio", "seconds a domain",
                     "rounded", "bytes a leaf"], lines, left=1)


TABLES = {"pass": pass_table, "claim": claim_table}


def main() -> int:
    arguments = parser().parse_args()
    shared = Path(arguments.shared) / "vnncomp"
    if not shared.is_dir():
        print(f"skipped: {shared} not found; --shared names another", file=sys.stderr)
        return 0
    machine = {"hardware": hardware(), "commit": commit(), "calibration": calibration(1)}
    settings = {"time_limit": arguments.time_limit, "most": arguments.most}
    from verifier.cli.startup import load_torch
    load_torch()
    import torch
    torch.set_num_threads(1)
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        for part in arguments.parts:
            before = [e for e in lines.entries if e["part"] == part]
            done = {(e["family"], e.get("instance", "")) for e in before}
            new: Iterable[Entry] = ()
            if part == "claim":
                new = claims(shared, arguments.families, arguments.most, done)
            elif part != "pass":
                new = pairs(part, shared, arguments.families, arguments.most, arguments.time_limit, done)
            elif not before:
                new = passes(shared)
            for entry in new:
                lines.add(entry)
                print(json.dumps(entry), file=sys.stderr, flush=True)
        entries = list(lines.entries)
    arguments.out.write_text(json.dumps({**machine, "settings": settings, "entries": entries}, indent=1) + "\n")
    for part in PARTS:
        some = [e for e in entries if e["part"] == part]
        if some:
            print(f"{part}\n\n{TABLES.get(part, pair_table)(some)}\n")
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", default=str(ROOT.parent / "shared"), help="folder with vnncomp/")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    p.add_argument("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="of searches and proofs")
    p.add_argument("--most", type=int, default=MOST, metavar="N", help=f"instances of a family [{MOST}]")
    p.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="of each search [60]")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "overhead.json")
    p.add_argument("--resume", action="store_true", help="keep what the .jsonl beside --out holds")
    return p


if __name__ == "__main__":
    sys.exit(main())
