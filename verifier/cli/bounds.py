"""`rmax bounds`: what a method says about the outputs, and what it costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.cli.errors import BadInput
from verifier.cli.question import PropertyFlags, check_device, check_writable, read_network, read_property
from verifier.cli.startup import load_torch

if TYPE_CHECKING:
    from verifier.problem import Problem

SHOWN_OUTPUTS = 10


@click.command(epilog="""\b
Examples
  rmax bounds net.onnx property.vnnlib --method ibp,crown,alpha-crown
  rmax bounds net.onnx property.vnnlib --method crown --json -""")
@click.argument("net", metavar="NET.onnx")
@click.argument("spec", metavar="SPEC.vnnlib")
@click.option("--method", "methods", default="ibp,crown,alpha-crown", show_default=True, metavar="M[,M...]",
              help="Bound methods: ibp, zonotope, fastlin, crown-ibp, crown, alpha-crown, meet.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--json", "json_out", metavar="OUT|-", help="Write one JSON object; - for stdout alone.")
def command(net: str, spec: str, methods: str, device: str | None, json_out: str | None) -> None:
    """Bound every output over the property's input set, and the margin of the property: one row a method.

    Where the property has several input sets, the outputs are bounded over all of them together.
    """
    check_writable("--json", json_out)
    load_torch()
    from bounds.compute import METHODS
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen:
        raise BadInput(f"--method: expected names of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    check_device(device)
    network = read_network(net)
    property = read_property(PropertyFlags(spec, *[None] * 7), network)

    from bounds.graph import UnsupportedOperator
    from verifier.deadline import Deadline
    from verifier.problem import make_problem
    try:
        problem = make_problem(network.graph, property, replayer=network.replayer, deadline=Deadline(),
                               device=device, simplified=network.simplified)
        rows = [_measure(problem, name) for name in chosen]
    except UnsupportedOperator as error:
        raise BadInput(str(error)) from error
    answer = {"network": net, "property": spec, "regions": problem.tensors.sets.batch, "methods": rows}
    if json_out == "-":
        click.echo(json.dumps(answer, allow_nan=False))
        return
    if json_out is not None:
        Path(json_out).write_text(json.dumps(answer, allow_nan=False) + "\n", encoding="utf-8")
    _print(rows)


def _measure(problem: Problem, name: str) -> dict[str, Any]:
    """One method's bounds: of each output over all regions, and of the margin; with seconds."""
    from bounds.compute import compute_bounds
    from verifier.problem import State
    from verifier.stages import BoundStage
    start = time.perf_counter()
    outputs = compute_bounds(problem.graph, problem.tensors.sets, None, name)
    output_s = time.perf_counter() - start
    assert outputs.upper is not None, "asked for both sides"
    start = time.perf_counter()
    state = State.of(problem)
    BoundStage(name).run(problem, state)
    margin = state.lower(problem.tensors)
    return {
        "method": name,
        "lower": [_finite(v) for v in outputs.lower.amin(0).tolist()],
        "upper": [_finite(v) for v in outputs.upper.amax(0).tolist()],
        "time_s": round(output_s, 4),
        "margin_lower": _finite(margin),
        "margin_time_s": round(time.perf_counter() - start, 4),
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    outputs = len(rows[0]["lower"])
    table = Table(title=None if outputs <= SHOWN_OUTPUTS else f"{outputs} outputs: extremes and mean width")
    table.add_column("method")
    shown = outputs <= SHOWN_OUTPUTS
    for heading in [f"Y_{j}" for j in range(outputs)] if shown else ["lowest", "highest", "mean width"]:
        table.add_column(heading, justify="right")
    for heading in ("margin >=", "outputs s", "margin s"):
        table.add_column(heading, justify="right")
    for row in rows:
        pairs = list(zip(row["lower"], row["upper"], strict=True))
        if shown:
            cells = [f"{_text(low)} .. {_text(high)}" for low, high in pairs]
        else:
            bounded = [(low, high) for low, high in pairs if low is not None and high is not None]
            width = sum(high - low for low, high in bounded) / len(bounded) if bounded else float("nan")
            cells = [f"{min(b[0] for b in bounded):.4g}" if bounded else "-inf",
                     f"{max(b[1] for b in bounded):.4g}" if bounded else "inf", f"{width:.4g}"]
        table.add_row(row["method"], *cells, _text(row["margin_lower"]), f"{row['time_s']:.3f}",
                      f"{row['margin_time_s']:.3f}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=40 + 22 * max(outputs if shown else 3, 3))
    console.print(table)


def _text(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
