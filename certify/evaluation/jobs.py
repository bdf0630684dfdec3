"""Pieces of work in this process, or shared out among several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from milp.workers import workers
from verifier.example_store import Finished


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


Work = tuple[str, Any]  # a method of Worker, and its argument
_worker: Worker | None = None


def answers(make: Callable[..., Worker], arguments: tuple[Any, ...], pieces: Sequence[Sequence[int]], *, jobs: int
            ) -> Iterator[Piece]:
    """What comes of the pieces and of what they leave; that goes first, so that a killed run loses little. Each process
    makes its own worker, `make(*arguments)`."""
    waiting, left = deque[Work](("piece", places) for places in pieces), deque[Work]()

    def taken(piece: Piece) -> Piece:
        left.extend(("alone", example) for example in piece.left)
        return piece

    if jobs == 1:
        worker = make(*arguments)
        while left or waiting:
            method, argument = (left or waiting).popleft()
            yield taken(getattr(worker, method)(argument))
        return
    threads = max(1, _cores() // jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read where processes load the thread library
    with workers(jobs, _start, (threads, make, arguments)) as pool:
        running: set[Future[Piece]] = set()
        while left or waiting or running:
            while (left or waiting) and len(running) < jobs:
                running.add(pool.submit(_work, (left or waiting).popleft()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield taken(future.result())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(threads: int, make: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = make(*arguments)


def _work(work: Work) -> Piece:
    assert _worker is not None, "a process starts with _start"
    method, argument = work
    piece: Piece = getattr(_worker, method)(argument)
    return piece
