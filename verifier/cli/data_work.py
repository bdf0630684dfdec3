"""A command over many examples under way: results as they come, stored, told, resumed, summed up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from verifier.cli.data_run import ProgressLine, out_lines, print_lines
from verifier.cli.errors import BadInput

if TYPE_CHECKING:
    from verifier.example_store import Finished


class DataWork(ABC):
    """What is finished by number; `total` examples in all, inputs of `shape`."""

    def __init__(self, shape: tuple[int, ...], total: int) -> None:
        self.shape, self.total = shape, total
        self.finished: dict[int, Finished] = {}
        self.line = ProgressLine()

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a resumed run must agree on."""

    @abstractmethod
    def results(self) -> Iterator[Finished]:
        """What is not finished yet, as it comes."""

    def pieces(self) -> Iterator[list[Finished]]:
        """The same, those together that come together: they are stored at once."""
        for finished in self.results():
            yield [finished]

    def keeps(self, record: dict[str, Any]) -> bool:
        """Whether a stored answer stands, when a run is resumed; else it is asked again."""
        return True

    @abstractmethod
    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The last line of JSON."""

    @abstractmethod
    def row(self, record: dict[str, Any]) -> str:
        """One answer as people read it; empty where it is only counted."""

    @abstractmethod
    def sentence(self, total: dict[str, Any]) -> str:
        """The result in one line for people."""

    @property
    def done(self) -> list[Finished]:
        """In the order of their numbers."""
        return [self.finished[i] for i in sorted(self.finished)]

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError where an example does not fit what is asked, before anything is written."""

    def run(self, json_out: str | None, *, out: str | None, resume: bool) -> None:
        """All of it; json_out: the flag --json."""
        from contextlib import nullcontext

        from verifier.example_store import ExampleStore
        from verifier.run_folder import UnusableStore
        try:
            self.check()
            store = None if out is None else ExampleStore(Path(out), self.settings(), resume=resume)
        except (UnusableStore, ValueError) as error:
            raise BadInput(str(error)) from error
        quiet = json_out == "-"
        interrupted = False
        with store or nullcontext(), out_lines(json_out) as lines:
            if store is not None:
                self.finished = {i: f for i, f in store.finished(self.shape).items() if self.keeps(f[0])}
                self._show(lines, list(self.finished.values()), quiet)
            try:
                self._work(store, lines, quiet)
            except KeyboardInterrupt:
                interrupted = True
            self.line.end()
            records = [record for record, _ in self.done]
            total = self.summary(records) | {"interrupted": interrupted, "left": self.total - len(records),
                                             "time_s": round(self.line.elapsed, 3)}
            print_lines(lines, [total])
        if not quiet:
            click.echo(("interrupted  " if interrupted else "") + self.sentence(total))

    def _work(self, store: Any, lines: TextIO | None, quiet: bool) -> None:
        from bounds.graph import UnsupportedOperator
        from milp.solvers import SolverUnsuitable
        from verifier.witness import ReplayError
        try:
            for finished in self.pieces():
                if store is not None:
                    store.record(finished)
                self.finished |= {record["index"]: (record, x) for record, x in finished}
                self._show(lines, finished, quiet)
        except (ValueError, UnsupportedOperator, SolverUnsuitable, ReplayError) as error:
            self.line.end()
            raise BadInput(" ".join(str(error).split())) from error

    def _show(self, lines: TextIO | None, finished: list[Finished], quiet: bool) -> None:
        print_lines(lines, [record for record, _ in finished])
        if not quiet:
            rows = [row for record, _ in finished if (row := self.row(record))]
            if rows:
                self.line.end()
            for row in rows:
                click.echo(row)
