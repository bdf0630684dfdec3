"""Where inputs lie: a path, or the same path with `.gz` behind it."""

from __future__ import annotations

import errno
import os
from pathlib import Path


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
