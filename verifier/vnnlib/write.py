"""Write a property as VNN-LIB 1.0. What is written reads back as the same unsafe set, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from verifier.exact import Number
from verifier.property import Branch, Property, Region, Row


def write_vnnlib(prop: Property, *, comment: str = "") -> str:
    """The text of a VNN-LIB 1.0 file for a property over boxes; a finite norm has no such form."""
    if any(region.p != float("inf") for region in prop.regions):
        raise ValueError("VNN-LIB 1.0 can only say boxes: an l_1 or l_2 ball cannot be written")
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{i} Real)" for i in range(prop.inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(prop.outputs)]
    shared = len(prop.regions) == 1
    if shared:
        lines += [f"(assert {atom})" for atom in _box(prop.regions[0])]
    parts = [list(_conjunction(branch, with_box=not shared)) for branch in prop.branches]
    if len(parts) == 1:
        lines += [f"(assert {atom})" for atom in parts[0]]
    elif all(parts):
        lines += ["(assert (or", *(f"  (and {' '.join(part)})" for part in parts), "))"]
    # else: one branch holds on its whole region, and so does the OR
    return "\n".join(lines) + "\n"


def _conjunction(branch: Branch, *, with_box: bool) -> Iterator[str]:
    if with_box:
        yield from _box(branch.region)
    yield from map(_row, branch.rows)


def _box(region: Region) -> Iterator[str]:
    for i, (low, high) in enumerate(zip(region.exact_lower, region.exact_upper, strict=True)):
        yield f"(>= X_{i} {number(low)})"
        yield f"(<= X_{i} {number(high)})"


def _row(row: Row) -> str:
    op = "<" if row.strict else "<="
    named = [(c, f"Y_{i}") for i, c in row.y] + [(c, f"X_{j}") for j, c in row.x]
    if row.bound == 0 and len(named) == 2 and sorted(c for c, _ in named) == [-1, 1]:
        (small,), (large,) = [v for c, v in named if c == 1], [v for c, v in named if c == -1]
        return f"({op} {small} {large})"
    if len(named) == 1 and named[0][0] == -1:
        return f"({op.replace('<', '>')} {named[0][1]} {number(-row.bound)})"
    terms = [v if c == 1 else f"(* {number(c)} {v})" for c, v in named]
    return f"({op} {terms[0] if len(terms) == 1 else '(+ ' + ' '.join(terms) + ')'} {number(row.bound)})"


def number(value: Number) -> str:
    """A numeral as written, a rational as a decimal where it has a finite one, else as a quotient."""
    if isinstance(value, str):
        return value
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"(/ {value.numerator}.0 {value.denominator}.0)"
    places = max(twos, fives, 1)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def exact_decimal(value: float) -> str:
    """Every digit of a float."""
    return number(Fraction(value))
