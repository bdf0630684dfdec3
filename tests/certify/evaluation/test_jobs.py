"""Work that is shared out: all of it is answered, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from certify.evaluation import jobs as module
from certify.evaluation.asked import Asked
from certify.evaluation.cascade import Trouble
from certify.evaluation.evaluate import Evaluator, Left
from certify.evaluation.jobs import Piece, ProcessesDie, answers
from certify.evaluation.smoothed import AskedSmoothed, SmoothedEvaluator
from tests.certify.evaluation.cases import data_of, half_plane
from tests.certify.evaluation.test_evaluate import LABELS, POINTS
from verifier.network import Network
from verifier.verdict import Reason


@dataclass(frozen=True)
class Fragile:
    """Finishes even places at once and leaves the odd ones; of some work its process dies."""

    deadly: tuple[int, ...] = ()        # of a piece that holds one of these
    deadly_alone: tuple[int, ...] = ()
    once: str = ""                      # a file that is not there before the first death, which is then the last

    def piece(self, places: Sequence[int]) -> Piece:
        if set(places) & set(self.deadly):
            self._die()
        return Piece([({"index": p}, None) for p in places if p % 2 == 0], [p for p in places if p % 2], [])

    def alone(self, left: Any) -> Piece:
        if left in self.deadly_alone:
            self._die()
        return Piece([({"index": left, "alone": True}, None)], [], [])

    def lost(self, left: Any, trouble: Trouble) -> Piece:
        return Piece([({"index": left, "reason": trouble.reason, "detail": trouble.detail}, None)], [], [])

    def _die(self) -> None:
        if self.once:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def never(*_: Any) -> Fragile:
    os._exit(7)


def found(pieces: Sequence[Sequence[int]], *fragile: Any, jobs: int = 2) -> dict[int, dict[str, Any]]:
    records = [r for piece in answers(Fragile, fragile, pieces, jobs=jobs) for r, _ in piece.finished]
    assert len({r["index"] for r in records}) == len(records), "an example is answered once"
    return {r["index"]: r for r in records}


def test_an_example_that_kills_its_process_is_trouble_and_the_others_are_answered() -> None:
    records = found([[0, 1], [2, 3]], (2,), (3,))
    assert sorted(records) == [0, 1, 2, 3]
    assert records[0] == {"index": 0} and records[1] == {"index": 1, "alone": True}
    for i in (2, 3):
        assert records[i]["reason"] is Reason.MEMORY and "killed" in records[i]["detail"]


def test_only_a_process_that_was_killed_speaks_of_memory() -> None:
    for work, example in ((("piece", ([4],)), 4), (("alone", ("left",)), "left")):
        for code, reason in ((-signal.SIGKILL, Reason.MEMORY), (-signal.SIGSEGV, Reason.ERROR), (None, Reason.ERROR)):
            ((method, (lost, trouble)),) = module._smaller(work, [code])
            assert (method, lost, trouble.reason) == ("lost", example, reason)
            assert reason is Reason.MEMORY or f"exit code {code}" in trouble.detail


def test_a_death_that_does_not_come_again_leaves_no_trace(tmp_path: Path) -> None:
    assert found([[0], [2, 4]], (2,), (), str(tmp_path / "died")) == {i: {"index": i} for i in (0, 2, 4)}
    assert (tmp_path / "died").exists()


def test_processes_that_die_of_everything_end_the_work_with_a_sentence() -> None:
    with pytest.raises(ProcessesDie, match=r"exit codes \[7\]"):
        list(answers(never, (), [[0]], jobs=2))


def test_a_lost_example_is_no_answer_but_keeps_what_is_known(tmp_path: Path) -> None:
    network, data = Network.read(half_plane(tmp_path / "net.onnx")), data_of(POINTS, LABELS)
    trouble = Trouble(Reason.MEMORY, "killed")
    for method, certified in (("cascade", False), ("none", None)):
        worker = Evaluator(network, data, Asked(0.2, method=method))
        ((record, x),) = worker.lost(4, trouble).finished
        assert x is None and (record["clean"], record["certified"]) == (True, certified)
        assert (record["reason"], record["detail"]) == ("memory", "killed")
    ((record, _),) = worker.lost(5, trouble).finished
    assert (record["clean"], record["attacked"], record["reason"]) == (False, False, "misclassified")
    worker = Evaluator(network, data, Asked(0.2))
    left = Left(4, {"index": 4, "attacked": True, "certified": False, "time_s": 1.5}, worker.cascade.standing(4))
    ((record, _),) = worker.lost(left, trouble).finished
    assert (record["reason"], record["attacked"], record["certified"], record["time_s"]) == ("memory", True, False, 1.5)
    ((record, _),) = SmoothedEvaluator(network, data, AskedSmoothed(0.2, 0.1)).lost(4, trouble).finished
    assert (record["certified"], record["reason"], record["radius"]) == (False, "memory", 0.0)
