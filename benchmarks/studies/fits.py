"""Slopes, intervals and rank correlations from which studies judge: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from certify.evaluation.records import wilson

CONFIDENCE = 0.95
SHARE, RANK = (0.0, 1.0), (-1.0, 1.0)  # where shares and rank correlations lie, and with them their means


class Interval(NamedTuple):
    """A mean, or a share, of n independent values with the ends of its interval of 95 %."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        ends = "no interval" if math.isinf(self.low) else f"{self.low:+.3g} to {self.high:+.3g}"
        return f"{self.mean + 0.0:+.3g} ({ends}, n = {self.n})"  # the sum of -0.0 and 0.0 has no sign


def interval(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf), grain: float = 0.0
             ) -> Interval:
    """The mean of independent values with Student's interval of 95 %, as far as it lies `within` what the mean can be;
    of one value there is no interval. Raises ValueError where there is no value.

    grain: the distance between values that are possible. They spread by what rounding to them hides (a uniform error)
    or more: three equal ranks of four places are no certain mean.
    """
    from scipy.stats import t
    if not values:
        raise ValueError("a mean needs at least one value")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, n)
    spread = max(float(np.std(values, ddof=1)), grain / math.sqrt(12))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
    return Interval(mean, max(mean - half, within[0]), min(mean + half, within[1]), n)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """k of the power law y = c x^k that fits positive numbers best, in logarithms. Raises ValueError where x does not
    vary: any power fits that."""
    if len(set(x)) < 2:
        raise ValueError(f"an exponent needs at least two different x, got {sorted(set(x))}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(x: Sequence[float], rows: Sequence[Sequence[float]]) -> Interval:
    """The exponents of several runs, whose interval is over the runs: points of one run depend on each other."""
    return interval([exponent(x, row) for row in rows])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho; 0 where one of them does not vary, or with fewer than three pairs: there is no order to see."""
    from scipy.stats import spearmanr
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(spearmanr(x, y).statistic)


def trend(runs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> Interval:
    """Spearman's rho of each independent run (x, y), with Student's interval of their mean: values of one network or
    seed at several x depend on each other, and count once."""
    runs = list(runs)
    found = [rank_correlation(x, y) for x, y in runs]
    varied = any(len(set(y)) > 1 for _, y in runs)  # what is the same everywhere has no trend, which is certain
    return interval(found, RANK, max(rank_grain(len(x)) for x, _ in runs) if varied else 0.0)


def rank_grain(places: int) -> float:
    """The distance between values that Spearman's rho of so many pairs can have, where none are equal."""
    return 12 / (places * (places**2 - 1)) if places > 2 else 0.0


def share(hits: int, of: int) -> Interval:
    """A share with Wilson's interval of 95 %."""
    ends = wilson(hits, of)
    assert ends is not None, "a share is of something"
    return Interval(hits / of, *ends, of)


def told(found: Interval, digits: int = 2) -> str:
    """An interval in a sentence, with so many digits behind the point; str(found) has three that count, and n."""
    if math.isinf(found.high):
        return f"{found.mean:.{digits}f} [of one value, no interval]"
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
