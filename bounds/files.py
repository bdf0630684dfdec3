"""Where files lie and what they hold: a path, or the same path with `.gz` behind it; plain bytes or gzip."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

LARGEST_UNPACKED = 1 << 30  # bytes; a few megabytes of gzip can hold any amount, and no known network has as many
_GZIP = b"\x1f\x8b"
_GZIP_MEMBER = 31           # `wbits` of zlib for a member with its header and checksum
_READ, _PIECE = 1 << 20, 1 << 24


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
    try:
        return b"".join(_unpacked(data))
    except (EOFError, zlib.error) as error:
        raise DamagedFile(f"damaged gzip file ({error})") from error


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The contents of all members piece by piece, so that an excess is noticed in time. (`gzip.GzipFile` takes half as
    long again.)"""
    member, size = zlib.decompressobj(_GZIP_MEMBER), 0
    for start in range(0, len(data), _READ):
        packed = data[start:start + _READ]
        while packed:
            piece = member.decompress(packed, _PIECE)
            size += len(piece)
            if size > LARGEST_UNPACKED:
                raise DamagedFile(f"its {len(data)} bytes unpack to more than {LARGEST_UNPACKED >> 20} MiB, expected "
                                  "at most that")
            yield piece
            packed = member.unconsumed_tail
            if member.eof:  # zeros may fill up the file, anything else begins a member
                packed = member.unused_data.lstrip(b"\0")
                member = zlib.decompressobj(_GZIP_MEMBER) if packed else member
    if not member.eof:
        yield member.flush()
    if not member.eof:
        raise EOFError("cut off")


def trouble(error: OSError) -> str:
    """What the system says, without number and path, for a sentence that names the file itself."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory, expected a file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return (error.strerror or str(error)).lower()
