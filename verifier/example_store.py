"""The results of a command over a data set as they come: one record and one array an example (see
`verifier.run_folder`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.run_folder import RunFolder, Transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS examples (number INTEGER PRIMARY KEY, record TEXT NOT NULL, x BLOB);"
Finished = tuple[dict[str, Any], NDArray[np.float32] | None]


class ExampleStore(RunFolder):
    """Records by the example's number; an array is kept as little-endian float32 bytes."""

    schema = SCHEMA

    def record(self, finished: Iterable[Finished]) -> None:
        """Commit some examples together: afterwards they survive a kill."""
        with Transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO examples VALUES (?, ?, ?)", [
                (record["index"], json.dumps(record), None if x is None else np.asarray(x, "<f4").tobytes())
                for record, x in finished])

    def finished(self, shape: tuple[int, ...]) -> dict[int, Finished]:
        """What is there, by number; arrays in the shape of an example."""
        rows = self._db.execute("SELECT number, record, x FROM examples ORDER BY number")
        return {number: (json.loads(record), None if x is None else np.frombuffer(x, "<f4").reshape(shape))
                for number, record, x in rows}
