"""Damage that knows nothing of the format: what disks, transfers and editors do to a file."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable

BOMB_BYTES = 3 << 30  # of zeros behind a few megabytes of gzip
_bombs: list[bytes] = []


def flipped(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 30))):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def overwritten(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice((1, 4, 64))
    fill = draw.choice((b"\0", b"\xff", None))
    return data[:at] + (draw.randbytes(size) if fill is None else fill * size) + data[at + size:]


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[:draw.randrange(len(data))]


def inserted(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 5, 200))) + data[at:]


def removed(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice((1, 5, 200)):]


def repeated(data: bytes, draw: random.Random) -> bytes:
    a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
    return data[:b] + data[a:]


def zipped(data: bytes, draw: random.Random) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def damaged_zip(data: bytes, draw: random.Random) -> bytes:
    return draw.choice((flipped, overwritten, truncated, inserted, removed))(zipped(data, draw), draw)


def zipped_damage(data: bytes, draw: random.Random) -> bytes:
    return zipped(draw.choice((flipped, overwritten, truncated, inserted, removed))(data, draw), draw)


def bomb(data: bytes, draw: random.Random) -> bytes:
    """Gzip that unpacks to more than the memory that is allowed."""
    if not _bombs:
        block = gzip.compress(bytes(64 << 20), 9, mtime=0)
        _bombs.append(block * (BOMB_BYTES // (64 << 20)))
    return _bombs[0]


def nothing(data: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\0" * 1000, b"\n" * 1000, draw.randbytes(1000), b"\x1f\x8b", b"\xef\xbb\xbf"))


Damage = Callable[[bytes, random.Random], bytes]
DAMAGES: tuple[Damage, ...] = (flipped, overwritten, truncated, inserted, removed, repeated, zipped, damaged_zip,
                               zipped_damage, bomb, nothing)
WEIGHTS = (8, 4, 4, 4, 4, 2, 1, 3, 2, 0.1, 0.5)


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the damaged bytes)."""
    (chosen,) = draw.choices(DAMAGES, WEIGHTS)
    return chosen.__name__, chosen(data, draw)
