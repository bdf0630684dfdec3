"""How tight is each bound method, and what does it cost? One row a method, network and batch.

    python benchmarks/tightness.py [--out out/tightness.json]
    python benchmarks/tightness.py --shared ../shared --cases mnist_fc_256x6 oval21_base sri_resnet_a
    python benchmarks/tightness.py --net NET.onnx --spec SPEC.vnnlib --batch 1 32

Every row is measured in a process of its own, so that its peak memory is the method's. Prints a table, stores JSON
(versions, seeds, hardware, calibration) and a picture of tightness against time; `benchmarks/README.md` explains
the columns. Where `peers/lirpa_bounds.csv` lies in the shared folder, its figures stand beside ours. CPU only.

Axis legend: B input sets, R rows of a set, m outputs, n flat inputs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import (  # noqa: E402
    available_cores,
    calibration,
    commit,
    environment,
    finite,
    hardware,
    thread_waiting,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bounds.bounds import Bounds, LinearRows
    from bounds.graph import Graph
    from bounds.sets import InputSet
    from verifier.property import Property

EXAMPLES = ROOT / "verifier" / "examples"
SEED = 0
SHIFT = 0.1        # batches shift the centre by up to this share of the radius
REPEATS = 5
LONG_CALL_S = 20.0  # a call that takes longer is timed once
ALONE = ("sdp",)     # methods that are measured on one set only, unless they are asked for
LIMITATIONS = ("UnsupportedOperator", "ZonotopeTooLarge", "SdpTooLarge")  # refusals by name: a reason, not a failure
Row = dict[str, Any]


# ---------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A network and a one-region property; with `radius` and `written` the box is scaled by their quotient."""

    name: str
    net: Path
    spec: Path
    batches: tuple[int, ...] = (1,)
    radius: float | None = None
    written: float | None = None

    @property
    def scale(self) -> float:
        return 1.0 if self.radius is None or self.written is None else self.radius / self.written


def bundled_cases() -> list[Case]:
    return [Case(f"digits_{name}", EXAMPLES / f"digits_{name}.onnx", EXAMPLES / f"{name}_image0_middle.vnnlib", (1, 16))
            for name in ("mlp", "cnn")]


def shared_cases(shared: Path) -> list[Case]:
    """The inputs of `peers/lirpa_bounds.csv`, with its batches, and one more small enough for linear programmes."""
    data = shared / "vnncomp"
    mnist, oval, sri = data / "mnist_fc", data / "oval21", data / "sri_resnet_a"
    written = "0.030457516339869282"
    return [
        Case("mnist_fc_256x2", mnist / "onnx/mnist-net_256x2.onnx", mnist / "vnnlib/prop_1_0.05.vnnlib"),
        Case("mnist_fc_256x6", mnist / "onnx/mnist-net_256x6.onnx", mnist / "vnnlib/prop_7_0.03.vnnlib", (1, 100)),
        Case("oval21_base", oval / "onnx/cifar_base_kw.onnx",
             oval / f"vnnlib/cifar_base_kw-img3568-eps{written}.vnnlib", (1, 32), 2 / 255, float(written)),
        Case("sri_resnet_a", sri / "onnx/resnet_3b2_bn_mixup_adv_4.0_bs128_lr-1.onnx",
             sri / "vnnlib/cifar10_spec_idx_2219_eps_0.00350.vnnlib", (1, 4)),
    ]


def input_sets(property: Property, shape: tuple[int, ...], *, batch: int, scale: float, dtype: str) -> InputSet:
    """The property's box, scaled about its centre; for batch > 1, copies whose centres are shifted by uniform noise
    in +-SHIFT of its radius. Ends are rounded outward to the dtype. "B *shape"."""
    import torch

    from bounds.sets import Box
    if len(property.regions) != 1:
        raise ValueError(f"{property.source} has {len(property.regions)} input sets; this benchmark takes one")
    (region,) = property.regions
    lower = torch.from_numpy(region.lower).view(1, *shape)
    upper = torch.from_numpy(region.upper).view(1, *shape)
    if batch > 1 or scale != 1:
        centre, radius = (lower + upper) / 2, (upper - lower) / 2 * scale
        if batch > 1:
            noise = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
            centre = centre + noise.double() * radius * SHIFT
        lower, upper = centre - radius, centre + radius
    return Box(lower, upper).to(dtype=getattr(torch, dtype))


def asked_rows(property: Property, shape: tuple[int, ...], sets: InputSet) -> LinearRows:
    """Every row of the property over every set: how far the row is from holding. N = B * R, by set."""
    import torch

    from bounds.bounds import LinearRows
    t = property.tensors(shape, dtype=sets.dtype)

    def repeated(x: Tensor) -> Tensor:
        return x.repeat(sets.batch, *(1,) * (x.dim() - 1))

    owner = torch.arange(sets.batch).repeat_interleave(t.C.shape[0])
    return LinearRows(repeated(t.C), owner, None if t.D is None else repeated(t.D), repeated(-t.bound))


def question(case: Case, batch: int, dtype: str) -> tuple[Graph, InputSet, LinearRows]:
    """The network in search form, the input sets and the rows of a case."""
    import torch

    from bounds.files import existing
    from bounds.graph import Graph
    from verifier.problem import without_final_softmax
    from verifier.vnnlib import read_vnnlib
    property = read_vnnlib(case.spec)
    graph = Graph.from_onnx(existing(case.net)).simplify()
    graph = without_final_softmax(graph, property).to(dtype=getattr(torch, dtype))
    sets = input_sets(property, graph.input_shape, batch=batch, scale=case.scale, dtype=dtype)
    return graph, sets, asked_rows(property, graph.input_shape, sets)


# ---------------------------------------------------------------------- one measurement


def measure(case: Case, batch: int, method: str, *, iterations: int, dtype: str, threads: int, cap_s: float) -> Row:
    """Bounds, seconds and memory of one method; runs in a process of its own.

    After a first call they are repeated until there are REPEATS, one takes longer than LONG_CALL_S, or another would
    pass the cap.
    """
    start = time.perf_counter()
    from verifier.cli.startup import load_torch
    load_torch()  # as the command line does: the same thread settings
    import torch

    from milp.methods import method_named
    torch.set_num_threads(threads)
    graph, sets, rows = question(case, batch, dtype)
    settings = {"iterations": iterations} if method == "alpha-crown" else {}
    chosen = method_named(method, **settings)

    def timed() -> tuple[float, Bounds]:
        begin = time.perf_counter()
        answer = chosen.bound(graph, sets, rows)
        return time.perf_counter() - begin, answer

    reset_peak()
    before = memory_mib("VmRSS")
    first_s, answer = timed()
    seconds = [first_s] if first_s > LONG_CALL_S else []
    while not seconds or (len(seconds) < REPEATS and seconds[-1] <= LONG_CALL_S
                          and time.perf_counter() - start + seconds[-1] < cap_s):
        seconds.append(timed()[0])
    peak = memory_mib("VmHWM")
    lower = answer.lower.double().view(batch, -1)
    unstable, neurons = unstable_neurons(graph, sets, answer)
    return {
        "worst": float(lower.amin(1).mean()), "mean": float(lower.mean()), "rows": lower.shape[1],
        "unstable": unstable / neurons if neurons else 0.0, "neurons": neurons // batch,
        "seconds": statistics.median(seconds), "all_seconds": seconds, "first_call_s": first_s,
        "peak_mib": peak, "peak_over_start_mib": peak - before,
        "iterations": settings.get("iterations"), "threads": torch.get_num_threads(),
        "thread_waiting": thread_waiting(os.environ),
    }


def unstable_neurons(graph: Graph, sets: InputSet, answer: Bounds) -> tuple[int, int]:
    """(neurons whose operator is not linear on the answer's enclosure, all that feed a non-affine operator),
    over all sets."""
    from bounds.backward import Backward
    from bounds.intermediate import undecided
    engine = Backward(graph, sets)
    engine.intervals.update(answer.intervals)
    masks = [undecided(engine, i, answer.intervals[i]) for i in graph.relaxed_inputs]
    return sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process. Not `ru_maxrss`: a fresh process inherits its parent's there."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        import resource  # no /proc: the maximum so far, for both fields
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def reset_peak() -> None:
    """Start the peak afresh, so that reading the network does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux: the peak counts from the start of the process


# ---------------------------------------------------------------------- all measurements


def measured(case: Case, batch: int, method: str, settings: dict[str, Any]) -> Row:
    """A row of the table: what `measure` found in a fresh process, or `skipped` with the reason."""
    row: Row = {"case": case.name, "batch": batch, "method": method}
    task = {"case": dataclasses.asdict(case), "batch": batch, "method": method, **settings}
    command = [sys.executable, __file__, "--measure", json.dumps(task, default=str)]
    cap_s = float(settings["cap_s"])
    try:
        done = subprocess.run(command, env=environment(settings["threads"]), capture_output=True, text=True,
                              timeout=cap_s)
    except subprocess.TimeoutExpired:
        return {**row, "skipped": f"a warm-up and one timed call did not end within {cap_s:g} s"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"the process ended with code {done.returncode}"
        kind, _, sentence = reason.partition(": ")
        if kind.rpartition(".")[2] in LIMITATIONS:
            return {**row, "skipped": sentence}
        return {**row, "skipped": reason, "failed": True}
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def measure_task(task: dict[str, Any]) -> None:
    """The measuring process: one JSON object on the last line of stdout."""
    given = task.pop("case")
    given.update(net=Path(given["net"]), spec=Path(given["spec"]), batches=tuple(given["batches"]))
    print(json.dumps(measure(Case(**given), task.pop("batch"), task.pop("method"), **task)))


# ---------------------------------------------------------------------- peers


def peer_name(row: Row) -> str:
    """The method's name in `lirpa_bounds.csv`; names it does not have match nothing."""
    if row["method"] == "alpha-crown":
        return f"alpha-CROWN-{row['iterations']}"
    return str(row["method"]).upper()


def read_peers(path: Path) -> dict[tuple[str, int, str], dict[str, str]]:
    """The rows of `lirpa_bounds.csv` by case, batch and method; empty where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {(row["case"], int(row["batch"]), row["method"]): row for row in csv.DictReader(file)}


def compare(row: Row, peers: dict[tuple[str, int, str], dict[str, str]]) -> Row:
    """The row with the peer's figures, the ratio of times and the difference of bounds (positive: ours tighter)."""
    if "skipped" in row:
        return row
    peer = peers.get((row["case"], row["batch"], peer_name(row)))
    if peer is None:
        return row
    worst, mean = float(peer["mean_worst_margin_lower"]), float(peer["mean_margin_lower"])
    seconds = float(peer["median_s"])
    return {**row, "peer": {"seconds": seconds, "worst": worst, "mean": mean},
            "time_ratio": row["seconds"] / seconds,
            "worst_gain": row["worst"] - worst, "worst_gain_relative": (row["worst"] - worst) / max(abs(worst), 1e-12),
            "mean_gain": row["mean"] - mean, "mean_gain_relative": (row["mean"] - mean) / max(abs(mean), 1e-12)}


# ---------------------------------------------------------------------- table and picture

COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda r: r["case"],
    "batch": lambda r: str(r["batch"]),
    "method": lambda r: r["method"] + (f"-{r['iterations']}" if r.get("iterations") else ""),
    "worst": lambda r: f"{r['worst']:.6g}",
    "mean": lambda r: f"{r['mean']:.6g}",
    "unstable": lambda r: f"{r['unstable']:.1%}",
    "seconds": lambda r: f"{r['seconds']:.3g}" + ("" if len(r["all_seconds"]) == REPEATS else
                                                  f" ({len(r['all_seconds'])}x)"),
    "peak MiB": lambda r: f"{r['peak_mib']:.0f}",
    "added MiB": lambda r: f"{r['peak_over_start_mib']:.0f}",
}
PEER_COLUMNS: dict[str, Callable[[Row], str]] = {
    "time ratio": lambda r: f"{r['time_ratio']:.2f}" if "peer" in r else "",
    "worst gain": lambda r: f"{r['worst_gain']:+.3g} ({r['worst_gain_relative']:+.1e})" if "peer" in r else "",
    "mean gain": lambda r: f"{r['mean_gain']:+.3g} ({r['mean_gain_relative']:+.1e})" if "peer" in r else "",
}


def table(rows: list[Row]) -> str:
    """The rows as an aligned Markdown table, the skipped ones with their reasons below."""
    done = [r for r in rows if "skipped" not in r]
    columns = COLUMNS | (PEER_COLUMNS if any("peer" in r for r in done) else {})
    cells = [list(columns), *([show(r) for show in columns.values()] for r in done)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    texts = ("case", "method")
    padded = [[cell.ljust(w) if name in texts else cell.rjust(w)
               for name, cell, w in zip(columns, line, widths, strict=True)] for line in cells]
    rule = ["-" * w if name in texts else "-" * (w - 1) + ":" for name, w in zip(columns, widths, strict=True)]
    lines = ["| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:])]
    skipped = [f"skipped: {r['case']}, batch {r['batch']}, {r['method']}: {r['skipped']}" for r in rows
               if "skipped" in r]
    return "\n".join(lines + ([""] if skipped else []) + skipped)


MARKS = ("o", "s", "^", "v", "D", "P", "X")


def draw(rows: list[Row], path: Path) -> None:
    """Tightness against time, a panel a case and batch; hollow marks are the peer's figures."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    done = [r for r in rows if "skipped" not in r]
    panels = list(dict.fromkeys((r["case"], r["batch"]) for r in done))
    if not panels:
        return
    methods = list(dict.fromkeys(r["method"] for r in done))  # one mark and colour a method on all panels
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(6.5 * across, 4 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (case, batch) in zip(axes.flat, panels, strict=False):
        shown = [r for r in done if (r["case"], r["batch"]) == (case, batch)]
        for r in shown:
            number = methods.index(r["method"])
            style = {"marker": MARKS[number % len(MARKS)], "color": f"C{number % 10}", "linestyle": "none"}
            # The numbers stand in the legend: methods that differ in the third digit share a spot.
            axis.plot(r["seconds"], r["worst"], **style, alpha=0.8, label=f"{COLUMNS['method'](r)}  {r['worst']:.5g}")
            if "peer" in r:
                axis.plot(r["peer"]["seconds"], r["peer"]["worst"], **style, markersize=10, markerfacecolor="none")
        axis.set_xscale("log")
        if max(abs(r["worst"]) for r in shown) > 10:
            axis.set_yscale("symlog", linthresh=1)
        axis.margins(0.12)
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        hollow = " (hollow: auto_LiRPA)" if any("peer" in r for r in shown) else ""
        axis.set_title(f"{case}, batch {batch}{hollow}", fontsize=10)
        axis.set_xlabel("seconds a call")
        axis.set_ylabel("worst lower bound (higher is tighter)")
        axis.legend(fontsize=8, loc="lower right")  # cheap and tight is upper left
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Tightness, time and memory of the bound methods.")
    p.add_argument("--cases", nargs="+", metavar="NAME", help="digits_mlp, digits_cnn (default), mnist_fc_256x6, "
                   "oval21_base, sri_resnet_a")
    p.add_argument("--net", type=Path, help="a network of your own, with --spec")
    p.add_argument("--spec", type=Path, help="its VNN-LIB property, over one box")
    p.add_argument("--batch", type=int, nargs="+", help="numbers of input sets [each case's own]")
    p.add_argument("--methods", nargs="+", metavar="M", help="ibp, zonotope, fastlin, crown-ibp, crown, alpha-crown, "
                   "meet [all]")
    p.add_argument("--iterations", type=int, default=20, help="of alpha-crown [20]")
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    p.add_argument("--threads", type=int, default=available_cores(), help="[all cores]")
    p.add_argument("--cap-s", type=float, default=180.0, help="seconds after which a row is given up [180]")
    p.add_argument("--shared", type=Path, default=Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared")),
                   help="folder with vnncomp and peers [$RMAX_SHARED or ../shared beside the checkout]")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "tightness.json", help="JSON; the picture lies beside it")
    p.add_argument("--measure", help=argparse.SUPPRESS)  # the measuring process's task
    return p


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases asked for; SystemExit with one sentence where one is unknown or its files are missing."""
    from bounds.files import existing
    if (arguments.net is None) != (arguments.spec is None):
        raise SystemExit("--net and --spec belong together")
    known = {c.name: c for c in (*bundled_cases(), *shared_cases(arguments.shared))}
    names = arguments.cases or ([] if arguments.net else [c.name for c in bundled_cases()])
    unknown = [n for n in names if n not in known]
    if unknown:
        raise SystemExit(f"--cases: expected names of {', '.join(known)}, got {', '.join(unknown)}")
    cases = [known[n] for n in names]
    if arguments.net is not None:
        cases.append(Case(arguments.net.name.removesuffix(".gz").removesuffix(".onnx"), arguments.net.resolve(),
                          arguments.spec.resolve()))
    for case in cases:
        for path in (case.net, case.spec):
            try:
                existing(path)
            except FileNotFoundError:
                raise SystemExit(f"{case.name}: {path} not found; --shared names the folder of the data") from None
    return cases


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.measure:
        measure_task(json.loads(arguments.measure))
        return 0
    cases = chosen_cases(arguments)
    from milp.methods import METHODS
    methods = arguments.methods or METHODS
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise SystemExit(f"--methods: expected names of {', '.join(METHODS)}, got {', '.join(unknown)}")
    if min(arguments.batch or [1]) < 1 or arguments.threads < 1 or arguments.iterations < 1:
        raise SystemExit("--batch, --threads and --iterations must be at least 1")
    before = hardware()
    machine = calibration(arguments.threads)
    peers = read_peers(arguments.shared / "peers" / "lirpa_bounds.csv")
    settings = {k: getattr(arguments, k) for k in ("iterations", "dtype", "threads", "cap_s")}
    rows: list[Row] = []
    tasks = [(case, batch, method) for case in cases for batch in arguments.batch or case.batches for method in methods
             if batch == 1 or arguments.methods or method not in ALONE]
    for number, (case, batch, method) in enumerate(tasks, 1):
        print(f"{number}/{len(tasks)}  {case.name}  batch {batch}  {method}", file=sys.stderr)
        rows.append(compare(measured(case, batch, method, settings), peers))
    print(table(rows))
    answer = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit(), "seed": SEED, "settings": settings,
        "thread_waiting": thread_waiting(environment(arguments.threads)),
        "hardware": before,
        "calibration": machine,
        "cases": {c.name: {"net": c.net.name, "spec": c.spec.name, "scale": c.scale} for c in cases},
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(finite(answer), indent=1, allow_nan=False) + "\n")
    draw(rows, arguments.out.with_suffix(".png"))
    print(f"\n{arguments.out}, {arguments.out.with_suffix('.png')}", file=sys.stderr)
    return 1 if any(r.get("failed") for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
