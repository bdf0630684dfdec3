"""Bounds from multipliers against the same sum in rationals, and against the optimum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from milp.problem import LinearPrograms
from milp.safe_bound import clipped, safe_bound, safe_bounds

Floats = NDArray[np.float64]


def draw(random: np.random.Generator, scale: float) -> tuple[Floats, ...]:
    """(cost, lower, upper, matrix, row_lower, row_upper): some ends infinite, sizes far apart."""
    V, N = int(random.integers(1, 6)), int(random.integers(0, 6))
    def sized(*shape: int) -> Floats:
        return random.standard_normal(shape) * scale ** random.integers(-1, 2, shape)
    lower = sized(V)
    A = sized(N, V) * (random.random((N, V)) < 0.7)
    middle, room = A @ (lower + 0.5), np.abs(sized(N))
    row_lower, row_upper = middle - room, middle + room
    row_lower[random.random(N) < 0.3] = -np.inf
    row_upper[random.random(N) < 0.3] = np.inf
    return sized(V), lower, lower + np.abs(sized(V)) + 1, A, row_lower, row_upper


def exact(cost: Floats, lower: Floats, upper: Floats, A: Floats, row_lower: Floats, row_upper: Floats, y: Floats
          ) -> Fraction:
    total = Fraction(0)
    for k, m in enumerate(y):
        total += Fraction(m) * Fraction(row_lower[k] if m > 0 else row_upper[k] if m < 0 else 0.0)
    for j, c in enumerate(cost):
        reduced = Fraction(c) - sum((Fraction(A[k, j]) * Fraction(m) for k, m in enumerate(y)), Fraction(0))
        total += min(reduced * Fraction(lower[j]), reduced * Fraction(upper[j]))
    return total


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 1e3, 1e8, 1e15]))
def test_rounding_never_raises_a_bound(seed: int, scale: float) -> None:
    """And costs next to nothing of the size of the terms."""
    random = np.random.default_rng(seed)
    cost, lower, upper, A, row_lower, row_upper = draw(random, scale)
    y = clipped(random.standard_normal(len(A)) * scale ** random.integers(-1, 2, len(A)), row_lower, row_upper)
    if random.random() < 0.7:
        cost = A.T @ y  # reduced costs are then nothing but rounding
    found = safe_bound(cost, lower, upper, sparse.csr_matrix(A), row_lower, row_upper, y)
    true = exact(cost, lower, upper, A, row_lower, row_upper, y)
    assert Fraction(found) <= true
    reach = np.maximum(np.abs(lower), np.abs(upper))
    side = np.where(y > 0, row_lower, np.where(y < 0, row_upper, 0.0))
    size = float((np.abs(cost) + np.abs(A).T @ np.abs(y)) @ reach + np.abs(y * side).sum())
    assert float(true - Fraction(found)) <= 1e-13 * size + 1e-300


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_say_what_each_programme_says(seed: int) -> None:
    """Columns in [-1, 1]; and no bound passes the optimum, with the solver's multipliers or with any."""
    random = np.random.default_rng(seed)
    V, counts = 3, [int(n) for n in random.integers(0, 4, 3)]
    A = random.standard_normal((sum(counts), V)) * (random.random((sum(counts), V)) < 0.8)
    row, column = A.nonzero()
    middle = (A @ random.uniform(-0.5, 0.5, V)) if len(A) else np.zeros(0)
    room = np.abs(random.standard_normal(len(A)))
    ends = np.stack([middle - room, middle + room]) if len(A) else np.zeros((2, 0))
    ends[0][random.random(len(A)) < 0.3] = -np.inf
    problem = LinearPrograms(
        random.standard_normal((3, V)), ends[0], ends[1], np.cumsum([0, *counts]).astype(np.int32),
        np.concatenate([[0], np.cumsum((A != 0).sum(1))]).astype(np.int32), column.astype(np.int32), A[row, column])
    y = random.standard_normal(len(A))
    found = safe_bounds(problem, y)
    for b in range(3):
        mine = slice(int(problem.first_row[b]), int(problem.first_row[b + 1]))
        alone = safe_bound(problem.cost[b], -np.ones(V), np.ones(V), sparse.csr_matrix(A[mine]), ends[0][mine],
                           ends[1][mine], y[mine])
        assert found[b] == pytest.approx(alone, abs=1e-12)
        optimum = linprog(problem.cost[b], np.concatenate([A[mine], -A[mine]]),
                          np.minimum(np.concatenate([ends[1][mine], -ends[0][mine]]), 1e9), bounds=[(-1, 1)] * V)
        assert optimum.status != 0 or found[b] <= optimum.fun + 1e-9


def test_numbers_that_overflow_or_are_none_prove_nothing() -> None:
    A = sparse.csr_matrix(np.array([[1e308]]))
    one, none = np.ones(1), np.array([np.nan])
    assert safe_bound(one, -one, one, A, -one, one, np.array([1e10])) == -np.inf
    assert safe_bound(one, -one, one, A, -one, one, none) <= -1.0
    assert safe_bound(one, -one, one, A, -one, one, none) >= -1.0 - 1e-12
