"""Cutting boxes and neurons by half-spaces: no point is lost, whatever the scales; against linear programmes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder
from verifier.branch_and_bound.clip import clip
from verifier.branch_and_bound.cut import AffineNeurons, cut_minimum
from verifier.branch_and_bound.domains import Layout

SCALES = (1.0, 1.0, 1.0, 1e8, 1e-8)
DTYPES = (torch.float64, torch.float32)


def boxes(random: np.random.Generator, count: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of any scale, some of width zero; all ends are floats of both dtypes."""
    scale = random.choice(SCALES, (count, 1))
    low = (random.normal(size=(count, inputs)) * scale).astype(np.float32)
    width = random.random((count, inputs)) * random.choice(SCALES, (count, 1)) * (random.random((count, inputs)) > 0.2)
    high = np.maximum((low + width.astype(np.float32)).astype(np.float32), low)
    return low.astype(np.float64), high.astype(np.float64)


def planes(random: np.random.Generator, count: int, inputs: int) -> np.ndarray:
    """Coefficients of any scale, some zero."""
    A = random.normal(size=(count, inputs)) * random.choice(SCALES, (count, 1)) * random.choice(SCALES, (count, inputs))
    return (A * (random.random((count, inputs)) > 0.2)).astype(np.float32).astype(np.float64)


def inside(random: np.random.Generator, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A float32 point of each box, often at a corner of it."""
    t = random.choice([0.0, 1.0, 0.5, random.random()], low.shape)
    return np.clip((low + t * (high - low)).astype(np.float32).astype(np.float64), low, high)


def rows_through(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    """b with A x + b <= 0 met almost exactly, as float32 rounded down: the hardest case for a point that must stay."""
    exact = -(A.astype(np.longdouble) * x).sum(-1)
    b = exact.astype(np.float32)
    return np.where(b > exact, np.nextafter(b, np.float32(-np.inf)), b).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_clipping_keeps_every_point_of_the_half_spaces(dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    count, inputs, rows = 64, int(random.integers(1, 6)), int(random.integers(1, 4))
    low, high = boxes(random, count, inputs)
    x = inside(random, low, high)
    A = np.stack([planes(random, count, inputs) for _ in range(rows)], 1)
    b = rows_through(A, x[:, None])
    new_low, new_high = clip(*(torch.from_numpy(t).to(dtype) for t in (low, high, A, b)))
    x = torch.from_numpy(x).to(dtype)
    assert bool((new_low <= x).all())
    assert bool((x <= new_high).all())
    assert bool((new_low >= torch.from_numpy(low).to(dtype)).all())
    assert bool((new_high <= torch.from_numpy(high).to(dtype)).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_clipping_is_the_hull_of_one_half_space(seed: int) -> None:
    """Against linear programmes; where nothing is left the ends cross."""
    random = np.random.default_rng(seed)
    inputs = int(random.integers(1, 5))
    low, high = random.normal(size=(1, inputs)), None
    high = low + random.random((1, inputs))
    A, b = random.normal(size=(1, 1, inputs)), random.normal(size=(1, 1))
    new_low, new_high = clip(*(torch.from_numpy(t) for t in (low, high, A, b)))
    for j in range(inputs):
        ends = [linprog(sign * np.eye(inputs)[j], A[0], -b[0], bounds=[*zip(low[0], high[0], strict=True)])
                for sign in (1, -1)]
        if ends[0].status == 2:
            assert bool((new_low > new_high).any())
            return
        assert float(new_low[0, j]) == pytest.approx(ends[0].fun, abs=1e-6)
        assert float(new_high[0, j]) == pytest.approx(-ends[1].fun, abs=1e-6)


# ---------------------------------------------------------------------- neurons behind half-spaces


def minimum_of(a: Tensor, c: Tensor, g: Tensor, h: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return cut_minimum(a, c, g, h, (low + high) / 2, (high - low) / 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cut_minimum_against_linear_programmes(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, inputs = 12, int(random.integers(1, 6))
    low = random.normal(size=(count, inputs))
    high = low + random.random((count, inputs)) * (random.random((count, inputs)) > 0.2)
    a, g = (random.normal(size=(count, inputs)) * (random.random((count, inputs)) > 0.2) for _ in range(2))
    c, h = random.normal(size=count), random.normal(size=count) / 2
    found = minimum_of(*(torch.from_numpy(t) for t in (a, c, g, h, low, high)))
    exact = 0
    feasible = 0
    for k in range(count):
        answer = linprog(a[k], g[k:k + 1], -h[k:k + 1], bounds=[*zip(low[k], high[k], strict=True)])
        if answer.status == 2:
            continue
        feasible += 1
        assert float(found[k]) <= answer.fun + c[k] + 1e-7
        exact += float(found[k]) >= answer.fun + c[k] - 1e-7
    assert exact >= 0.7 * feasible


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cut_minimum_is_valid_at_points_on_the_half_space(dtype: torch.dtype, seed: int) -> None:
    """A half-space that hardly leans magnifies the rounding of its own terms: the bound must not."""
    random = np.random.default_rng(seed)
    count, inputs = 64, int(random.integers(1, 6))
    low = random.normal(size=(count, inputs)).astype(np.float32).astype(np.float64)
    high = low + random.random((count, inputs)).astype(np.float32)
    high = high.astype(np.float32).astype(np.float64)
    x = inside(random, low, high)
    a = random.normal(size=(count, inputs)).astype(np.float32).astype(np.float64)
    g = planes(random, count, inputs) * random.choice([1.0, 1e-3, 1e-6], (count, inputs))
    g = g.astype(np.float32).astype(np.float64)
    h = rows_through(g, x)
    found = minimum_of(*(torch.from_numpy(t).to(dtype) for t in (a, np.zeros(count), g, h, low, high)))
    true = (a * x).sum(1)
    size = np.abs(a * np.maximum(np.abs(low), np.abs(high))).sum(1)
    rounding = 64 * torch.finfo(dtype).eps
    assert bool((found.double().numpy() <= true + rounding * (1 + size)).all()), \
        (found.double().numpy() - true).max()


def test_affine_neurons_have_the_weights_of_the_network() -> None:
    """Beside a large bias too, which swallows the weight where both are added."""
    for dtype in DTYPES:
        build = GraphBuilder((2,), dtype)
        weight = torch.tensor([[1e-3, 2.0], [3.0, -1e-4]], dtype=dtype)
        build.add(Linear(weight, torch.tensor([1e6, -1e6], dtype=dtype)))
        build.add(Relu())
        build.add(Linear(torch.eye(2, dtype=dtype)))
        graph = build.graph()
        box = InputSet(torch.full((1, 2), -1.0, dtype=dtype), torch.full((1, 2), 1.0, dtype=dtype))
        affine = AffineNeurons.of(graph, Layout.of(graph), box)
        assert affine is not None
        torch.testing.assert_close(affine.weight, weight, rtol=1e-6, atol=0)
        torch.testing.assert_close(affine.bias, torch.tensor([1e6, -1e6], dtype=dtype))
