"""Writing proof files. The format and its meaning stand in docs/proofs.md; `verifier.check` reads it by itself.

A file is a magic line, blocks and a digest. Blocks are written while the search runs, so that a proof never lies in
memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"rmax-proof 2\n"
CLOSED, KEPT = 0, 1             # what a certificate is for
NO_BRANCH = -1                  # a certificate of no row: its node is empty
LEVEL = 6                       # of the compression
CHUNK_BYTES = 1 << 20           # uncompressed columns that make a block worth writing
Array = NDArray[Any]


class ProofWriter:
    """Writes OUT.partial; `finish` turns it into OUT at once, `discard` removes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._file = self.partial.open("wb")
        self._digest = hashlib.sha256()
        self._columns: dict[str, list[Array]] = {}
        self._bytes = 0
        self._put(MAGIC)

    def add(self, table: str, **columns: Array) -> None:
        """Append rows to a table of the block that is being filled."""
        for name, values in columns.items():
            self._columns.setdefault(f"{table}.{name}", []).append(values)
            self._bytes += values.nbytes

    @property
    def is_full(self) -> bool:
        """Whether what is waiting is enough for a block."""
        return self._bytes >= CHUNK_BYTES

    def flush(self, kind: str) -> None:
        """Write what is waiting as one block."""
        if self._columns:
            columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
            self._columns, self._bytes = {}, 0
            self.block(kind, {}, columns)

    def block(self, kind: str, content: dict[str, Any], columns: dict[str, Array] | None = None) -> None:
        """A block by itself: values of JSON, and columns (flattened)."""
        flat = {name: _little(values) for name, values in (columns or {}).items()}
        head = {"block": kind, **content, "columns": {n: [v.dtype.str.lstrip("|"), v.size] for n, v in flat.items()}}
        data = b"".join([json.dumps(head, allow_nan=False).encode(), b"\n", *(v.tobytes() for v in flat.values())])
        packed = zlib.compress(data, LEVEL)
        self._put(struct.pack("<I", len(packed)) + packed)

    def finish(self) -> int:
        """Close the file under its own name; its size in bytes."""
        self._file.write(self._digest.digest())
        self._file.close()
        os.replace(self.partial, self.path)
        return self.path.stat().st_size

    def discard(self) -> None:
        """Remove what is not finished."""
        self._columns = {}
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)


def _little(values: Array) -> Array:
    """The entries in order, in little-endian byte order."""
    return np.ascontiguousarray(values.ravel(), values.dtype.newbyteorder("<"))


def pack_codes(codes: Array) -> Array:
    """Two bits a neuron: "B m" (0 to 3) -> "B ceil(m / 4)" bytes, the first neuron in the lowest bits."""
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // 4) * 4), np.uint8)
    padded[:, :codes.shape[1]] = codes
    four = padded.reshape(len(codes), -1, 4)
    packed: Array = four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
    return packed


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


__all__ = ["CLOSED", "KEPT", "NO_BRANCH", "Array", "ProofWriter", "pack_codes", "sha256"]
