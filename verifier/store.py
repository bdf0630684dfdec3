"""The results of a sweep as they come: one row an instance, CSV on the way out (see `verifier.run_folder`)."""

from __future__ import annotations

import csv
import dataclasses
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verifier.run_folder import RunFolder, Transaction

Key = tuple[str, str]

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    onnx TEXT NOT NULL, vnnlib TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    lower REAL, upper REAL, time_s REAL NOT NULL, timeout_s REAL NOT NULL, method TEXT NOT NULL,
    domains INTEGER NOT NULL, witness_x BLOB, witness_y BLOB, stages TEXT NOT NULL,
    files TEXT NOT NULL,
    PRIMARY KEY (onnx, vnnlib)
);
"""


@dataclass(frozen=True)
class Row:
    """One finished instance. verdict: verified, falsified, unknown or error (then `detail` says why).

    The witness is kept as little-endian float32 bytes, exactly as it was replayed. files: digests of what was asked
    about (`Digests`).
    """

    onnx: str
    vnnlib: str
    verdict: str
    reason: str = ""
    detail: str = ""
    lower: float | None = None
    upper: float | None = None
    time_s: float = 0.0
    timeout_s: float = 0.0
    method: str = ""
    domains: int = 0
    witness_x: bytes | None = None
    witness_y: bytes | None = None
    stages: str = "[]"
    files: str = ""

    @property
    def key(self) -> Key:
        return (self.onnx, self.vnnlib)


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
CSV_COLUMNS = tuple(name for name in COLUMNS if name not in ("witness_x", "witness_y", "stages", "files"))


class Store(RunFolder):
    """The results of one sweep."""

    schema = SCHEMA

    def record(self, row: Row) -> None:
        """Commit one instance: afterwards it survives a kill."""
        places = ", ".join("?" for _ in COLUMNS)
        with Transaction(self._db):
            self._db.execute(f"INSERT OR REPLACE INTO results ({', '.join(COLUMNS)}) VALUES ({places})",
                             [getattr(row, name) for name in COLUMNS])

    def rows(self) -> list[Row]:
        """All finished instances, in the order in which they finished."""
        return [Row(*values) for values in self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM results ORDER BY rowid")]

    def export_csv(self) -> Path:
        """Write `results.csv` beside the store, whole or not at all."""
        path = self.folder / "results.csv"
        draft = path.with_suffix(".csv.part")
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for row in self.rows():
                writer.writerow(["" if (value := getattr(row, name)) is None else value for name in CSV_COLUMNS])
        os.replace(draft, path)
        return path


def read_results(folder: Path) -> Iterator[Row]:
    """The rows of a run that may still be going on."""
    db = sqlite3.connect(f"file:{folder / 'results.sqlite'}?mode=ro", uri=True)
    try:
        for values in db.execute(f"SELECT {', '.join(COLUMNS)} FROM results ORDER BY rowid"):
            yield Row(*values)
    finally:
        db.close()
