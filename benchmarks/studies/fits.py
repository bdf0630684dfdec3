"""Slopes, intervals and rank correlations from which studies judge: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from certify.evaluation.records import wilson

CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE


def interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of independent values with Student's interval of 95 %. Raises ValueError for fewer than two."""
    from scipy.stats import t
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """k of the power law y = c x^k that fits positive numbers best, in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(x: Sequence[float], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The exponents of several runs, whose interval is over the runs: points of one run depend on each other."""
    return interval([exponent(x, row) for row in rows])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Spearman's rho with its p-value and n; rho 0, p 1 where one of them does not vary, or with
    fewer than three pairs: there is no order to see."""
    from scipy.stats import spearmanr
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return {"rho": 0.0, "p": 1.0, "n": len(x)}
    found = spearmanr(x, y)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(x)}


def increases(x: Sequence[float], y: Sequence[float], sign: int = 1) -> tuple[bool, str]:
    """Whether y rises (with sign -1 falls) with x by a rank correlation that is significant, and the words for it."""
    found = rank_correlation(x, y)
    return (sign * found["rho"] > 0 and found["p"] < SIGNIFICANT,
            f"Spearman's rho {found['rho']:.2f}, p {found['p']:.1g}, n {found['n']}")


def paired(rows: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], Sequence[float]], by: str,
           ) -> tuple[list[float], list[float]]:
    """Pairs (what varies, one value) of all rows and networks."""
    pairs = [(row[by], v) for row in rows for v in value(row)]
    return [p[0] for p in pairs], [float(p[1]) for p in pairs]


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with Wilson's interval of 95 %."""
    ends = wilson(hits, of)
    assert ends is not None, "a share is of something"
    return {"share": hits / of, "low": ends[0], "high": ends[1], "n": of}


def told(found: dict[str, Any], digits: int = 2) -> str:
    """An interval in a sentence."""
    middle = found["mean"] if "mean" in found else found["share"]
    return f"{middle:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
