"""`rmax demo`: the main job in under a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from verifier.cli.errors import writing
from verifier.cli.question import check_writable
from verifier.cli.startup import load_torch

if TYPE_CHECKING:
    from verifier.demo import Answer

COLOURS = {"verified": "green", "falsified": "red", "unknown": "yellow"}


@click.command()
@click.option("--picture", default="rmax-demo.png", show_default=True, metavar="OUT.png",
              help="Where the picture of a digit and its counterexample goes.")
def command(picture: str) -> None:
    """Prove and attack three bundled digit networks: may any pixel move by eps without the digit changing its class?

    Two were trained against attacks, the third (digits_certified) to be proved. Prints a table and saves a picture of
    an original digit beside its counterexample.
    """
    check_writable("--picture", picture)
    load_torch()
    from verifier.deadline import Deadline
    from verifier.demo import run_demo, save_picture
    answers = run_demo(lambda a: click.echo(f"{a.network}  digit {a.label}  eps {a.eps}  {a.result}", err=True))
    _print(answers)
    with writing("--picture", picture):
        saved = save_picture(answers, Path(picture))
    if saved:
        click.echo(f"picture: {picture}")
    click.echo(f"{len(answers)} questions in {Deadline().elapsed():.1f} s")


def _print(answers: list[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table(title="Digit networks: may the digit change its class when every pixel moves by at most eps?")
    for heading in ("network", "digit", "eps", "verdict", "margin", "method", "seconds"):
        table.add_column(heading, justify="right" if heading in ("digit", "eps", "seconds") else "left")
    for a in answers:
        colour = COLOURS[a.result.name]
        margin = {"verified": f">= {a.result.lower:.4f}", "falsified": f"<= {a.result.upper:.4f}"}.get(
            a.result.name, f"{a.result.lower:.2f} .. {a.result.upper:.2f}")
        name = a.network.removesuffix(".onnx").removeprefix("digits_")
        table.add_row(name, str(a.label), a.eps, f"[{colour}]{a.result.name}[/]", margin, a.result.method,
                      f"{a.result.time_s:.2f}")
    Console().print(table)
