"""What intervals say of claims, and what verdicts say of their parts."""

from __future__ import annotations

import math

import pytest

from benchmarks.studies.claims import AGAINST, HOLDS, OPEN, SILENT, between, plain, stands, together, verdict
from benchmarks.studies.fits import Interval, interval
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN


@pytest.mark.parametrize(("low", "high", "limits", "state"), [
    (0.1, 2.0, {"above": 0}, HOLDS), (-0.1, 2.0, {"above": 0}, OPEN), (-2.0, -0.1, {"above": 0}, AGAINST),
    (-2.0, -0.1, {"below": 0}, HOLDS), (-2.0, 0.0, {"below": 0}, OPEN), (0.0, 1.0, {"below": 0}, AGAINST),
    (1.0, 3.0, {"above": 0.5}, HOLDS), (1.0, 3.0, {"above": 2}, OPEN), (1.0, 3.0, {"above": 4}, AGAINST),
    (-3.0, -1.0, {"below": -0.5}, HOLDS), (-3.0, -1.0, {"below": -2}, OPEN), (-3.0, -1.0, {"below": -4}, AGAINST),
    (0.0, 0.0, {"above": 0}, AGAINST), (0.0, 0.0, {"at_most": 0, "at_least": 0}, HOLDS),
    (0.9, 1.0, {"at_most": 1.0}, HOLDS), (0.9, 1.1, {"at_most": 1.0}, OPEN), (1.1, 1.2, {"at_most": 1.0}, AGAINST),
    (-math.inf, math.inf, {"above": 0}, SILENT), (-math.inf, math.inf, {"at_most": 0}, SILENT),
    (math.nan, math.nan, {"above": 0}, SILENT)])
def test_what_an_interval_says(low: float, high: float, limits: dict[str, float], state: str) -> None:
    assert stands(Interval(0.0, low, high, 3), **limits) == state


@pytest.mark.parametrize(("least", "most", "state"), [
    ((1, 2), (3, 4), HOLDS), ((-2, -1), (1, 2), OPEN), ((-1, 1), (1, 2), OPEN), ((-2, -1), (-1, 1), OPEN),
    ((-4, -3), (-2, -1), AGAINST), ((1, 2), (-math.inf, math.inf), HOLDS),
    ((-2, -1), (-math.inf, math.inf), SILENT), ((-math.inf, math.inf), (1, 2), OPEN)])
def test_between_two_ends_only_what_both_say_is_said(least: tuple[float, float], most: tuple[float, float], state: str
                                                     ) -> None:
    assert between(Interval(0.0, *least, 3), Interval(0.0, *most, 3), above=0) == state


@pytest.mark.parametrize("limits", [{"above": -2, "below": 2}, {"at_least": -2, "at_most": 2}])
@pytest.mark.parametrize(("low", "high", "state"), [
    (-1, 1, HOLDS), (0.5, 2.5, OPEN), (2.5, 3, AGAINST), (-3, -2.5, AGAINST), (-3, 3, SILENT), (-1, 3.5, SILENT),
    (-math.inf, math.inf, SILENT)])
def test_what_is_wider_than_the_claim_could_not_have_shown_it(low: float, high: float, state: str,
                                                              limits: dict[str, float]) -> None:
    assert stands(Interval(0.0, low, high, 3), **limits) == state


def test_one_value_says_nothing() -> None:
    assert stands(interval([1.0]), above=0) == SILENT
    assert stands(interval([1.0, 1.0]), above=0) == HOLDS


def test_what_has_no_interval_holds_or_does_not() -> None:
    assert (plain(True), plain(False)) == (HOLDS, AGAINST)


def test_parts_that_need_each_other_are_one() -> None:
    assert together(HOLDS) == together(HOLDS, HOLDS) == HOLDS and together(HOLDS, OPEN) == OPEN
    assert together(OPEN, SILENT, HOLDS) == SILENT and together(SILENT, HOLDS, AGAINST, OPEN) == AGAINST
    with pytest.raises(ValueError, match="empty"):
        together()


@pytest.mark.parametrize(("parts", "expected", "said"), [
    ([HOLDS] * 3, SEEN, "Of 3 parts the numbers show 3."),
    ([HOLDS, OPEN], PARTLY, "Of 2 parts the numbers show 1, leave 1 open."),
    ([HOLDS, AGAINST, SILENT], NOT_SEEN, "Of 3 parts the numbers show 1, contradict 1, could not have shown 1. Fewer "
     "than half may hold by chance."),
    ([AGAINST] * 2, NOT_SEEN, "Of 2 parts the numbers show 0, contradict 2."),
    ([HOLDS], SEEN, "The rule is met."), ([AGAINST], NOT_SEEN, "The numbers contradict the claim."),
    ([OPEN], NOT_SEEN, "The numbers leave the claim open."),
    ([SILENT], NOT_SEEN, "These numbers could not have shown the claim.")])
def test_a_verdict_says_how_its_parts_stand(parts: list[str], expected: str, said: str) -> None:
    found = verdict("claim", "place", parts, "Why.")
    assert (found.claim, found.place, found.outcome, found.why) == ("claim", "place", expected, f"Why. {said}")


def test_a_claim_of_which_nothing_was_looked_at_has_no_outcome() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        verdict("claim", "place", [], "Why.")
