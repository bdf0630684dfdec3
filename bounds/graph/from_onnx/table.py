"""The table from ONNX operator names to the functions that import them."""

from __future__ import annotations

from collections.abc import Callable

from bounds.graph.builder import Value
from bounds.graph.from_onnx.call import Call

Row = Callable[[Call], "Value | list[Value]"]
ROWS: dict[str, Row] = {}


def row(*names: str) -> Callable[[Row], Row]:
    """Registers a function for the ONNX operators `names`; it returns the Value of the first output, or of all."""

    def register(function: Row) -> Row:
        for name in names:
            assert name not in ROWS, f"two rows for {name}"
            ROWS[name] = function
        return function

    return register
