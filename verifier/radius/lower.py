"""The largest radius that a bound method proves safe, of many inputs at once.

Fast-Lin and CROWN (arXiv:1804.09699, arXiv:1811.00866) report it as the lower bound of minimal distortion, found by
bisection. Here the next radius comes from the margins themselves, which change smoothly with the radius: every row that
stands in the way is interpolated between a radius at which it was proved and one at which it was not, by inverse
quadratic interpolation where that is safe (Chandrupatla's criterion) and else by the secant; the answer is drawn
towards the middle of the bracket so far that no more steps are needed than bisection takes, and two (the projection of
the ITP method, Oliveira and Takahashi, doi:10.1145/3423597). Each input has its own bracket, and those that are done
leave the batch; rows proved at a radius hold at all smaller ones and are not asked again.

The search runs in the graph's fast dtype; where that is float32, the radii are confirmed in float64 with all rounding
accounted for. Bounds of neurons are computed anew at every radius: those of a larger ball hold in a smaller one, but
are what makes its margin small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import METHODS, PRICED_METHODS, compute_bounds
from bounds.graph import Graph
from bounds.rounding import is_covered
from verifier.deadline import CLOSING_S, Deadline
from verifier.logits import ranking_of
from verifier.problem import choose_dtype
from verifier.radius.balls import Balls
from verifier.stages import regions_together
from verifier.verdict import Evidence

START = 0.7  # of the distance at which a linear network with the same gradient changes its label
GROWTH = 4.0  # by which a radius that was proved may grow at once, and
LEAST_GROWTH = 1.1  # must grow at least
DOUBLINGS = 64  # of the first radius: what is safe beyond is safe enough where nothing limits the range
SPARE_STEPS = 2  # more than bisection may take
AIM = 0.45  # of the tolerance, beside the root: two such radii close a bracket
CONFIRMING = 4.0  # steps that confirming may take: float64 runs at half the speed, and radii are tried again
SHRINK = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)  # of a radius that float64 does not confirm

Progress = Callable[[int, int], None]  # (inputs done, of)


@dataclass(frozen=True, eq=False)
class Certified:
    """radius "N" float64: no unsafe point of input n is as near as that (0: nothing is proved; inf: nothing is unsafe
    in the whole range), by evidence[n]. evaluations "N": at how many radii bounds were computed; complete bool "N":
    whether the method fails within the tolerance above (or a limit was met)."""

    radius: Tensor
    evidence: tuple[Evidence, ...]
    evaluations: Tensor
    complete: Tensor


def certified_radii(graph: Graph, balls: Balls, method: str = "crown", *, most: Tensor | float | None = None,
                    tolerance: float = 1e-4, start: Tensor | None = None, deadline: Deadline | None = None,
                    progress: Progress | None = None, settings: Mapping[str, Any] | None = None,
                    simplified: Graph | None = None) -> Certified:
    """For every input a radius <= r_max at which `method` (one of METHODS, with its settings) proves it safe, the
    largest up to `tolerance` where its margins fall with the radius.

    most: no radius above is looked at (as the distance of a witness, "N" or one number). start "N": where to begin.
    graph: as read; simplified: its `simplify()`, if at hand. Once the deadline passes, what is proved so far counts.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    search = _Search.of(graph, balls, method, most, tolerance, deadline or Deadline(), dict(settings or {}), simplified)
    search.begin(start)
    while bool(search.open.any()) and search.has_time:
        search.step()
        if progress is not None:
            progress(int((~search.open).sum()), len(balls))
    return search.result()


@dataclass(eq=False)
class _Margins:
    """Lower bounds of all rows over balls, by one method in one dtype."""

    graph: Graph
    balls: Balls
    method: str
    settings: dict[str, Any]
    deadline: Deadline

    @property
    def rounded(self) -> bool:
        """Whether the bounds account for their rounding."""
        return self.graph.dtype == torch.float64 and self.method in PRICED_METHODS and is_covered(self.graph)

    def __call__(self, chosen: Tensor, radius: Tensor, asked: Tensor) -> Tensor:
        """"n K" lower bounds over balls of `radius` "n" around inputs `chosen` "n", of the rows `asked` (bool "n K";
        inf elsewhere, -inf where a bound is no number)."""
        parts = [self._together(*some) for some in zip(*(
            t.split(regions_together(self.graph)) for t in (chosen, radius, asked)), strict=True)]
        return torch.cat(parts)

    @torch.no_grad()
    def _together(self, chosen: Tensor, radius: Tensor, asked: Tensor) -> Tensor:
        value = torch.full(asked.shape, torch.inf, dtype=torch.float64, device=asked.device)
        if self.deadline.passed():
            return torch.where(asked, -value, value)
        balls, dtype, device = self.balls.take(chosen), self.graph.dtype, self.graph.device
        classes = math.prod(self.graph.output_shape)
        every = balls.rows(classes, dtype)
        assert every.owner is not None
        flat = asked.flatten()
        rows = LinearRows(every.C[flat].to(device), every.owner[flat].to(device))
        settings = dict(self.settings)
        if self.method == "alpha-crown":
            settings.setdefault("stop", lambda: self.deadline.left() < CLOSING_S)
        lower = compute_bounds(self.graph, balls.sets(radius).to(dtype=dtype, device=device), rows, self.method,
                               **settings).lower
        value[asked] = torch.where(torch.isnan(lower), -torch.inf, lower.double()).to(value.device)
        return value

    def linear(self) -> tuple[Tensor, Tensor]:
        """(margins "N K" at the inputs themselves, their gradients' dual norms "N K" over free features)."""
        norms, values = [], []
        classes = math.prod(self.graph.output_shape)
        q = {math.inf: 1.0, 1.0: math.inf, 2.0: 2.0}[self.balls.norm]
        for chosen in torch.arange(len(self.balls)).split(regions_together(self.graph)):
            balls = self.balls.take(chosen)
            sets = balls.sets(torch.zeros(len(chosen), dtype=torch.float64, device=balls.x.device))
            rows = balls.rows(classes, self.graph.dtype)
            assert rows.owner is not None
            rows = LinearRows(rows.C.to(self.graph.device), rows.owner.to(self.graph.device))
            with torch.no_grad():
                found = compute_bounds(self.graph, sets.to(dtype=self.graph.dtype, device=self.graph.device), rows,
                                       "crown")
            assert found.A is not None
            steep = (found.A.to(balls.x) * balls.free).flatten(1)
            norms.append(torch.linalg.vector_norm(steep, ord=q, dim=1).view(len(chosen), -1))
            values.append(found.lower.to(balls.x).view(len(chosen), -1))
        return torch.cat(values), torch.cat(norms)


@dataclass(eq=False)
class _Search:
    """Brackets "N": proved at `low`, not at `high` (inf: not tried), with the rows' margins "N K" there and at `third`,
    the end that was replaced last. rows bool "N K": those not proved at `high`; next: the radius to try; proved bool
    "N": at `low`; last: from there on is none to try; longest_s: of one step."""

    margins: _Margins
    balls: Balls
    tolerance: float
    cap: Tensor
    deadline: Deadline
    double: _Margins | None
    low: Tensor
    high: Tensor
    third: Tensor
    at_low: Tensor
    at_high: Tensor
    at_third: Tensor
    next: Tensor
    rows: Tensor
    open: Tensor
    evaluations: Tensor
    steps_left: Tensor
    proved: Tensor
    last: Tensor
    longest_s: float = 0.0

    @classmethod
    def of(cls, graph: Graph, balls: Balls, method: str, most: Tensor | float | None, tolerance: float,
           deadline: Deadline, settings: dict[str, Any], simplified: Graph | None) -> _Search:
        classes = math.prod(graph.output_shape)
        if balls.shape != graph.input_shape:
            raise ValueError(f"expected inputs of shape {graph.input_shape}, got {balls.shape}")
        if classes < 2:
            raise ValueError(f"expected at least two outputs to compare, got {classes}")
        if len(balls) and not 0 <= int(balls.label.min()) <= int(balls.label.max()) < classes:
            raise ValueError(f"expected labels from 0 to {classes - 1}, got {int(balls.label.min())} to "
                             f"{int(balls.label.max())}")
        stored = ranking_of(simplified if simplified is not None else graph.simplify())
        searched = stored.to(dtype=choose_dtype(stored, stored.device))
        margins = _Margins(searched, balls, method, settings, deadline)
        double = None
        if searched.dtype != torch.float64:
            double = _Margins(stored.to(dtype=torch.float64), balls, method, settings, deadline)
        cap = balls.largest
        if most is not None:
            limit = torch.as_tensor(most, dtype=torch.float64, device=cap.device)
            if bool((limit < 0).any() | torch.isnan(limit).any()):
                raise ValueError(f"expected radii >= 0 as `most`, got {float(limit.min())}")
            cap = torch.minimum(cap, limit.expand_as(cap))
        zero, none = torch.zeros_like(cap), torch.zeros_like(cap, dtype=torch.bool)
        wide = cap.new_zeros(len(balls), 1 if balls.target is not None else classes - 1)
        return cls(margins, balls, tolerance, cap, deadline, double, low=zero, high=torch.full_like(cap, torch.inf),
                   third=zero.clone(), at_low=wide, at_high=wide.clone(), at_third=wide.clone(), next=zero.clone(),
                   rows=torch.ones_like(wide, dtype=torch.bool), open=~none,
                   evaluations=torch.zeros_like(zero, dtype=torch.long),
                   steps_left=torch.zeros_like(zero, dtype=torch.long), proved=none, last=cap.clone())

    @property
    def has_time(self) -> bool:
        """For one more step, and to confirm what it finds."""
        left = self.deadline.left()
        return left > 0 and (self.double is None or left > CONFIRMING * self.longest_s)

    def begin(self, start: Tensor | None) -> None:
        """The margins at the inputs, and the first radius to try."""
        if not len(self.balls) or self.deadline.passed():
            return
        value, steep = self.margins.linear()
        self.evaluations += 1
        self.at_low, self.at_third = value, value.clone()
        self.open = (value > 0).all(1) & ((self.cap > 0) | (self.balls.largest == 0))
        reach = (value / steep).amin(1)  # inf where nothing moves: then half the range, or anything
        self.next = START * torch.where(torch.isfinite(reach), reach, self.cap.clamp(max=1.0))
        if start is not None:
            self.next = torch.where(torch.isfinite(start) & (start > 0), start.to(self.next), self.next)
        self.next = torch.minimum(self.next.clamp(min=torch.finfo(torch.float64).tiny), self.cap)
        self.last = torch.minimum(self.cap, 2.0**DOUBLINGS * self.next)

    def step(self) -> None:
        """Bounds at the next radius of every open input."""
        i = self.open.nonzero().flatten()
        radius = self.next[i]
        begin = self.deadline.elapsed()
        value = self.margins(i, radius, self.rows[i])
        self.longest_s = max(self.longest_s, self.deadline.elapsed() - begin)
        self.evaluations[i] += 1
        proved = (value > 0).all(1)
        self.proved[i] |= proved
        at = value.where(self.rows[i], torch.full_like(value, torch.inf))
        p, f = i[proved], i[~proved]
        self._move(p, self.low, self.at_low)
        self.low[p], self.at_low[p] = radius[proved], at[proved]
        if self.deadline.passed():
            self.open[p] &= self.low[p] < self.last[p]
            return  # that bounds were cut short is no failure
        first = f[torch.isinf(self.high[f])]
        bracketed = f[torch.isfinite(self.high[f])]
        self._move(bracketed, self.high, self.at_high)
        self.high[f], self.at_high[f] = radius[~proved], at[~proved]
        self.rows[f] &= ~(at[~proved] > 0)
        halvings = ((self.high[first] - self.low[first]) / self.tolerance).log2().ceil().clamp(min=0)
        self.steps_left[i] -= 1
        self.steps_left[first] = halvings.long() + SPARE_STEPS
        self._close(i)
        self._aim(self.open.nonzero().flatten())

    def _move(self, i: Tensor, end: Tensor, at: Tensor) -> None:
        """Remember an end that is about to be replaced."""
        self.third[i], self.at_third[i] = end[i], at[i]

    def _close(self, i: Tensor) -> None:
        """Inputs whose bracket is narrow, or that reached a limit, are done."""
        narrow = self.high[i] - self.low[i] <= self.tolerance
        reached = self.low[i] >= self.last[i]
        middle = (self.low[i] + self.high[i]) / 2
        adjacent = torch.isfinite(middle) & ((middle == self.low[i]) | (middle == self.high[i]))
        self.open[i] &= ~(narrow | reached | adjacent)

    def _aim(self, i: Tensor) -> None:
        """The next radius of inputs i."""
        low, high = self.low[i], self.high[i]
        bracketed = torch.isfinite(high)
        third, at_low, at_third = self.third[i], self.at_low[i], self.at_third[i]
        root = _root_between(low, high, third, at_low, self.at_high[i], at_third, self.rows[i])
        inside = _toward(low, high, root, self.tolerance, self.steps_left[i])
        grown = torch.minimum(_root_beyond(low, third, at_low, at_third), GROWTH * low)
        grown = torch.minimum(torch.maximum(grown, LEAST_GROWTH * low), self.cap[i])
        self.next[i] = torch.where(bracketed, inside, grown)

    # ------------------------------------------------------------------ the answer

    def result(self) -> Certified:
        evidence = [Evidence.ROUNDED if self.margins.rounded else Evidence.FLOAT] * len(self.balls)
        radius, complete = self.low.clone(), ~self.open
        if self.double is not None and self.double.rounded:
            radius, confirmed = self._confirmed(self.double, radius)
            evidence = [Evidence.ROUNDED if c else Evidence.FLOAT for c in confirmed.tolist()]
        elif self.double is not None:
            radius, _ = self._confirmed(self.double, radius)
        evidence = [e if p else Evidence.ROUNDED for p, e in zip(self.proved.tolist(), evidence, strict=True)]
        radius = torch.where(self.proved & (radius >= self.balls.largest), torch.inf, radius)
        return Certified(radius, tuple(evidence), self.evaluations, complete)

    def _confirmed(self, double: _Margins, radius: Tensor) -> tuple[Tensor, Tensor]:
        """(radii that float64 proves, a little smaller where it must be; whether it said so before time ran out)."""
        radius, waiting = radius.clone(), self.proved.clone()
        confirmed = torch.zeros_like(waiting)
        every = torch.ones_like(self.rows)
        for shrink in SHRINK:
            i = waiting.nonzero().flatten()
            if not len(i):
                break
            tried = radius[i] * (1 - shrink)
            held = (double(i, tried, every[i]) > 0).all(1)
            self.evaluations[i] += 1
            radius[i[held]] = tried[held]
            confirmed[i[held]], waiting[i[held]] = True, False
            if self.deadline.passed():
                return radius, confirmed
        radius[waiting] = 0.0
        self.proved &= ~waiting
        return radius, confirmed


# ---------------------------------------------------------------------- where a margin vanishes


def _root_between(a: Tensor, b: Tensor, c: Tensor, fa: Tensor, fb: Tensor, fc: Tensor, rows: Tensor) -> Tensor:
    """"n": the least radius in (a, b) at which a row's margin (> 0 at a, <= 0 at b, known at c too) may vanish; NaN
    where nothing is told. a, b, c "n"; fa, fb, fc, rows "n K"."""
    a, b, c = (t.unsqueeze(1) for t in (a, b, c))
    xi, phi = (b - a) / (c - a), (fb - fa) / (fc - fa)
    smooth = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    smooth |= (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    secant = a + (b - a) * (fa / (fa - fb))
    quadratic = a * fb * fc / ((fa - fb) * (fa - fc)) + b * fa * fc / ((fb - fa) * (fb - fc)) \
        + c * fa * fb / ((fc - fa) * (fc - fb))
    root = torch.where(smooth & (quadratic > a) & (quadratic < b), quadratic, secant)
    return torch.where(rows & (root > a) & (root < b), root, torch.inf).amin(1)


def _root_beyond(a: Tensor, c: Tensor, fa: Tensor, fc: Tensor) -> Tensor:
    """"n": the least radius > a at which the secant through a and c < a has a margin vanish (inf: nowhere)."""
    slope = (fa - fc) / (a - c).unsqueeze(1)
    root = a.unsqueeze(1) - fa / slope
    return torch.where((slope < 0) & torch.isfinite(root), root, torch.inf).amin(1)


def _toward(low: Tensor, high: Tensor, root: Tensor, tolerance: float, steps_left: Tensor) -> Tensor:
    """A radius in (low, high) near an estimated root: on the side of it that closes the bracket, and no further from
    the middle than leaves enough halvings in `steps_left` steps."""
    middle = (low + high) / 2
    root = torch.where(torch.isfinite(root), root, middle)
    aim = AIM * tolerance
    near = root - low <= 2 * aim
    point = torch.where(near, torch.minimum(root + aim, low + tolerance), root - aim)
    point = torch.where((point > low) & (point < high), point, middle)
    reach = (tolerance * 2.0 ** steps_left.clamp(min=0, max=1000).double() - (high - low)).clamp(min=0) / 2
    return torch.minimum(torch.maximum(point, middle - reach), middle + reach)
