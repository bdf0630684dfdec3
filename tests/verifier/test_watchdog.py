"""The hard limit ends Python code that does not look at the clock, and leaves no timer behind."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time

import pytest

from verifier import deadline
from verifier.deadline import Deadline
from verifier.watchdog import TimeUp, hard_limit


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_loop_that_never_looks_at_the_clock_ends() -> None:
    start = time.monotonic()
    with pytest.raises(TimeUp), hard_limit(0.1):
        spin(5)
    assert time.monotonic() - start < 1


def test_a_handler_of_all_exceptions_does_not_swallow_it() -> None:
    with pytest.raises(TimeUp), hard_limit(0.05), contextlib.suppress(Exception):
        spin(5)


@pytest.mark.parametrize("seconds", [30.0, math.inf])
def test_no_timer_is_left_behind(seconds: float) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with hard_limit(seconds):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_other_threads_run_without_a_timer() -> None:
    seen: list[float] = []

    def work() -> None:
        with hard_limit(0.01):
            spin(0.05)
            seen.append(1.0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1.0]


def test_deadlines_count_from_process_start_unless_told() -> None:
    assert Deadline(5.0).start == deadline.PROCESS_START
    assert deadline._seconds_since_process_start() > 0.05  # Python itself took longer to get here
    fresh = Deadline.starting_now(5.0)
    assert 4.9 < fresh.left() <= 5.0
    assert not fresh.passed()
    assert Deadline(1e-9).passed()
    assert Deadline().left() == math.inf


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_time_limit_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="time limit must be positive"):
        Deadline(limit)
