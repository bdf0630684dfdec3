"""Least moves onto a hyperplane inside a box: against linear programmes and bisection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from verifier.attacks import hyperplane
from verifier.attacks.hyperplane import least_move

NORMS = (math.inf, 2.0, 1.0)


def problem(rows: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Some slopes are zero, some features have no room, some ends are infinite; the hyperplane meets every box."""
    g = torch.Generator().manual_seed(seed)
    slope = torch.randn(rows, features, generator=g, dtype=torch.float64)
    slope[torch.rand(rows, features, generator=g) < 0.1] = 0
    low, high = (torch.rand(rows, features, generator=g, dtype=torch.float64) for _ in range(2))
    low[torch.rand(rows, features, generator=g) < 0.1] = 0
    high[torch.rand(rows, features, generator=g) < 0.1] = 0
    low, high = -low, high
    most = torch.where(slope > 0, high, low)
    share = torch.rand(rows, generator=g, dtype=torch.float64)
    sign = torch.where(torch.rand(rows, generator=g) < 0.3, -1.0, 1.0).double()
    need = share * torch.where(sign > 0, (slope * most).sum(1), -(slope * torch.where(slope > 0, low, high)).sum(1))
    need = need * sign
    high[torch.rand(rows, features, generator=g) < 0.05] = math.inf
    return slope, need, low, high


def least_length(slope: NDArray[np.float64], need: float, low: NDArray[np.float64], high: NDArray[np.float64],
                 norm: float) -> float:
    """The optimal value of one row: an LP (inf, 1), or bisection on the multiplier (2)."""
    n = len(slope)
    ends = list(zip(low, high, strict=True))
    if norm == 2.0:
        sign = 1.0 if need >= 0 else -1.0

        def move(t: float) -> NDArray[np.float64]:
            return np.clip(sign * t * slope, low, high)

        small, large = 0.0, 1.0
        while sign * (slope @ move(large)) < abs(need) and large < 1e12:
            large *= 2
        for _ in range(200):
            middle = (small + large) / 2
            small, large = (middle, large) if sign * (slope @ move(middle)) < abs(need) else (small, middle)
        return float(np.linalg.norm(move(large)))
    if norm == 1.0:  # z = p - q
        found = linprog(np.ones(2 * n), A_eq=np.concatenate([slope, -slope])[None], b_eq=[need],
                        bounds=[(0, h) for _, h in ends] + [(0, -lo) for lo, _ in ends])
    else:
        one = -np.ones((n, 1))
        found = linprog(np.concatenate([np.zeros(n), [1]]), A_eq=np.concatenate([slope, [0]])[None], b_eq=[need],
                        A_ub=np.block([[np.eye(n), one], [-np.eye(n), one]]), b_ub=np.zeros(2 * n),
                        bounds=[*ends, (0, None)])
    assert found.status == 0, found.message
    return float(found.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_moves_are_feasible_and_least(norm: float) -> None:
    slope, need, low, high = problem(40, 9)
    move = least_move(slope, need, low, high, norm)
    assert bool((low <= move).all())
    assert bool((move <= high).all())
    torch.testing.assert_close((slope * move).sum(1), need, rtol=1e-10, atol=1e-12)
    length = torch.linalg.vector_norm(move, ord=norm, dim=1)
    for k in range(len(need)):
        expected = least_length(slope[k].numpy(), float(need[k]), low[k].numpy(), high[k].numpy(), norm)
        assert float(length[k]) == pytest.approx(expected, rel=1e-6, abs=1e-9), k


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hyperplanes_are_met_up_to_rounding(norm: float, dtype: torch.dtype) -> None:
    """Thousands of features, with rooms and slopes over many orders of magnitude."""
    g = torch.Generator().manual_seed(1)
    slope = torch.randn(20, 3072, generator=g, dtype=torch.float64) * 10 ** (2 * torch.randn(20, 3072, generator=g))
    high = 10 ** (2 * torch.randn(20, 3072, generator=g, dtype=torch.float64))
    most = (slope.abs() * high).sum(1)
    need = most * torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    slope, high, need = slope.to(dtype), high.to(dtype), need.to(dtype)
    move = least_move(slope, need, -high, high, norm)
    reached = (slope.double() * move.double()).sum(1)
    assert float((reached / need.double() - 1).abs().max()) < 1e4 * torch.finfo(dtype).eps
    assert bool((move.abs() <= high).all())


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_is_the_corner_and_no_slope_is_no_move(norm: float) -> None:
    slope = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0], [1.0, -2.0, 0.0], [1.0, 1.0, 1.0]])
    low, high = torch.full((4, 3), -0.5), torch.full((4, 3), 0.25)
    move = least_move(slope, torch.tensor([100.0, 1.0, -100.0, 0.0]), low, high, norm)
    expected = torch.tensor([[0.25, -0.5, 0.0], [0.0, 0.0, 0.0], [-0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(move, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_the_move_is_need_over_the_dual_norm(norm: float) -> None:
    slope, need = torch.tensor([[3.0, -4.0]]), torch.tensor([2.0])
    far = torch.full((1, 2), math.inf)
    length = torch.linalg.vector_norm(least_move(slope, need, -far, far, norm), ord=norm, dim=1)
    dual = {math.inf: 7.0, 2.0: 5.0, 1.0: 4.0}[norm]
    torch.testing.assert_close(length, need / dual)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slope, need, low, high = problem(10, 7, seed=2)
    whole = least_move(slope, need, low, high, 2.0)
    monkeypatch.setattr(hyperplane, "CHUNK_ENTRIES", 21)
    assert torch.equal(least_move(slope, need, low, high, 2.0), whole)


def test_l0_uses_the_features_that_gain_most() -> None:
    """Against all subsets: the fewest features whose rooms suffice."""
    slope, need, low, high = problem(30, 7, seed=3)
    move = least_move(slope, need, low, high, 0.0)
    torch.testing.assert_close((slope * move).sum(1), need, rtol=1e-10, atol=1e-12)
    for k in range(len(need)):
        useful = slope[k] if need[k] >= 0 else -slope[k]
        most = torch.where(useful > 0, useful * high[k], useful * low[k]).nan_to_num(nan=0.0)
        enough = [bin(s).count("1") for s in range(1 << 7)
                  if sum(float(most[j]) for j in range(7) if s >> j & 1) >= abs(float(need[k])) - 1e-12]
        assert int((move[k] != 0).sum()) == min(enough)
