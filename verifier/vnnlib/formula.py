"""From a formula over linear comparisons to a property: normal form, boxes, regions.

Both parsers produce the same small language: input bounds, rows, AND, OR. Here it becomes a
disjunction of conjunctions; each conjunction's input bounds become its region (shared where equal)
and its rows stay rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from verifier.exact import Number, brief, fraction
from verifier.limits import MAX_BRANCHES, MAX_COEFFICIENTS, MAX_COMPARISONS, MAX_ENDS
from verifier.property import Branch, Property, Region, Row
from verifier.vnnlib.errors import VnnlibError


@dataclass(frozen=True)
class Bound:
    """`X_index <= value` (upper) or `X_index >= value`; closed. `line` is where it stands."""

    index: int
    upper: bool
    value: Number
    line: int = 0


@dataclass(frozen=True)
class And:
    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Formula, ...]


Formula = Bound | Row | And | Or
TRUE, FALSE = And(()), Or(())
Terms = Mapping[int, Fraction]


@dataclass(frozen=True, eq=False)
class Specification:
    """What a file says: the conjunction of `assertions` over `inputs` X and `outputs` Y."""

    name: str
    inputs: int
    outputs: int
    lower: dict[int, Bound]  # bounds asserted at the top level, the tightest of each
    upper: dict[int, Bound]
    assertions: list[tuple[int, Formula]]  # (line, formula)


def comparison(op: str, y: Terms, x: Terms, constant: Fraction, line: int) -> Formula:
    """`sum y + sum x + constant  op  0` with op one of <=, <, >=, >, ==, !=."""
    if op in (">=", ">"):
        return comparison("<=" if op == ">=" else "<", {i: -c for i, c in y.items()},
                          {j: -c for j, c in x.items()}, -constant, line)
    if op == "==":
        return And((comparison("<=", y, x, constant, line), comparison(">=", y, x, constant, line)))
    if op == "!=":
        return Or((comparison("<", y, x, constant, line), comparison(">", y, x, constant, line)))
    ys = tuple((i, c) for i, c in y.items() if c)
    xs = tuple((j, c) for j, c in x.items() if c)
    if not ys and not xs:
        return TRUE if (constant < 0 or (op == "<=" and constant == 0)) else FALSE
    row = Row(ys, xs, -constant, strict=op == "<")
    if ys or len(xs) > 1:
        return row
    ((index, c),) = xs
    bound = Bound(index, c > 0, -constant / c, line)
    # An open end cannot be said by a box: the closed box plus the row keeps the set as written.
    return And((bound, row)) if row.strict else bound


def exceeds(a: Number, b: Number) -> bool:
    """a > b, exactly."""
    if a == b:
        return False
    try:
        near_a, near_b = float(a), float(b)
    except OverflowError:
        return fraction(a) > fraction(b)
    return near_a > near_b if near_a != near_b else fraction(a) > fraction(b)


def tighten(lower: dict[int, Bound], upper: dict[int, Bound], bound: Bound) -> None:
    """Add a bound to a box, keeping the tighter one."""
    side = upper if bound.upper else lower
    old = side.get(bound.index)
    if old is None or (exceeds(old.value, bound.value) if bound.upper else exceeds(bound.value, old.value)):
        side[bound.index] = bound


def to_property(spec: Specification) -> Property:
    """The property of a specification; raises VnnlibError where no sound reading exists."""
    lower, upper = dict(spec.lower), dict(spec.upper)
    rows: list[Row] = []
    choices: list[tuple[int, Or]] = []
    for line, formula in spec.assertions:
        for part in _conjuncts(formula):
            if isinstance(part, Bound):
                tighten(lower, upper, part)
            elif isinstance(part, Row):
                rows.append(part)
            else:
                choices.append((line, part))
    _check_size(spec.name, choices, len(rows))
    conjunctions: list[tuple[Bound | Row, ...]] = [()]
    for _, choice in choices:
        extra = _expand(choice)
        conjunctions = [old + new for old in conjunctions for new in extra]
    builder = _Regions(spec, lower, upper)
    branches = []
    for conjunction in conjunctions:
        region = builder.region([part for part in conjunction if isinstance(part, Bound)])
        if region is not None:
            own = [part for part in conjunction if isinstance(part, Row)]
            branches.append(Branch(region, tuple(dict.fromkeys((*own, *rows)))))
    if not branches:
        raise VnnlibError(spec.name, builder.empty_line, builder.empty
                          or "the specification is a contradiction: no point can satisfy it")
    _check_coefficients(spec, branches)
    return Property(tuple(branches), spec.inputs, spec.outputs, spec.name)


def _conjuncts(formula: Formula) -> Iterable[Bound | Row | Or]:
    if isinstance(formula, And):
        for part in formula.parts:
            yield from _conjuncts(part)
    else:
        yield formula


@dataclass(frozen=True)
class _Size:
    """How many conjunctions a normal form has, and how many comparisons in all of them together; saturated, so that
    the numbers stay small."""

    conjunctions: int
    comparisons: int

    def both(self, other: _Size) -> _Size:
        """Of the AND of two formulas."""
        return _Size(min(self.conjunctions * other.conjunctions, MAX_BRANCHES + 1),
                     min(self.comparisons * other.conjunctions + other.comparisons * self.conjunctions,
                         MAX_COMPARISONS + 1))

    @classmethod
    def of(cls, formula: Formula) -> _Size:
        if isinstance(formula, Or):
            parts = [cls.of(part) for part in formula.parts]
            return cls(sum(p.conjunctions for p in parts), sum(p.comparisons for p in parts))
        total = cls(1, 0)
        if isinstance(formula, And):
            for part in formula.parts:
                total = total.both(cls.of(part))
            return total
        return cls(1, 1)


def _check_size(name: str, choices: list[tuple[int, Or]], rows: int) -> None:
    """`rows` are those that every disjunct has."""
    total = _Size(1, rows)
    for line, choice in choices:
        total = total.both(_Size.of(choice))
        if total.conjunctions > MAX_BRANCHES or total.comparisons > MAX_COMPARISONS:
            raise VnnlibError(name, line, f"the formula expands to more than {MAX_BRANCHES} disjuncts or "
                                          f"{MAX_COMPARISONS} comparisons: split it into several files")


def _check_coefficients(spec: Specification, branches: list[Branch]) -> None:
    rows = sum(len(b.rows) for b in branches)
    width = spec.outputs + spec.inputs * any(row.x for b in branches for row in b.rows)
    if rows * width > MAX_COEFFICIENTS:
        raise VnnlibError(spec.name, 0, f"{rows} comparisons over {width} variables are too many: expected at most "
                                        f"{MAX_COEFFICIENTS} coefficients; split it into several files")


def _expand(formula: Formula) -> list[tuple[Bound | Row, ...]]:
    """The disjunctive normal form as a list of conjunctions."""
    if isinstance(formula, Or):
        return [c for part in formula.parts for c in _expand(part)]
    if isinstance(formula, And):
        product: list[tuple[Bound | Row, ...]] = [()]
        for part in formula.parts:
            extra = _expand(part)
            product = [old + new for old in product for new in extra]
        return product
    return [(formula,)]


class _Regions:
    """Makes the region of each conjunction: the common box with the conjunction's own bounds."""

    def __init__(self, spec: Specification, lower: dict[int, Bound], upper: dict[int, Bound]) -> None:
        self.spec, self.lower, self.upper = spec, lower, upper
        self.empty, self.empty_line = "", 0
        self._made: dict[tuple[tuple[int, Number, Number], ...], Region] = {}
        self._common = [(lower[i].value if i in lower else None, upper[i].value if i in upper else None)
                        for i in range(spec.inputs)]
        self._open = [i for i, (low, high) in enumerate(self._common) if low is None or high is None]
        self._crossed = [i for i, (low, high) in enumerate(self._common)
                         if low is not None and high is not None and exceeds(low, high)]

    def region(self, own: list[Bound]) -> Region | None:
        """The region, or None where it is empty."""
        low: dict[int, Bound] = {b.index: self.lower[b.index] for b in own if b.index in self.lower}
        high: dict[int, Bound] = {b.index: self.upper[b.index] for b in own if b.index in self.upper}
        for bound in own:
            tighten(low, high, bound)
        touched = dict.fromkeys(b.index for b in own)
        for i in (*touched, *self._crossed):
            if self._is_empty(i, low.get(i, self.lower.get(i)), high.get(i, self.upper.get(i))):
                return None
        for i in self._open:
            for side, word in ((low, "lower"), (high, "upper")):
                if i not in side and i not in (self.lower if word == "lower" else self.upper):
                    line = max((b.line for b in own), default=0)
                    raise VnnlibError(self.spec.name, line, f"the input X_{i} is unbounded: it has no {word} bound")
        changes = tuple((i, low[i].value, high[i].value) if i in low and i in high
                        else (i, low.get(i, self.lower.get(i)).value, high.get(i, self.upper.get(i)).value)  # type: ignore[union-attr]
                        for i in touched)
        if changes not in self._made:
            if 2 * len(self._made) * self.spec.inputs > MAX_ENDS:
                raise VnnlibError(self.spec.name, 0, f"more than {len(self._made)} input regions of {self.spec.inputs} "
                                                     "inputs are too many: split it into several files")
            lowers, uppers = [p[0] for p in self._common], [p[1] for p in self._common]
            for i, a, b in changes:
                lowers[i], uppers[i] = a, b
            self._made[changes] = self._build(lowers, uppers)
        return self._made[changes]

    def _is_empty(self, i: int, low: Bound | None, high: Bound | None) -> bool:
        if low is None or high is None or not exceeds(low.value, high.value):
            return False
        self.empty = (f"the lower bound of X_{i} ({brief(low.value)}) exceeds its upper bound ({brief(high.value)}): "
                      "the input region is empty")
        self.empty_line = max(low.line, high.line)
        return True

    def _build(self, lowers: list[Number | None], uppers: list[Number | None]) -> Region:
        region = Region(tuple(v for v in lowers if v is not None), tuple(v for v in uppers if v is not None))
        if (i := region.beyond_float32) is not None:
            raise VnnlibError(self.spec.name, 0, f"a bound of X_{i} lies beyond the range of float32")
        return region
