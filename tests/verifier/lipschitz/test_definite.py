"""Definite matrices: nothing that is not definite passes, nearly everything that is does."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.lipschitz.definite import eigenvalue_above, is_positive_definite, norm_above


def determinant(rows: list[list[Fraction]]) -> Fraction:
    """By elimination over the rationals."""
    rows, value = [list(r) for r in rows], Fraction(1)
    for k in range(len(rows)):
        pivot = next((r for r in range(k, len(rows)) if rows[r][k]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != k:
            rows[k], rows[pivot], value = rows[pivot], rows[k], -value
        value *= rows[k][k]
        for r in range(k + 1, len(rows)):
            share = rows[r][k] / rows[k][k]
            rows[r] = [a - share * b for a, b in zip(rows[r], rows[k], strict=True)]
    return value


def is_definite_exactly(S: np.ndarray) -> bool:
    """Sylvester's criterion over the rationals, of the lower half."""
    exact = [[Fraction(float(S[max(i, j), min(i, j)])) for j in range(len(S))] for i in range(len(S))]
    return all(determinant([row[:k] for row in exact[:k]]) > 0 for k in range(1, len(S) + 1))


@given(st.integers(1, 5), st.integers(0, 10**6), st.integers(-60, 10))
def test_what_is_called_definite_is_definite_over_the_rationals(n: int, seed: int, exponent: int) -> None:
    random = np.random.default_rng(seed)
    W = random.normal(size=(n, max(1, n - 1)))
    S = W @ W.T + 2.0 ** exponent * random.normal() * np.eye(n)
    if is_positive_definite(S):
        assert is_definite_exactly(S)


@pytest.mark.parametrize("n", [1, 2, 10, 60])
def test_definite_matrices_pass_and_singular_and_indefinite_ones_do_not(n: int) -> None:
    W = np.random.default_rng(n).integers(-5, 6, size=(n, n)).astype(float)
    S = W @ W.T
    assert is_positive_definite(S + 1e-6 * np.eye(n))
    assert not is_positive_definite(np.zeros((n, n)))
    assert not is_positive_definite(S - (np.linalg.eigvalsh(S)[0] + 1e-9) * np.eye(n))
    singular = np.block([[S, S], [S, S]])
    assert not is_positive_definite(singular)


def test_definiteness_does_not_depend_on_units() -> None:
    W = np.random.default_rng(0).normal(size=(6, 6))
    S = W @ W.T + 0.01 * np.eye(6)
    units = 10.0 ** np.arange(-60, 60, 20)
    assert is_positive_definite(S * units[:, None] * units)


def test_an_error_that_could_make_it_indefinite_is_seen() -> None:
    S = np.eye(3)
    assert is_positive_definite(S, 0.3)
    assert not is_positive_definite(S, 0.34)  # 1 - 3 * 0.34 < 0
    assert not is_positive_definite(np.full((2, 2), np.nan))
    assert not is_positive_definite(np.eye(2), np.inf)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_eigenvalue_bounds_hold_over_the_rationals_and_are_tight(n: int, seed: int) -> None:
    W = np.random.default_rng(seed).normal(size=(n, n))
    S = (W + W.T) / 2
    bound = eigenvalue_above(S)
    rest = [[Fraction(bound) * (i == j) - Fraction(float(S[i, j])) for j in range(n)] for i in range(n)]
    assert all(determinant([row[:k] for row in rest[:k]]) >= 0 for k in range(1, n + 1))
    assert bound <= np.linalg.eigvalsh(S)[-1] + 1e-11


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (8, 3), (40, 40)])
def test_norms_are_those_of_numpy_from_above(shape: tuple[int, int]) -> None:
    W = np.random.default_rng(1).normal(size=shape)
    true = np.linalg.norm(W, 2)
    assert true <= norm_above(W) <= true * (1 + 1e-10)
    for unit in (1e-200, 1e200):
        assert norm_above(unit * W) == pytest.approx(unit * true, rel=1e-9)


def test_the_norm_covers_every_matrix_within_the_radius() -> None:
    random = np.random.default_rng(2)
    W, R = random.normal(size=(4, 3)), np.abs(random.normal(size=(4, 3)))
    found = max(np.linalg.norm(W + R * random.choice([-1, 1], size=W.shape), 2) for _ in range(2000))
    assert found <= norm_above(W, R)


def test_zero_and_infinite_matrices_have_norms() -> None:
    assert 0 <= norm_above(np.zeros((3, 2))) < 1e-100
    assert norm_above(np.full((2, 2), np.inf)) == np.inf
    assert norm_above(np.zeros((0, 3))) == 0.0
