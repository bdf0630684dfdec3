"""A block of rows, and its way to the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bounds.interval import Interval
from bounds.relaxation import Relaxation
from bounds.rows import Rows


class Block:
    """A block of rows that is pulled back repeatedly: what was gathered for it is kept between passes."""

    def __init__(self, start: int, rows: Rows) -> None:
        self.start = start
        self.rows = rows
        self.gathered: dict[tuple[int, str], Any] = {}

    def keep(self, node: int, what: str, make: Callable[[], Any]) -> Any:
        key = (node, what)
        if key not in self.gathered:
            self.gathered[key] = make()
        return self.gathered[key]

    def take(self, chosen: Tensor) -> Block:
        """Some of the rows, with what was gathered for them."""
        block = Block(self.start, self.rows.take(chosen))
        block.gathered = {key: _select(value, chosen) for key, value in self.gathered.items()}
        return block


Trace = dict[int, tuple[Rows, Relaxation]]
"""For each elementwise node: the rows that reached it and the lines they took, aligned."""


class Sweep:
    """A block of rows on its way to the input: what waits at which node, and the constants collected."""

    def __init__(self, block: Block, add: Callable[..., Tensor], multipliers: dict[int, Tensor] | None = None,
                 trace: Trace | None = None) -> None:
        self.block = block
        self._add = add
        self.multipliers = multipliers or {}
        self.trace = trace
        self.pending: dict[int, Rows] = {block.start: block.rows}
        self.constants: list[Tensor] = []
        self.halves: list[Tensor] | None = None
        """Half the widths "N" of bands collected on the way, where both sides of rows are bounded at once."""

    @property
    def next_node(self) -> int:
        """The last node that rows wait at (all its readers are done); 0 when only the input is left."""
        return max(self.pending, default=0)

    @property
    def count(self) -> int:
        return next(iter(self.pending.values())).count

    def total(self) -> Tensor:
        """The constant so far, "N"."""
        rows = self.block.rows
        like = rows.A if rows.A is not None else rows.sign
        assert like is not None
        self.constants = [self._add(like.new_zeros(rows.count), *self.constants)]
        return self.constants[0]

    def take(self, chosen: Tensor) -> None:
        """Go on with some of the rows; nothing gathered for all of them is of use any more."""
        self.constants = [self.total()[chosen]]
        self.pending = {j: rows.take(chosen) for j, rows in self.pending.items()}
        self.block = Block(self.block.start, self.block.rows.take(chosen))


def _select(value: Any, chosen: Tensor) -> Any:
    """The chosen rows of whatever was gathered; what holds for all rows stays."""
    if isinstance(value, Tensor):
        return value if value.shape[0] == 1 else value.index_select(0, chosen)
    if isinstance(value, Rows):
        return value.take(chosen)
    if isinstance(value, Interval):
        return value.map(lambda t: _select(t, chosen))
    if isinstance(value, Relaxation):
        same = value.lower_slope is value.upper_slope
        lower_slope = _select(value.lower_slope, chosen)
        return Relaxation(lower_slope, _select(value.lower_intercept, chosen),
                          lower_slope if same else _select(value.upper_slope, chosen),
                          _select(value.upper_intercept, chosen))
    if isinstance(value, tuple):
        return tuple(_select(v, chosen) for v in value)
    return value
