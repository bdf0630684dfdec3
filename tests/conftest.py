"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import settings

from verifier import deadline

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell: processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every run draws new examples, except where a failure must come from the change at hand.
settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands count their time limit from the start of the process: for a test that is its own start."""
    monkeypatch.setattr(deadline, "PROCESS_START", time.monotonic())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with benchmark networks and published verdicts; skips where it is absent."""
    path = Path(os.environ.get("RMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "vnncomp").is_dir():
        pytest.skip("benchmark data not found: set RMAX_SHARED or put it at ../shared beside the checkout")
    return path
