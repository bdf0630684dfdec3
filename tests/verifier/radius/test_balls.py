"""Balls around inputs: outward hulls, their largest radius, rows and distances, held against rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verifier.exact import fraction
from verifier.radius.balls import Balls

LABELS = torch.tensor([0])
floats = st.floats(-2, 2, width=32)


def balls(x: list[float], norm: float = math.inf, **given_: object) -> Balls:
    return Balls(torch.tensor([x]), LABELS, norm, **given_)  # type: ignore[arg-type]


@given(st.lists(floats, min_size=1, max_size=4), st.floats(0, 3))
def test_a_box_holds_every_real_point_within_the_decimal_radius(x: list[float], radius: float) -> None:
    found = balls(x).sets(torch.tensor([radius], dtype=torch.float64))
    for value, low, high in zip(x, found.lower[0].tolist(), found.upper[0].tolist(), strict=True):
        assert Fraction(low) <= Fraction(value) - fraction(radius)
        assert Fraction(high) >= Fraction(value) + fraction(radius)
        assert high - low <= 2 * radius + 1e-14


def test_the_clip_range_and_the_mask_are_honoured() -> None:
    mask = torch.tensor([True, False, True])
    found = balls([0.05, 0.5, 0.5], clip=(0.0, 0.6), mask=mask).sets(torch.tensor([0.2], dtype=torch.float64))
    assert found.lower[0].tolist() == pytest.approx([0.0, 0.5, 0.3])
    assert found.upper[0].tolist() == pytest.approx([0.25, 0.5, 0.6])
    assert found.lower[0, 1] == found.upper[0, 1]
    assert Fraction(float(found.upper[0, 2])) >= Fraction(6, 10), "0.6 is no float: the end lies above it"


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_the_largest_ball_holds_the_corners_of_the_range(norm: float) -> None:
    mask = torch.tensor([True, True, False])
    found = balls([0.2, 0.9, 0.4], norm, clip=(0.0, 1.0), mask=mask)
    corner = torch.tensor([[1.0, 0.0, 0.4]])
    away = [Fraction(1) - Fraction(float(found.x[0, 0])), Fraction(float(found.x[0, 1]))]
    length = float(found.largest[0])
    exact = {math.inf: max(away), 1.0: sum(away)}.get(norm)
    assert length >= exact if exact is not None else Fraction(length) ** 2 >= sum(a * a for a in away)
    assert length <= float(torch.linalg.vector_norm((corner - found.x)[0], ord=norm)) * (1 + 1e-12)


def test_without_a_range_nothing_limits_the_ball_but_a_mask_of_nothing() -> None:
    assert balls([0.2, 0.3]).largest.item() == math.inf
    assert balls([0.2, 0.3], mask=torch.tensor([False, False])).largest.item() == 0.0


def test_rows_compare_the_label_with_every_other_class_or_the_target() -> None:
    many = Balls(torch.zeros(2, 3), torch.tensor([1, 2]))
    rows = many.rows(3)
    assert rows.C.tolist() == [[-1, 1, 0], [0, 1, -1], [-1, 0, 1], [0, -1, 1]]
    assert rows.owner is not None and rows.owner.tolist() == [0, 0, 1, 1]
    assert Balls(torch.zeros(2, 3), torch.tensor([1, 2]), target=0).rows(3).C.tolist() == [[-1, 1, 0], [-1, 0, 1]]


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
@given(data=st.data())
def test_distances_are_never_too_small(norm: float, data: st.DataObject) -> None:
    x, y = (data.draw(st.lists(floats, min_size=3, max_size=3)) for _ in range(2))
    found = Fraction(float(balls(x, norm).distance(torch.tensor([y]))))
    moves = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x, y, strict=True)]
    if norm == 2.0:
        assert found**2 >= sum(m * m for m in moves)
    else:
        assert found >= (max(moves) if norm == math.inf else sum(moves))
        assert found <= (max(moves) if norm == math.inf else sum(moves)) * (1 + Fraction(1, 10**13))


@pytest.mark.parametrize(("change", "says"), [
    ({"norm": 3.0}, "norm must be"), ({"clip": (1.0, 0.0)}, "LO <= HI"), ({"clip": (0.5, 1.0)}, "outside the clip"),
    ({"mask": torch.tensor([True])}, "mask has shape"), ({"target": 0}, "target 0 is the label"),
])
def test_wrong_use_is_told(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        balls([0.1, 0.2], **{"norm": math.inf, **change})  # type: ignore[arg-type]


def test_inside_is_exact_at_the_ends_and_on_fixed_features() -> None:
    x = torch.tensor([[0.05, 0.05]], dtype=torch.float64)
    balls = Balls(x, torch.tensor([0]), clip=(0.0, 0.1), mask=torch.tensor([True, False]))
    above = float(torch.tensor(0.1))  # as float32
    below = float(torch.nextafter(torch.tensor(0.1), torch.tensor(0.0)))
    for point, inside in (((below, 0.05), True), ((above, 0.05), False), ((0.0, 0.05), True), ((-1e-300, 0.05), False),
                          ((0.0, 0.06), False)):
        assert bool(balls.inside(torch.tensor([point], dtype=torch.float64))) is inside, point
