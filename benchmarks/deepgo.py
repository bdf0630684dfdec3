"""DeepGo's questions (arXiv:1805.02242), answered with proofs: ranges over two inputs, and over chosen pixels.

    python benchmarks/deepgo.py [--out out/deepgo.json]
    python benchmarks/deepgo.py --data-dir ../shared/datasets/mnist      # the second experiment too

First experiment: six ReLU networks of our own with two inputs and one output (drawn by seed, the output scaled to
[-1, 1] on a coarse grid) over [0, 10]^2, to an error of 0.01, by branching over CROWN bounds, by Lipschitz constants
on sub-boxes, and by nested one-dimensional searches with one proved and with an estimated constant. Every end called
proved is compared with a grid of step 0.02. Second: eight pixels of an MNIST image move over [0, 1], logit and
confidence of its label, to an error of 0.05. Times are wall clock on `--threads` threads. CPU only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import calibration, commit, finite, hardware, markdown  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from bounds.graph import Graph
    from bounds.sets import InputSet
    from verifier.lipschitz.functions import OutputFunction
    from verifier.lipschitz.range import Range

NET = ROOT / "benchmarks" / "nets" / "mnist_cnn.onnx"
WIDTHS = ((10,), (100,), (50, 50), (30, 30, 30), (20,) * 5, (15,) * 8)
SIDE, STEP = 10.0, 0.02
ERROR, PIXEL_ERROR = 0.01, 0.05
WHERE = {"steepest": "the eight pixels with the steepest margin", "block": "2 x 4 pixels in the middle"}
Row = dict[str, Any]


def drawn(seed: int, widths: tuple[int, ...]) -> Graph:
    """A dense ReLU network in float64, two inputs and one output, whose values on a coarse grid span [-1, 1]."""
    import torch

    from bounds.graph import Graph
    random = torch.Generator().manual_seed(seed)
    layers: list[torch.nn.Module] = []
    fan_in = 2
    for width in (*widths, 1):
        layer = torch.nn.Linear(fan_in, width, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(width, fan_in, generator=random, dtype=torch.float64) * (2 / fan_in) ** 0.5)
            # Kinks lie across the square, whose middle is (5, 5).
            centre = 5 * layer.weight.sum(1) if fan_in == 2 else torch.zeros(width, dtype=torch.float64)
            layer.bias.copy_(torch.randn(width, generator=random, dtype=torch.float64) * 2 - centre)
        layers += [layer, torch.nn.ReLU()]
        fan_in = width
    net = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        values = net(grid(0.5))
        scale = float(2 / (values.max() - values.min()))
        middle = (values.max() + values.min()) / 2
        last = net[-1]
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - middle) * scale)
    return Graph.from_torch(net, (2,)).simplify()


def grid(step: float) -> Tensor:
    import torch
    axis = torch.linspace(0, SIDE, round(SIDE / step) + 1, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def timed(case: str, way: str, ask: Callable[[], Range]) -> Row:
    begin = time.perf_counter()
    found = ask()
    seconds = time.perf_counter() - begin
    print(f"{case}  {way}  {seconds:.2f} s", file=sys.stderr)
    return {"case": case, "way": way, "lower_proved": found.lower_proved, "lower_seen": found.lower_seen,
            "upper_seen": found.upper_seen, "upper_proved": found.upper_proved, "seconds": seconds,
            "evaluations": found.evaluations, "boxes": found.boxes, "evidence": found.evidence.name,
            "complete": found.complete}


def first_experiment(limit_s: float) -> list[Row]:
    import torch

    from bounds.jacobian.interval import bound as fastlip
    from bounds.sets import InputSet
    from verifier.deadline import Deadline
    from verifier.lipschitz.deepgo import deepgo_range, proved_constants
    from verifier.lipschitz.functions import Logit
    from verifier.lipschitz.range import output_range
    box = InputSet(torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), SIDE, dtype=torch.float64))
    function, rows = Logit(index=0), []

    def limit() -> Deadline:
        return Deadline.starting_now(limit_s)

    for seed, widths in enumerate(WIDTHS):
        graph = drawn(seed, widths)
        with torch.no_grad():
            values = torch.cat([graph(part) for part in grid(STEP).split(20_000)])
        truth = float(values.min()), float(values.max())
        ways: dict[str, Callable[[], Range]] = {
            "crown": lambda g=graph: output_range(g, box, function, error=ERROR, deadline=limit()),
            "crown + constants": lambda g=graph: output_range(g, box, function, error=ERROR, deadline=limit(),
                                                              gradient=fastlip),
            "constants": lambda g=graph: output_range(g, box, function, error=ERROR, deadline=limit(), method="ibp",
                                                      gradient=fastlip),
            "nested, proved K": lambda g=graph: deepgo_range(g, box, function, error=ERROR, deadline=limit(),
                                                             constants=proved_constants(g, box, function)),
            "nested, estimated K": lambda g=graph: deepgo_range(g, box, function, error=ERROR, deadline=limit()),
        }
        for way, ask in ways.items():
            row = timed(f"{seed}: {len(widths)} x {widths[0]}", way, ask)
            row["grid"] = truth
            row["holds_on_grid"] = row["lower_proved"] <= truth[0] and truth[1] <= row["upper_proved"]
            rows.append(row)
    return rows


def second_experiment(data: Path, index: int, limit_s: float) -> list[Row]:
    import torch

    from benchmarks.golden import read_images
    from bounds.graph import Graph
    from verifier.deadline import Deadline
    from verifier.lipschitz.functions import Confidence, Logit, Margin
    from verifier.lipschitz.range import output_range
    images, labels = read_images(data)
    label = int(labels[index])
    graph = Graph.from_onnx(NET).simplify().to(dtype=torch.float64)
    x = torch.from_numpy(images[index]).double()
    leaf = x[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(Margin(label).value(graph(leaf)).sum(), leaf)
    pixels = {"steepest": slope.abs().flatten().topk(8).indices,
              "block": torch.tensor([28 * r + c for r in (13, 14) for c in (12, 13, 14, 15)])}
    functions: dict[str, OutputFunction] = {"logit": Logit(index=label), "confidence": Confidence(label)}
    rows = []
    for where, chosen in pixels.items():
        box = moved(x, chosen)
        for name, function in functions.items():
            row = timed(f"image {index} (label {label}), {where}", name,
                        lambda b=box, f=function: output_range(graph, b, f, error=PIXEL_ERROR, batch=64,
                                                               deadline=Deadline.starting_now(limit_s)))
            rows.append({**row, "pixels": chosen.tolist(), "nominal": float(function.value(graph(x[None])))})
    return rows


def moved(x: Tensor, pixels: Tensor) -> InputSet:
    """The box where these pixels move over [0, 1]."""
    from bounds.sets import InputSet
    ends = []
    for end in (0.0, 1.0):
        flat = x.flatten().clone()
        flat[pixels] = end
        ends.append(flat.view(1, *x.shape))
    return InputSet(ends[0], ends[1])


def table(rows: list[Row]) -> str:
    header = ["case", "way", "evidence", "lower", "seen", "seen", "upper", "s", "points", "boxes", "complete", "grid"]
    lines = [[r["case"], r["way"], r["evidence"].lower(),
              *(f"{r[k]:.4f}" for k in ("lower_proved", "lower_seen", "upper_seen", "upper_proved")),
              f"{r['seconds']:.2f}", str(r["evaluations"]), str(r["boxes"]), "yes" if r["complete"] else "no",
              {True: "inside", False: "OUTSIDE", None: ""}[r.get("holds_on_grid")]] for r in rows]
    return markdown(header, lines, 3)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0],
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("out/deepgo.json"), help="where the JSON goes")
    made.add_argument("--data-dir", type=Path, help="MNIST's test files, for the second experiment")
    made.add_argument("--image", type=int, default=0, help="index of the test image")
    made.add_argument("--threads", type=int, default=1, help="of PyTorch")
    made.add_argument("--limit-s", type=float, default=20.0, help="seconds of each search")
    return made


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.threads < 1 or not arguments.limit_s > 0:
        raise SystemExit("--threads must be at least 1 and --limit-s above 0")
    before, machine = hardware(), calibration(arguments.threads)
    import torch
    torch.set_num_threads(arguments.threads)
    rows = first_experiment(arguments.limit_s)
    if arguments.data_dir is not None:
        rows += second_experiment(arguments.data_dir, arguments.image, arguments.limit_s)
    print(table(rows))
    answer = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit(), "hardware": before,
              "calibration": machine, "threads": arguments.threads, "limit_s": arguments.limit_s, "widths": WIDTHS,
              "error": ERROR, "pixel_error": PIXEL_ERROR, "pixels": WHERE, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(finite(answer), indent=1, allow_nan=False) + "\n")
    print(f"\n{arguments.out}", file=sys.stderr)
    wrong = [r for r in rows if r["evidence"] != "ESTIMATE" and r.get("holds_on_grid") is False]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
