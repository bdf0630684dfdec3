"""Exact numbers and their roundings: a numeral as written, or a rational, into float64 and float32.

A specification's decimal is a rational number; most are no floats. Bounds need the float below and
the float above, witnesses the nearest float32 or the next one inward. All of them are exact here: the
direction is decided by comparing the written number with the float, never by adding an ulp for safety.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from verifier.limits import MAX_DIGITS, MAX_EXPONENT

Number = str | Fraction  # a decimal numeral as written, or a rational

NUMERAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def is_numeral(text: str) -> bool:
    """Is this a decimal numeral (digits, point, exponent; no inf, nan or underscores) of a size that rationals can
    have?"""
    if len(text) > MAX_DIGITS or NUMERAL.fullmatch(text) is None:
        return False
    _, _, exponent = text.lower().partition("e")
    return not exponent or abs(int(exponent)) <= MAX_EXPONENT


def near_float(value: Fraction) -> float:
    """The nearest float64; an infinity beyond the range, where `float` would raise."""
    return _nearest(value)[0]


def brief(value: Number) -> str:
    """A number as messages quote it."""
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > 64:
        return f"{near_float(value):g}"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def fraction(value: Number | float) -> Fraction:
    """The exact rational; a Python float means the decimal that Python prints for it (0.1 is 1/10)."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value}")
        return Fraction(repr(float(value)))
    return Fraction(value)


def round_down(value: Number) -> float:
    """The largest float64 not above the number (-inf below the range)."""
    near, side = _nearest(value)
    return near if side >= 0 else math.nextafter(near, -math.inf)


def round_up(value: Number) -> float:
    """The smallest float64 not below the number (inf above the range)."""
    near, side = _nearest(value)
    return near if side <= 0 else math.nextafter(near, math.inf)


def _nearest(value: Number) -> tuple[float, int]:
    """(nearest float64, sign of the number minus that float)."""
    if isinstance(value, str):
        near = float(value)
        exact, written = Decimal(near), Decimal(value)
        return near, (written > exact) - (written < exact)
    try:
        near = float(value)
    except OverflowError:
        return (math.inf, -1) if value > 0 else (-math.inf, 1)
    ratio = Fraction(near)
    return near, (value > ratio) - (value < ratio)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A vector of exact numbers in floats: down <= number <= up (float64), near32 the nearest float32."""

    down: NDArray[np.float64]
    up: NDArray[np.float64]
    near32: NDArray[np.float32]

    @property
    def down32(self) -> NDArray[np.float32]:
        """The largest float32 not above each number."""
        return _below32(self.down)

    @property
    def up32(self) -> NDArray[np.float32]:
        """The smallest float32 not below each number."""
        return -_below32(-self.up)


def rounded(values: Sequence[Number]) -> Rounded:
    """Round every number; equal numerals are rounded once, and a number that is shared is compared once (the hash of
    a rational is slow)."""
    known: dict[Number, tuple[float, int]] = {}
    shared: dict[int, tuple[float, int]] = {}
    for value in values:
        if id(value) not in shared:
            if value not in known:
                known[value] = _nearest(value)
            shared[id(value)] = known[value]
    near = np.array([shared[id(v)][0] for v in values], dtype=np.float64)
    side = np.array([shared[id(v)][1] for v in values], dtype=np.int8)
    with np.errstate(over="ignore"):
        down = np.where(side < 0, np.nextafter(near, -np.inf), near)
        up = np.where(side > 0, np.nextafter(near, np.inf), near)
    return Rounded(down, up, _nearest32(near, side))


def _below32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each float64, nor above any number of which that is the float64 below."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)


def _nearest32(near: NDArray[np.float64], side: NDArray[np.int8]) -> NDArray[np.float32]:
    """Nearest float32 of the exact number. Rounding twice errs only where the float64 fell exactly
    between two float32; there the side of the exact number decides."""
    with np.errstate(over="ignore"):
        single = near.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        below = np.where(single > near, np.nextafter(single, np.float32(-np.inf)), single)
        above = np.where(single < near, np.nextafter(single, np.float32(np.inf)), single)
        between = (below < above) & (below.astype(np.float64) + (above.astype(np.float64) - below) / 2 == near)
    return np.where(between & (side > 0), above, np.where(between & (side < 0), below, single)).astype(np.float32)
