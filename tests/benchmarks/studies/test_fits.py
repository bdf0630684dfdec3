"""Fits against numbers that are known."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest

from benchmarks.studies.fits import (
    RANK,
    SHARE,
    exponent,
    exponents,
    interval,
    rank_correlation,
    rank_grain,
    share,
    told,
    trend,
)


def test_power_laws_are_recovered() -> None:
    x = [1.0, 3.0, 10.0, 100.0]
    assert exponent(x, [2 * v**-1.5 for v in x]) == pytest.approx(-1.5)
    found = exponents(x, [[c * v**0.5 for v in x] for c in (1.0, 7.0, 40.0)])
    assert found.mean == pytest.approx(0.5) and found.high - found.low == pytest.approx(0, abs=1e-9)


def test_students_interval() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / 3**0.5  # the quantile for two degrees of freedom; the spread is 1
    assert (found.mean, found.n) == (2.0, 3)
    assert [found.low, found.high] == pytest.approx([2 - half, 2 + half])
    assert told(found) == "2.00 [-0.48, 4.48]"
    one = interval([1.0])
    assert (one.mean, one.low, one.high) == (1.0, -math.inf, math.inf)
    assert told(one) == "1.00 [of one value, no interval]"
    assert str(interval([-0.0, -0.0])).startswith("+0 (")
    assert (str(found), str(one)) == ("+2 (-0.484 to +4.48, n = 3)", "+1 (no interval, n = 1)")
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_a_mean_of_shares_is_none_beyond_all() -> None:
    wide = interval([0.9, 1.0, 1.0])
    assert wide.high > 1 and interval([0.9, 1.0, 1.0], SHARE) == wide._replace(high=1.0)
    assert interval([-1.0, -0.5], RANK).low == -1 and interval([-1.0, -0.5], RANK).high == 1
    assert math.isinf(interval([1.0], SHARE).high), "one value has no interval"


def test_equal_ranks_of_few_places_are_no_certain_mean() -> None:
    x = [1.0, 2.0, 3.0]
    found = trend([(x, x)] * 3)
    half = 4.302652729911275 * 0.5 / 12**0.5 / 3**0.5  # rho of three places is -1, -0.5, 0.5 or 1
    assert found.mean == found.high == 1 and found.low == pytest.approx(1 - half)
    assert rank_grain(4) == pytest.approx(0.2) and rank_grain(2) == 0
    possible = {round(rank_correlation(range(4), order), 9) for order in permutations(range(4))}
    assert min(b - a for a, b in pairwise(sorted(possible))) == pytest.approx(rank_grain(4))
    wide = interval([0.2, 0.8], RANK, 0.1)
    assert wide == interval([0.2, 0.8], RANK), "what they spread by themselves is not counted twice"


def test_a_share_of_all_is_not_certain() -> None:
    found = share(20, 20)
    assert found.mean == 1 and found.high == pytest.approx(1)
    assert found.low == pytest.approx(20 / (20 + 1.959963984540054**2))
    assert share(0, 10).low == pytest.approx(0)


def test_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == pytest.approx(-1)
    for x, y in (([1, 2, 3], [5, 5, 5]), ([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2])):
        assert rank_correlation(x, y) == 0, "no order to see"


def test_a_trend_counts_every_run_once() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    up, down = (x, x), (x, x[::-1])
    assert trend([up] * 100).mean == 1 and trend([up] * 100).low > 0.98 and trend([down] * 100).high < -0.98
    assert trend([(x, [5.0] * 4)] * 2) == (0.0, 0.0, 0.0, 2), "no trend, for certain"
    mixed, one = trend([up, down, up]), trend([up])
    assert mixed.low < 0 < mixed.high and math.isinf(one.high)


def test_no_exponent_of_a_single_place() -> None:
    with pytest.raises(ValueError, match="two different x"):
        exponent([2.0, 2.0], [1.0, 3.0])
