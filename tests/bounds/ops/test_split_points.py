"""Split points of every elementwise operator: inside the interval, halves with valid lines that enclose no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.clip import Clip
from bounds.ops.least_area import area, least_area_point
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.tanh import Tanh
from tests.bounds.ops.grids import intervals, violation
from tests.bounds.ops.test_relaxations import STRAIGHT_ULPS, Case, every_case

DTYPES = [torch.float32, torch.float64]
every_side = pytest.mark.parametrize("side", [-1, 0, 1])


def undecided(op: Elementwise, x: Interval) -> Tensor:
    """Where a number lies strictly inside and the operator is not linear."""
    return (torch.nextafter(x.lower, x.upper) < x.upper) & ~op.is_linear_on(x)


@every_case
@every_side
@pytest.mark.parametrize("dtype", DTYPES)
def test_split_points_lie_strictly_inside(case: Case, side: int, dtype: torch.dtype) -> None:
    op, x = case.op.to(dtype=dtype), intervals(dtype)
    point, where = op.split_points(x, torch.full_like(x.lower, side)), undecided(op, x)
    assert point.shape == x.lower.shape
    assert bool(((x.lower < point) & (point < x.upper))[where].all())


@every_case
@every_side
@pytest.mark.parametrize("dtype", DTYPES)
def test_lines_of_both_halves_hold_and_lie_no_further_off(case: Case, side: int, dtype: torch.dtype) -> None:
    op, x = case.op.to(dtype=dtype), intervals(dtype)
    sides = torch.full_like(x.lower, side)
    point, where = op.split_points(x, sides), undecided(op, x)
    left = Interval(x.lower, torch.where(where, point, x.upper))
    right = Interval(torch.where(where, point, x.lower), x.upper)
    for half in (left, right):
        # In float64 the grid's own rounding is as large as what it looks for.
        crossing = violation(op, half, op.relax(half), special=case.special,
                             ulps=case.ulps if dtype == torch.float32 else STRAIGHT_ULPS)
        assert float(crossing.max()) <= 0, (case.name, crossing.argmax())
    whole, both = area(op, x, sides), area(op, left, sides) + area(op, right, sides)
    # Of either line alone the default is not the one with the least area, where the two share a parameter.
    gain = whole - both
    size = (op.forward(x.lower).abs() + op.forward(x.upper).abs() + x.upper - x.lower) * (x.upper - x.lower)
    enclosed = area(op, x, torch.zeros_like(sides))
    assert bool((gain >= -0.001 * enclosed - 64 * torch.finfo(dtype).eps * size)[where].all())


def test_of_two_kinks_one_inside_is_taken() -> None:
    x = Interval(torch.tensor([-1.0, -1.0, 0.5, -9.0]), torch.tensor([7.0, 5.0, 7.0, 6.5]))
    assert Clip(0.0, 6.0).split_points(x, torch.zeros(4)).tolist() == [0.0, 0.0, 6.0, 0.0]


@every_side
@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=lambda op: op.kind)
def test_no_point_of_a_fine_grid_splits_much_better(op: Elementwise, side: int) -> None:
    x = intervals(torch.float64)
    wide = (x.upper - x.lower > 0.1) & (x.lower > -30) & (x.upper < 30)
    x = x.map(lambda t: t[wide])
    sides = torch.full_like(x.lower, side)
    best = torch.full_like(x.lower, torch.inf)
    for share in torch.linspace(0.001, 0.999, 999, dtype=torch.float64):
        p = torch.lerp(x.lower, x.upper, share)
        best = torch.minimum(best, area(op, Interval(x.lower, p), sides) + area(op, Interval(p, x.upper), sides))
    p = op.split_points(x, sides)
    reached = area(op, Interval(x.lower, p), sides) + area(op, Interval(p, x.upper), sides)
    assert bool((reached - best <= 0.02 * area(op, x, torch.zeros_like(sides)) + 1e-9).all())


def test_the_line_that_counts_decides_where_to_split() -> None:
    """On [-4, 4] the line above a sigmoid touches at 1.3: a cut at 2 would not lower it left of the cut."""
    x = Interval(torch.tensor([-4.0, -4.0]), torch.tensor([4.0, 4.0]))
    above, below = Sigmoid().split_points(x, torch.tensor([-1.0, 1.0])).tolist()
    assert above < -0.5 and below > 0.5


def test_a_special_point_is_taken_where_it_is_best_and_ties_go_to_the_middle() -> None:
    x = Interval(torch.tensor([-1000.0, 40.0]), torch.tensor([3.0, 42.0]))
    both = torch.zeros(2)
    assert float(least_area_point(Clip(low=0.0), x, both, special=(0.0,))[0]) == 0.0
    assert float(least_area_point(Clip(low=0.0), x, both)[1]) == 41.0
