"""The safe radius of one input, both ends: balls are decided one after the other until the ends meet or time is up.

The first ball is just smaller than the nearest witness is far: where it is verified, the radius is exact at once; where
a nearer witness comes up, it takes the place of the last. What cannot be decided in a slice of the time is put off. The
search then looks for the largest ball that a slice does decide, doubles the slice, and climbs on from there:

- What a slice gained on a bound it is likely to gain elsewhere too. A ball that was not decided thus tells at which
  radius the bounds before the search are within reach.
- The leaves of a tree over one ball are the roots of the next (`verifier.branch_and_bound.leaves`), unless most of them
  were closed for smaller balls alone; of a ball that was put off nothing is done twice.
- Engines (`verifier.radius.engines`) take turns while none has shown to be better, each with trees of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bounds.graph import Graph
from verifier.branch_and_bound.leaves import Leaves
from verifier.deadline import Deadline
from verifier.problem import make_problem
from verifier.property import Property
from verifier.radius.balls import Balls
from verifier.radius.engines import ATTACK, CHEAP_NAMES, Engine, engines_for
from verifier.radius.interval import RadiusInterval
from verifier.radius.polish import nearer
from verifier.radius.upper import THOROUGH, nearest_witnesses
from verifier.strategy import Result, verify
from verifier.verdict import Falsified, Reason, Verified
from verifier.witness import Replayer

log = logging.getLogger(__name__)

ULPS = 2              # of the largest coordinate
ASIDE = 0.9           # of the tolerance: so far inside the nearest witness the last ball ends
GLANCE = 1 / 24       # of the time: the slice of the first ball, mostly far too large to be decided
FIRST_SHARE = 1 / 12  # and of those after it
LEAST_SLICE_S = 0.5
DESCENT, DESCENT_SHARE = 0.02, 0.1  # steps of the attack, of the radius, and its share of the time
THOROUGH_SHARE = 0.15  # of the time that is left, for the attacks that come later
END_S = 0.1           # too little to begin anything
CLOSE = 0.005        # of the radius: between a ball that is decided and one that is not, nothing more is tried
LIKELY = 0.9         # of what a slice gained it is taken to gain again
STAY = 0.8           # a slice that gained so much of what was lacking is followed by another one on the spot,
CLOSING = 0.6        # and that by one of twice the length, if each leaves at most this of what the last left lacking
STAY_SHARE = 0.5     # as long as they are no more than this of the time that is left
INNER = (0.3, 0.8)   # shares of the bracket between which the next radius lies
BEHIND = 2.0         # times what the best one lacks in the same slice: an engine that lacks more is not asked again
SPENT = 0.5          # of a slice: an engine that stops before, by itself, gains nothing by more time
GROWTH = 2.0         # of the steps upward, and of slices
FRESH = 0.99         # of the radius: a tree most of whose leaves were closed below is no better than a new one
STRIDE = 0.25        # of the gap: the least first step upward (a ball that is barely larger costs as much as the last)

Progress = Callable[[RadiusInterval, float], None]  # (what is known, the radius under way)


@dataclass(frozen=True, eq=False)
class Attempt:
    """One ball: its radius, the engine's answer, the margin's bound before and after the engine's own work, and whether
    what is known of the radius is better for it (a verdict that clashes with better evidence changes nothing)."""

    radius: float
    engine: str
    result: Result
    before: float
    after: float
    gained: bool

    @property
    def is_open(self) -> bool:
        return not self.gained


@dataclass(eq=False)
class RadiusSearch:
    """Both ends of the safe radius of the only input of `ball`, starting from what is known of it.

    graph: as read; simplified: its `simplify()`; replayer: of the original file. tolerance: absolute; the search ends
    where the ends are as near as that."""

    graph: Graph
    simplified: Graph
    replayer: Replayer
    ball: Balls
    known: RadiusInterval
    tolerance: float
    deadline: Deadline
    seed: int = 0
    progress: Progress | None = None
    reuses: bool = True
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaves: dict[str, Leaves] = {}  # of each engine: what one split, another would have split elsewhere
        self.classes = math.prod(self.graph.output_shape)
        self.engines: list[Engine] = []
        # Witnesses are float32 points of a box that is rounded to float32: nearer than that to the last one, it would
        # only be found again.
        largest = float(self.ball.x.abs().max())
        self.furthest = float(np.finfo(np.float32).max) / 2 - largest  # inputs of balls beyond are no float32
        reach = largest + min(self.known.upper, float(self.ball.largest[0]))
        self.resolution = ULPS * float(np.spacing(np.float32(reach))) if reach < math.inf else 0.0
        self.slice_s = max(LEAST_SLICE_S, GLANCE * self.deadline.left())
        self.later_s = max(LEAST_SLICE_S, FIRST_SHARE * self.deadline.left())
        self.start = self.known.lower
        self.undecided = math.inf  # the least radius that a slice did not decide
        self.step = math.inf
        self.spent: dict[str, float] = {}  # engines that stopped by themselves, by the least radius that they left open
        self.beaten = False        # whether the other engines had their turn with this slice

    def run(self) -> RadiusInterval:
        """Search until the ends meet, time is up, or nothing can decide any more."""
        self._descend()
        radius: float | None = self._target()
        enough = max(self.tolerance, self.resolution)
        while radius is not None and radius <= self.furthest and self.known.gap > enough \
                and self.deadline.left() > END_S:
            if self.progress is not None:
                self.progress(self.known, radius)
            radius = self._next(self._decide(radius), radius)
        return self.known

    def _descend(self) -> None:
        """Attack ever smaller balls: whatever is unsafe in one, polished, is mostly a nearer witness than attacks find
        that look for the nearest from the start."""
        until = self.deadline.left() * (1 - DESCENT_SHARE)
        while self.known.upper < math.inf and self.known.gap > self.tolerance and self.deadline.left() > until:
            radius = max(self.known.upper * (1 - DESCENT), (self.known.lower + self.known.upper) / 2)
            if self._ask(ATTACK, self.question(radius), radius).is_open:
                return

    def _attack(self) -> None:
        """Attacks that look for the nearest witness once more, at length: where a ball could not be decided at a
        glance, better witnesses bring the ends as near as better bounds do."""
        limit = Deadline.starting_now(max(END_S, THOROUGH_SHARE * self.deadline.left()))
        (found,) = nearest_witnesses((self.graph, self.simplified, self.replayer), self.ball, attacks=THOROUGH,
                                     deadline=limit, seed=self.seed)
        self.known = self.known.lowered(found.distance, found.evidence, found.by, found.witness)

    # ------------------------------------------------------------------ one ball

    @property
    def _slice(self) -> float:
        """Seconds for one engine and ball. Time may run out between a check and here: never 0."""
        return max(END_S, min(self.slice_s, self.deadline.left()))

    def question(self, radius: float) -> Property:
        """That no point within the radius is unsafe."""
        return self.ball.question(0, radius, self.classes)

    def _decide(self, radius: float) -> Attempt | None:
        """The ball, by the engine that did best so far; by the others as well where it fails for the first time with
        slices of this length. None: whatever could be tried has shown that more time changes nothing."""
        prop = self.question(radius)
        if not self.engines:
            deadline = Deadline.starting_now(self._slice)
            self.engines = list(engines_for(make_problem(
                self.graph, prop, replayer=self.replayer, deadline=deadline, simplified=self.simplified)))
        able = [e for e in self.engines if radius < self.spent.get(e.name, math.inf)]
        tried = able[:1] if self.beaten or self.step == math.inf else able
        attempts: list[Attempt] = []
        for engine in tried:
            if attempts and self.deadline.left() <= END_S:
                break
            slice_s = self._slice
            attempts.append(self._ask(engine, prop, radius))
            if not attempts[-1].is_open:
                self.engines.sort(key=lambda e: e is not engine)
                return attempts[-1]
            if attempts[-1].result.time_s < SPENT * slice_s:
                self.spent[engine.name] = radius
        if not attempts:
            return None
        best = max(attempts, key=lambda a: a.after)
        if len(attempts) > 1:
            self.beaten = True
            # A bound above 0 decides the ball; where better evidence denied that, it tells nothing about engines.
            behind = {a.engine for a in attempts if a.after < BEHIND * min(best.after, 0.0)}
            # Of trees one is enough: they take the same time to find out which splits better.
            trees = sorted((a for a in attempts if self._is_tree(a)), key=lambda a: -a.after)
            behind |= {a.engine for a in trees[1:]}
            self.engines = [e for e in self.engines if e.name not in behind]
        self.engines.sort(key=lambda e: e.name != best.engine)
        return best

    def _is_tree(self, attempt: Attempt) -> bool:
        return any(e.is_tree for e in self.engines if e.name == attempt.engine)

    def _ask(self, engine: Engine, prop: Property, radius: float) -> Attempt:
        leaves = self.leaves.setdefault(engine.name, Leaves())
        leaves.radius = radius
        if not self.reuses or leaves.closed_below(FRESH * radius) > len(leaves) / 2:
            leaves.forget()
        result = verify(self.graph, prop, replayer=self.replayer, simplified=self.simplified, seed=self.seed,
                        deadline=Deadline.starting_now(self._slice),
                        method=lambda problem: engine.stages(problem, leaves))
        before = max((s.lower for s in result.stages if s.name in CHEAP_NAMES), default=-math.inf)
        known = self.known
        self._take_over(radius, result)
        attempt = Attempt(radius, engine.name, result, before, result.lower, self.known is not known)
        self.attempts.append(attempt)
        log.info("radius %.6g  %s  %s  margin %.4g -> %.4g  %.2f s  leaves %d", radius, engine.name, result.name,
                 before, attempt.after, result.time_s, len(leaves))
        return attempt

    def _take_over(self, radius: float, result: Result) -> None:
        verdict = result.verdict
        if isinstance(verdict, Verified):
            everything = radius >= float(self.ball.largest[0])
            self.known = self.known.raised(math.inf if everything and self.known.upper == math.inf else radius,
                                           verdict.evidence, result.method)
        elif isinstance(verdict, Falsified):
            found = nearer((self.graph, self.simplified, self.replayer), self.ball, verdict.witness, result.method,
                           self.deadline)
            self.known = self.known.lowered(found.distance, found.evidence, found.by, found.witness)

    # ------------------------------------------------------------------ the next ball

    def _target(self) -> float:
        """The radius just below the nearest witness, or of the whole range."""
        if self.known.upper < math.inf:
            aside = max(ASIDE * self.tolerance, self.resolution)
            return max(self.known.upper - aside, (self.known.lower + self.known.upper) / 2)
        largest = float(self.ball.largest[0])
        return largest if largest < math.inf else GROWTH * max(self.known.lower, self.tolerance)

    def _next(self, last: Attempt | None, radius: float) -> float | None:
        chosen = self._chosen(last, radius)
        return None if chosen is None else min(chosen, self._target())

    def _chosen(self, last: Attempt | None, radius: float) -> float | None:
        """The radius that the last answer suggests."""
        low = self.known.lower
        if last is None:
            self.undecided = min(self.undecided, radius)
            return (low + self.undecided) / 2 if self.undecided - low > self.tolerance else None
        if not last.is_open:
            if self.undecided == math.inf:
                radius = low + self.step
                self.step *= GROWTH
                return radius
            if self.undecided - low > self._near:
                return (low + self.undecided) / 2
        elif last.result.reason in (Reason.UNSUPPORTED, Reason.ERROR):
            return None
        elif self._is_promising(last):
            return last.radius
        else:
            if self.step == math.inf:
                self.slice_s, self.step = max(self.slice_s, self.later_s), 0.0
                self._attack()
            self.undecided = min(self.undecided, last.radius)
            if self.undecided - low > self._near:
                return self._within(last)
        # Nothing more is to be had from this slice.
        radius, self.step = self.undecided, max(2 * (self.undecided - low), STRIDE * self.known.gap)
        self.slice_s, self.undecided, self.beaten = GROWTH * self.slice_s, math.inf, False
        return radius

    @property
    def _near(self) -> float:
        return max(self.tolerance, CLOSE * self.undecided)

    def _within(self, last: Attempt) -> float:
        """The radius between both ends of the bracket at which the bounds before the search lack what it gained."""
        low, high = self.known.lower, last.radius
        gained = last.after - last.before
        share = 0.5
        if math.isfinite(gained) and last.before < 0 and high > self.start:
            found = self.start + (high - self.start) * LIKELY * gained / -last.before
            share = min(max((found - low) / (high - low), INNER[0]), INNER[1])
        return low + share * (high - low)

    def _is_promising(self, attempt: Attempt) -> bool:
        """Whether going on with this ball is better than turning to a smaller one. (How much lacks says little: some
        trees creep towards zero. What the last slice gained of it does.)"""
        if not (attempt.before < 0 and math.isfinite(attempt.after)):
            return False
        earlier = [a.after for a in self.attempts[:-1] if (a.radius, a.engine) == (attempt.radius, attempt.engine)]
        enough = CLOSING * earlier[-1] if earlier else (1 - STAY) * attempt.before
        slice_s = self.slice_s * (GROWTH if earlier else 1.0)
        if attempt.after < enough or slice_s > STAY_SHARE * self.deadline.left():
            return False
        self.slice_s, self.beaten = slice_s, True
        return True
