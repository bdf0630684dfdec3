"""Norms of enclosures and of matrices, against closed forms, singular values and samples."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from bounds.jacobian.enclosure import Jacobian, dual, sup_norm, vector_norm_up
from bounds.jacobian.operator_norm import operator_norm_up

NORMS = (1.0, 2.0, math.inf)


def test_vector_norms_are_never_below_the_exact_ones() -> None:
    x = torch.randn(300, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * 10.0 ** torch.arange(-3, 4).double()
    one, two, largest = (vector_norm_up(x, q) for q in NORMS)
    for row, a, b, c in zip(x.tolist(), one.tolist(), two.tolist(), largest.tolist(), strict=True):
        numbers = [abs(Fraction(v)) for v in row]
        assert Fraction(a) >= sum(numbers) >= Fraction(a) * (1 - Fraction(1, 10**12))
        assert Fraction(b) ** 2 >= sum(v * v for v in numbers) >= Fraction(b) ** 2 * (1 - Fraction(1, 10**12))
        assert Fraction(c) == max(numbers)
    assert vector_norm_up(torch.zeros(2, 3), 2).tolist() == [0.0, 0.0]
    assert float(vector_norm_up(torch.full((1, 4), 1e-200, dtype=torch.float64), 2)) >= 2e-200


def test_the_norm_of_an_enclosure_holds_for_all_its_members() -> None:
    generator = torch.Generator().manual_seed(1)
    ends = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64).sort(0).values
    found = Jacobian(ends[0], ends[1], True)
    moves = torch.tensor([[True, False, True]])
    for q in NORMS:
        corners = torch.stack([torch.where(torch.tensor(c), ends[1], ends[0])
                               for c in itertools.product((False, True), repeat=3)])
        for mask in (None, moves):
            members = corners if mask is None else corners * mask
            torch.testing.assert_close(sup_norm(found, q, mask), torch.linalg.vector_norm(members, q, -1).amax(0))
    with pytest.raises(ValueError, match="q must be"):
        sup_norm(found, 3.0)


@pytest.mark.parametrize(("p", "q"), list(itertools.product(NORMS, NORMS)))
def test_operator_norms_hold_on_vectors_and_are_reached(p: float, q: float) -> None:
    generator = torch.Generator().manual_seed(2)
    M = torch.rand(6, 4, 3, generator=generator, dtype=torch.float64) ** 3
    M[1, :, 0], M[2], M[3, :2, 1:], M[3, 2:, 0] = 0, 0, 0, 0  # an empty column, nothing, two blocks
    found = operator_norm_up(M, p, q)
    x = torch.rand(3000, 3, generator=generator, dtype=torch.float64)
    x = torch.cat([x, torch.eye(3).double(), torch.ones(1, 3).double()])
    ratio = torch.linalg.vector_norm(torch.einsum("bmf,kf->bkm", M, x), q, -1) / torch.linalg.vector_norm(x, p, -1)
    assert bool((found >= ratio.amax(1) * (1 - 1e-14)).all())
    assert bool((found <= ratio.amax(1) * 1.02 + 1e-12).all())
    if p == q == 2:
        truth = torch.linalg.matrix_norm(M, 2)
        assert bool((found >= truth * (1 - 1e-15)).all()) and bool((found <= truth * (1 + 1e-6)).all())


def test_norms_and_matrices_are_checked() -> None:
    with pytest.raises(ValueError, match="norm must be 1, 2 or inf"):
        dual(3.0)
    with pytest.raises(ValueError, match="norm must be"):
        operator_norm_up(torch.ones(1, 2, 2), 2, 0)
    with pytest.raises(ValueError, match="without negative"):
        operator_norm_up(-torch.ones(1, 2, 2), 2, 2)
    assert [dual(p) for p in NORMS] == [math.inf, 2.0, 1.0]
