"""Enclosures of derivatives on a grid of their own operator, kinks and ends included."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from bounds.graph import UnsupportedOperator
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.clip import Clip
from bounds.ops.elu import Elu
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.prelu import PRelu
from bounds.ops.relu import Relu
from bounds.ops.sign import Sign
from bounds.ops.softplus import Softplus
from tests.bounds.ops.grids import grid, intervals
from tests.bounds.ops.test_relaxations import CASES, Case

smooth_or_kinked = pytest.mark.parametrize("case", [c for c in CASES if not isinstance(c.op, Sign)],
                                           ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def kinks(op: Elementwise) -> list[tuple[float, Tensor, Tensor]]:
    """(where, slope left of it, slope right of it)."""
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    if isinstance(op, Relu):
        return [(0.0, zero, one)]
    if isinstance(op, LeakyRelu | PRelu):
        return [(0.0, op.left_slope(one).double(), one)]
    if isinstance(op, Clip):
        inner = one if op.low < op.high else zero
        return [(op.low, zero, inner), (op.high, inner, zero)]
    if isinstance(op, Elu):
        return [(0.0, one * op.alpha, one)]
    return []


def float_slope(op: Elementwise, dtype: torch.dtype) -> float:
    """By what share a slope that is no float of the dtype is off."""
    rounded = isinstance(op, LeakyRelu) and float(torch.tensor(op.slope, dtype=dtype)) != op.slope
    return torch.finfo(dtype).eps if rounded else 0.0


def slopes(op: Elementwise, points: Tensor) -> Tensor:
    """Autograd's derivatives at "B P"."""
    z = points.T.clone().requires_grad_()
    return torch.autograd.grad(op.to(dtype=torch.float64).forward(z).sum(), z)[0].T


def ends(case: Case, dtype: torch.dtype) -> tuple[Interval, Tensor, Tensor]:
    x = intervals(dtype)
    found = case.op.to(dtype=dtype).derivative(x)
    assert found.lower.dtype == dtype
    return x, found.lower.double(), found.upper.double()


@smooth_or_kinked
@dtypes
def test_every_slope_between_the_ends_is_enclosed(case: Case, dtype: torch.dtype) -> None:
    x, low, high = ends(case, dtype)
    points = grid(x, case.special)
    at_kink = torch.stack([points == k for k, _, _ in kinks(case.op)]).any(0) if kinks(case.op) else points != points
    there = slopes(case.op, points)
    slack = 1e-15 + there.abs() * (1e-13 + float_slope(case.op, dtype))  # autograd's own rounding
    inside = (there >= low[:, None] - slack) & (there <= high[:, None] + slack)
    assert bool((inside | at_kink).all())


@smooth_or_kinked
@dtypes
def test_both_sides_of_a_kink_belong_to_it_at_an_end_too(case: Case, dtype: torch.dtype) -> None:
    x, low, high = ends(case, dtype)
    for where, left, right in kinks(case.op):
        for lower, upper in ((where, where), (where, where + 1), (where - 1, where)):
            if abs(where) < 1e30:
                found = case.op.to(dtype=dtype).derivative(Interval(torch.full_like(x.lower, lower),
                                                                    torch.full_like(x.lower, upper)))
                for side in (left, right):
                    slack = side.abs() * float_slope(case.op, dtype)
                    assert bool(((found.lower <= side + slack) & (side - slack <= found.upper)).all())
        holds = (x.lower <= where) & (where <= x.upper)
        for side in (left, right):
            slack = side.abs() * float_slope(case.op, dtype)
            assert bool((((low <= side + slack) & (side - slack <= high)) | ~holds).all())


@smooth_or_kinked
@dtypes
def test_difference_quotients_are_enclosed(case: Case, dtype: torch.dtype) -> None:
    x, low, high = ends(case, dtype)
    points = grid(x, case.special).sort(-1).values
    points = points[:, ::7]
    values = case.op.to(dtype=torch.float64).forward(points.T).T
    run, rise = points.diff(), values.diff()
    own = 1e-14 * (1 + points[:, 1:].abs()) + float_slope(case.op, dtype)  # rounding an argument of exp costs |z| units
    lost = own * (values[:, 1:].abs() + values[:, :-1].abs() + 1e-300)
    assert bool((rise >= low[:, None] * run - lost)[run > 0].all())
    assert bool((rise <= high[:, None] * run + lost)[run > 0].all())


@smooth_or_kinked
@dtypes
def test_the_enclosure_is_no_wider_than_the_slopes_that_occur(case: Case, dtype: torch.dtype) -> None:
    if case.jump or isinstance(case.op, Softplus):
        pytest.skip("unbounded where the stored function drops")
    x, low, high = ends(case, dtype)
    points = grid(x, case.special)
    occurring = [slopes(case.op, points)]
    for where, left, right in kinks(case.op):
        holds = ((x.lower <= where) & (where <= x.upper))[:, None]
        occurring += [torch.where(holds, side.expand(len(holds))[:, None], occurring[0][:, :1])
                      for side in (left, right)]
    there = torch.cat(occurring, 1)
    assert bool((low >= there.amin(1) - 2e-2 * (1 + there.amin(1).abs())).all())
    assert bool((high <= there.amax(1) + 2e-2 * (1 + there.amax(1).abs())).all())


@dtypes
def test_smooth_slopes_are_tight_to_a_few_units(dtype: torch.dtype) -> None:
    z = torch.linspace(-3, 3, 101, dtype=dtype)
    for case in CASES:
        if case.op.needs_proof and not case.jump and case.name != "elu(0.0)":
            found = case.op.derivative(Interval(z, z))
            away = z.abs() > 1e-3  # from ELU's kink
            assert bool((found.upper - found.lower <= 100 * torch.finfo(dtype).eps * found.upper)[away].all())


def test_softplus_is_unbounded_exactly_where_its_threshold_can_lie() -> None:
    op = Softplus(1.0, 3.0)
    lower, upper = torch.tensor([[1.0, 2.0, 3.5, 3.0, -1.0], [2.0, 4.0, 5.0, 3.0, 3.0]], dtype=torch.float64)
    found = op.derivative(Interval(lower, upper))
    assert found.lower.isinf().tolist() == [False, True, False, True, True]
    assert float(found.lower[2]) == float(found.upper[2]) == 1.0


def test_sign_has_no_derivative() -> None:
    with pytest.raises(UnsupportedOperator, match="Sign"):
        Sign().derivative(Interval(torch.ones(1), torch.ones(1)))


def test_slopes_of_a_prelu_belong_to_their_neurons() -> None:
    op = PRelu(torch.tensor([-0.5, 2.0], dtype=torch.float64))
    x = torch.tensor([[-1.0, -1.0]], dtype=torch.float64)
    found = op.derivative(Interval(x, x.abs()))
    assert found.lower.tolist() == [[-0.5, 1.0]]
    assert found.upper.tolist() == [[1.0, 2.0]]
    assert dataclasses.replace(op).derivative(Interval(x, x / 2)).lower.tolist() == [[-0.5, 2.0]]
