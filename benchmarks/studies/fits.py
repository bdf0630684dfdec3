"""Slopes, intervals and rank correlations from which studies judge: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from certify.evaluation.records import wilson

CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE
ALL_ORDERS = 7  # pairs of which every order is looked at: 5,040
HOLDS, AGAINST = "as claimed", "against the claim"
OPEN, UNABLE = "which leaves the claim open", "which could not have shown the claim"


def interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of independent values with Student's interval of 95 %; of one value any mean is possible. Raises
    ValueError where there is none."""
    from scipy.stats import t
    if not values:
        raise ValueError("a mean needs at least one value")
    mean, n = float(np.mean(values)), len(values)
    half = (float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1
            else math.inf)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """k of the power law y = c x^k that fits positive numbers best, in logarithms. Raises ValueError where x does not
    vary: any power fits that."""
    if len(set(x)) < 2:
        raise ValueError(f"an exponent needs at least two different x, got {sorted(set(x))}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(x: Sequence[float], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The exponents of several runs, whose interval is over the runs: points of one run depend on each other."""
    return interval([exponent(x, row) for row in rows])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Spearman's rho of independent pairs with its two-sided p-value (over all orders where there are few) and n; rho
    0, p 1 where one of them does not vary, or with fewer than three pairs: there is no order to see."""
    from scipy.stats import rankdata, spearmanr
    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return {"rho": 0.0, "p": 1.0, "n": n}
    found = spearmanr(x, y)
    p = float(found.pvalue)
    if n <= ALL_ORDERS:  # the usual approximation calls three points in order certain
        centred = rankdata(x) - (n + 1) / 2
        orders = np.array(list(permutations(rankdata(y) - (n + 1) / 2)))
        size = np.abs(orders @ centred)
        p = float(np.mean(size >= size[0] * (1 - 1e-9)))
    return {"rho": float(found.statistic), "p": p, "n": n}


def trend(runs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Spearman's rho of each independent run (x, y), with Student's interval of their mean: values of one network or
    seed at several x depend on each other, and count once."""
    return interval([rank_correlation(x, y)["rho"] for x, y in runs])


def rises(runs: Iterable[tuple[Sequence[float], Sequence[float]]], sign: int = 1) -> tuple[bool, str]:
    """Whether y rises (with sign -1 falls) with x in runs of their own, by `trend`'s interval, and the words for it."""
    found = trend(runs)
    return (found["low"] > 0 if sign > 0 else found["high"] < 0), f"Spearman's rho {told(found)}, n {found['n']}"


def standing(found: dict[str, Any], limit: float = 0.0, sign: int = 1) -> str:
    """What an interval says to the claim that its mean lies above (with sign -1 below) a limit: HOLDS, AGAINST, OPEN
    or, of one value, UNABLE."""
    if found["n"] < 2:
        return UNABLE
    low, high = sorted((sign * (found["low"] - limit), sign * (found["high"] - limit)))
    return HOLDS if low > 0 else AGAINST if high <= 0 else OPEN


def together(standings: Iterable[str]) -> str:
    """What is said to a claim that asks for all of several things."""
    return min(standings, key=(AGAINST, UNABLE, OPEN, HOLDS).index)


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with Wilson's interval of 95 %."""
    ends = wilson(hits, of)
    assert ends is not None, "a share is of something"
    return {"share": hits / of, "low": ends[0], "high": ends[1], "n": of}


def told(found: dict[str, Any], digits: int = 2) -> str:
    """An interval in a sentence."""
    middle = found["mean"] if "mean" in found else found["share"]
    if math.isinf(found["high"]):
        return f"{middle:.{digits}f} [of one value, no interval]"
    return f"{middle:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
