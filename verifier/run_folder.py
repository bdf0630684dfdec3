"""A folder that holds the results of one run: an SQLite file, kept up to date in transactions, and the run's settings.

A killed process loses nothing that was finished: in WAL mode a committed transaction survives it. The settings are
stored beside the results, so that a resumed run cannot mix two kinds of answer.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from bounds.files import trouble

SETTINGS = "CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);"


class UnusableStore(ValueError):
    """Results cannot be kept in this folder; the message names it."""


class SettingsDiffer(UnusableStore):
    """A run is resumed with other settings than it was started with, or restarted without `--resume`."""


class RunFolder:
    """One run in `folder`, for this process alone. Use as a context manager. `schema`: of its tables."""

    schema: ClassVar[str] = ""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.path = folder / "results.sqlite"
        with ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(only_user(folder))
            except OSError as error:
                raise UnusableStore(f"{folder}: no folder for results can be made there ({trouble(error)})") from error
            try:
                self._db = opened.enter_context(closing(sqlite3.connect(self.path, isolation_level=None)))
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(SETTINGS + self.schema)
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
        with Transaction(self._db):
            self._db.executemany("INSERT INTO settings VALUES (?, ?)",
                                 [(key, json.dumps(value)) for key, value in settings.items()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes in one run would do everything twice. The system frees it when a
    process dies. Without `fcntl` (Windows) nothing is locked. Raises OSError, or UnusableStore where it is held."""
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


class Transaction:
    """One explicit transaction: committed as a whole or rolled back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self.db.execute("ROLLBACK" if kind else "COMMIT")
