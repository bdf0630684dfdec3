"""From intervals to verdicts: what numbers say of one part of a claim, and what the parts say together.

A part holds only where a whole interval of 95 % does. Whatever does not hold is contradicted, left open, or could not
have been shown by such numbers, be it right or wrong: a verdict says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.studies.fits import Interval
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Verdict

HOLDS, AGAINST = "as claimed", "against the claim"
OPEN, SILENT = "which leaves the claim open", "which could not have shown the claim"
ALONE = {HOLDS: "The rule is met", AGAINST: "The numbers contradict the claim",
         OPEN: "The numbers leave the claim open", SILENT: "These numbers could not have shown the claim"}
AMONG = {HOLDS: "show {}", AGAINST: "contradict {}", OPEN: "leave {} open", SILENT: "could not have shown {}"}


def stands(found: Interval, *, above: float = -math.inf, below: float = math.inf,
           at_least: float = -math.inf, at_most: float = math.inf) -> str:
    """What an interval says of a mean that is claimed to lie between some numbers: all of it does (HOLDS), none of it
    does (AGAINST), or a part (OPEN). One value has no interval that could, and an interval as wide as what is claimed
    could not lie within it (SILENT)."""
    low, high = found.low, found.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return SILENT
    if low > above and low >= at_least and high < below and high <= at_most:
        return HOLDS
    if high <= above or high < at_least or low >= below or low > at_most:
        return AGAINST
    return SILENT if high - low >= min(below, at_most) - max(above, at_least) else OPEN


def between(least: Interval, most: Interval, *, above: float) -> str:
    """What is said of a mean that is claimed to lie above a number, when values are known to lie between two ends: it
    holds if it does at their least, and is contradicted if it is at their most."""
    if stands(least, above=above) == HOLDS:
        return HOLDS
    state = stands(most, above=above)
    return OPEN if state == HOLDS else state


def plain(held: bool) -> str:
    """Of what has no interval."""
    return HOLDS if held else AGAINST


def together(*states: str) -> str:
    """Of things that mean something only if all of them hold: one part. Raises ValueError where there are none."""
    return min(states, key=(AGAINST, SILENT, OPEN, HOLDS).index)


def verdict(claim: str, place: str, parts: Sequence[str], why: str) -> Verdict:
    """All parts hold: seen; half of them or more: in part, otherwise not seen. How the parts stand ends the sentences.

    Of parts that are all wrong each holds by chance in 2.5 % of cases, so half of them do in at most 5 %, however they
    depend on each other (Markov's inequality); a single one of many would be no sign. Raises ValueError where there are
    no parts: what was not looked at was not seen.
    """
    if not parts:
        raise ValueError("an outcome needs at least one part of the claim")
    held = parts.count(HOLDS)
    outcome = SEEN if held == len(parts) else PARTLY if 2 * held >= len(parts) else NOT_SEEN
    said = [words.format(parts.count(state)) for state, words in AMONG.items() if state == HOLDS or state in parts]
    words = ALONE[parts[0]] if len(parts) == 1 else f"Of {len(parts)} parts the numbers {', '.join(said)}"
    chance = " Fewer than half may hold by chance." if held and outcome == NOT_SEEN else ""
    return Verdict(claim, place, outcome, f"{why} {words}.{chance}")
