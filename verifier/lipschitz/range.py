"""The range of a function of the outputs over a box, proved from outside and seen from inside.

Lipschitz optimisation (Piyavskii 1972, Shubert 1972; over boxes as in DIRECT, Jones, Perttunen and Stuckman 1993; for
networks DeepGo, Ruan, Huang and Kwiatkowska, arXiv:1805.02242) with constants that are proved: every box gets the
better of linear bounds (CROWN) and of `F(centre) -+ sum_i K_i r_i`, K_i from an enclosure of the gradient over that
box. The boxes with the least lower and the greatest upper ends are split first, both ends in one search.

`lower_proved <= min F <= lower_seen` and `upper_seen <= max F <= upper_proved` hold whenever the search stops.

Axis legend: B boxes, n features that move, K linear parts of the function, P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.bounds import Bounds, LinearRows
from bounds.compute import METHODS, PRICED_METHODS, method_named
from bounds.graph import Graph, UnsupportedOperator
from bounds.ibp import propagate
from bounds.interval import Interval
from bounds.ops.round_off import MORE, SPARE, gamma, unit
from bounds.precision import full_precision
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from verifier.deadline import LAST_BATCH_S, Deadline
from verifier.lipschitz.functions import OutputFunction, Planes
from verifier.lipschitz.gradient import GradientEnclosure, largest_slopes
from verifier.lipschitz.parts import linear_parts, rows_of_every, values_at
from verifier.verdict import Evidence

MOST_HALVINGS = 3     # of one box in one step, where there are fewer boxes than the batch holds
SAMPLES, STEPS = 64, 20  # of the first look: random points, and gradient steps from the best of them
STARTS = 8


@dataclass(frozen=True, eq=False)
class Range:
    """`lower_proved <= min F <= lower_seen`, `upper_seen <= max F <= upper_proved`, for the function over the box.

    argmin, argmax "*shape": points of the box where the seen ends are taken; with evidence ROUNDED the seen ends bound
    the real value there, with FLOAT they are values as computed. evaluations: points at which the network ran; boxes:
    how many were bounded. complete: whether at every end proved and seen differ by at most the error asked for (or the
    question asked with `above` is answered).
    """

    lower_proved: float
    lower_seen: float
    upper_proved: float
    upper_seen: float
    argmin: Tensor
    argmax: Tensor
    evaluations: int
    boxes: int
    evidence: Evidence
    complete: bool

    @property
    def diameter(self) -> tuple[float, float]:
        """Bounds of max F - min F, the reachability diameter."""
        return (max(0.0, math.nextafter(self.upper_seen - self.lower_seen, -math.inf)),
                math.nextafter(self.upper_proved - self.lower_proved, math.inf))


@full_precision()
def output_range(graph: Graph, box: InputSet, function: OutputFunction, *, error: float = 0.01,
                 deadline: Deadline | None = None, batch: int = 256, method: str = "crown",
                 root_method: str | None = None, gradient: GradientEnclosure | None = None,
                 above: float | None = None, generator: torch.Generator | None = None,
                 progress: Callable[[Range], None] | None = None) -> Range:
    """The range of `function` over one box, to `error` at both ends.

    graph: without a softmax at its end. box: one set, whose features with lower == upper stay fixed. method: of
    `bounds.compute`; root_method: for the whole box. gradient: encloses gradients (None: linear bounds alone).
    above: ask only whether the minimum exceeds this number. Evidence is ROUNDED in float64 with methods that account
    for rounding, else FLOAT. progress is told after every batch.
    Raises ValueError for a box that is none, and UnsupportedOperator where a network has no bounds.
    """
    for name in (method, root_method):
        if name is not None and name not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    if not box.is_box or box.batch != 1:
        raise ValueError("expected one box, got " + ("a ball" if not box.is_box else f"{box.batch} sets"))
    if box.shape != graph.input_shape:
        raise ValueError(f"the box has shape {box.shape}, the network's input {graph.input_shape}")
    if not error >= 0 or batch < 1:
        raise ValueError(f"error must be >= 0 and batch >= 1, got {error} and {batch}")
    search = _Search(graph, box, function, error, batch, method, gradient, above,
                     generator or torch.Generator(box.device).manual_seed(0))
    deadline = deadline or Deadline.starting_now()
    with torch.no_grad():
        search.start(root_method, deadline)
        if progress is not None:
            progress(search.result())
        while search.is_open and deadline.left() > LAST_BATCH_S:
            search.step()
            if progress is not None:
                progress(search.result())
    return search.result()


@dataclass(eq=False)
class _Search:
    graph: Graph
    box: InputSet
    function: OutputFunction
    error: float
    batch: int
    method: str
    gradient: GradientEnclosure | None
    above: float | None
    generator: torch.Generator
    evaluations: int = 0
    boxes: int = 0
    floor: float = math.inf     # of lower ends of boxes that were left
    ceiling: float = -math.inf
    _C: Tensor = field(init=False)

    def __post_init__(self) -> None:
        outputs = math.prod(self.graph.output_shape)
        self._C, self._c = (t.to(self.box.lower) for t in self.function.rows(outputs))
        moves = (self.box.lower < self.box.upper).flatten()
        self.free = moves.nonzero().flatten()
        self.rounded = self.method in PRICED_METHODS and is_priced(self.box.dtype) and is_covered(self.graph)
        ends = (self.box.lower.flatten()[self.free], self.box.upper.flatten()[self.free])
        self.low, self.high = (t.unsqueeze(0) for t in ends)              # open boxes "B n"
        self.score = (self.high - self.low).clone()                       # what each feature may change F by "B n"
        self.lower = self.box.lower.new_full((1,), -math.inf)             # proved ends of F "B"
        self.upper = self.box.lower.new_full((1,), math.inf)
        self.argmin = self.argmax = self.box.centre_point[0]
        self.lower_seen, self.upper_seen = math.inf, -math.inf            # as proved at the points, where rounded
        self._best = (math.inf, -math.inf)                                # as computed there

    # ------------------------------------------------------------------ the search

    def start(self, root_method: str | None, deadline: Deadline) -> None:
        """Some point and some bound at any price; more while there is time."""
        self.rounded &= (root_method or self.method) in PRICED_METHODS
        self._look(self.box.centre_point)
        self._take(*self._bound(self.low, self.high, "ibp", None)[:2])
        if deadline.left() <= LAST_BATCH_S:
            return
        if not len(self.free):
            return self._leave()
        self._search_points()
        lower, upper, self.score, points = self._bound(self.low, self.high, root_method or self.method, self.gradient)
        self._take(lower, upper)
        self._look(points)
        self._leave()

    def _take(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper = torch.maximum(self.lower, lower), torch.minimum(self.upper, upper)

    @property
    def is_open(self) -> bool:
        return self.low.shape[0] > 0

    def step(self) -> None:
        """Split the most promising boxes and bound the parts."""
        chosen = self._chosen()
        rest = torch.ones(self.low.shape[0], dtype=torch.bool, device=self.low.device)
        rest[chosen] = False
        low, high, parent = self._split(chosen)
        inherited = self.lower[parent], self.upper[parent]
        parts = [self._bound(low[i], high[i], self.method, self.gradient)
                 for i in torch.arange(low.shape[0], device=low.device).split(self.batch)]
        lower, upper, score, points = (torch.cat([part[k] for part in parts]) for k in range(4))
        lower, upper = torch.maximum(lower, inherited[0]), torch.minimum(upper, inherited[1])
        for name, new in (("low", low), ("high", high), ("lower", lower), ("upper", upper), ("score", score)):
            setattr(self, name, torch.cat([getattr(self, name)[rest], new]))
        self._look(points)
        self._leave()

    def _chosen(self) -> Tensor:
        """The boxes that hold back an end: half the batch for each end that is open."""
        low, high = self._needed()
        count = self.low.shape[0]
        each = max(1, self.batch // (2 * (int(bool(low.any())) + int(bool(high.any())))))
        best = [key.masked_fill(~needed, math.inf).topk(min(each, int(needed.sum())), largest=False).indices
                for key, needed in ((self.lower, low), (-self.upper, high)) if bool(needed.any())]
        return torch.cat(best).unique() if count else best[0]

    def _needed(self) -> tuple[Tensor, Tensor]:
        """Which open boxes may still move the lower, and the upper end: bool "B" each."""
        low = self.lower < self.lower_seen - self.error
        if self.above is not None:
            return low & ~(self.lower > self.above) & (self.lower_seen > self.above), torch.zeros_like(low)
        return low, self.upper > self.upper_seen + self.error

    def _leave(self) -> None:
        """Close boxes that hold back neither end, and such that no float lies inside."""
        low, high = self._needed()
        middle = 0.5 * self.low + 0.5 * self.high
        splits = ((self.low < middle) & (middle < self.high)).any(1)
        keep = (low | high) & splits
        if not bool(keep.all()):
            self.floor = min(self.floor, float(self.lower[~keep].min()))
            self.ceiling = max(self.ceiling, float(self.upper[~keep].max()))
            for name in ("low", "high", "lower", "upper", "score"):
                setattr(self, name, getattr(self, name)[keep])

    def _split(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Halve boxes along the features that matter most: (low "B n", high "B n", parent "B")."""
        low, high, score, parent = self.low[chosen], self.high[chosen], self.score[chosen].clone(), chosen
        for halving in range(MOST_HALVINGS):
            if halving and 2 * low.shape[0] > self.batch:
                break
            middle = 0.5 * low + 0.5 * high
            narrow = ~((low < middle) & (middle < high))
            at = score.masked_fill(narrow, -1.0).argmax(1, keepdim=True)
            score.scatter_(1, at, score.gather(1, at) / 2)
            cut = middle.gather(1, at)
            left, right = high.scatter(1, at, cut), low.scatter(1, at, cut)
            low, high = torch.cat([low, right]), torch.cat([left, high])
            score, parent = score.repeat(2, 1), parent.repeat(2)
        return low, high, parent

    def result(self) -> Range:
        lower = min(self.floor, float(self.lower.min()) if self.is_open else math.inf)
        upper = max(self.ceiling, float(self.upper.max()) if self.is_open else -math.inf)
        done = self.lower_seen - lower <= self.error and upper - self.upper_seen <= self.error
        if self.above is not None:
            done = lower > self.above or self.lower_seen <= self.above
        return Range(lower, self.lower_seen, upper, self.upper_seen, self.argmin, self.argmax, self.evaluations,
                     self.boxes, Evidence.ROUNDED if self.rounded else Evidence.FLOAT, done)

    # ------------------------------------------------------------------ bounds of boxes

    def _sets(self, low: Tensor, high: Tensor) -> InputSet:
        return InputSet(self._full(low), self._full(high))

    def _bound(self, low: Tensor, high: Tensor, method: str, gradient: GradientEnclosure | None
               ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(lower "B", upper "B" of F, score "B n", points "P *shape" where ends may be) of boxes "B n"."""
        sets = self._sets(low, high)
        self.boxes += sets.batch
        z, answer = linear_parts(self.graph, sets, self._C, self._c, method)
        lower, upper = _ends(self.function.enclosure(z))
        A = None if answer.A is None else answer.A.flatten(1)[:, self.free].view(sets.batch, 2, -1, len(self.free))
        directions = None
        planes = self.function.planes(z) if A is not None else None
        if planes is not None:
            better, directions = self._over_planes(sets, method, planes, answer)
            lower, upper = torch.maximum(lower, better.lower), torch.minimum(upper, better.upper)
        elif A is not None:
            directions = self._directions(z, A)
        steep = self.function.slopes(z)
        width = high - low
        score = width
        if A is not None:
            sizes = torch.maximum(steep.lower.abs(), steep.upper.abs())
            score = torch.einsum("bk,bkn->bn", sizes, A.abs().amax(1)) * width
        constants = None if gradient is None else self._constants(sets, answer, steep, gradient)
        if constants is not None:
            lower, upper = self._about_centres(sets, low, high, constants, lower, upper)
            score = constants * width
        return lower, upper, _spread(score, width), self._candidates(sets, low, high, directions)

    def _over_planes(self, sets: InputSet, method: str, planes: Planes, answer: Bounds) -> tuple[Interval, Tensor]:
        """F through planes of its sum, two rows a box, and their directions "B 2 n" as (towards less, towards more)."""
        weights = torch.stack([planes.below_slope, -planes.above_slope], 1)
        C, c = weights @ self._C, weights @ self._c
        y = answer.intervals[self.graph.output] if self.graph.output in answer.intervals \
            else propagate(self.graph, sets, given=answer.intervals)[self.graph.output]
        size = torch.maximum(y.lower.abs(), y.upper.abs()).flatten(1)
        # The rows are products that were rounded, and so are their constants.
        share = MORE * gamma(self._C.shape[0] + SPARE, C.dtype)
        off = torch.einsum("bsm,bm->bs", weights.abs() @ self._C.abs(), size) + weights.abs() @ self._c.abs()
        constant = torch.stack([planes.below, -planes.above], 1)
        offset = c + constant - share * (off + constant.abs())
        owner = torch.arange(sets.batch, device=C.device).repeat_interleave(2)
        found = method_named(method).bound(self.graph, sets, LinearRows(C.flatten(0, 1), owner, None, offset.flatten()),
                                           given=answer.intervals)
        ends = found.lower.view(-1, 2)
        s = Interval(torch.where(planes.held, ends[:, 0], -math.inf), torch.where(planes.held, -ends[:, 1], math.inf))
        A = found.A.flatten(1)[:, self.free].view(sets.batch, 2, -1)
        return Interval(*_ends(self.function.link(s))), A

    def _directions(self, z: Interval, A: Tensor) -> Tensor:
        """"B 2 n": planes of the parts, weighted by G's slope at the middle; what it minimises, row by row, may be
        where F is least or greatest."""
        with torch.enable_grad():
            middle = z.centre.clamp(-1e6, 1e6).requires_grad_()
            (slope,) = torch.autograd.grad(self.function.of(middle).sum(), middle)
        slope = slope.nan_to_num().unsqueeze(2)
        below = torch.where(slope > 0, slope * A[:, 0], -slope * A[:, 1]).sum(1)
        above = torch.where(slope > 0, slope * A[:, 1], -slope * A[:, 0]).sum(1)
        return torch.stack([below, above], 1)

    def _candidates(self, sets: InputSet, low: Tensor, high: Tensor, directions: Tensor | None) -> Tensor:
        points = [sets.centre_point]
        if directions is not None:
            points += [self._full(torch.where(directions[:, k] > 0, low, high)) for k in (0, 1)]
        return torch.cat(points)

    def _full(self, x: Tensor) -> Tensor:
        """Points "P n" among the features that stay fixed: "P *shape"; differentiable."""
        fixed = self.box.lower.flatten().expand(x.shape[0], -1)
        return fixed.index_copy(1, self.free, x).view(-1, *self.box.shape)

    # ------------------------------------------------------------------ Lipschitz constants

    def _constants(self, sets: InputSet, answer: Bounds, steep: Interval, gradient: GradientEnclosure) -> Tensor | None:
        """"B n": `|dF / dx_i| <= K_i` over each box; None where derivatives are not known."""
        try:
            intervals = dict(enumerate(propagate(self.graph, sets, given=answer.intervals)))
            ends = gradient(self.graph, sets, rows_of_every(sets, self._C), given=intervals)
        except UnsupportedOperator:
            self.gradient = None  # the linear bounds stand by themselves
            return None
        self.rounded &= ends.rounded
        return largest_slopes(steep, ends).flatten(1)[:, self.free]

    def _about_centres(self, sets: InputSet, low: Tensor, high: Tensor, constants: Tensor, lower: Tensor, upper: Tensor
                       ) -> tuple[Tensor, Tensor]:
        """`F(centre) -+ sum_i K_i r_i`, where that is better."""
        centre = sets.centre_point.flatten(1)[:, self.free]
        reach = torch.maximum(high - centre, centre - low)
        share = 1 + MORE * gamma(reach.shape[1] + SPARE, reach.dtype)
        change = (constants * reach).sum(1) * share
        value = self._values(sets.centre_point)
        spare = SPARE * unit(lower.dtype)
        below = value.lower - change - spare * (value.lower.abs() + change)
        above = value.upper + change + spare * (value.upper.abs() + change)
        return torch.maximum(lower, below.nan_to_num(nan=-math.inf)), torch.minimum(upper,
                                                                                     above.nan_to_num(nan=math.inf))

    # ------------------------------------------------------------------ points

    def _values(self, x: Tensor) -> Interval:
        """Enclosures "P" of F over the reals at points "P *shape" (up to rounding where that is not accounted for)."""
        self.evaluations += x.shape[0]
        return Interval(*_ends(values_at(self.graph, x, self.function)))

    def _computed(self, x: Tensor) -> Tensor:
        self.evaluations += x.shape[0]
        return self.function.value(self.graph(x).flatten(1))

    def _look(self, x: Tensor) -> None:
        """Evaluate points "P *shape" of the box, and take over the best ones."""
        value = self._computed(x)
        least, most = (value.nan_to_num(nan=fill) for fill in (math.inf, -math.inf))
        i, j = int(least.argmin()), int(most.argmax())
        better = float(least[i]) < self._best[0], float(most[j]) > self._best[1]
        if not any(better):
            return
        points = torch.stack([x[i], x[j]])
        seen = self._values(points) if self.rounded else Interval(value[[i, j]], value[[i, j]])
        if better[0] and float(seen.upper[0]) < self.lower_seen:
            self.lower_seen, self.argmin = float(seen.upper[0]), points[0]
        if better[1] and float(seen.lower[1]) > self.upper_seen:
            self.upper_seen, self.argmax = float(seen.lower[1]), points[1]
        self._best = min(self._best[0], float(least[i])), max(self._best[1], float(most[j]))

    def _search_points(self) -> None:
        """Random points, and projected gradient steps of falling length from the best of them, down and up."""
        low, high = self.low[0], self.high[0]
        shares = torch.rand(SAMPLES, len(self.free), generator=self.generator, dtype=low.dtype, device=low.device)
        x = torch.minimum(torch.maximum(low + shares * (high - low), low), high)
        self._look(self._full(x))
        value = self._computed(self._full(x))
        count = min(STARTS, x.shape[0])
        x = torch.cat([x[value.topk(count, largest=False).indices], x[value.topk(count).indices]])
        sign = torch.ones(2 * count, 1, dtype=x.dtype, device=x.device)
        sign[:count] = -1
        for step in range(STEPS):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                value = self.function.value(self.graph(self._full(leaf)).flatten(1))
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            self.evaluations += x.shape[0]
            length = 0.5 * (1 - step / STEPS)
            x = x + sign * length * (high - low) * slope.nan_to_num().sign()
            x = torch.minimum(torch.maximum(x, low), high)
            self._look(self._full(x))


def _ends(ends: Interval) -> tuple[Tensor, Tensor]:
    """Ends of an enclosure; where one is no number, nothing is known."""
    return ends.lower.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf), \
        ends.upper.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _spread(score: Tensor, width: Tensor) -> Tensor:
    """Scores that leave no wide feature out for ever: linear planes may be flat where a kink hides."""
    share = score.nan_to_num(nan=0.0, posinf=0.0).sum(1, keepdim=True) / max(1, score.shape[1])
    if not width.shape[1]:
        return score
    relative = width / width.amax(1, keepdim=True).clamp(min=torch.finfo(width.dtype).tiny)
    return score.nan_to_num(nan=0.0, posinf=0.0) + 0.05 * share * relative + torch.finfo(score.dtype).tiny * relative
