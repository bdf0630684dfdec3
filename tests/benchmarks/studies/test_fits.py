"""Fits against numbers that are known."""

from __future__ import annotations

import math

import pytest

from benchmarks.studies.fits import (
    AGAINST,
    HOLDS,
    OPEN,
    UNABLE,
    exponent,
    exponents,
    interval,
    rank_correlation,
    rises,
    share,
    standing,
    together,
    told,
    trend,
)


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
    one = interval([1.0])
    assert (one["mean"], one["low"], one["high"]) == (1.0, -math.inf, math.inf)
    assert told(one) == "1.00 [of one value, no interval]"
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_a_share_of_all_is_not_certain() -> None:
    found = share(20, 20)
    assert found["share"] == 1 and found["high"] == pytest.approx(1)
    assert found["low"] == pytest.approx(20 / (20 + 1.959963984540054**2))
    assert share(0, 10)["low"] == pytest.approx(0)


def test_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000])["rho"] == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == {"rho": 0.0, "p": 1.0, "n": 3}


def test_few_pairs_have_the_p_value_of_all_orders() -> None:
    assert rank_correlation([1, 2, 3], [1, 5, 9])["p"] == pytest.approx(2 / 6)
    assert rank_correlation([1, 2, 3, 4], [9, 5, 3, 1])["p"] == pytest.approx(2 / 24)
    assert rank_correlation([1, 1, 2], [1, 2, 3])["p"] == pytest.approx(4 / 6), "ties: orders that look alike"
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [2.0, 1.0, 4.0, 3.0, 7.0, 5.0, 6.0]
    from scipy.stats import spearmanr
    assert rank_correlation(x, y)["p"] == pytest.approx(float(spearmanr(x, y).pvalue), abs=0.02)


def test_a_trend_counts_every_run_once() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    up, down = (x, x), (x, x[::-1])
    assert trend([up, up, up]) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    assert rises([up, up, up])[0] and not rises([up, up, up], -1)[0] and rises([down, down], -1)[0]
    assert not rises([up, down, up])[0], "the interval holds zero"
    assert not rises([up])[0], "one run has no interval"
    assert rises([up, up])[1] == "Spearman's rho 1.00 [1.00, 1.00], n 2"


def test_no_exponent_of_a_single_place() -> None:
    with pytest.raises(ValueError, match="two different x"):
        exponent([2.0, 2.0], [1.0, 3.0])


def test_an_interval_holds_contradicts_leaves_open_or_cannot_say() -> None:
    above, around, flat = interval([1.0, 1.1, 1.2]), interval([-1.0, 0.0, 1.5]), interval([0.0, 0.0])
    assert [standing(found) for found in (above, around, flat, interval([1.0]))] == [HOLDS, OPEN, AGAINST, UNABLE]
    assert [standing(found, sign=-1) for found in (above, around, flat)] == [AGAINST, OPEN, AGAINST]
    assert standing(above, 2) == AGAINST and standing(above, 2, -1) == HOLDS and standing(above, 1.1) == OPEN
    assert together([HOLDS, OPEN, UNABLE, AGAINST]) == AGAINST and together([HOLDS, OPEN, UNABLE]) == UNABLE
    assert together([HOLDS, OPEN]) == OPEN and together([HOLDS]) == HOLDS
