"""Exact numbers: directed rounding to float64 and correct rounding to float32."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.exact import fraction, is_numeral, round_down, round_up, rounded

numerals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=20, min_value=-1000, max_value=1000).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds("{}e{}".format, st.integers(-10**9, 10**9), st.integers(-60, 25)))


def nearest32(value: Fraction) -> np.float32:
    """Slow oracle: the float32 at the least distance, ties to the even mantissa."""
    near = np.float32(float(value))
    candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    finite = [c for c in candidates if np.isfinite(c)]
    return min(finite, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.int32)) & 1))


@given(numerals)
@settings(max_examples=300)
def test_directed_rounding_encloses_by_at_most_one_ulp(text: str) -> None:
    value = Fraction(text)
    for number in (text, value):
        low, high = round_down(number), round_up(number)
        assert Fraction(low) <= value <= Fraction(high)
        assert high in (low, math.nextafter(low, math.inf))


@given(st.lists(numerals, min_size=1, max_size=8))
@settings(max_examples=200)
def test_vectors_round_like_their_entries(texts: list[str]) -> None:
    result = rounded(texts)
    for i, text in enumerate(texts):
        assert result.down[i] == round_down(text)
        assert result.up[i] == round_up(text)
        if abs(Fraction(text)) < 1e38:
            assert result.near32[i] == nearest32(Fraction(text))


def test_nearest_float32_is_not_rounded_twice() -> None:
    """Just above the middle of 1 and the next float32; its nearest float64 is that middle."""
    text = str(1 + 2**-24) + "0000000001"
    assert float(text) == 1 + 2**-24
    assert rounded([text]).near32[0] == np.nextafter(np.float32(1), np.float32(2))
    assert np.float32(float(text)) == np.float32(1), "the naive way errs here"
    below = "0." + "9" * 40  # far from any tie
    assert rounded([below]).near32[0] == np.float32(1)


@pytest.mark.parametrize(("text", "good"), [
    ("1", True), ("-0.5", True), ("+3.", True), (".5", True), ("1e-06", True), ("-1.2E+05", True),
    ("inf", False), ("nan", False), ("1_000", False), ("0x10", False), ("1e", False), ("", False), ("-", False),
    ("1e999999999", False), ("1.2.3", False)])
def test_numerals(text: str, good: bool) -> None:
    assert is_numeral(text) is good


def test_python_floats_mean_the_decimal_they_print_as() -> None:
    assert fraction(0.1) == Fraction(1, 10)
    with pytest.raises(ValueError, match="finite"):
        fraction(math.nan)
