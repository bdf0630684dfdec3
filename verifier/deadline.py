"""One deadline for a whole question, counted from the start of the process or from a given moment.

Every stage asks `left()` before it starts a unit of work. Imports count: a person who waits does not
care whether the time went into loading a library or into a bound.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field


def _seconds_since_process_start() -> float:
    """How long this process has lived: from /proc on Linux, else since this module was imported (0)."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()  # the command name may hold spaces
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


CLOSING_S = 0.5      # optimisers, whose steps may be long, stop this long before the end with what they have
LAST_BATCH_S = 0.2   # and so do searches, whose batches are short

PROCESS_START = time.monotonic() - _seconds_since_process_start()


@dataclass(frozen=True)
class Deadline:
    """`limit_s` seconds after `start` (a `time.monotonic()` value; the process start by default)."""

    limit_s: float = math.inf
    start: float = field(default_factory=lambda: PROCESS_START)

    def __post_init__(self) -> None:
        if not self.limit_s > 0:
            raise ValueError(f"the time limit must be positive, got {self.limit_s}")

    @classmethod
    def starting_now(cls, limit_s: float = math.inf) -> Deadline:
        """A deadline for one of many questions that one process answers."""
        return cls(limit_s, time.monotonic())

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.limit_s - self.elapsed())

    def part(self, share: float) -> Deadline:
        """An earlier deadline, after a share of what is left; of none that is left, one that has passed too."""
        elapsed = self.elapsed()
        return Deadline(elapsed + share * max(0.0, self.limit_s - elapsed), self.start)

    def passed(self) -> bool:
        return self.left() <= 0.0
