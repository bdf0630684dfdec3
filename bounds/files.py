"""Where files lie and what they hold: a path, or the same path with `.gz` behind it; plain bytes or gzip."""

from __future__ import annotations

import errno
import gzip
import io
import os
import zlib
from pathlib import Path

LARGEST_UNPACKED = 1 << 30  # bytes; a few megabytes of gzip can hold any amount, and no known network has as many
_GZIP = b"\x1f\x8b"
_PIECE = 1 << 22


class DamagedFile(ValueError):
    """A compressed file that cannot be unpacked; the message does not name it, since bytes have no name."""


def existing(path: str | Path) -> Path:
    """PATH if it is there, else PATH.gz; FileNotFoundError names PATH."""
    plain = Path(path)
    if plain.is_file():
        return plain
    if plain.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(plain))
    zipped = plain.with_name(plain.name + ".gz")
    if zipped.is_file():
        return zipped
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(plain))


def read_bytes(source: str | Path | bytes) -> bytes:
    """The decompressed bytes of a file (PATH or PATH.gz) or of bytes; gzip is recognised by content.
    Raises OSError or DamagedFile."""
    data = source if isinstance(source, bytes) else existing(source).read_bytes()
    if not data.startswith(_GZIP):
        return data
    pieces, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST_UNPACKED:
                    raise DamagedFile(f"its {len(data)} bytes unpack to more than {LARGEST_UNPACKED >> 20} MiB, "
                                      "expected at most that")
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFile(f"damaged gzip file ({error})") from error
    return b"".join(pieces)


def trouble(error: OSError) -> str:
    """What the system says, without number and path, for a sentence that names the file itself."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory, expected a file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return (error.strerror or str(error)).lower()
