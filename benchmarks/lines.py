"""Results of a long benchmark as they come: one JSON object a line, behind a first line with the run's settings.

A killed run loses nothing that was finished: each line is on its way to the disk before the next piece of work
starts, and a torn last line is cut off when the run is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Lines:
    """The results of one run in `path`. SystemExit with a sentence where it cannot be used. A context manager."""

    def __init__(self, path: Path, settings: Entry, *, resume: bool) -> None:
        self.path = path
        self.entries: list[Entry] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = self._read() if path.exists() else []
        if stored and not resume:
            raise SystemExit(f"{path} already holds a run: use --resume or another --out")
        if stored:
            before = stored[0].get("settings", {})
            for name in sorted({*before, *settings}):
                if before.get(name) != settings.get(name):
                    raise SystemExit(f"{path} was run with {name} {before.get(name)}, not {settings.get(name)}: "
                                     "resume with the same settings or choose another --out")
            self.entries = stored[1:]
        self._file = path.open("a", encoding="utf-8")
        if not stored:
            self._write([{"settings": settings}])

    def _read(self) -> list[Entry]:
        """The whole lines; what a kill left behind the last of them is cut off."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        try:
            return [json.loads(line) for line in data[:whole].splitlines()]
        except ValueError:
            raise SystemExit(f"{self.path}: not a file of results, one JSON object a line") from None

    def _write(self, entries: Iterable[Entry]) -> None:
        self._file.write("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries))
        self._file.flush()

    def add(self, *entries: Entry) -> None:
        """Store finished entries: afterwards they survive a kill of this process."""
        self._write(entries)
        self.entries.extend(entries)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
