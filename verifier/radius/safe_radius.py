"""The safe radius of inputs, from both sides: bounds and attacks on many at once, then a search for each.

What each end rests on is said by its evidence: the lower one is ROUNDED where all rounding of what proved it is
accounted for, the upper one where an enclosure over the reals confirms its witness, replayed on the original network.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bounds.compute import METHODS as BOUNDS
from bounds.graph import Graph, UnsupportedOperator
from verifier.deadline import Deadline
from verifier.radius.balls import Balls
from verifier.radius.interval import RadiusInterval
from verifier.radius.lower import certified_radii
from verifier.radius.methods import ATTACK, COUNTING, METHODS, SEARCH
from verifier.radius.programmes import by_programmes
from verifier.radius.search import Progress, RadiusSearch
from verifier.radius.subsets import l0_radius
from verifier.radius.upper import Nearest, nearest_witnesses
from verifier.witness import ModuleReplayer, OnnxReplayer, Replayer

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
# Cheap ones first: what they leave open the next ones improve. Intervals cost next to nothing, and say the most of
# networks that were trained on them.
PROVED_BY = ("ibp", "crown", "alpha-crown")
FIRST_SHARE = 0.25  # of the time, for all that is done with many inputs at once
ATTACK_SHARE = 0.5  # of that: bounds must have theirs
RADIUS_METHODS = ("auto", "attack", *BOUNDS, "milp")
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}


@dataclass(frozen=True, eq=False)
class Parts:
    """A network in the forms that are asked for: as read, simplified, and the original that replays witnesses."""

    graph: Graph
    simplified: Graph
    replayer: Replayer

    @staticmethod
    def of(graph: Graph, replayer: Replayer | nn.Module | str | Path, simplified: Graph | None = None) -> Parts:
        if isinstance(replayer, nn.Module):
            replayer = ModuleReplayer(replayer)
        elif isinstance(replayer, str | Path):
            replayer = OnnxReplayer(replayer)
        return Parts(graph, graph.simplify() if simplified is None else simplified, replayer)


def safe_radius(graph: Graph, x: NDArray[Any] | Tensor, label: int, *, replayer: Replayer | nn.Module | str | Path,
                norm: float = math.inf, clip: tuple[float, float] | None = None,
                mask: NDArray[np.bool_] | Tensor | None = None, target: int | None = None, method: str = "auto",
                time_limit_s: float = 60.0, tolerance: float = TOLERANCE, seed: int = 0,
                simplified: Graph | None = None, progress: Progress | None = None) -> RadiusInterval:
    """How far x "*input" can move, in `norm` (inf, 2, 1; 0: features that change), before some class other than `label`
    (or the `target`) is at least as high: `lower <= r_max <= upper`.

    replayer: the original network (a path, a module or a `Replayer`). clip = (low, high): the valid range of inputs,
    mask "*input": which features may move. method "auto" goes on until the ends are within `tolerance` (absolute) or
    the time is up; "attack" only looks for witnesses; a bound method's name for the radius that it certifies, beside
    attacks; "milp": by mixed programmes. Wrong use raises ValueError.
    """
    parts = Parts.of(graph, replayer, simplified)
    if norm == 0:
        return _features(parts, np.asarray(x, np.float64), label, clip, mask, target, method, time_limit_s, seed)
    balls = balls_of(parts, np.asarray(x, np.float64)[None], np.array([label]), norm=norm, clip=clip, mask=mask,
                     target=target)
    if method not in RADIUS_METHODS:
        raise ValueError(f"method must be one of {', '.join(RADIUS_METHODS)}, got {method!r}")
    deadline = Deadline.starting_now(time_limit_s)
    first_s = FIRST_SHARE * time_limit_s if METHODS[method].kind == SEARCH else time_limit_s
    (known,) = first_ends(parts, balls, method, tolerance=tolerance, seed=seed,
                          deadline=Deadline.starting_now(first_s))
    return closed(parts, balls, known, method, tolerance=tolerance, deadline=deadline, seed=seed, progress=progress)


def _features(parts: Parts, x: NDArray[np.float64], label: int, clip: tuple[float, float] | None,
              mask: NDArray[np.bool_] | Tensor | None, target: int | None, method: str, time_limit_s: float, seed: int
              ) -> RadiusInterval:
    """The l_0 safe radius: how many features must change."""
    if clip is None:
        raise ValueError("norm 0 needs a clip range: a feature that changes may take any value of it")
    if method not in COUNTING:
        raise ValueError(f"norm 0 works with the methods {', '.join(COUNTING)}, not {method}")
    shape = parts.graph.input_shape
    free = None if mask is None else torch.as_tensor(np.asarray(mask, bool)).reshape(shape)
    return l0_radius(parts.graph, torch.from_numpy(x).reshape(shape), label, clip=clip, replayer=parts.replayer,
                     mask=free, target=target, most=0 if method == ATTACK else None, seed=seed,
                     deadline=Deadline.starting_now(time_limit_s), simplified=parts.simplified)


def balls_of(parts: Parts, x: NDArray[Any], label: NDArray[Any], *, norm: float, clip: tuple[float, float] | None,
             mask: NDArray[np.bool_] | Tensor | None, target: int | None) -> Balls:
    """The question about inputs x "N *input" and labels "N". Raises ValueError where it makes no sense."""
    shape = parts.graph.input_shape
    points = torch.from_numpy(np.asarray(x, np.float64)).reshape(len(x), *shape)
    free = None if mask is None else torch.as_tensor(np.asarray(mask, bool)).reshape(shape)
    return Balls(points, torch.from_numpy(np.asarray(label, np.int64)), norm, clip, free, target)


def first_ends(parts: Parts, balls: Balls, method: str = "auto", *, tolerance: float, deadline: Deadline,
               seed: int = 0, ids: Tensor | None = None) -> list[RadiusInterval]:
    """What attacks and cheap bounds say of all inputs together (a method's own bounds, where it is one). ids "N": the
    inputs' numbers, from which attacks draw."""
    begin = time.monotonic()
    methods = PROVED_BY if method in ("auto", "milp") else () if method == "attack" else (method,)
    attacking = deadline.part(ATTACK_SHARE) if methods else deadline
    near = nearest_witnesses((parts.graph, parts.simplified, parts.replayer), balls, deadline=attacking, seed=seed,
                             ids=ids)
    log.info("attacks  %d inputs  %.2f s", len(balls), time.monotonic() - begin)
    known = [_from_above(nearest) for nearest in near]
    start = None
    for name in methods:
        begin = time.monotonic()
        most = torch.tensor([interval.upper for interval in known], dtype=torch.float64)
        try:
            found = certified_radii(parts.graph, balls, name, most=most, tolerance=tolerance, start=start,
                                    deadline=deadline, simplified=parts.simplified)
        except UnsupportedOperator:
            if name == method:
                raise
            continue
        # Elsewhere the radius of intervals is far too small for others to begin with.
        start = found.radius if name != "ibp" else None
        known = [interval.raised(radius, evidence, name)
                 for interval, radius, evidence in zip(known, found.radius.tolist(), found.evidence, strict=True)]
        log.info("%s  %d inputs  %.2f s", name, len(balls), time.monotonic() - begin)
    return known


def closed(parts: Parts, ball: Balls, known: RadiusInterval, method: str = "auto", *, tolerance: float,
           deadline: Deadline, seed: int = 0, progress: Progress | None = None) -> RadiusInterval:
    """What a search for the only input makes of what is known of it."""
    if known.gap <= tolerance or method not in ("auto", "milp"):
        return known
    if method == "milp":
        return by_programmes(parts.graph, parts.simplified, parts.replayer, ball, known, deadline=deadline, seed=seed)
    return RadiusSearch(parts.graph, parts.simplified, parts.replayer, ball, known, tolerance, deadline, seed,
                        progress).run()


def _from_above(nearest: Nearest) -> RadiusInterval:
    return RadiusInterval().lowered(nearest.distance, nearest.evidence, nearest.by, nearest.witness)
