"""How large are the radii that each method certifies, and how far are attacks from them? Average over images, by net.

    python benchmarks/radius.py --nets benchmarks/nets/mnist_2x20.onnx --methods attacks,crown,milp --images 20
    python benchmarks/radius.py --resume                       # go on after a kill or Ctrl-C
    python benchmarks/radius.py --reuse --images 10            # exact radii beside plain bisection over `verify`
    python benchmarks/radius.py --order                        # check what is stored, and nothing else

The table is that of the survey of certified robustness (arXiv:2009.04131): for every network a row a method, with the
average over all images of what it certifies within `--time-limit` seconds an image (0 where it certifies nothing, and
where the network is wrong). Each method and network is a process of its own with one thread; each finished image is at
once a line of the `.jsonl` beside `--out`. Exit code 1 where a certified radius lies above a witness, or a method
failed for another reason than a limit or an unsupported operator.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import calibration, commit, environment, finite, hardware, markdown  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from verifier.deadline import Deadline
    from verifier.network import Network
    from verifier.radius.balls import Balls

NETS = ("mnist_2x20", "mnist_3x100", "mnist_cnn", "mnist_2x20_adv", "mnist_3x100_adv", "mnist_cnn5_certified_0.1",
        "mnist_cnn5_certified_0.3")
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0}
MOST = {math.inf: 0.5, 2.0: 10.0, 1.0: 100.0}  # no radius beyond is looked for
CLIP = (0.0, 1.0)
FLOAT_SLACK = 1e-5  # of radii that rest on ordinary floating point and solvers' tolerances
STARTING_S = 120.0  # that a process may need before its first image
KILL_S = 60.0       # after an image's limit, until its process is stopped


# ---------------------------------------------------------------------- methods


@dataclass(frozen=True, eq=False)
class Case:
    """A network and how it is asked about. kept: what a method computes once for all images."""

    network: Network
    norm: float
    limit_s: float
    tolerance: float
    seed: int
    kept: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def classes(self) -> int:
        return math.prod(self.network.graph.output_shape)

    @property
    def deadline(self) -> Deadline:
        from verifier.deadline import Deadline
        return Deadline.starting_now(self.limit_s)

    def most(self, balls: Balls) -> Tensor:
        return balls.largest.clamp(max=MOST[self.norm])


Method = Callable[[Case, "Balls"], Entry]  # the balls hold one input
Together = Callable[[Case, "Balls"], list[Entry]]  # all at once


def lower_end(radius: float, evidence: Any) -> Entry:
    return {"lower": radius, "lower_evidence": evidence.name}


def upper_end(radius: float, evidence: Any) -> Entry:
    return {"upper": radius, "upper_evidence": evidence.name}


def by_bounds(method: str) -> Method:
    """Bisection over the bounds of a method of `bounds.compute`."""
    def asked(case: Case, balls: Balls) -> Entry:
        from verifier.radius.lower import certified_radii
        found = certified_radii(case.network.graph, balls, method, most=case.most(balls), tolerance=case.tolerance,
                                deadline=case.deadline)
        return {**lower_end(float(found.radius[0]), found.evidence[0]), "evaluations": int(found.evaluations[0])}

    return asked


def by_jacobian(method: str) -> Method:
    """A local Lipschitz constant of the margins."""
    def asked(case: Case, balls: Balls) -> Entry:
        from verifier.lipschitz.radius import lipschitz_radius
        found = lipschitz_radius(case.network.graph, balls, method=method, deadline=case.deadline)
        return lower_end(float(found.radius[0]), found.evidence)

    return asked


def by_operator_norm(case: Case, balls: Balls) -> Entry:
    """The margin of every other class over the global constant of its difference to the label."""
    import torch

    from bounds.compute import compute_bounds
    from verifier.lipschitz.operator_norms import operator_norm_constant
    graph, rows = case.network.graph.to(dtype=torch.float64), balls.rows(case.classes)
    margins = compute_bounds(graph, balls.sets(torch.zeros(1, dtype=torch.float64)), rows).lower
    radius, evidence = math.inf, set()
    for row, margin in zip(rows.C, margins.tolist(), strict=True):
        key = tuple(row.tolist())
        if key not in case.kept:
            case.kept[key] = operator_norm_constant(case.network.graph, norm_in=case.norm, norm_out=math.inf, row=row)
        constant = case.kept[key]
        evidence.add(constant.evidence)
        if constant.value > 0:
            radius = min(radius, math.nextafter(max(0.0, margin) / constant.value, 0.0))
        elif margin <= 0:
            radius = 0.0
    return lower_end(min(radius, float(balls.largest)), min(evidence))


def by_clever(case: Case, balls: Balls) -> Entry:
    """The estimate from sampled gradients; it certifies nothing."""
    from verifier.radius.clever import Clever
    from verifier.verdict import Evidence
    found = Clever().scores(case.network.graph, balls, case.most(balls), seed=case.seed, deadline=case.deadline,
                            simplified=case.network.simplified)
    return lower_end(float(found.score[0]), Evidence.ESTIMATE)


def by_milp(case: Case, balls: Balls) -> Entry:
    """Mixed-integer programmes."""
    from verifier.radius.interval import RadiusInterval
    from verifier.radius.programmes import by_programmes
    found = by_programmes(case.network.graph, case.network.simplified, case.network.replayer, balls, RadiusInterval(),
                          most=float(case.most(balls)), deadline=case.deadline, seed=case.seed)
    return {**lower_end(found.lower, found.lower_evidence), **upper_end(found.upper, found.upper_evidence)}


def by_attacks(case: Case, balls: Balls) -> list[Entry]:
    """The nearest confirmed witnesses, by the thorough sequence of attacks."""
    from verifier.deadline import Deadline
    from verifier.radius.upper import THOROUGH, nearest_witnesses
    deadline = Deadline.starting_now(case.limit_s * len(balls))
    found = nearest_witnesses(case.network, balls, attacks=THOROUGH, deadline=deadline, seed=case.seed)
    return [{**upper_end(nearest.distance, nearest.evidence), "by": nearest.by} for nearest in found]


def by_search(case: Case, balls: Balls) -> Entry:
    """Both ends until they meet, by the search that keeps what it has proved."""
    from verifier.radius.safe_radius import safe_radius
    found = safe_radius(case.network.graph, balls.x[0].numpy(), int(balls.label[0]), replayer=case.network.replayer,
                        norm=case.norm, clip=CLIP, time_limit_s=case.limit_s, tolerance=case.tolerance, seed=case.seed,
                        simplified=case.network.simplified)
    return {**lower_end(found.lower, found.lower_evidence), **upper_end(found.upper, found.upper_evidence),
            "by": f"{found.lower_by}, {found.upper_by}"}


def by_bisection(case: Case, balls: Balls) -> Entry:
    """Both ends by bisection over `verifier.verify`, every radius asked anew: what reuse is compared with."""
    import torch

    from verifier import verify
    from verifier.property import robustness
    from verifier.radius.upper import nearest_witnesses
    from verifier.verdict import Evidence, Falsified, Verified
    deadline = case.deadline
    (found,) = nearest_witnesses(case.network, balls, deadline=deadline, seed=case.seed)
    low, high, calls = 0.0, found.distance, 0
    proved, shown = Evidence.ROUNDED, found.evidence
    top = min(high, float(case.most(balls)))
    while top - low > case.tolerance and not deadline.passed():
        middle = (low + top) / 2
        prop = robustness(balls.x[0].numpy(), int(balls.label[0]), middle, classes=case.classes, norm=case.norm,
                          clip=CLIP)
        result = verify(case.network.graph, prop, replayer=case.network.replayer, simplified=case.network.simplified,
                        deadline=deadline, seed=case.seed)
        calls += 1
        if isinstance(result.verdict, Verified):
            low, proved = middle, min(proved, result.verdict.evidence)
        elif isinstance(result.verdict, Falsified):
            far = float(balls.distance(torch.from_numpy(result.verdict.witness.x).unsqueeze(0)))
            high, shown = min(high, far), result.verdict.evidence if far < high else shown
            top = min(high, middle)
        else:
            break
    return {**lower_end(low, proved), **upper_end(high, shown), "evaluations": calls}


TOGETHER: dict[str, Together] = {"attacks": by_attacks}  # an image's seconds are its share
ONE_BY_ONE: dict[str, Method] = {
    "operator-norm": by_operator_norm,
    "ibp": by_bounds("ibp"),
    "fastlin": by_bounds("fastlin"),
    "crown": by_bounds("crown"),
    "alpha-crown": by_bounds("alpha-crown"),
    "fastlip": by_jacobian("fastlip"),
    "recurjac": by_jacobian("recurjac"),
    "clever": by_clever,
    "milp": by_milp,
    "exact": by_search,
    "bisection": by_bisection,
}
METHODS = (*TOGETHER, *ONE_BY_ONE)
WITHOUT_REUSE, WITH_REUSE = "bisection", "exact"
USUAL = tuple(name for name in METHODS if name != WITHOUT_REUSE)


# ---------------------------------------------------------------------- a process


def images_of(arguments: argparse.Namespace, network: Network) -> tuple[NDArray[Any], NDArray[Any]]:
    if arguments.data == "digits":
        from benchmarks.make_examples import digits
        _, _, pixels, labels = digits()
        return pixels.numpy().reshape(-1, *network.graph.input_shape), labels.numpy()
    if arguments.data is not None:
        from verifier.data import read_data
        data = read_data(arguments.data, network.graph.input_shape, math.prod(network.graph.output_shape))
        return data.x, data.y
    from benchmarks.golden import read_images
    x, y = read_images(arguments.data_dir)
    return x.reshape(-1, *network.graph.input_shape), y


def worker(arguments: argparse.Namespace, net: str, method: str, images: Sequence[int]) -> None:
    """One JSON line on stdout for every image."""
    import torch

    from bounds.graph import UnsupportedOperator
    from verifier.network import Network
    from verifier.radius.balls import Balls
    torch.set_num_threads(1)
    network = Network.read(net)
    x, y = images_of(arguments, network)
    case = Case(network, NORMS[arguments.norm], arguments.time_limit, arguments.tolerance, arguments.seed)
    print(json.dumps({"started": True}), flush=True)
    for part in [list(images)] if method in TOGETHER else [[k] for k in images]:
        begin, cpu = time.perf_counter(), time.process_time()
        balls = Balls(torch.from_numpy(x[part]), torch.from_numpy(y[part]), case.norm, CLIP)
        try:
            found = TOGETHER[method](case, balls) if method in TOGETHER else [ONE_BY_ONE[method](case, balls)]
        except UnsupportedOperator as error:
            found = [{"unsupported": str(error)[:300]}] * len(part)
        except Exception as error:  # what a method raises is a result of the benchmark, told at the end
            found = [{"error": f"{type(error).__name__}: {error}"[:300]}] * len(part)
        spent = {"wall_s": round((time.perf_counter() - begin) / len(part), 4),
                 "cpu_s": round((time.process_time() - cpu) / len(part), 4)}
        for k, entry in zip(part, found, strict=True):
            print(json.dumps(finite({"net": Path(net).stem, "method": method, "image": k, **entry, **spent})),
                  flush=True)


def answers(arguments: argparse.Namespace, net: str, method: str, images: Sequence[int]) -> Iterator[Entry]:
    """The entries of a process, as they come; one that hangs or dies is stopped, and the rest goes to a fresh one."""
    left = list(images)
    while left:
        command = [sys.executable, str(Path(__file__).resolve()), *arguments.given, "--worker", net, method,
                   ",".join(map(str, left))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(1))
        said: queue.Queue[Entry | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, said), daemon=True).start()
        reason, wait_s = "its process ended", STARTING_S
        try:
            while left and (entry := said.get(timeout=wait_s)) is not None:
                wait_s = arguments.time_limit * (len(left) if method in TOGETHER else 1) + KILL_S
                if "started" not in entry:
                    left.remove(entry["image"])
                    yield entry
        except queue.Empty:
            reason = f"stopped after {wait_s:g} s without an answer"
        finally:
            process.kill()
            process.wait()
        if left:
            yield {"net": Path(net).stem, "method": method, "image": left.pop(0), "error": reason,
                   "wall_s": arguments.time_limit, "cpu_s": arguments.time_limit}


def _read(process: subprocess.Popen[str], said: queue.Queue[Entry | None]) -> None:
    """Its lines, then None."""
    assert process.stdout is not None
    for line in process.stdout:
        said.put(json.loads(line))
    said.put(None)


# ---------------------------------------------------------------------- results


def figures(entries: Sequence[Entry]) -> Entry:
    """Averages over the images of one net and method (at least one); an end that is not known counts as 0, or inf."""
    lower = [e.get("lower", 0.0) or 0.0 for e in entries]
    upper = [math.inf if (end := e.get("upper")) is None else end for e in entries]
    seconds = [e["wall_s"] for e in entries]
    evidence = [e[end] for e in entries for end in ("lower_evidence", "upper_evidence") if end in e]
    return {"images": len(entries), "lower": statistics.fmean(lower), "upper": statistics.fmean(upper),
            "seconds": statistics.fmean(seconds), "median_s": statistics.median(seconds), "longest_s": max(seconds),
            "failed": sum("error" in e for e in entries), "evidence": min(evidence, key=_rank, default="")}


def _rank(name: str) -> int:
    return ("ESTIMATE", "FLOAT", "ROUNDED", "CHECKED").index(name)


def best_uppers(entries: Sequence[Entry]) -> dict[tuple[str, int], tuple[float, Entry]]:
    """By net and image: the nearest witness of any method."""
    best: dict[tuple[str, int], tuple[float, Entry]] = {}
    for e in entries:
        key = (e["net"], e["image"])
        if e.get("upper") is not None and (key not in best or e["upper"] < best[key][0]):
            best[key] = (e["upper"], e)
    return best


def disorder(entries: Sequence[Entry]) -> list[str]:
    """Where a certified radius lies above a witness; estimates certify nothing."""
    wrong, nearest = [], best_uppers(entries)
    for e in entries:
        low, known = e.get("lower"), nearest.get((e["net"], e["image"]))
        if low is None or known is None or e["lower_evidence"] == "ESTIMATE":
            continue
        upper, witness = known
        rounded = "ROUNDED" == e["lower_evidence"] == witness["upper_evidence"]
        if low > upper + (0.0 if rounded else FLOAT_SLACK):
            wrong.append(f"{e['net']} image {e['image']}: {e['method']} certifies {low!r} ({e['lower_evidence']}), but "
                         f"{witness['method']} has a witness at {upper!r} ({witness['upper_evidence']})")
    return wrong


def table(entries: Sequence[Entry]) -> str:
    """A row a net and method. gap: to the nearest witness of any method; its median is relative to that witness, over
    the images that have one beyond distance 0."""
    nearest = best_uppers(entries)
    lines = []
    for net in dict.fromkeys(e["net"] for e in entries):
        for method in dict.fromkeys(e["method"] for e in entries if e["net"] == net):
            mine = [e for e in entries if (e["net"], e["method"]) == (net, method)]
            row = figures(mine)
            ends = [(e["lower"] or 0.0, nearest[net, e["image"]][0]) for e in mine
                    if (net, e["image"]) in nearest and "lower" in e]
            gaps = [upper - lower for lower, upper in ends]
            shares = [(upper - lower) / upper for lower, upper in ends if upper > 0]
            lines.append([net, method, row["evidence"].lower(), str(row["images"]),
                          f"{row['lower']:.4f}" if any("lower" in e for e in mine) else "",
                          f"{row['upper']:.4f}" if any("upper" in e for e in mine) else "",
                          f"{statistics.fmean(gaps):.4f}" if gaps else "",
                          f"{statistics.median(shares):.2%}" if shares else "", f"{row['seconds']:.3g}",
                          f"{row['median_s']:.3g}", f"{row['longest_s']:.3g}", str(row["failed"])])
    return markdown(["net", "method", "evidence", "images", "lower", "upper", "gap", "median gap", "mean s", "median s",
                     "longest s", "failed"], lines, left=3)


def reuse(entries: Sequence[Entry]) -> str:
    """Seconds of exact radii with reuse over those of plain bisection, on images where both know both ends."""
    by = {(e["net"], e["image"], e["method"]): e for e in entries}
    said = []
    for net in dict.fromkeys(e["net"] for e in entries):
        pairs = [(by[net, k, WITH_REUSE], by[net, k, WITHOUT_REUSE]) for n, k, m in by
                 if (n, m) == (net, WITH_REUSE) and (net, k, WITHOUT_REUSE) in by]
        closed = [(a, b) for a, b in pairs if all(e.get("upper") is not None and "lower" in e for e in (a, b))]
        if closed:
            ratio = statistics.geometric_mean(max(a["wall_s"], 1e-3) / max(b["wall_s"], 1e-3) for a, b in closed)
            seconds = [sum(pair[k]["wall_s"] for pair in closed) for k in (0, 1)]
            gaps = [statistics.fmean(pair[k]["upper"] - pair[k]["lower"] for pair in closed) for k in (0, 1)]
            said.append(f"{net}: {len(closed)} images, with reuse {seconds[0]:.1f} s, without {seconds[1]:.1f} s, "
                        f"ratio {ratio:.2f} (geometric mean); mean gap {gaps[0]:.2e} and {gaps[1]:.2e}")
    return "\n".join(said)


# ---------------------------------------------------------------------- the whole


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="Average certified radii, witnesses and times, a row a net and method.")
    p.add_argument("--nets", default=",".join(NETS), metavar="NET,..",
                   help="ONNX files, or names in benchmarks/nets and out/nets [%(default)s]")
    p.add_argument("--methods", default=",".join(USUAL), help=f"of {', '.join(METHODS)} [%(default)s]")
    p.add_argument("--data-dir", type=Path, default=shared / "datasets" / "mnist",
                   help="of the MNIST files [%(default)s]")
    p.add_argument("--data", metavar="FILE.npz|digits",
                   help="other images x and labels y; digits: those that the bundled examples were not trained on")
    p.add_argument("--images", type=int, default=100, metavar="N", help="the first so many [100]")
    p.add_argument("--index", metavar="I,..", help="these images in their place")
    p.add_argument("--norm", choices=NORMS, default="inf")
    p.add_argument("--time-limit", type=float, default=120.0, metavar="S", help="seconds an image and method [120]")
    p.add_argument("--tolerance", type=float, default=1e-4, help="of radii that are bisected for [1e-4]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reuse", action="store_true", help="exact radii beside plain bisection: the ratio of their times")
    p.add_argument("--order", action="store_true", help="only check what is stored")
    p.add_argument("--resume", action="store_true", help="go on with a run")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "radius.json",
                   help="JSON; finished images lie beside it, one a line (.jsonl) [%(default)s]")
    p.add_argument("--worker", nargs=3, metavar=("NET", "METHOD", "IMAGES"), help=argparse.SUPPRESS)
    return p


def file_of(net: str) -> str:
    places = (Path(net), ROOT / "benchmarks" / "nets" / f"{net}.onnx", ROOT / "out" / "nets" / f"{net}.onnx")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SystemExit(f"{net}: no such network; benchmarks/radius_nets.py trains those of the survey")
    return str(found)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    arguments.given = list(sys.argv[1:] if argv is None else argv)
    if arguments.worker:
        net, method, images = arguments.worker
        worker(arguments, net, method, [int(k) for k in images.split(",")])
        return 0
    methods = [WITHOUT_REUSE, WITH_REUSE] if arguments.reuse else arguments.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        raise SystemExit(f"--methods: unknown {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    if not (arguments.time_limit > 0 and arguments.tolerance > 0 and arguments.images > 0):
        raise SystemExit("--time-limit, --tolerance and --images must be positive")
    images = [int(k) for k in arguments.index.split(",")] if arguments.index else list(range(arguments.images))
    settings = {name: getattr(arguments, name) for name in ("norm", "time_limit", "tolerance", "seed")}
    before, start = hardware(), time.monotonic()
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume or arguments.order) as lines:
        if not arguments.order:
            measure(arguments, [file_of(net) for net in arguments.nets.split(",")], methods, images, lines)
        entries = list(lines.entries)
    print(table(entries))
    if said := reuse(entries):
        print(said)
    errors = Counter((e["net"], e["method"], e["error"]) for e in entries if "error" in e)
    wrong = disorder(entries) + [f"{net}, {method}, on {count} images: {error}"
                                 for (net, method, error), count in sorted(errors.items())]
    for sentence in wrong:
        print(f"!!! {sentence}")
    if not arguments.order:
        arguments.out.write_text(json.dumps({
            "benchmark": "radius", "commit": commit(), "settings": settings, "hardware": before,
            "calibration": calibration(1), "seconds": time.monotonic() - start, "results": entries}, allow_nan=False))
        print(arguments.out)
    return 1 if wrong else 0


def measure(arguments: argparse.Namespace, nets: Sequence[str], methods: Sequence[str], images: Sequence[int],
            lines: Lines) -> None:
    known = {(e["net"], e["method"], e["image"]) for e in lines.entries}
    for net in nets:
        for method in methods:
            left = [k for k in images if (Path(net).stem, method, k) not in known]
            for done, entry in enumerate(answers(arguments, net, method, left), 1):
                lines.add(entry)
                print(f"{Path(net).stem} {method} {done}/{len(left)}  lower {entry.get('lower')}  upper "
                      f"{entry.get('upper')}  {entry['wall_s']:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
