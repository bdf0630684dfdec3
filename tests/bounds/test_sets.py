"""Input sets: exact linear optimisation against slow oracles, projections, sampling, rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from bounds.sets import Box, InputSet, LpBall

NORMS = [1.0, 2.0, math.inf]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_ball(p: float, *, batch: int = 3, shape: tuple[int, ...] = (2, 4), seed: int = 0, dtype=torch.float64,
                off_centre: bool = False, scaled: bool = False) -> InputSet:
    """Balls cut by boxes, one feature degenerate; off_centre puts the centre outside the box (as input splits do)."""
    g = generator(seed)
    centre = torch.rand(batch, *shape, generator=g, dtype=dtype)
    mask = torch.ones(shape, dtype=torch.bool)
    mask.view(-1)[1] = False
    scale = 0.5 + torch.rand(shape, generator=g, dtype=dtype) if scaled else None
    ball = LpBall(centre, 0.4, p, clip=(0.0, 1.0), mask=mask, scale=scale)
    if not off_centre or p == math.inf:
        return ball
    lower = ball.lower.clone()
    lower.view(batch, -1)[:, 0] = centre.view(batch, -1)[:, 0] + 0.1
    lower.view(batch, -1)[:, 2] = centre.view(batch, -1)[:, 2] + 0.05
    upper = torch.maximum(ball.upper, lower + 0.05)
    return InputSet(lower, upper, ball.centre, ball.radius, ball.p, ball.scale)


def oracle(a: np.ndarray, sets: InputSet, k: int) -> float:
    """min <a, x> over the k-th set: a linear programme for boxes and p = 1, SLSQP for p = 2."""
    low, high = sets.lower[k].flatten().numpy(), sets.upper[k].flatten().numpy()
    if sets.centre is None:
        return float(np.minimum(a * low, a * high).sum())
    centre, radius, n = sets.centre[k].flatten().numpy(), float(sets.radius[k]), a.size
    scale = np.ones(n) if sets.scale is None else sets.scale[k].flatten().numpy()
    if sets.p == 1.0:  # x = centre + scale * (u - v), sum(u + v) <= radius
        eye = np.diag(scale)
        rows = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, eye]), np.ones((1, 2 * n))])
        limits = np.concatenate([high - centre, centre - low, [radius]])
        result = linprog(np.concatenate([a * scale, -a * scale]), A_ub=rows, b_ub=limits, bounds=[(0, None)] * (2 * n))
        assert result.status == 0, "the oracle's programme is feasible"
        return float(a @ centre + result.fun)
    ball = {"type": "ineq", "fun": lambda x: radius**2 - (((x - centre) / scale) ** 2).sum(),
            "jac": lambda x: -2 * (x - centre) / scale**2}
    best = minimize(lambda x: a @ x, np.clip(centre, low, high), jac=lambda _: a, constraints=[ball],
                    bounds=list(zip(low, high, strict=True)), method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
    return float(best.fun)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("off_centre", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_minimum_equals_the_oracle(p: float, off_centre: bool, scaled: bool) -> None:
    for seed in range(5):
        sets = random_ball(p, seed=seed, off_centre=off_centre, scaled=scaled)
        A = torch.randn(3, 2, 4, generator=generator(seed + 50), dtype=torch.float64)
        A.view(3, -1)[0, 3] = 0.0
        got = sets.minimise(A)
        for k in range(3):
            assert float(got[k]) == pytest.approx(oracle(A[k].flatten().numpy(), sets, k), abs=2e-7)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("off_centre", [False, True])
def test_minimiser_lies_inside_and_attains_the_minimum(p: float, off_centre: bool) -> None:
    sets = random_ball(p, off_centre=off_centre, scaled=True)
    A = torch.randn(3, 2, 4, generator=generator(1), dtype=torch.float64)
    x = sets.minimiser(A)
    assert bool(sets.contains(x).all())
    assert torch.allclose((A * x).flatten(1).sum(1), sets.minimise(A), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
def test_no_sampled_point_beats_the_minimum(p: float, dtype: torch.dtype) -> None:
    sets = random_ball(p, dtype=dtype, batch=2, shape=(30,))
    x = sets.sample(400, generator())
    assert x.shape == (2, 400, 30)
    assert bool(sets.contains(x.reshape(-1, 30), torch.arange(2).repeat_interleave(400)).all())
    A = torch.randn(2, 30, generator=generator(2), dtype=dtype)
    values = torch.einsum("bnf,bf->bn", x, A)
    assert bool((values.amin(1) >= sets.minimise(A) - 1e-5).all())
    moved = (x - sets.centre_point.unsqueeze(1)).abs().amax((0, 1))
    assert float(moved[1]) == 0.0, "the masked feature never moves"
    assert bool((moved[2:] > 0).all())


def test_dual_value_is_a_lower_bound_at_every_step() -> None:
    """p = 2 is sound irrespective of convergence: cut the iterations and compare with the converged value."""
    import bounds.sets as module

    sets = random_ball(2.0, batch=1, shape=(200,), off_centre=True)
    A = torch.randn(50, 200, generator=generator(3), dtype=torch.float64)
    exact = sets.minimise(A)
    steps = module.NEWTON_STEPS
    try:
        for k in (0, 1, 2):
            module.NEWTON_STEPS = k
            assert bool((sets.minimise(A) <= exact + 1e-12).all())
    finally:
        module.NEWTON_STEPS = steps
    assert float((exact - (A * sets.minimiser(A)).sum(1)).abs().max()) < 1e-9


@pytest.mark.parametrize("p", NORMS)
def test_gradient_equals_finite_differences(p: float) -> None:
    sets = random_ball(p, off_centre=True)
    A = torch.randn(3, 2, 4, generator=generator(4), dtype=torch.float64).requires_grad_()
    sets.minimise(A).sum().backward()
    step = 1e-6
    for k in range(3):
        for f in range(8):
            bump = torch.zeros(3, 2, 4, dtype=torch.float64)
            bump[k].view(-1)[f] = step
            with torch.no_grad():
                slope = (sets.minimise(A + bump).sum() - sets.minimise(A - bump).sum()) / (2 * step)
            assert float(A.grad[k].view(-1)[f]) == pytest.approx(float(slope), abs=1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("batch", [1, 3, 6])
@pytest.mark.parametrize("order", ["regular", "mixed"])
def test_batched_rows_equal_single_rows(p: float, batch: int, order: str) -> None:
    sets = random_ball(p, batch=batch, off_centre=True)
    owner = torch.arange(batch).repeat_interleave(4)
    if order == "mixed":
        owner = owner[torch.randperm(4 * batch, generator=generator(5))]
    A = torch.randn(4 * batch, 2, 4, generator=generator(6), dtype=torch.float64)
    together, points = sets.minimise(A, owner), sets.minimiser(A, owner)
    for i, k in enumerate(owner.tolist()):
        alone = sets.index(torch.tensor([k]))
        assert torch.allclose(alone.minimise(A[i : i + 1]), together[i], atol=1e-12)
        assert torch.allclose(alone.minimiser(A[i : i + 1]), points[i], atol=1e-12)


def test_many_rows_are_chunked_without_a_change() -> None:
    sets = Box(-torch.rand(7, 3000, generator=generator(7)), torch.rand(7, 3000, generator=generator(8)))
    A = torch.randn(210, 3000, generator=generator(9))
    owner = torch.arange(7).repeat(30)
    expected = torch.minimum(A * sets.lower[owner], A * sets.upper[owner]).double().sum(1)
    assert torch.allclose(sets.minimise(A, owner).double(), expected, rtol=1e-5)
    assert torch.allclose(sets.index(torch.tensor([2])).minimise(A).double(),
                          torch.minimum(A * sets.lower[2], A * sets.upper[2]).double().sum(1), rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("off_centre", [False, True])
def test_projection_is_inside_and_nearest(p: float, off_centre: bool) -> None:
    sets = random_ball(p, batch=4, shape=(6,), off_centre=off_centre)
    x = torch.randn(4, 6, generator=generator(10), dtype=torch.float64)
    y = sets.project(x)
    assert bool(sets.contains(y).all())
    for k in range(4):  # obtuse angle: <x - y, z - y> <= 0 for all z inside, here for 200 samples
        z = sets.index(torch.tensor([k])).sample(200, generator(11))[0]
        assert float(((x[k] - y[k]) * (z - y[k])).sum(1).max()) <= 1e-6
    assert torch.equal(sets.project(y), y)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0]), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=40, deadline=None)
def test_projected_points_are_inside_exactly(seed: int, p: float, dtype: torch.dtype) -> None:
    g = generator(seed)
    sets = LpBall(torch.rand(2, 40, generator=g, dtype=torch.float32), 0.1, p, clip=(0.0, 1.0))
    x = sets.project(torch.rand(2, 40, generator=g, dtype=dtype) * 2 - 0.5)
    assert x.dtype == dtype
    assert bool(sets.contains(x).all())


@pytest.mark.parametrize("p", NORMS)
def test_degenerate_sets(p: float) -> None:
    centre = torch.tensor([[0.25, 0.5]])
    point = LpBall(centre, 0.0, p)
    assert torch.equal(point.lower, centre)
    assert torch.equal(point.upper, centre)
    A = torch.tensor([[2.0, -4.0]])
    assert float(point.minimise(A)) == pytest.approx(-1.5)
    assert torch.equal(point.minimiser(A), centre)
    assert torch.equal(point.project(torch.ones(1, 2)), centre)
    assert float(point.minimise(torch.zeros(1, 2))) == 0.0


def test_l2_ball_without_a_box_has_the_closed_form() -> None:
    centre = torch.randn(2, 50, generator=generator(12), dtype=torch.float64)
    sets = LpBall(centre, 0.3, 2.0)
    A = torch.randn(2, 50, generator=generator(13), dtype=torch.float64)
    assert torch.allclose(sets.minimise(A), (A * centre).sum(1) - 0.3 * A.norm(dim=1), atol=1e-12)
    one = LpBall(centre, 0.3, 1.0)
    assert torch.allclose(one.minimise(A), (A * centre).sum(1) - 0.3 * A.abs().amax(1), atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
def test_very_small_and_very_large_rows_scale_the_minimum(p: float) -> None:
    sets = random_ball(p, batch=1, shape=(30,), dtype=torch.float32, off_centre=True)
    A = torch.randn(1, 30, generator=generator(16))
    value = float(sets.minimise(A))
    for factor in (1e-30, 1e-12, 1e12, 1e30):
        assert float(sets.minimise(A * factor).double() / factor) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("p", NORMS)
def test_rows_that_are_not_a_number_give_no_number(p: float) -> None:
    sets = random_ball(p, batch=1, shape=(8,))
    A = torch.ones(2, 8, dtype=torch.float64)
    A[0, 3] = math.nan
    assert sets.minimise(A).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", NORMS)
def test_to_a_narrower_dtype_loses_no_point(p: float, dtype: torch.dtype) -> None:
    sets = random_ball(p, batch=2, shape=(20,))
    narrow = sets.to(dtype=dtype)
    assert narrow.dtype == dtype
    assert bool((narrow.lower.double() <= sets.lower).all())
    assert bool((narrow.upper.double() >= sets.upper).all())
    again = narrow.to(dtype=torch.float64)
    assert torch.equal(again.lower, narrow.lower.double()), "more precision is exact"
    owner = torch.arange(2).repeat_interleave(300)
    directions = torch.randn(600, 20, generator=generator(14), dtype=torch.float64)
    assert bool(again.contains(sets.minimiser(directions, owner), owner).all())


def test_linf_ball_is_the_smallest_float_box_around_the_exact_one() -> None:
    from fractions import Fraction

    centre = torch.rand(1, 200, generator=generator(15))
    sets = LpBall(centre, 0.1)
    for c, low, high in zip(centre[0].tolist(), sets.lower[0].tolist(), sets.upper[0].tolist(), strict=True):
        exact_low, exact_high = Fraction(c) - Fraction(0.1), Fraction(c) + Fraction(0.1)
        assert Fraction(low) <= exact_low < Fraction(float(np.nextafter(np.float32(low), np.float32(9))))
        assert Fraction(float(np.nextafter(np.float32(high), np.float32(-9)))) < exact_high <= Fraction(high)


def test_clip_and_mask() -> None:
    centre = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.5, 0.9]])
    mask = torch.tensor([True, False, True])
    sets = LpBall(centre, torch.tensor([0.25, 0.5]), clip=(0.0, 1.0), mask=mask)
    assert torch.equal(sets.lower, torch.tensor([[0.0, 0.5, 0.75], [0.0, 0.5, 0.4]])) or torch.allclose(
        sets.lower, torch.tensor([[0.0, 0.5, 0.75], [0.0, 0.5, 0.4]]), atol=1e-7)
    assert torch.equal(sets.lower[:, 1], sets.upper[:, 1])
    assert float(sets.upper.max()) == 1.0




ONE = torch.ones(1, 2)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Box(ONE, -ONE), "lower must not exceed upper"),
    (lambda: Box(ONE * math.nan, ONE), "NaN"),
    (lambda: Box(ONE, torch.ones(1, 3)), "one shape"),
    (lambda: Box(-ONE * math.inf, ONE), "bounded"),
    (lambda: Box(ONE.long(), ONE.long()), "floating-point"),
    (lambda: LpBall(ONE, -0.1), "radius must be finite and >= 0"),
    (lambda: LpBall(ONE, 0.1, 3.0), "p must be 1, 2 or inf"),
    (lambda: LpBall(ONE, 0.1, clip=(0.0, 0.5)), "does not meet the clip range"),
    (lambda: LpBall(ONE, 0.1, clip=(1.0, 0.5)), "low <= high"),
    (lambda: LpBall(ONE, 0.1, 2.0, scale=torch.zeros(2)), "scale must be > 0"),
    (lambda: InputSet(ONE, ONE, ONE * 5, torch.ones(1), 2.0), "empty"),
    (lambda: InputSet(ONE, ONE, ONE, None, 2.0), "one radius a set"),
    (lambda: InputSet(ONE, ONE, None, None, 2.0), "needs a centre"),
    (lambda: Box(ONE, ONE).minimise(torch.ones(1, 3)), "rows must have shape"),
    (lambda: Box(torch.zeros(2, 2), torch.ones(2, 2)).minimise(torch.ones(3, 2)), "need an owner"),
])
def test_bad_sets_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_sampling_is_reproducible_and_covers_the_box() -> None:
    sets = Box(torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
    x: Tensor = sets.sample(1000, generator(1))
    assert torch.equal(x, sets.sample(1000, generator(1)))
    assert bool((x[..., 1] == 2.0).all())
    assert float(x[..., 0].min()) < -0.95
    assert float(x[..., 0].max()) > 0.95


@pytest.mark.parametrize("radius", [0.5, 7.0, 40.0, 100.0])
def test_many_features_spend_an_l1_radius_in_order_of_their_gains(radius: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 120, generator=generator, dtype=torch.float64)
    a[:, ::3] = 0
    reach = torch.rand(1, 120, generator=generator, dtype=torch.float64)
    sets = InputSet(-reach, reach, torch.zeros_like(reach), torch.tensor([radius], dtype=torch.float64), 1.0)
    for row, found in zip(a, sets.minimise(a).tolist(), strict=True):
        left, value = radius, 0.0
        for i in row.abs().argsort(descending=True).tolist():
            step = min(left, float(reach[0, i]))
            left, value = left - step, value - step * abs(float(row[i]))
        assert found == pytest.approx(value, abs=1e-12)
