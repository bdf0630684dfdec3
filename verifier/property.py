"""Properties: the unsafe set as an OR of branches, each an input region and an AND of linear rows.

A point (x, y = f(x)) is unsafe when for one branch x lies in the region and every row holds. Rows
are exact rationals, closed (`<=`) or open (`<`) as written. Robustness of a label, output ranges
and every VNN-LIB file take this form. `Property.tensors` is the numeric view that bounds and
attacks work on: rounded so that the unsafe set only grows. `Property.unsafe_branch` is the exact
view that decides about witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from verifier.data import nearest_ends
from verifier.exact import Number, Rounded, fraction, near_float, round_down, round_up, rounded

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bounds.sets import InputSet

LAST_PLACES = 8  # bounds of rows that are met with equality were seen up to 5 units above zero
Terms = tuple[tuple[int, Fraction], ...]
Points = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Row:
    """The half-space `sum c Y_i + sum c X_j <= bound`, or `<` where strict. Exact rationals."""

    y: Terms
    x: Terms
    bound: Fraction
    strict: bool = False

    def violation(self, x: Points, y: Points) -> Fraction:
        """`sum c Y_i + sum c X_j - bound`, exactly; x, y flat and finite floats taken as they are."""
        total = -self.bound
        for i, c in self.y:
            total += c * Fraction(float(y[i]))
        for j, c in self.x:
            total += c * Fraction(float(x[j]))
        return total

    def holds(self, x: Points, y: Points) -> bool:
        v = self.violation(x, y)
        return v < 0 if self.strict else v <= 0

    @property
    def compares_outputs(self) -> bool:
        """Of the form `c (Y_i - Y_j) <= 0`: unchanged by any increasing map of the outputs, such as softmax."""
        return not self.x and self.bound == 0 and len(self.y) == 2 and self.y[0][1] + self.y[1][1] == 0


@dataclass(frozen=True, eq=False)
class Region:
    """One input set: a box with exact ends, cut by an l_p ball where p is finite. Flat, n features.

    exact_lower, exact_upper: the numbers as written. centre float64 (taken exactly), radius exact.
    nearest: the features (bool "n", or all of them) whose ends stand for the float32 nearest to them, as decimals of a
    specification do: a fixed one may be no float32 at all. The others hold the float32 that lie between their ends.
    """

    exact_lower: tuple[Number, ...]
    exact_upper: tuple[Number, ...]
    centre: NDArray[np.float64] | None = None
    radius: Fraction | None = None
    p: float = math.inf
    nearest: NDArray[np.bool_] | bool = True

    def __post_init__(self) -> None:
        if len(self.exact_lower) != len(self.exact_upper):
            raise ValueError(f"{len(self.exact_lower)} lower and {len(self.exact_upper)} upper ends")
        if (self.centre is None) != (self.radius is None) or (self.centre is None) != (self.p == math.inf):
            raise ValueError("a ball needs a centre, a radius and p 1 or 2")

    @cached_property
    def _ends(self) -> tuple[Rounded, Rounded]:
        return rounded(self.exact_lower), rounded(self.exact_upper)

    @cached_property
    def _ends32(self) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
        """The ends in float32, and whether every feature has a float32 between them (else its ends are the nearest)."""
        low, high = self._ends
        first = np.where(self.nearest, low.near32, low.up32)
        last = np.where(self.nearest, high.near32, high.down32)
        none = first > last
        return np.where(none, low.near32, first), np.where(none, high.near32, last), not none.any()

    @property
    def lower(self) -> NDArray[np.float64]:
        """The lower ends rounded down to float64."""
        return self._ends[0].down

    @property
    def upper(self) -> NDArray[np.float64]:
        """The upper ends rounded up to float64."""
        return self._ends[1].up

    @property
    def lower32(self) -> NDArray[np.float32]:
        """Where the float32 network's inputs begin: the float32 nearest to the lower end, or the first inside."""
        return self._ends32[0]

    @property
    def upper32(self) -> NDArray[np.float32]:
        """Where they end."""
        return self._ends32[1]

    @property
    def beyond_float32(self) -> int | None:
        """The first feature with an end that no finite float32 is near to."""
        low, high = self._ends
        beyond = np.flatnonzero(~(np.isfinite(low.near32) & np.isfinite(high.near32)))
        return int(beyond[0]) if beyond.size else None

    def contains(self, x: Points) -> bool:
        """Exactly: a float32 point against the box in float32 (whose ends `nearest` tells), a float64 point against the
        decimal box; the ball in rationals."""
        if x.shape != (len(self.exact_lower),):
            raise ValueError(f"expected {len(self.exact_lower)} inputs, got shape {x.shape}")
        if x.dtype == np.float32:
            low, high, any_inside = self._ends32
            inside = any_inside and bool(((low <= x) & (x <= high)).all())
        else:
            inside = bool(((self.lower <= x) & (x <= self.upper)).all()) and self.excess(x) == 0.0
        return inside and self._in_ball(x)

    def _in_ball(self, x: Points) -> bool:
        if self.centre is None or self.radius is None:
            return True
        moves = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(x, self.centre, strict=True) if a != b]
        if self.p == 1.0:
            return sum((abs(m) for m in moves), Fraction(0)) <= self.radius
        return sum((m * m for m in moves), Fraction(0)) <= self.radius**2

    def excess(self, x: Points) -> float:
        """How far x leaves the decimal box at most, over all features (0 inside). Rounded up."""
        most = Fraction(0)
        # Only features at or beyond the outward-rounded ends' inner neighbours can be outside.
        suspects = (x <= np.nextafter(self.lower, np.inf)) | (x >= np.nextafter(self.upper, -np.inf))
        for i in np.flatnonzero(suspects):
            value = Fraction(float(x[i]))
            most = max(most, fraction(self.exact_lower[i]) - value, value - fraction(self.exact_upper[i]))
        return round_up(most)


@dataclass(frozen=True, eq=False)
class Branch:
    """Unsafe when x lies in the region and all rows hold (an empty AND holds everywhere)."""

    region: Region
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class PropertyTensors:
    """A property in tensors: N rows over U regions and K branches, m flat outputs, n flat inputs.

    Row i is violated by `v_i = C_i y + D_i x - bound_i`; a point is unsafe iff for one branch all
    its rows have v <= 0 (< 0 where strict). Hence the property is verified when every branch has a
    row whose minimum over its region is > 0 (>= 0 where strict). `sets` is the outward hull of the
    decimal regions and `bound` is rounded up: both only enlarge the unsafe set. `replay_sets` holds
    the same regions in float32 (`Region.lower32`), where witnesses live.
    """

    sets: InputSet             # U sets
    replay_sets: InputSet      # U sets
    C: Tensor                  # "N m"
    D: Tensor | None           # "N n"
    bound: Tensor              # "N"
    strict: Tensor             # bool "N"
    region: Tensor             # "N" -> U
    branch: Tensor             # "N" -> K
    branches: int
    branch_region: Tensor = field(repr=False)  # "K" -> U

    def violation(self, x: Tensor, y: Tensor) -> Tensor:
        """v of every row at points: x "P *shape", y "P *out" -> "P N"."""
        y = y.flatten(1)
        v = y @ self.C.T.to(y) - self.bound.to(y)
        return v if self.D is None else v + x.flatten(1) @ self.D.T.to(y)

    @cached_property
    def last_places(self) -> Tensor:
        """"N": some units in the last place of a row whose outputs are of size one."""
        import torch
        size = self.bound.abs() + self.C.abs().sum(1) + (0 if self.D is None else self.D.abs().sum(1))
        return LAST_PLACES * torch.finfo(self.bound.dtype).eps * size

    def branch_margin(self, v: Tensor) -> Tensor:
        """max over the rows of each branch: "... N" -> "... K" (-inf for a branch without rows)."""
        out = v.new_full((*v.shape[:-1], self.branches), -math.inf)
        return out.scatter_reduce(-1, self.branch.expand(v.shape), v, "amax")

    def decided(self, lower: Tensor) -> Tensor:
        """bool "K": branches shown unreachable by lower bounds "N" on their rows (NaN shows nothing). A closed row that
        is met with equality has the bound zero, which rounding may lift: above zero means above the last places."""
        safe = (lower > self.last_places) | (self.strict & (lower >= 0))
        out = safe.new_zeros(self.branches)
        out[self.branch[safe]] = True
        return out


@dataclass(frozen=True, eq=False)
class Property:
    """The OR of `branches` over a network with `inputs` and `outputs` flat features."""

    branches: tuple[Branch, ...]
    inputs: int
    outputs: int
    source: str = "property"

    def __post_init__(self) -> None:
        if not self.branches:
            raise ValueError(f"{self.source}: a property needs at least one branch")
        for branch in self.branches:
            if len(branch.region.exact_lower) != self.inputs:
                raise ValueError(f"{self.source}: a region has {len(branch.region.exact_lower)} inputs, "
                                 f"expected {self.inputs}")
            for row in branch.rows:
                if any(not 0 <= i < self.outputs for i, _ in row.y) or any(not 0 <= j < self.inputs for j, _ in row.x):
                    raise ValueError(f"{self.source}: a row names a variable out of range")
                if len(dict(row.y)) < len(row.y) or len(dict(row.x)) < len(row.x):
                    raise ValueError(f"{self.source}: a row names a variable twice; add up its coefficients")

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The distinct regions, in order of first use."""
        return tuple(dict.fromkeys(b.region for b in self.branches))

    @property
    def rows(self) -> int:
        return sum(len(b.rows) for b in self.branches)

    @property
    def compares_outputs_only(self) -> bool:
        """Every row only compares two outputs, so a final softmax (or any increasing map) may be dropped."""
        return all(row.compares_outputs for b in self.branches for row in b.rows)

    def unsafe_branch(self, x: Points, y: Points) -> int | None:
        """The first branch whose region contains x and whose rows all hold, exactly as written, or None.

        x and y are flat floats taken exactly. A float32 x is held against the region in float32, a
        float64 x against the region as written. Non-finite values are never unsafe.
        """
        if x.shape != (self.inputs,) or y.shape != (self.outputs,):
            raise ValueError(f"expected {self.inputs} inputs and {self.outputs} outputs, got {x.shape} and {y.shape}")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None
        inside = {id(region): region.contains(x) for region in self.regions}
        for k, branch in enumerate(self.branches):
            if inside[id(branch.region)] and all(row.holds(x, y) for row in branch.rows):
                return k
        return None

    def holds_unsafe(self, x: Points, y: Points) -> bool:
        """Does this point lie in the unsafe set? See `unsafe_branch`."""
        return self.unsafe_branch(x, y) is not None

    def tensors(self, input_shape: Sequence[int], *, dtype: torch.dtype,
                device: torch.device | str = "cpu") -> PropertyTensors:
        """The numeric view for a network with this input shape (without batch axis)."""
        import torch

        from bounds.sets import InputSet

        shape = tuple(input_shape)
        if math.prod(shape) != self.inputs:
            raise ValueError(f"{self.source}: the property has {self.inputs} inputs, the network {math.prod(shape)} "
                             f"(shape {shape})")
        regions = self.regions
        number = {id(region): u for u, region in enumerate(regions)}
        rows = [(row, number[id(b.region)], k) for k, b in enumerate(self.branches) for row in b.rows]
        C, D, bound = self._matrices([row for row, _, _ in rows], dtype)
        lower, upper = (torch.from_numpy(np.stack([getattr(r, side) for r in regions])).reshape(-1, *shape)
                        for side in ("lower", "upper"))
        low32, high32 = (torch.from_numpy(np.stack([getattr(r, side) for r in regions])).reshape(-1, *shape)
                         for side in ("lower32", "upper32"))
        ball: dict[str, Any] = {}
        if any(r.p != math.inf for r in regions):
            if len({r.p for r in regions}) > 1:
                raise ValueError(f"{self.source}: regions of different norms cannot share one batch")
            centre = torch.from_numpy(np.stack([r.centre for r in regions if r.centre is not None]))
            radius = torch.tensor([round_up(r.radius) for r in regions if r.radius is not None], dtype=torch.float64)
            ball = {"centre": centre.reshape(-1, *shape), "radius": radius, "p": regions[0].p}
        where: dict[str, Any] = {"device": device}
        # The ball stays in float64 around the box in float32: the gate checks it exactly in any case.
        low32, high32 = low32.double(), high32.double()
        around = dict(ball)
        if ball:  # which may hold no float32: then it reaches the nearest, so that there is a set to search
            gap = ((low32 - ball["centre"]).clamp(min=0) + (ball["centre"] - high32).clamp(min=0)).flatten(1)
            around["radius"] = torch.maximum(radius, torch.linalg.vector_norm(gap, ord=regions[0].p, dim=1))
        replay = InputSet(low32, high32, **around)
        return PropertyTensors(
            sets=InputSet(lower, upper, **ball).to(dtype=dtype, device=device),
            replay_sets=replay.to(dtype=dtype, device=device),
            C=C.to(device), D=None if D is None else D.to(device), bound=bound.to(device),
            strict=torch.tensor([row.strict for row, _, _ in rows], dtype=torch.bool, **where),
            region=torch.tensor([u for _, u, _ in rows], dtype=torch.long, **where),
            branch=torch.tensor([k for _, _, k in rows], dtype=torch.long, **where),
            branches=len(self.branches),
            branch_region=torch.tensor([number[id(b.region)] for b in self.branches], dtype=torch.long, **where))

    def _matrices(self, rows: Sequence[Row], dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
        """(C "N m", D "N n" or None, bound "N") with exact coefficients and the bound rounded up."""
        import torch

        bits = {torch.float32: 24, torch.float64: 53, torch.float16: 11, torch.bfloat16: 8}[dtype]
        scaled = [_representable(row, bits, self.source) for row in rows]
        C = torch.zeros(len(rows), self.outputs, dtype=dtype)
        D = torch.zeros(len(rows), self.inputs, dtype=dtype) if any(row.x for row in rows) else None
        for matrix, terms in ((C, [row.y for row in scaled]), (D, [row.x for row in scaled])):
            entries = [(n, i, float(c)) for n, row in enumerate(terms) for i, c in row]
            if matrix is not None and entries:
                at, column, value = zip(*entries, strict=True)
                matrix[list(at), list(column)] = torch.tensor(value, dtype=dtype)
        exact = torch.tensor([round_up(row.bound) for row in scaled], dtype=torch.float64)
        near = exact.to(dtype)
        above = torch.nextafter(near, torch.full_like(near, math.inf))
        return C, D, torch.where(near.double() < exact, above, near)


def _representable(row: Row, bits: int, source: str) -> Row:
    """The row, scaled by a positive number near one if needed so that its coefficients are floats.

    A coefficient can not be rounded to a safe side (its variable has any sign), so one that stays
    inexact after clearing denominators is refused.
    """
    numbers = [c for _, c in (*row.y, *row.x)]
    if all(_fits(c, bits) for c in numbers):
        return row
    lcm = math.lcm(*(c.denominator for c in numbers))
    factor = Fraction(lcm, 1 << (lcm.bit_length() - 1))
    if not all(_fits(c * factor, bits) for c in numbers):
        worst = next(c for c in numbers if not _fits(c * factor, bits))
        raise ValueError(f"{source}: the coefficient {near_float(worst)!r} of a row has no exact {bits}-bit form: "
                         "use float64, or fewer digits")
    return Row(tuple((i, c * factor) for i, c in row.y), tuple((j, c * factor) for j, c in row.x),
               row.bound * factor, row.strict)


def _fits(c: Fraction, bits: int) -> bool:
    """Is c a float with `bits` of mantissa and a modest exponent?"""
    odd = c.numerator >> ((c.numerator & -c.numerator).bit_length() - 1) if c else 0
    power = c.denominator & (c.denominator - 1) == 0
    return power and abs(odd).bit_length() <= bits and c.denominator < 1 << 100 and abs(c.numerator) < 1 << 100


def robustness(x: Points, label: int, eps: float | str | Fraction, *, classes: int, norm: float = math.inf,
               clip: tuple[float, float] | None = None, mask: NDArray[np.bool_] | None = None,
               target: int | None = None) -> Property:
    """The label stays strictly on top within `eps` of x: unsafe where some class j has Y_label <= Y_j.

    One branch a class, or only `target`. x is taken exactly; eps, and clip = (low, high), mean the
    decimals they print as. mask (true = may move) pins the other features. norm is 1, 2 or inf.

    Float32 points count that lie in the ball and in the clip range exactly: what bounds prove of every point within eps
    no witness contradicts. A pinned feature that is no float32 is the nearest one, where eps reaches it.
    """
    if norm not in (1, 2, math.inf):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm}")
    _check_classes(label, target, classes)
    radius = fraction(float(eps) if isinstance(eps, (int, np.floating)) else eps)
    if radius < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    flat = np.asarray(x, dtype=np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise ValueError("the input has entries that are not finite")
    free = np.ones(flat.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool).reshape(-1)
    if free.shape != flat.shape:
        raise ValueError(f"the mask has {free.size} entries, the input {flat.size}")
    low = high = None
    if clip is not None:
        low, high = fraction(float(clip[0])), fraction(float(clip[1]))
        for i in np.flatnonzero(free & _outside(flat, low, high, radius))[:1]:
            raise ValueError(f"input entry {i} is {flat[i]}, outside the clip range [{clip[0]}, {clip[1]}]")
    lower = _ends(flat, free, lambda c: c - radius if low is None else max(c - radius, low))
    upper = _ends(flat, free, lambda c: c + radius if high is None else min(c + radius, high))
    with np.errstate(over="ignore"):
        off = np.abs(flat.astype(np.float32) - flat)  # exact: of neighbours
    nearest = ~free & (off <= round_down(radius))
    region = (Region(lower, upper, nearest=nearest) if norm == math.inf
              else Region(lower, upper, flat, radius, float(norm), nearest))
    if (beyond := region.beyond_float32) is not None:
        raise ValueError(f"input entry {beyond} can leave the range of float32 within eps {eps}")
    return label_on_top(region, label, classes=classes, target=target,
                        source=f"robustness of label {label} at eps {eps}")


def label_on_top(region: Region, label: int, *, classes: int, target: int | None = None, source: str = "robustness"
                 ) -> Property:
    """The label stays strictly on top over the region: one branch for every other class j, or only the `target`,
    unsafe where Y_label <= Y_j."""
    _check_classes(label, target, classes)
    others = [j for j in range(classes) if j != label] if target is None else [target]
    one = Fraction(1)
    rows = [Row(((label, one), (j, -one)), (), Fraction(0)) for j in others]
    return Property(tuple(Branch(region, (row,)) for row in rows), len(region.exact_lower), classes, source)


def _check_classes(label: int, target: int | None, classes: int) -> None:
    if not 0 <= label < classes:
        raise ValueError(f"label out of range: expected 0 to {classes - 1}, got {label}")
    if target is not None and (not 0 <= target < classes or target == label):
        raise ValueError(f"target must be a class from 0 to {classes - 1} other than the label {label}, got {target}")


def _outside(centre: NDArray[np.float64], low: Fraction, high: Fraction, radius: Fraction) -> NDArray[np.bool_]:
    """Which entries lie outside of a range. What is stored as the float32 nearest to an end may lie beyond it, and
    stands for that end, if only the radius reaches back."""
    first, last = float(low), float(high)
    near_first, near_last = map(float, nearest_ends((first, last)))  # else NumPy compares in float32
    outside = (centre < min(first, near_first)) | (centre > max(last, near_last))
    ends = np.flatnonzero(~outside & ((centre <= first) | (centre >= last)))
    apart = {v for v in set(centre[ends].tolist()) if Fraction(v) + radius < low or Fraction(v) - radius > high}
    return outside | np.isin(centre, list(apart))


def _ends(centre: NDArray[np.float64], free: NDArray[np.bool_],
          end: Callable[[Fraction], Fraction]) -> tuple[Number, ...]:
    """The end of each entry's interval, itself where it is not free. Equal entries share one number: an image has few
    distinct ones, and rationals are slow."""
    values = centre.tolist()
    exact = {v: Fraction(v) for v in set(values)}
    ends = {v: end(c) for v, c in exact.items()}
    return tuple(ends[v] if f else exact[v] for v, f in zip(values, free.tolist(), strict=True))
