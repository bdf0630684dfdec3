"""A hard time limit for stages that do not look at the clock.

Stages check their `Deadline` between units of work; this is the net below them. A timer signal raises
`TimeUp` in the main thread at the next Python instruction, so one long call into a library still
finishes first. Without timer signals (Windows, another thread) only the deadlines remain.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LONGEST_TIMER_S = 1e7  # setitimer overflows far beyond this; a third of a year is as good as forever


class TimeUp(BaseException):
    """The hard limit passed. Not an `Exception`, so that no handler on the way takes it for a failure."""


@contextmanager
def hard_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` inside the block after `seconds`, and again each second, should one be swallowed."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or math.isinf(seconds):
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeUp("stopped in the middle of a step")

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, min(max(seconds, 1e-3), LONGEST_TIMER_S), 1.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
