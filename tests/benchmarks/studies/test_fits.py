"""Fits against numbers that are known."""

from __future__ import annotations

import pytest

from benchmarks.studies.fits import exponent, exponents, interval, rank_correlation, share, told


def test_power_laws_are_recovered() -> None:
    x = [1.0, 3.0, 10.0, 100.0]
    assert exponent(x, [2 * v**-1.5 for v in x]) == pytest.approx(-1.5)
    found = exponents(x, [[c * v**0.5 for v in x] for c in (1.0, 7.0, 40.0)])
    assert found["mean"] == pytest.approx(0.5) and found["high"] - found["low"] == pytest.approx(0, abs=1e-9)


def test_students_interval() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / 3**0.5  # the quantile for two degrees of freedom; the spread is 1
    assert (found["mean"], found["n"]) == (2.0, 3)
    assert [found["low"], found["high"]] == pytest.approx([2 - half, 2 + half])
    assert told(found) == "2.00 [-0.48, 4.48]"
    with pytest.raises(ValueError, match="at least two values, got 1"):
        interval([1.0])


def test_a_share_of_all_is_not_certain() -> None:
    found = share(20, 20)
    assert found["share"] == 1 and found["high"] == pytest.approx(1)
    assert found["low"] == pytest.approx(20 / (20 + 1.959963984540054**2))
    assert share(0, 10)["low"] == pytest.approx(0)


def test_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000])["rho"] == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == {"rho": 0.0, "p": 1.0, "n": 3}
