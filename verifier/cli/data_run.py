"""What commands over a data set share: which examples, lines of JSON as they come, progress, a table at the end."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from verifier.cli.errors import BadInput, reading, writing

if TYPE_CHECKING:
    from verifier.data import DataSet
    from verifier.network import Network

TOLD_EVERY_S = 5.0  # where progress is lines and not one line that renews itself
RENEWED_EVERY_S = 0.2


def chosen_data(path: str, network: Network, index: tuple[int, ...], count: int | None) -> DataSet:
    """The examples of a file that --index or --count choose."""
    from verifier.data import read_data
    with reading(path):
        data = read_data(path, network.graph.input_shape, math.prod(network.graph.output_shape))
        return data.chosen(sorted(set(index)) if index else list(range(min(count or len(data), len(data)))))


def check_clip(clip: tuple[float, float] | None) -> None:
    if clip is not None and not -math.inf < clip[0] <= clip[1] < math.inf:
        raise BadInput(f"--clip needs two numbers LO <= HI, got {clip[0]} {clip[1]}")


def check_run(out: str | None, resume: bool, index: tuple[int, ...], count: int | None) -> None:
    if resume and out is None:
        raise BadInput("--resume goes on with a run that --out names")
    if index and count:
        raise BadInput("--index and --count exclude each other")


@contextmanager
def out_lines(json_out: str | None) -> Iterator[TextIO | None]:
    """Where --json wants its lines. To be entered once nothing is left that may refuse the run: the file is emptied."""
    if json_out is None or json_out == "-":
        yield sys.stdout if json_out else None
        return
    with ExitStack() as opened:
        with writing("--json", json_out):
            file = opened.enter_context(Path(json_out).open("w", encoding="utf-8"))
        yield file


def print_lines(lines: TextIO | None, records: list[dict[str, Any]]) -> None:
    if lines is not None:
        for record in records:
            lines.write(json.dumps(record) + "\n")
        lines.flush()


def write_csv(path: str | None, records: list[dict[str, Any]]) -> None:
    """A row a record."""
    if path is None:
        return
    with writing("--csv", path), Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(records[0]) if records else ["index"])
        table.writeheader()
        table.writerows(records)


class ProgressLine:
    """Progress on stderr: one line that renews itself on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.begin = self.told = time.monotonic()
        self.live = sys.stderr.isatty()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    @property
    def is_due(self) -> bool:
        """Whether `tell` would show anything now."""
        return time.monotonic() - self.told >= (RENEWED_EVERY_S if self.live else TOLD_EVERY_S)

    def tell(self, line: str) -> None:
        if not self.is_due:
            return
        self.told = time.monotonic()
        click.echo(f"\r\033[K{line}  elapsed {self.elapsed:.0f} s" if self.live else
                   f"{line}  elapsed {self.elapsed:.0f} s", err=True, nl=not self.live)

    def end(self) -> None:
        if self.live:
            click.echo("\r\033[K", err=True, nl=False)
