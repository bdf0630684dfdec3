"""How a number changes over a run: the radius that grows, the weight of the natural loss that falls."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("linear", "smooth")
MIDDLE = 0.25  # of the ramp: up to here the smooth schedule is a power, then a line
POWER = 4.0


@dataclass(frozen=True)
class Ramp:
    """From `first` to `last` between two epochs (fractional), constant outside. `smooth` starts as a fourth power,
    whose slope the line continues (the schedule of auto_LiRPA, arXiv:2002.12920)."""

    first: float
    last: float
    begin: float
    end: float
    kind: str = "linear"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a schedule is one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 <= self.begin <= self.end:
            raise ValueError(f"a ramp needs 0 <= begin <= end, got {self.begin} and {self.end}")

    def at(self, epoch: float) -> float:
        """The value at an epoch."""
        if epoch >= self.end:
            return self.last
        if epoch <= self.begin:
            return self.first
        share = (epoch - self.begin) / (self.end - self.begin)
        return self.first + (self.last - self.first) * (share if self.kind == "linear" else _smooth(share))


def _smooth(t: float) -> float:
    """From 0 to 1: `a t^4` up to MIDDLE, then the line with the same value and slope there."""
    a = 1 / (POWER * MIDDLE ** (POWER - 1) * (1 - MIDDLE) + MIDDLE**POWER)
    if t < MIDDLE:
        return a * float(t**POWER)
    return a * MIDDLE**POWER + POWER * a * MIDDLE ** (POWER - 1) * (t - MIDDLE)
