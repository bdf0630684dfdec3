"""Safe radii over a data set: attacks and bounds for a piece of it at once, then a search for each input in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.example_store import Finished
from verifier.network import Network
from verifier.radius.interval import RadiusInterval
from verifier.radius.safe_radius import FIRST_SHARE, TOLERANCE, Parts, balls_of, closed, first_ends
from verifier.verdict import Evidence
from verifier.witness import Witness

PIECE = 50  # inputs bounded and attacked together

Progress = Callable[[int, RadiusInterval], None]  # (index of the input under way, what is known of it)


@dataclass(frozen=True)
class Asked:
    """What is asked about every input (see `verifier.radius.safe_radius.safe_radius`); time_limit_s: for each."""

    norm: float = math.inf
    clip: tuple[float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    target: int | None = None
    method: str = "auto"
    time_limit_s: float = 60.0
    tolerance: float = TOLERANCE
    seed: int = 0


def radius_data(network: Network, data: DataSet, asked: Asked, *, device: str | None = None,
                skip: set[int] | frozenset[int] = frozenset(), piece: int = PIECE, progress: Progress | None = None
                ) -> Iterator[tuple[Finished, RadiusInterval]]:
    """The safe radius of every example that is not in `skip` (by number), as they come: (record and witness, interval).

    The time of an input is its share of what is done for its piece together, and its own search.
    """
    chosen = [k for k, i in enumerate(data.index.tolist()) if i not in skip]
    graph = network.simplified if device is None else network.simplified.to(device=device)
    parts = Parts(network.graph, graph, network.replayer)
    for first in range(0, len(chosen), piece):
        part = chosen[first:first + piece]
        begin = time.monotonic()
        balls = balls_of(parts, data.x[part], data.y[part], norm=asked.norm, clip=asked.clip, mask=asked.mask,
                         target=asked.target)
        limit_s = FIRST_SHARE * asked.time_limit_s * len(part)
        known = first_ends(parts, balls, asked.method, tolerance=asked.tolerance, seed=asked.seed,
                           deadline=Deadline.starting_now(limit_s))
        share_s = (time.monotonic() - begin) / len(part)
        for k, place in enumerate(part):
            begin = time.monotonic()
            index = int(data.index[place])

            def tell(interval: RadiusInterval, _: float, index: int = index) -> None:
                if progress is not None:
                    progress(index, interval)
            tell(known[k], 0.0)
            deadline = Deadline.starting_now(max(1e-3, asked.time_limit_s - share_s))
            found = closed(parts, balls.take(torch.tensor([k])), known[k], asked.method, tolerance=asked.tolerance,
                           deadline=deadline, seed=asked.seed, progress=tell)
            record = as_record(found, index, int(data.y[place]), asked, share_s + time.monotonic() - begin)
            yield (record, None if found.witness is None else found.witness.x), found


def as_record(found: RadiusInterval, index: int, label: int, asked: Asked, time_s: float) -> dict[str, Any]:
    """An interval as plain JSON values; an end that is infinite becomes null: no witness is known, or none exists."""
    from verifier.attacks.base import norm_name
    witness = found.witness
    return {
        "index": index, "label": label, "norm": norm_name(asked.norm),
        "r1": _finite(found.lower), "r1_evidence": found.lower_evidence.name.lower(), "r1_by": found.lower_by or None,
        "r2": _finite(found.upper), "r2_evidence": found.upper_evidence.name.lower() if witness is not None else None,
        "r2_by": found.upper_by or None, "exact": found.gap <= asked.tolerance, "claim": found.claim.value,
        "became": None if witness is None else _became(witness, label, asked.target), "target": asked.target,
        "method": asked.method, "time_s": round(time_s, 3)}


def _became(witness: Witness, label: int, target: int | None) -> int:
    """The class that is as high as the label there, or higher: of several the highest."""
    if target is not None:
        return target
    others = witness.y.astype(np.float64).ravel()
    others[label] = -np.inf
    return int(others.argmax())


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages and medians over records. Where nothing is unsafe neither end counts; where no witness is known, the
    lower end alone."""
    lower = np.array([r["r1"] for r in records if r["r1"] is not None])
    upper = np.array([r["r2"] for r in records if r["r2"] is not None])
    gaps = np.array([(r["r2"] - r["r1"]) / r["r2"] if r["r2"] else 0.0 for r in records
                     if r["r2"] is not None and r["r1"] is not None])
    return {
        "summary": True, "count": len(records), "exact": sum(r["exact"] for r in records),
        "never_unsafe": sum(r["r1"] is None for r in records), "no_witness": sum(r["r2"] is None for r in records),
        "mean_r1": _mean(lower), "mean_r2": _mean(upper), "median_r1": _median(lower), "median_r2": _median(upper),
        "mean_gap": _mean(gaps), "median_gap": _median(gaps), "least_evidence": _least(records)}


def _least(records: list[dict[str, Any]]) -> str | None:
    """The least evidence of any lower end."""
    names = [r["r1_evidence"] for r in records]
    return min(names, key=lambda name: Evidence[name.upper()]) if names else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if values.size else None


def _finite(value: float) -> float | None:
    return float(value) if abs(value) < math.inf else None
