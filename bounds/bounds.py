"""What a bound method is asked (`LinearRows`) and what it answers (`Bounds`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bounds.interval import Interval


@dataclass(frozen=True, eq=False)
class LinearRows:
    """N linear functions of outputs and inputs, `C f(x) + D x + offset`, whose lower bound is wanted.

    C "N m" over the flat outputs; owner "N" says over which of the B sets each row runs (None: row n
    over set n, or every row over the only set); D "N n" over the flat inputs or None; offset "N" or None.
    """

    C: Tensor
    owner: Tensor | None = None
    D: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Bounds:
    """For all x in the row's set: `C f(x) + D x + offset >= A x + b >= lower` (and `<= upper`).

    lower, upper "N"; A "N *input", b "N" where the method is linear, else None; `intervals` maps node
    indices to proved enclosures "B *shape"; `params` are the relaxation parameters reached, to warm-start from, and
    `reached` the blocks of rows with theirs.
    """

    lower: Tensor
    upper: Tensor | None = None
    intervals: dict[int, Interval] = field(default_factory=dict)
    params: Any = None
    A: Tensor | None = None
    b: Tensor | None = None
    reached: tuple[tuple[Any, Any], ...] = ()
