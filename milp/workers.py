"""Processes that work for this one and do not outlive it, however it ends.

A pool of the standard library waits for what its processes are doing when its block is left by an error or Ctrl-C, and
leaves them behind for good when this process is killed. Here they are ended in the first case and watch for the second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


def _nothing() -> None:
    pass


@contextmanager
def workers(jobs: int, start: Callable[..., object] = _nothing, arguments: tuple[Any, ...] = ()
            ) -> Iterator[ProcessPoolExecutor]:
    """A pool of `jobs` processes, each of which calls `start(*arguments)` first; what is unfinished when the block is
    left is given up. Fresh interpreters: forked children of a process with threads may hang."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin,
                               initargs=(start, arguments))
    try:
        yield pool
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
