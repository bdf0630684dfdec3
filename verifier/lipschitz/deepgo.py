"""DeepGo (Ruan, Huang and Kwiatkowska, arXiv:1805.02242): ranges by nested one-dimensional Lipschitz optimisation, and
the questions it answers: reachability diameter, and safety over chosen features.

One feature is searched for each level: `m_k(x_1 .. x_k) = min over x_{k+1} .. x_n of f` is as steep in x_k as f is, so
Piyavskii's and Shubert's search works on every level: with values w at the ends of [a, b] the function is at least
`z = (w(a) + w(b)) / 2 - K (b - a) / 2` between them, and the interval with the least z is split where the two cones of
slope K meet. All problems of a level advance together, one batch of points a step.

With constants K that hold (`proved_constants`) lower ends are bounds, up to rounding. The paper takes the largest slope
among sampled points times a factor: a function that rises steeply where nobody looked is missed then, so those
results are estimates. `verifier.lipschitz.range` answers the same questions with proofs and in more dimensions.

Axis legend: P problems, T points of each, n features that move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ibp import propagate
from bounds.jacobian.interval import bound as fastlip
from bounds.precision import full_precision
from bounds.sets import InputSet
from verifier.deadline import LAST_BATCH_S, Deadline
from verifier.exact import fraction
from verifier.lipschitz.functions import Margin, OutputFunction
from verifier.lipschitz.gradient import GradientEnclosure, largest_slopes
from verifier.lipschitz.parts import linear_parts, rows_of_every
from verifier.lipschitz.range import Range, output_range
from verifier.property import Points, robustness
from verifier.real_value import real_agrees
from verifier.verdict import Claim, Evidence, Falsified, Reason, Unknown, Verdict, Verified
from verifier.witness import Replayer, confirm

Function = Callable[[Tensor], Tensor]  # "P n" -> "P"
LEAST_S = 1e-9
SAMPLES = 64         # points from which the first constants are estimated
STEEPEST_OVER = 1e-9  # of a feature's width: slopes over less are rounding


@dataclass(frozen=True, eq=False)
class Minimum:
    """`lower <= min f <= upper`, where the constants hold; x "n" is where f is `upper`."""

    lower: float
    upper: float
    x: Tensor
    evaluations: int
    complete: bool


def nested_minimum(function: Function, low: Tensor, high: Tensor, *, constants: Tensor | None = None, eta: float = 1.5,
                   error: float = 0.01, iterations: int = 1000, deadline: Deadline | None = None,
                   generator: torch.Generator | None = None) -> Minimum:
    """The minimum of a function of n features over the box [low, high] "n".

    constants "n": `|f(x + t e_i) - f(x)| <= K_i |t|`. None: eta times the largest slope between sampled points, raised
    as steeper ones are seen. iterations: splits of each problem of a level.
    """
    if low.dim() != 1 or low.shape != high.shape or not bool((low < high).all()):
        raise ValueError(f"expected low < high of one shape (n,), got {tuple(low.shape)} and {tuple(high.shape)}")
    if constants is not None and (constants.shape != low.shape or not bool((constants >= 0).all())):
        raise ValueError(f"expected one constant >= 0 a feature, got {tuple(constants.shape)}")
    if not error > 0 or iterations < 0 or not eta >= 1:
        raise ValueError(f"error must be > 0, iterations >= 0 and eta >= 1, got {error}, {iterations} and {eta}")
    search = _Nested(function, low, high, error, iterations, deadline or Deadline.starting_now(),
                     None if constants is not None else eta, low.new_zeros(low.shape) if constants is None
                     else constants.to(low))
    if constants is None:
        search.sample(generator or torch.Generator(low.device).manual_seed(0))
    lower, upper, x = search.least(low.new_zeros(1, 0))
    return Minimum(float(lower), float(upper), x[0], search.evaluations, float(upper - lower) <= error)


@dataclass(eq=False)
class _Nested:
    function: Function
    low: Tensor
    high: Tensor
    error: float
    iterations: int
    deadline: Deadline
    eta: float | None  # None: the constants are given
    K: Tensor
    evaluations: int = field(default=0)

    def sample(self, generator: torch.Generator) -> None:
        """First constants: slopes along each feature between pairs of random points."""
        n = len(self.low)
        x = self.low + (self.high - self.low) * torch.rand(SAMPLES, n, generator=generator, dtype=self.low.dtype,
                                                           device=self.low.device)
        here = self.value(x)
        for k in range(n):
            moved = x.clone()
            moved[:, k] = x[:, k].roll(1)
            self._learn(k, (self.value(moved) - here).abs(), (moved[:, k] - x[:, k]).abs())

    def value(self, x: Tensor) -> Tensor:
        self.evaluations += x.shape[0]
        return self.function(x)

    def _learn(self, k: int, rise: Tensor, run: Tensor) -> None:
        if self.eta is None:
            return
        seen = torch.where(run > STEEPEST_OVER * (self.high[k] - self.low[k]), rise / run, torch.zeros_like(run))
        self.K[k] = torch.maximum(self.K[k], self.eta * seen.max())

    def least(self, prefix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(lower "P", upper "P", points "P n") of the minima over the features that the prefixes "P k" leave."""
        count, k = prefix.shape
        n = len(self.low)
        if k == n:
            value = self.value(prefix)
            return value, value, prefix
        t = torch.stack([self.low[k], self.high[k]]).expand(count, 2)
        lower, upper, x = (part.unflatten(0, (count, 2)) for part in self._inner(prefix, t))
        error = self.error * (n - k) / n  # the levels below have their shares
        best, at = upper.min(1)
        x = x[torch.arange(count), at]
        active = torch.arange(count, device=prefix.device)
        bound = torch.full_like(best, -torch.inf)
        for step in range(self.iterations + 1):
            self._learn(k, lower.diff(dim=1).abs(), t.diff(dim=1))
            z = (lower[:, 1:] + lower[:, :-1]) / 2 - self.K[k] * t.diff(dim=1) / 2
            least, which = z.min(1)
            bound[active] = least
            open_ = best[active] - least > error
            if step == self.iterations or not bool(open_.any()) or self.deadline.passed():
                break
            active, t, lower, which = active[open_], t[open_], lower[open_], which[open_]
            new = self._meeting(k, t, lower, which)
            new_lower, new_upper, new_x = self._inner(prefix[active], new)
            better = new_upper < best[active]
            best[active[better]], x[active[better]] = new_upper[better], new_x[better]
            t, order = torch.cat([t, new], 1).sort(1)
            lower = torch.cat([lower, new_lower.unsqueeze(1)], 1).gather(1, order)
        return bound.minimum(best), best, x

    def _meeting(self, k: int, t: Tensor, w: Tensor, which: Tensor) -> Tensor:
        """Where the cones from both ends of the chosen intervals meet: "P 1"."""
        i = which.unsqueeze(1)
        a, b, wa, wb = t.gather(1, i), t.gather(1, i + 1), w.gather(1, i), w.gather(1, i + 1)
        steep = self.K[k].clamp(min=torch.finfo(t.dtype).tiny)
        y = (a + b) / 2 + (wa - wb) / (2 * steep)
        # Values of inner searches are lower bounds, which may differ by more than K (b - a).
        return torch.minimum(torch.maximum(y, a + 0.01 * (b - a)), b - 0.01 * (b - a))

    def _inner(self, prefix: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`least` of every prefix "P k" with every one of its next values "P T": "P*T" each."""
        longer = torch.cat([prefix.repeat_interleave(t.shape[1], 0), t.reshape(-1, 1)], 1)
        return self.least(longer)


def deepgo_range(graph: Graph, box: InputSet, function: OutputFunction, *, constants: Tensor | None = None,
                 eta: float = 1.5, error: float = 0.01, iterations: int = 1000, deadline: Deadline | None = None,
                 generator: torch.Generator | None = None) -> Range:
    """The range of a function of the outputs over one box, by nested searches for both ends.

    constants "*shape": of F in each input, proved (evidence FLOAT); None: estimated, and so is the answer (evidence
    ESTIMATE: the ends called proved are not). The cost grows exponentially in the number of features that move.
    """
    if not box.is_box or box.batch != 1 or box.shape != graph.input_shape:
        raise ValueError(f"expected one box of shape {graph.input_shape}, got {box.batch} of {box.shape}")
    flat = box.lower.flatten()
    free = (box.lower < box.upper).flatten().nonzero().flatten()
    if not len(free):
        raise ValueError("no feature of the box moves")

    def full(x: Tensor) -> Tensor:
        return flat.expand(x.shape[0], -1).index_copy(1, free, x).view(-1, *box.shape)

    def signed(sign: float, x: Tensor) -> Tensor:
        with torch.no_grad():
            return sign * function.value(graph(full(x)).flatten(1))

    deadline = deadline or Deadline.starting_now()
    half = Deadline.starting_now(max(deadline.left() / 2, LEAST_S))  # the first end leaves time for the second
    low, high = (nested_minimum(partial(signed, sign), flat[free], box.upper.flatten()[free], eta=eta, error=error,
                                constants=None if constants is None else constants.flatten()[free],
                                iterations=iterations, deadline=until, generator=generator)
                 for sign, until in ((1.0, half), (-1.0, deadline)))
    return Range(low.lower, low.upper, -high.lower, -high.upper, full(low.x[None])[0], full(high.x[None])[0],
                 low.evaluations + high.evaluations, 0, Evidence.ESTIMATE if constants is None else Evidence.FLOAT,
                 low.complete and high.complete)


@full_precision()
def proved_constants(graph: Graph, box: InputSet, function: OutputFunction, *, method: str = "crown",
                     gradient: GradientEnclosure = fastlip) -> Tensor:
    """`|dF / dx_i| <= K_i` over every box: "B *shape"."""
    C, c = (t.to(box.lower) for t in function.rows(int(np.prod(graph.output_shape))))
    z, answer = linear_parts(graph, box, C, c, method)
    intervals = dict(enumerate(propagate(graph, box, given=answer.intervals)))
    return largest_slopes(function.slopes(z), gradient(graph, box, rows_of_every(box, C), given=intervals))


def feature_safety(graph: Graph, replayer: Replayer, x: Points, label: int, features: np.ndarray, *,
                   clip: tuple[float, float] = (0.0, 1.0), batch: int = 256, method: str = "crown",
                   deadline: Deadline | None = None) -> Verdict:
    """Does the label stay strictly on top while `features` (bool, as x) take any values in the clip range?

    graph: in float64, without a softmax at its end. Falsified comes with a point that the replayer confirms.
    """
    classes = int(np.prod(graph.output_shape))
    reach = fraction(float(clip[1])) - fraction(float(clip[0]))  # of the decimals, as `robustness` reads them
    property = robustness(x, label, reach, classes=classes, clip=clip, mask=features)
    region = property.regions[0]
    lower, upper = (torch.from_numpy(np.array(end)).view(1, *graph.input_shape).to(graph.device)
                    for end in (region.lower, region.upper))
    found = output_range(graph, InputSet(lower, upper), Margin(label), error=0.0, above=0.0, batch=batch, method=method,
                         deadline=deadline)
    if found.lower_proved > 0:
        return Verified(found.lower_proved, found.evidence, Claim.REAL)
    if found.lower_seen <= 0:
        witness = confirm(found.argmin, property, replayer, real_check=partial(real_agrees, graph, property))
        if witness is not None:
            evidence = Evidence.ROUNDED if witness.real_agrees else Evidence.FLOAT
            return Falsified(witness, witness.margin, found.lower_proved, evidence,
                             Claim.REAL if witness.real_agrees else Claim.FLOAT32)
        return Unknown(Reason.ROUNDING, found.lower_proved, found.lower_seen,
                       "a point is unsafe over the reals, the network in float32 does not agree")
    return Unknown(Reason.TIME_LIMIT if deadline is not None and deadline.left() <= LAST_BATCH_S else Reason.NUMERICAL,
                   found.lower_proved, found.lower_seen)
