"""`rmax sweep`: a benchmark from its instances.csv."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from verifier.cli.errors import BadInput, reading
from verifier.cli.question import check_device
from verifier.cli.startup import load_torch
from verifier.cli.verify import METHODS, SEED

if TYPE_CHECKING:
    from verifier.store import Row
    from verifier.sweep import SweepResult, Tally

LOUD = "!" * 20


@click.command(epilog="""\b
Examples
  rmax sweep benchmark/instances.csv --time-limit 20 --out out/benchmark
  rmax sweep benchmark/instances.csv --time-limit 20 --out out/benchmark --resume

\b
RUN holds results.sqlite (kept up to date) and results.csv (written at the end and on Ctrl-C).
An expected.csv beside INSTANCES.csv is compared: contradictions are listed.""")
@click.argument("instances", metavar="INSTANCES.csv")
@click.option("--time-limit", type=float, metavar="S", help="Seconds an instance; the smaller of this and the file's.")
@click.option("--out", metavar="RUN", help="Folder of the results [out/NAME of the benchmark's folder].")
@click.option("--resume", is_flag=True,
              help="Go on with a run: skip what RUN has an answer for, unless the files have changed since "
                   "(or their time in INSTANCES.csv has grown and was not enough).")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True,
              help="As in `rmax verify`.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the attacks' random starts.")
def command(instances: str, time_limit: float | None, out: str | None, resume: bool, method: str, device: str | None,
            seed: int) -> None:
    """Verify every row (onnx,vnnlib,timeout) of a benchmark in one process.

    Paths are relative to the CSV; each may lie there as PATH or PATH.gz. One bad instance does not end the run,
    and a killed run loses nothing that was finished.
    """
    if time_limit is not None and not time_limit > 0:
        raise BadInput(f"--time-limit must be positive, got {time_limit}")
    path = Path(instances)
    folder = Path(out) if out else Path("out") / path.absolute().parent.name
    load_torch()
    check_device(device)
    from verifier.run_folder import UnusableStore
    from verifier.sweep import sweep
    progress = Progress()
    with reading(instances):
        try:
            result = sweep(path, folder, time_limit_s=time_limit, method=method, device=device, seed=seed,
                           resume=resume, on_row=progress)
        except UnusableStore as error:
            raise BadInput(str(error)) from error
    progress.end()
    _summary(result)


class Progress:
    """Counts and time left on stderr: one line that renews itself on a terminal, else one line an instance."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def __call__(self, row: Row, tally: Tally) -> None:
        if self.live:
            click.echo(f"\r\033[K{tally.line()}", err=True, nl=False)
        else:
            why = f" ({row.detail or row.reason})" if row.reason else ""
            click.echo(f"{tally.line()}  |  {row.verdict}{why}  {row.time_s:.1f} s  {row.onnx}  {row.vnnlib}", err=True)

    def end(self) -> None:
        if self.live:
            click.echo("", err=True)


def _summary(result: SweepResult) -> None:
    tally = result.tally
    counts = "  ".join(f"{name} {tally.counts[name]}" for name in ("verified", "falsified", "unknown", "error"))
    state = "interrupted after " if result.interrupted else ""
    click.echo(f"{state}{tally.done} of {tally.total}  {counts}  ->  {result.csv_path}")
    if tally.agreed or tally.contradictions:
        click.echo(f"published verdicts: {tally.agreed} agree, {len(tally.contradictions)} contradict")
    for line in tally.contradictions:
        click.echo(f"{LOUD} CONTRADICTION {line}", err=True)
