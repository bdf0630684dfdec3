"""The state of a run in one file, written whole or not at all, and read without running code from it."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch


class UnusableCheckpoint(ValueError):
    """A file that no run can go on from; the message says why."""


def save(state: dict[str, Any], path: Path) -> None:
    """Numbers, strings, tensors, lists and dictionaries. A kill leaves the file before or the file after."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote. Raises OSError, or UnusableCheckpoint."""
    file = BytesIO(path.read_bytes())
    try:
        with ZipFile(file) as members:  # `torch.load` compares no checksums
            damaged = members.testzip()
        if damaged is not None:
            raise BadZipFile(f"{damaged} is damaged")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except (UnpicklingError, BadZipFile, RuntimeError, EOFError, KeyError, ValueError, struct.error, zlib.error
            ) as error:
        raise UnusableCheckpoint(f"{path}: not a checkpoint ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(state, dict) or "settings" not in state:
        raise UnusableCheckpoint(f"{path}: not a checkpoint of a training run")
    return state
