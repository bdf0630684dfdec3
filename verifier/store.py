"""Results on disk as they come: one SQLite file a run, one transaction an instance, CSV on the way out.

A killed process loses nothing that was finished: in WAL mode a committed transaction survives it. The settings
of a run are stored beside its results, so that a resumed run cannot mix two kinds of answer.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bounds.files import trouble

Key = tuple[str, str]

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    onnx TEXT NOT NULL, vnnlib TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    lower REAL, upper REAL, time_s REAL NOT NULL, timeout_s REAL NOT NULL, method TEXT NOT NULL,
    domains INTEGER NOT NULL, witness_x BLOB, witness_y BLOB, stages TEXT NOT NULL,
    PRIMARY KEY (onnx, vnnlib)
);
"""


class UnusableStore(ValueError):
    """Results cannot be kept in this folder; the message names it."""


class SettingsDiffer(UnusableStore):
    """A run is resumed with other settings than it was started with, or restarted without `--resume`."""


@dataclass(frozen=True)
class Row:
    """One finished instance. verdict: verified, falsified, unknown or error (then `detail` says why).

    The witness is kept as little-endian float32 bytes, exactly as it was replayed.
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

    @property
    def key(self) -> Key:
        return (self.onnx, self.vnnlib)


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
CSV_COLUMNS = tuple(name for name in COLUMNS if name not in ("witness_x", "witness_y", "stages"))


class Store:
    """The results of one run in `folder`. Use as a context manager."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.path = folder / "results.sqlite"
        with ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(_only_user(folder))
            except OSError as error:
                raise UnusableStore(f"{folder}: no folder for results can be made there ({trouble(error)})") from error
            try:
                self._db = opened.enter_context(closing(sqlite3.connect(self.path, isolation_level=None)))
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(SCHEMA)
                self._check_settings(settings, resume)
            except sqlite3.DatabaseError as error:
                raise UnusableStore(f"{self.path}: not a result store ({error})") from error
            self._opened = opened.pop_all()

    def _check_settings(self, settings: dict[str, Any], resume: bool) -> None:
        stored = {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM settings")}
        if stored and not resume:
            raise SettingsDiffer(f"{self.folder} already holds a run: use --resume or another --out")
        if stored:
            for name in sorted({*stored, *settings}):
                before, now = stored.get(name), settings.get(name)
                if before != now:
                    raise SettingsDiffer(f"{self.folder} was run with {name} {before}, not {now}: "
                                         "resume with the same settings or choose another --out")
            return
        with _transaction(self._db):
            self._db.executemany("INSERT INTO settings VALUES (?, ?)",
                                 [(key, json.dumps(value)) for key, value in settings.items()])

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def finished(self) -> set[Key]:
        return set(self._db.execute("SELECT onnx, vnnlib FROM results"))

    def record(self, row: Row) -> None:
        """Commit one instance: afterwards it survives a kill."""
        places = ", ".join("?" for _ in COLUMNS)
        with _transaction(self._db):
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


@contextmanager
def _only_user(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes in one run would do everything twice. The system frees it when a
    process dies. Without `fcntl` (Windows) nothing is locked."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnusableStore(f"{folder}: another process is working on this run") from error
        yield
    finally:
        os.close(handle)


class _transaction:
    """One explicit transaction: committed as a whole or rolled back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self.db.execute("ROLLBACK" if kind else "COMMIT")


def read_results(folder: Path) -> Iterator[Row]:
    """The rows of a run that may still be going on."""
    db = sqlite3.connect(f"file:{folder / 'results.sqlite'}?mode=ro", uri=True)
    try:
        for values in db.execute(f"SELECT {', '.join(COLUMNS)} FROM results ORDER BY rowid"):
            yield Row(*values)
    finally:
        db.close()
