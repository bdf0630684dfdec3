"""Safe radii over a data set: attacks and bounds for a piece of it at once, then a search for each input in turn."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph
from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.example_store import Finished
from verifier.lipschitz.radius import lipschitz_radius
from verifier.logits import ranking_of
from verifier.network import Network
from verifier.radius.balls import Balls
from verifier.radius.clever import Clever
from verifier.radius.interval import Contradiction, RadiusInterval
from verifier.radius.methods import ATTACK, COUNTING, ESTIMATE, GRADIENT, METHODS, SEARCH
from verifier.radius.safe_radius import FIRST_SHARE, TOLERANCE, Parts, balls_of, closed, first_ends
from verifier.radius.subsets import l0_radius
from verifier.stages import regions_together
from verifier.verdict import Evidence
from verifier.witness import Witness

PIECE = 50  # inputs bounded and attacked together

Progress = Callable[[int, RadiusInterval], None]  # (index of the input under way, what is known of it)


@dataclass(frozen=True)
class Asked:
    """What is asked about every input (see `verifier.radius.safe_radius.safe_radius`); method: a name in
    `verifier.radius.methods`; time_limit_s: for each input."""

    norm: float = math.inf
    clip: tuple[float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    target: int | None = None
    method: str = "auto"
    time_limit_s: float = 60.0
    tolerance: float = TOLERANCE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.norm == 0 and self.method not in COUNTING:
            raise ValueError(f"norm 0 works with the methods {', '.join(COUNTING)}, not {self.method}")
        if self.norm == 0 and self.clip is None:
            raise ValueError("norm 0 needs a clip range: a feature that changes may take any value of it")


@dataclass(frozen=True)
class Estimate:
    """What is estimated of one radius (`verifier.radius.clever`): no bound."""

    value: float
    low: float
    high: float
    doubtful: bool


def radius_data(network: Network, data: DataSet, asked: Asked, *, device: str | None = None,
                skip: set[int] | frozenset[int] = frozenset(), piece: int = PIECE, progress: Progress | None = None
                ) -> Iterator[tuple[Finished, RadiusInterval]]:
    """The safe radius of every example that is not in `skip` (by number), as they come: (record and witness, interval).

    The time of an input is its share of what is done for its piece together, and its own search. Raises ValueError
    before anything is done where an example does not fit the question.
    """
    data = data.within(asked.clip, asked.mask)
    chosen = [k for k, i in enumerate(data.index.tolist()) if i not in skip]
    if asked.norm == 0:
        yield from _counted(network, data, chosen, asked, progress)
        return
    graph = network.simplified if device is None else network.simplified.to(device=device)
    parts = Parts(network.graph, graph, network.replayer)
    for first in range(0, len(chosen), piece):
        part = chosen[first:first + piece]
        begin = time.monotonic()
        balls = balls_of(parts, data.x[part], data.y[part], norm=asked.norm, clip=asked.clip, mask=asked.mask,
                         target=asked.target)
        together = FIRST_SHARE if METHODS[asked.method].kind in (SEARCH, ESTIMATE) else 1.0
        known = _together(parts, balls, asked, Deadline.starting_now(together * asked.time_limit_s * len(part)),
                          torch.from_numpy(data.index[part]))
        share_s = (time.monotonic() - begin) / len(part)
        for k, place in enumerate(part):
            begin = time.monotonic()
            tell = _teller(progress, int(data.index[place]))
            tell(known[k])
            deadline = Deadline.starting_now(max(1e-3, asked.time_limit_s - share_s))
            found, estimate, ball = known[k], None, balls.take(torch.tensor([k]))
            if METHODS[asked.method].kind == ESTIMATE:
                estimate = _estimate(parts, ball, found, int(data.index[place]), asked, deadline)
            else:
                try:
                    found = closed(parts, ball, found, asked.method, tolerance=asked.tolerance, deadline=deadline,
                                   seed=asked.seed, progress=tell)
                except Contradiction as error:  # nothing that comes after could be believed
                    raise Contradiction(f"input {int(data.index[place])}: {error}") from error
            yield _finished(found, data, place, asked, share_s + time.monotonic() - begin, estimate)


def _teller(progress: Progress | None, index: int) -> Callable[..., None]:
    """Tells of one input; the radius under way, where one comes, is left out."""
    def tell(interval: RadiusInterval, _: float = 0.0) -> None:
        if progress is not None:
            progress(index, interval)
    return tell


def _finished(found: RadiusInterval, data: DataSet, place: int, asked: Asked, time_s: float,
              estimate: Estimate | None = None) -> tuple[Finished, RadiusInterval]:
    record = as_record(found, int(data.index[place]), int(data.y[place]), asked, time_s)
    if METHODS[asked.method].kind == ESTIMATE:
        record |= _as_fields(estimate)
    return (record, None if found.witness is None else found.witness.x), found


# ---------------------------------------------------------------------- what is done


def _together(parts: Parts, balls: Balls, asked: Asked, deadline: Deadline, ids: Tensor) -> list[RadiusInterval]:
    """Both ends, as far as many inputs at once bring them."""
    kind = METHODS[asked.method].kind
    method = {GRADIENT: ATTACK, ESTIMATE: "crown"}.get(kind, asked.method)
    known = first_ends(parts, balls, method, tolerance=asked.tolerance, deadline=deadline, seed=asked.seed,
                       ids=ids)
    return _by_gradients(parts, balls, known, asked.method, deadline) if kind == GRADIENT else known


def _by_gradients(parts: Parts, balls: Balls, known: list[RadiusInterval], method: str, deadline: Deadline
                  ) -> list[RadiusInterval]:
    """Lower ends from local Lipschitz constants."""
    graph = ranking_of(parts.simplified)
    balls = _moved(balls, graph)
    raised = []
    for some in torch.arange(len(balls)).split(regions_together(graph)):
        found = lipschitz_radius(graph, balls.take(some.to(balls.x.device)), method=method, deadline=deadline)
        raised += [known[k].raised(radius, found.evidence, method)
                   for k, radius in zip(some.tolist(), found.radius.tolist(), strict=True)]
    return raised


def _moved(balls: Balls, graph: Graph) -> Balls:
    """The balls where the graph is."""
    mask = None if balls.mask is None else balls.mask.to(graph.device)
    return dataclasses.replace(balls, x=balls.x.to(graph.device), label=balls.label.to(graph.device), mask=mask)


def _estimate(parts: Parts, ball: Balls, known: RadiusInterval, index: int, asked: Asked, deadline: Deadline
              ) -> Estimate | None:
    """CLEVER's score inside the ball that reaches to the witness, or holds the whole range; None where neither limits
    it, or time ran out."""
    radius = min(known.upper, float(ball.largest[0]))
    if radius == 0:
        return Estimate(0.0, 0.0, 0.0, False)
    if radius == math.inf:
        return None
    found = Clever().scores(parts.graph, ball, radius, seed=asked.seed, ids=torch.tensor([index]), deadline=deadline,
                            simplified=parts.simplified)
    if not bool(found.complete[0]):
        return None
    return Estimate(float(found.score[0]), float(found.low[0]), float(found.high[0]), bool(found.warning[0]))


def _counted(network: Network, data: DataSet, chosen: Sequence[int], asked: Asked, progress: Progress | None
             ) -> Iterator[tuple[Finished, RadiusInterval]]:
    """The same for l_0, an input after the other: how many features must change."""
    assert asked.clip is not None
    mask = None if asked.mask is None else torch.from_numpy(asked.mask)
    for place in chosen:
        begin = time.monotonic()
        found = l0_radius(
            network.graph, torch.from_numpy(data.x[place]), int(data.y[place]), clip=asked.clip,
            replayer=network.replayer, mask=mask, target=asked.target, most=0 if asked.method == ATTACK else None,
            seed=asked.seed, deadline=Deadline.starting_now(asked.time_limit_s),
            on_interval=_teller(progress, int(data.index[place])), simplified=network.simplified)
        yield _finished(found, data, place, asked, time.monotonic() - begin)


# ---------------------------------------------------------------------- as plain values


def as_record(found: RadiusInterval, index: int, label: int, asked: Asked, time_s: float) -> dict[str, Any]:
    """An interval as plain JSON values; an end that is infinite becomes null: no witness is known, or none exists."""
    from verifier.attacks.base import norm_name
    witness, counts = found.witness, asked.norm == 0
    return {
        "index": index, "label": label, "norm": norm_name(asked.norm),
        "r1": _finite(found.lower, counts), "r1_evidence": found.lower_evidence.name.lower(),
        "r1_by": found.lower_by or None, "r2": _finite(found.upper, counts),
        "r2_evidence": found.upper_evidence.name.lower() if witness is not None else None,
        "r2_by": found.upper_by or None, "exact": found.gap <= (0 if counts else asked.tolerance),
        "claim": found.claim.value, "became": None if witness is None else _became(witness, label, asked.target),
        "target": asked.target, "method": asked.method, "time_s": round(time_s, 3)}


def _as_fields(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"estimate": None, "estimate_low": None, "estimate_high": None, "estimate_doubtful": None}
    return {"estimate": estimate.value, "estimate_low": estimate.low, "estimate_high": estimate.high,
            "estimate_doubtful": estimate.doubtful}


def as_interval(record: dict[str, Any]) -> RadiusInterval:
    """The interval that a record tells of, without its witness."""
    lower, upper = (math.inf if record[end] is None else float(record[end]) for end in ("r1", "r2"))
    above = Evidence.ROUNDED if record["r2_evidence"] is None else Evidence[record["r2_evidence"].upper()]
    return RadiusInterval(lower, upper, Evidence[record["r1_evidence"].upper()], above, record["r1_by"] or "",
                          record["r2_by"] or "")


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
        "never_unsafe": sum(r["r1"] is None for r in records),
        "no_witness": sum(r["r2"] is None and r["r1"] is not None for r in records),
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


def _finite(value: float, count: bool) -> float | int | None:
    if not abs(value) < math.inf:
        return None
    return int(value) if count else float(value)
