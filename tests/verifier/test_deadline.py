"""Deadlines and parts of them."""

from __future__ import annotations

import math

import pytest

from verifier.deadline import Deadline


def test_a_part_ends_after_a_share_of_what_is_left() -> None:
    whole = Deadline.starting_now(100.0)
    part = whole.part(0.25)
    assert part.start == whole.start and 24 < part.left() < 26
    assert Deadline.starting_now().part(0.5).left() == math.inf


def test_a_part_of_no_time_has_passed() -> None:
    late = Deadline(1e-9, Deadline.starting_now().start - 5)
    assert late.passed() and late.part(0.5).passed()


def test_no_time_at_all_is_no_limit() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Deadline.starting_now(0.0)
