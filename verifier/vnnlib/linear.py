"""Linear expressions over the inputs X and the outputs Y with exact coefficients."""

from __future__ import annotations

from fractions import Fraction

from verifier.limits import MAX_BITS


class TooLong(ValueError):
    """Exact arithmetic made a rational of more digits than any specification needs."""


class Linear:
    """`sum y[i] Y_i + sum x[j] X_j + constant`; built up in place while an expression is read."""

    __slots__ = ("constant", "x", "y")

    def __init__(self, constant: Fraction = Fraction(0)) -> None:
        self.y: dict[int, Fraction] = {}
        self.x: dict[int, Fraction] = {}
        self.constant = constant

    def add(self, other: Linear, factor: Fraction) -> None:
        """self += factor * other."""
        for mine, theirs in ((self.y, other.y), (self.x, other.x)):
            for i, c in theirs.items():
                mine[i] = _checked(mine.get(i, Fraction(0)) + factor * c)
        self.constant = _checked(self.constant + factor * other.constant)

    @property
    def is_constant(self) -> bool:
        return not any(self.y.values()) and not any(self.x.values())

    def times(self, other: Linear) -> Linear | None:
        """The product, or None where both hold variables."""
        if not self.is_constant and not other.is_constant:
            return None
        factor, rest = (self.constant, other) if self.is_constant else (other.constant, self)
        product = Linear()
        product.add(rest, factor)
        return product


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLong(f"a coefficient or a constant grows beyond {MAX_BITS} bits")
    return value
