"""A pytest plugin: loads the module with the fault first, and notes the first test that fails.

FAULT_MODULE: the module, which must load from the folder that tests run in; else pytest ends with `NOT_LOADED`.
FAULT_NOTE: the file that gets the first failing test's id, and how it failed; an error while tests are collected is no
failure.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

NOT_LOADED = 86
LONGEST = 200  # characters of how a test failed


def pytest_configure(config: pytest.Config) -> None:
    name = os.environ["FAULT_MODULE"]
    try:
        module = importlib.import_module(name)
        importlib.import_module("verifier.strategy")  # and whatever else takes names from it
    except Exception as error:  # whatever a fault may do to a module
        pytest.exit(f"{name} does not load: {type(error).__name__}: {error}", NOT_LOADED)
    if Path(str(module.__file__)).resolve().is_relative_to(Path.cwd()):
        return
    pytest.exit(f"{name} was loaded from {module.__file__}", NOT_LOADED)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    note = Path(os.environ["FAULT_NOTE"])
    if report.failed and not note.exists():
        crash = getattr(report.longrepr, "reprcrash", None)
        words = " ".join(str(getattr(crash, "message", "")).split())
        note.write_text(f"{report.nodeid}\n{words[:LONGEST]}", "utf-8")
