"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def watched(self: Figure, *args: Any, **keywords: Any) -> None:
        figures.append(self)
        save(self, *args, **keywords)

    monkeypatch.setattr(Figure, "savefig", watched)
    return figures


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[str, str]]:
    """Reads what a command has written: (stdout, stderr)."""
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err
    return read
