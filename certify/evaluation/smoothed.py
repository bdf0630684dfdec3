"""What a smoothed classifier is worth over a data set: how often it is right, and right with a radius beyond eps.

Its answers are estimates: each holds with probability 1 - alpha, by itself (`certify.smoothing`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from certify.evaluation.cascade import Trouble
from certify.evaluation.jobs import Piece, answers
from certify.evaluation.records import ABSTAINED, MISCLASSIFIED, SMALL_RADIUS, Record
from certify.smoothing import Smoothed
from verifier.attacks.model import GraphModel
from verifier.data import DataSet
from verifier.example_store import Finished
from verifier.network import Network

BATCH = 100  # examples of a piece


@dataclass(frozen=True)
class AskedSmoothed:
    """sigma: of the noise; eps: the l_2 radius asked for; samples and guesses: noises an example; alpha: how often an
    answer may be wrong."""

    eps: float
    sigma: float
    samples: int = 10_000
    guesses: int = 100
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be a number >= 0, got {self.eps}")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be > 0, got {self.sigma}")
        if self.samples < 1 or self.guesses < 1 or not 0 < self.alpha < 1:
            raise ValueError(f"expected samples >= 1, guesses >= 1 and alpha in (0, 1), got {self.samples}, "
                             f"{self.guesses} and {self.alpha}")

    def facts(self) -> dict[str, Any]:
        """What was asked, for a summary."""
        return {"eps": self.eps, "norm": "2", "clip": None, "method": "smoothing", "claim": "smoothed",
                "sigma": self.sigma, "samples": self.samples, "alpha": self.alpha, "confidence": 1 - self.alpha}


def evaluate_smoothed(network: Network, data: DataSet, asked: AskedSmoothed, *, device: str | None = None,
                      jobs: int = 1, batch: int = BATCH, skip: set[int] | frozenset[int] = frozenset()
                      ) -> Iterator[Piece]:
    """Finished examples as they come, of all that are not in `skip` (by number)."""
    places = [k for k, i in enumerate(data.index.tolist()) if i not in skip]
    pieces = [places[k : k + batch] for k in range(0, len(places), batch)]
    yield from answers(_evaluator, (network if jobs == 1 else network.path, data, asked, device), pieces, jobs=jobs)


def _evaluator(network: Network | Path, data: DataSet, asked: AskedSmoothed, device: str | None
               ) -> SmoothedEvaluator:
    """In another process the network is read anew."""
    return SmoothedEvaluator(network if isinstance(network, Network) else Network.read(network), data, asked, device)


@dataclass(frozen=True, eq=False)
class SmoothedEvaluator:
    """What answers about examples, named by their places in the data."""

    network: Network
    data: DataSet
    asked: AskedSmoothed
    device: str | None = None

    @cached_property
    def smoothed(self) -> Smoothed:
        graph = self.network.simplified
        return Smoothed(GraphModel(graph if self.device is None else graph.to(device=self.device)), self.asked.sigma,
                        self.asked.seed)

    def piece(self, places: Sequence[int]) -> Piece:
        """Many examples at once."""
        q, begin = self.asked, time.monotonic()
        x = torch.from_numpy(self.data.x[list(places)]).to(self.device or "cpu", self.network.simplified.dtype)
        found = self.smoothed.certify(x, samples=q.samples, guesses=q.guesses, alpha=q.alpha, target=q.eps,
                                      ids=torch.from_numpy(self.data.index[list(places)]))
        share_s = round((time.monotonic() - begin) / len(places), 4)
        finished: list[Finished] = [
            (self._record(place, int(label), float(radius), int(used), share_s), None)
            for place, label, radius, used in zip(places, found.label, found.radius, found.used, strict=True)]
        return Piece(finished, [], [])

    def alone(self, left: Any) -> Piece:
        raise AssertionError("nothing is left over")

    def lost(self, left: int, trouble: Trouble) -> Piece:
        """An example, by its place, which a process died of: nothing is known of it."""
        return Piece([(self._record(left, -1, 0.0, 0, 0.0) | {"reason": trouble.reason.value, "detail": trouble.detail},
                       None)], [], [])

    def _record(self, place: int, predicted: int, radius: float, used: int, time_s: float) -> Record:
        label = int(self.data.y[place])
        clean = predicted == label
        certified = clean and radius > self.asked.eps
        reason = None if certified else SMALL_RADIUS if clean else ABSTAINED if predicted < 0 else MISCLASSIFIED
        return {"index": int(self.data.index[place]), "label": label, "clean": clean, "attacked": None,
                "certified": certified, "reason": reason, "by": "smoothing", "evidence": "estimate",
                "detail": None, "predicted": None if predicted < 0 else predicted, "radius": radius, "samples": used,
                "time_s": time_s}
