"""`rmax bounds`: what a method says about the outputs, and what it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.cli.errors import BadInput, writing
from verifier.cli.question import PropertyFlags, check_device, check_writable, read_network, read_property
from verifier.cli.startup import load_torch
from verifier.cli.verify import BOUND_METHODS

if TYPE_CHECKING:
    from rich.table import Table

    from verifier.problem import Problem

SHOWN_OUTPUTS = 10
LONGEST_LINE = 1000  # where no terminal sets a width


@click.command(epilog="""\b
Examples
  rmax bounds net.onnx property.vnnlib --method ibp,crown,alpha-crown
  rmax bounds net.onnx property.vnnlib --method crown --json -""")
@click.argument("net", metavar="NET.onnx")
@click.argument("spec", metavar="SPEC.vnnlib")
@click.option("--method", "methods", default="ibp,crown,alpha-crown", show_default=True, metavar="M[,M...]",
              help=f"Bound methods: {', '.join(BOUND_METHODS)}.")
@click.option("--time-limit", type=float, default=60.0, show_default=True, metavar="S",
              help="Seconds of a method that needs a solver (lp-last, lp, sdp); after it bounds stay looser.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--json", "json_out", metavar="OUT|-", help="Write one JSON object; - for stdout alone.")
def command(net: str, spec: str, methods: str, time_limit: float, device: str | None, json_out: str | None) -> None:
    """Bound every output over the property's input set, and the margin of the property: one row a method.

    Where the property has several input sets, the outputs are bounded over all of them together.
    """
    check_writable("--json", json_out)
    load_torch()
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in BOUND_METHODS]
    if unknown or not chosen:
        raise BadInput(f"--method: expected names of {', '.join(BOUND_METHODS)}, got {', '.join(unknown) or 'none'}")
    if not time_limit > 0:
        raise BadInput(f"--time-limit must be positive, got {time_limit}")
    check_device(device)
    network = read_network(net)
    property = read_property(PropertyFlags(spec, *[None] * 7), network)

    from bounds.graph import UnsupportedOperator
    from verifier.deadline import Deadline
    from verifier.out_of_memory import is_out_of_memory
    from verifier.problem import make_problem
    try:
        problem = make_problem(network.graph, property, replayer=network.replayer, deadline=Deadline.starting_now(),
                               device=device, simplified=network.simplified)
    except ValueError as error:  # of the network or the property, UnsupportedOperator included
        raise BadInput(" ".join(str(error).split())) from error
    try:
        rows = [_measure(problem, name, time_limit) for name in chosen]
    except (UnsupportedOperator, MemoryError) as error:  # what a method refuses is told in a sentence as well
        raise BadInput(str(error) or "memory ran out") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise BadInput(f"memory ran out: {' '.join(str(error).split())}") from error
        raise
    answer = {"network": net, "property": spec, "regions": problem.tensors.sets.batch, "methods": rows}
    if json_out == "-":
        click.echo(json.dumps(answer, allow_nan=False))
        return
    if json_out is not None:
        with writing("--json", json_out):
            Path(json_out).write_text(json.dumps(answer, allow_nan=False) + "\n", encoding="utf-8")
    _print(rows)


def _measure(problem: Problem, name: str, time_limit: float) -> dict[str, Any]:
    """One method's bounds: of each output over all regions, and of the margin; with seconds."""
    from bounds.compute import compute_bounds
    from milp.methods import WITH_SOLVER, method_named
    from verifier.deadline import Deadline
    from verifier.problem import State
    from verifier.stages import BoundStage
    start = time.perf_counter()
    settings = {"time_limit_s": time_limit} if name in WITH_SOLVER else {}
    outputs = compute_bounds(problem.graph, problem.tensors.sets, None, method_named(name, **settings))
    output_s = time.perf_counter() - start
    assert outputs.upper is not None, "asked for both sides"
    start = time.perf_counter()
    problem = replace(problem, deadline=Deadline.starting_now(time_limit)) if name in WITH_SOLVER else problem
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
    """Every output, if there are few and the terminal is wide enough; else their extremes."""
    from rich.console import Console
    console = Console()
    outputs = len(rows[0]["lower"])
    table = _table(rows, _each_output if outputs <= SHOWN_OUTPUTS else _extremes)
    width = console.measure(table, options=console.options.update(max_width=LONGEST_LINE)).maximum
    if console.is_terminal and width > console.width:
        table, width = _table(rows, _extremes), console.width
    if not console.is_terminal:
        console = Console(width=width)
    console.print(table)
    if len(table.columns) < outputs:
        click.echo(f"{outputs} outputs; --json shows each of them")


def _table(rows: list[dict[str, Any]], outputs: Callable[[dict[str, Any]], dict[str, str]]) -> Table:
    from rich.table import Table
    table = Table("method")
    for heading in (*outputs(rows[0]), "margin >=", "outputs s", "margin s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["method"], *outputs(row).values(), _text(row["margin_lower"]), f"{row['time_s']:.3f}",
                      f"{row['margin_time_s']:.3f}")
    return table


def _each_output(row: dict[str, Any]) -> dict[str, str]:
    pairs = zip(row["lower"], row["upper"], strict=True)
    return {f"Y_{j}": f"{_text(low)} .. {_text(high)}" for j, (low, high) in enumerate(pairs)}


def _extremes(row: dict[str, Any]) -> dict[str, str]:
    pairs = [(low, high) for low, high in zip(row["lower"], row["upper"], strict=True)
             if low is not None and high is not None]
    lowest, highest = (min(p[0] for p in pairs), max(p[1] for p in pairs)) if pairs else (None, None)
    width = sum(high - low for low, high in pairs) / len(pairs) if pairs else None
    return {"lowest": _text(lowest), "highest": _text(highest), "mean width": _text(width)}


def _text(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
