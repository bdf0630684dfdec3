"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from certify.data.dataset import TrainingData

NAMES = ("digits",)


def load(name: str, data_dir: str | Path | None = None) -> TrainingData:
    """Raises ValueError for an unknown name, FileNotFoundError that says how to get files that are not there."""
    if name == "digits":
        from certify.data.digits import load_digits
        return load_digits()
    raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
