"""Pieces of work in this process, or shared out among several.

Systems end processes that take too much memory, and a crash in a library ends one as well. Either takes the whole pool
with it, and says not whose work it was: so what was under way is asked again, in a process with nothing beside it. Work
that ends this one too is halved, down to the example at fault, which is then told as trouble.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from certify.evaluation.cascade import Trouble
from milp.workers import workers
from verifier.example_store import Finished
from verifier.verdict import Reason


@dataclass(frozen=True, eq=False)
class Piece:
    """Finished examples, what each of the others still needs, and what is to be told about all of them."""

    finished: list[Finished]
    left: list[Any]
    notes: list[str]


class Worker(Protocol):
    """What answers pieces of examples (by their places), and what they leave, one by one."""

    def piece(self, places: Sequence[int]) -> Piece: ...

    def alone(self, left: Any) -> Piece: ...

    def lost(self, left: Any, trouble: Trouble) -> Piece:
        """Of an example, by its place or as it was left, that a process died of."""
        ...


Work = tuple[str, tuple[Any, ...]]  # a method of Worker, and its arguments
_worker: Worker | None = None

KILLED = -9  # the exit code that SIGKILL leaves, which Windows does not have

log = logging.getLogger(__name__)


class ProcessesDie(ValueError):
    """Processes that should share the work die, whatever they are given."""


@dataclass(eq=False)
class Waiting:
    """What is to be done: suspects, which a process may have died of, one by one; what pieces left, so that a killed
    run loses little; pieces."""

    pieces: deque[Work]
    left: deque[Work] = field(default_factory=deque)
    suspects: deque[Work] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.suspects or self.left or self.pieces)

    def first(self) -> deque[Work]:
        """Where to take from: not empty, if anything is."""
        return self.suspects or self.left or self.pieces

    def taken(self, piece: Piece) -> Piece:
        self.left.extend(("alone", (example,)) for example in piece.left)
        return piece


def answers(make: Callable[..., Worker], arguments: tuple[Any, ...], pieces: Sequence[Sequence[int]], *, jobs: int
            ) -> Iterator[Piece]:
    """What comes of the pieces and of what they leave. Each process makes its own worker, `make(*arguments)`."""
    waiting = Waiting(deque(("piece", (places,)) for places in pieces))
    if jobs == 1:
        worker = make(*arguments)
        while waiting:
            method, given = waiting.first().popleft()
            yield waiting.taken(getattr(worker, method)(*given))
        return
    threads = max(1, _cores() // jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read where processes load the thread library
    while waiting:
        yield from _answers_of_a_pool(waiting, (threads, make, arguments), jobs)


def _answers_of_a_pool(waiting: Waiting, start: tuple[Any, ...], jobs: int) -> Iterator[Piece]:
    """Until nothing waits, or a process dies, or suspects are cleared."""
    one_by_one = bool(waiting.suspects)
    others = set(multiprocessing.active_children())
    running: dict[Future[Piece], Work] = {}
    with workers(1 if one_by_one else jobs, _start, start) as pool:
        def fill() -> None:
            while len(running) < (1 if one_by_one else jobs):
                source = waiting.suspects if one_by_one else waiting.first()
                if not source:
                    return
                future = pool.submit(_work, source[0])  # refused where a process has died: then nothing is taken
                running[future] = source.popleft()
        try:
            fill()
            processes = set(multiprocessing.active_children()) - others
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    piece = future.result()
                    del running[future]
                    yield waiting.taken(piece)
                fill()
        except BrokenProcessPool:
            log.warning("a process of --jobs died; what was under way is asked again")
            if not one_by_one:
                waiting.suspects.extend(running.values())
                return
            pool.shutdown()  # from here on exit codes are known
            for work in running.values():
                waiting.suspects.extendleft(reversed(_smaller(work, [p.exitcode for p in processes])))


def _smaller(work: Work, codes: list[int | None]) -> list[Work]:
    """What to ask instead of work that a process died of with nothing beside it. codes: with which it ended."""
    method, arguments = work
    if method == "lost":
        raise ProcessesDie(f"processes of --jobs die, whatever they are given (exit codes {codes}): ask for fewer, or "
                           "for --jobs 1")
    if method == "piece" and len(arguments[0]) > 1:
        places, half = arguments[0], len(arguments[0]) // 2
        return [(method, (places[:half],)), (method, (places[half:],))]
    if KILLED in codes:
        trouble = Trouble(Reason.MEMORY, "its process was killed, as systems do that run out of memory")
    else:
        trouble = Trouble(Reason.ERROR, f"its process died (exit code {', '.join(map(str, codes))})")
    return [("lost", (arguments[0][0] if method == "piece" else arguments[0], trouble))]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(threads: int, make: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = make(*arguments)


def _work(work: Work) -> Piece:
    assert _worker is not None, "a process starts with _start"
    method, arguments = work
    piece: Piece = getattr(_worker, method)(*arguments)
    return piece
