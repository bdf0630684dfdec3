"""Softmax: an exact interval, and a refusal of linear relaxations."""

from __future__ import annotations

import itertools

import pytest
import torch

from bounds.graph import UnsupportedOperator
from bounds.interval import Interval
from bounds.ops.softmax import Softmax
from bounds.window import Owner


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("axis", "shape"), [(-1, (4,)), (-2, (3, 2)), (-3, (4, 1, 2))])
def test_interval_is_reached_at_corners(axis: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    op = Softmax(axis)
    lower = torch.randn(2, *shape, generator=generator, dtype=dtype) * 4
    x = Interval(lower, lower + torch.rand(2, *shape, generator=generator, dtype=dtype) * 3)
    found = op.interval(x)
    corners = torch.tensor(list(itertools.product((0, 1), repeat=torch.Size(shape).numel())), dtype=torch.bool)
    values = torch.stack([torch.where(c.view(shape), x.upper, x.lower) for c in corners]).double()
    values = torch.softmax(values, axis)
    assert bool((found.lower.double() <= values.amin(0)).all())
    assert bool((found.upper.double() >= values.amax(0)).all())
    torch.testing.assert_close(found.lower.double(), values.amin(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.upper.double(), values.amax(0), rtol=1e-4, atol=1e-6)


def test_interval_stays_finite_and_sound_far_apart() -> None:
    x = Interval(torch.tensor([[-1e8, 0.0, 300.0]]), torch.tensor([[1e8, 1.0, 300.0]]))
    found = Softmax().interval(x)
    assert bool(torch.isfinite(found.lower).all() and torch.isfinite(found.upper).all())
    assert found.lower[0, 0] <= 0
    assert found.upper[0, 0] == 1
    assert found.lower[0, 2] <= 0
    assert found.upper[0, 2] == 1


def test_a_linear_relaxation_is_refused_by_name() -> None:
    x = Interval(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(UnsupportedOperator, match="Softmax"):
        Softmax().pull_back_relaxed(torch.ones(1, 3), Owner.of(1, None), (x,))
    with pytest.raises(ValueError, match="from the end"):
        Softmax(1)
