"""A Lipschitz constant as found: its value, how far it can be trusted, and how it was come by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from verifier.verdict import Evidence


@dataclass(frozen=True)
class Constant:
    """`|f(x) - f(y)| <= value |x - y|` (for all x and y, unless the method says where); inf: nothing is known.
    time_s: what it took; note: what a reader of the number should know."""

    value: float
    evidence: Evidence
    method: str
    time_s: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.value) or self.value < 0:
            raise ValueError(f"a Lipschitz constant must be >= 0, got {self.value}")


@dataclass(frozen=True)
class Bracket:
    """`lower <= constant <= upper`; `complete` where the search ended by itself, `evidence` of the upper end. nodes:
    how many parts of the set were looked at."""

    lower: float
    upper: float
    evidence: Evidence
    complete: bool
    nodes: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper:
            raise ValueError(f"expected 0 <= lower <= upper, got {self.lower} and {self.upper}")
