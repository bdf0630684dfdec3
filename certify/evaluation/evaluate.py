"""Clean, attacked and certified accuracy over a data set, a piece of it at a time; what a piece leaves open is
certified example by example.

Of each example three things are said, true where the network stands: `clean` that its label is strictly on top in the
original file, `attacked` that nothing which ran has found a counterexample, `certified` that there is none. So

    certified <= robust <= attacked <= clean

example by example, and a network's robust accuracy lies between the two shares in the middle. Two answers that exclude
each other are told as a contradiction, and count as neither.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from certify.evaluation.asked import Asked
from certify.evaluation.attacks import Attacked, attack_of, attacked, clean_places
from certify.evaluation.cascade import FALSIFIED, OPEN, VERIFIED, Cascade, Standing, Trouble
from certify.evaluation.data import examples_of
from certify.evaluation.jobs import Piece, answers
from certify.evaluation.records import (
    CONTRADICTION,
    COUNTEREXAMPLE,
    FLOAT32_ONLY,
    MISCLASSIFIED,
    Record,
    as_facts,
    summary,
)
from verifier.attacks.base import Attack
from verifier.attacks.model import OnnxModel
from verifier.data import DataSet, fitting
from verifier.example_store import Finished
from verifier.network import Network

BATCH = 500  # examples of a piece


@dataclass(frozen=True, eq=False)
class Evaluation:
    """records: an object an example (see `docs/evaluate.md`); summary: shares of 1, intervals and counts."""

    records: list[Record]
    summary: dict[str, Any]


def evaluate(net: str | Path | Network, data: DataSet | str | Path | tuple[NDArray[Any], NDArray[Any]], *, eps: float,
             norm: float = math.inf, clip: tuple[float, float] | Literal["stored"] | None = "stored",
             attacks: Sequence[str] = ("pgd-20",), method: str = "cascade", time_limit_s: float = 60.0,
             device: str | None = None, jobs: int = 1, **asked: Any) -> Evaluation:
    """Clean, attacked and certified accuracy of a network (an ONNX file) on a data set: an .npz, a name, or inputs and
    labels. clip "stored": the range that comes with the data, if any.

    The other settings are those of `Asked`. Raises ValueError or OSError for what cannot be read or does not fit.
    """
    begin = time.monotonic()
    network = net if isinstance(net, Network) else Network.read(net)
    fits = network.graph.input_shape, math.prod(network.graph.output_shape)
    known = None
    if isinstance(data, tuple):
        data = fitting({"x": np.asarray(data[0]), "y": np.asarray(data[1])}, *fits)
    elif not isinstance(data, DataSet):
        data, known, _ = examples_of(str(data), *fits)
    q = Asked(eps, norm, known if clip == "stored" else clip, method, tuple(attacks), time_limit_s=time_limit_s,
              **asked)
    found = {record["index"]: record for piece in evaluate_data(network, data, q, device=device, jobs=jobs)
             for record, _ in piece.finished}
    records = [found[i] for i in sorted(found)]
    total = summary(records, q.columns, as_facts(q)) | {"time_s": round(time.monotonic() - begin, 3)}
    return Evaluation(records, total)


def evaluate_data(network: Network, data: DataSet, asked: Asked, *, device: str | None = None, jobs: int = 1,
                  batch: int = BATCH, skip: set[int] | frozenset[int] = frozenset()) -> Iterator[Piece]:
    """Finished examples as they come, of all that are not in `skip` (by number). jobs: processes that share the work.

    Raises KeyboardInterrupt where one was interrupted, ValueError before anything is done where one does not fit.
    """
    data = data.within(asked.clip)
    if math.prod(network.graph.output_shape) < 2:
        raise ValueError(f"labels need at least two outputs, the network has {math.prod(network.graph.output_shape)}")
    if jobs < 1 or batch < 1:
        raise ValueError(f"jobs and batch must be >= 1, got {jobs} and {batch}")
    places = [k for k, i in enumerate(data.index.tolist()) if i not in skip]
    pieces = [places[k : k + batch] for k in range(0, len(places), batch)]
    yield from answers(_evaluator, (network if jobs == 1 else network.path, data, asked, device), pieces, jobs=jobs)


def _evaluator(network: Network | Path, data: DataSet, asked: Asked, device: str | None) -> Evaluator:
    """In another process the network is read anew."""
    return Evaluator(network if isinstance(network, Network) else Network.read(network), data, asked, device)


@dataclass(frozen=True, eq=False)
class Left:
    """An example that the steps over many left open, on its way to be asked alone."""

    place: int
    record: Record
    standing: Standing


@dataclass(frozen=True, eq=False)
class Evaluator:
    """What answers about examples, named by their places in the data. One a process."""

    network: Network
    data: DataSet
    asked: Asked
    device: str | None = None

    @cached_property
    def cascade(self) -> Cascade:
        return Cascade(self.network, self.data, self.asked, self.device)

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        return {column: attack_of(column, self.asked, self.device) for column in self.asked.columns}

    def piece(self, places: Sequence[int]) -> Piece:
        """Everything that is done for many examples at once."""
        begin = time.monotonic()
        original = OnnxModel(self.cascade.replayer, self.network.graph.input_shape)
        clean = clean_places(original, self.data, places)
        right = [place for place in places if place in clean]
        found = attacked(self.network, self.data, right, self.asked, self.attacks, device=self.device) if right \
            else Attacked({})
        share_s = (time.monotonic() - begin) / len(places)
        standings = self.cascade.batched(right, fallen={p for p in right if found.of(p)})
        finished: list[Finished] = []
        left: list[Left] = []
        for place in places:
            record = self._begun(place, place in clean, found, share_s)
            if place not in clean:
                finished.append((record | {"reason": MISCLASSIFIED, "time_s": round(share_s, 4)}, None))
            elif standings[place].verdict == OPEN and record["attacked"] is not False and self.asked.certifier.alone:
                left.append(Left(place, record, standings[place]))
            else:
                finished.append(self._finished(place, record, standings[place], found.of(place)))
        return Piece(finished, left, found.notes)

    def alone(self, left: Left) -> Piece:
        """What is left of one example."""
        standing = self.cascade.alone(left.place, left.standing)
        return Piece([self._finished(left.place, left.record, standing, {})], [], [])

    def lost(self, left: int | Left, trouble: Trouble) -> Piece:
        """An example, by its place or as it was left, which a process died of. What is known of it stays; whether it
        is clean at all takes one more run of the original file."""
        if isinstance(left, Left):
            return Piece([self._finished(left.place, left.record, replace(left.standing, trouble=trouble), {})], [], [])
        original = OnnxModel(self.cascade.replayer, self.network.graph.input_shape)
        clean = left in clean_places(original, self.data, [left])
        record = self._begun(left, clean, Attacked({}), 0.0)
        if not clean:
            return Piece([(record | {"reason": MISCLASSIFIED}, None)], [], [])
        return self.lost(Left(left, record, self.cascade.standing(left)), trouble)

    # ------------------------------------------------------------------ records

    @property
    def _uncertified(self) -> bool | None:
        """What an example that is not certified is: None where nobody asks."""
        return False if self.asked.certifier.steps else None

    def _begun(self, place: int, clean: bool, found: Attacked, time_s: float) -> Record:
        columns = {column: clean and place not in found.points.get(column, {}) for column in self.asked.columns}
        searches = self.asked.columns or self.asked.certifier.searches
        return {"index": int(self.data.index[place]), "label": int(self.data.y[place]), "clean": clean, **columns,
                "attacked": (clean and all(columns.values())) if searches or not clean else None,
                "certified": self._uncertified, "reason": None, "by": None, "lower": None, "evidence": None,
                "detail": None, "time_limit_s": self.asked.time_limit_s, "time_s": time_s}

    def _finished(self, place: int, record: Record, standing: Standing, points: dict[str, NDArray[np.float32]]
                  ) -> Finished:
        time_s = round(record["time_s"] + standing.time_s, 4)
        point = next(iter(points.values()), None)
        lower = standing.lower if math.isfinite(standing.lower) and not standing.open else None
        told: Record
        if standing.verdict == VERIFIED and points:
            reason = self._clash(place, points)
            told = {"reason": reason, "by": ", ".join(points), "detail": f"certified by {standing.by} "
                    f"({standing.evidence.name.lower()}), and yet a counterexample of {', '.join(points)} is confirmed"}
        elif standing.verdict == VERIFIED:
            told = {"certified": True, "by": standing.by, "evidence": standing.evidence.name.lower(), "lower": lower}
        elif standing.verdict == FALSIFIED:
            assert standing.witness is not None, "the gate made one"
            told = {"attacked": False, "reason": COUNTEREXAMPLE, "by": standing.by}
            point = standing.witness.x
        elif points:
            told = {"reason": COUNTEREXAMPLE, "by": ", ".join(points)}
        elif standing.trouble is not None:
            told = {"reason": standing.trouble.reason.value, "detail": standing.trouble.detail or None}
        elif self._uncertified is None:
            told = {}
        else:
            told = {"reason": standing.why.value}
        return record | told | {"time_s": time_s}, point

    def _clash(self, place: int, points: dict[str, NDArray[np.float32]]) -> str:
        """A verified example has confirmed counterexamples: a contradiction, unless float32 alone has them and the
        claim is about the reals."""
        problem = self.cascade.problem(self.cascade.property_of(place))
        confirmed = any(problem.confirm(torch.from_numpy(x)) is not None for x in points.values())
        return CONTRADICTION if confirmed else FLOAT32_ONLY
