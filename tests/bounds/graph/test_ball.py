"""Ball arithmetic against exact rationals."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isqrt

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph.ball import Ball

numbers = st.one_of(
    st.floats(-1e3, 1e3), st.floats(-1e-300, 1e-300), st.floats(1e100, 1e120), st.sampled_from([0.0, 1.0, 0.1, -3.0]))
radii = st.one_of(st.just(0.0), st.floats(0, 10), st.floats(0, 1e-15))
share = st.fractions(-1, 1)


def ball(mid: float, radius: float) -> Ball:
    def one(v: float) -> Tensor:
        return torch.tensor([v], dtype=torch.float64)
    return Ball(one(mid), one(radius) if radius else None)


def point(mid: float, radius: float, where: Fraction) -> Fraction:
    """A real number inside the ball."""
    return Fraction(mid) + where * Fraction(radius)


def encloses(result: Ball, exact: Fraction) -> bool:
    mid, radius = float(result.mid.double()), 0.0 if result.radius is None else float(result.radius)
    if mid in (float("inf"), float("-inf")) or mid != mid or radius in (float("inf"),) or radius != radius:
        return True  # nothing is claimed
    return abs(Fraction(mid) - exact) <= Fraction(radius)


OPERATIONS: list[tuple[Callable[[Ball, Ball], Ball], Callable[[Fraction, Fraction], Fraction]]] = [
    (lambda a, b: a + b, lambda x, y: x + y),
    (lambda a, b: a - b, lambda x, y: x - y),
    (lambda a, b: a * b, lambda x, y: x * y),
]


@given(st.sampled_from(OPERATIONS), numbers, radii, share, numbers, radii, share)
@settings(max_examples=300, deadline=None)
def test_sums_and_products_enclose_the_exact_result(operation, a, ra, s, b, rb, t) -> None:  # type: ignore[no-untyped-def]
    on_balls, on_numbers = operation
    assert encloses(on_balls(ball(a, ra), ball(b, rb)), on_numbers(point(a, ra, s), point(b, rb, t)))


@given(numbers, radii, share, numbers, radii, share)
@settings(max_examples=200, deadline=None)
def test_quotients_enclose_the_exact_result(a, ra, s, b, rb, t) -> None:  # type: ignore[no-untyped-def]
    divisor = point(b, rb, t)
    if divisor == 0:
        return
    assert encloses(ball(a, ra) / ball(b, rb), point(a, ra, s) / divisor)


@given(st.floats(1e-300, 1e10), st.floats(0, 1), share)
@settings(max_examples=200, deadline=None)
def test_roots_enclose_the_exact_result(x, relative, s) -> None:  # type: ignore[no-untyped-def]
    radius = x * relative
    exact = point(x, radius, s)
    if exact < 0:
        return
    result = ball(x, radius).sqrt()
    scale = 10**400  # a root to 200 digits is as good as exact
    root = Fraction(isqrt(exact.numerator * scale * scale // exact.denominator), scale)
    assert encloses(result, root)


def test_products_of_matrices_enclose_the_exact_result() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 30, generator=generator)
    b = torch.randn(30, 3, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-8, -5)
    ra, rb = 1e-9 * a.abs().double(), 1e-12 * torch.ones_like(b)
    exact = [[sum((Fraction(float(a[i, k])) + Fraction(float(ra[i, k]))) * (Fraction(float(b[k, j])) - Fraction(1e-12))
                  for k in range(30)) for j in range(3)] for i in range(5)]
    for left, right, want in (
            (Ball(a, ra), Ball(b, rb), exact),
            (Ball(a), Ball(b), [[sum(Fraction(float(a[i, k])) * Fraction(float(b[k, j])) for k in range(30))
                                 for j in range(3)] for i in range(5)])):
        got = left @ right
        for i in range(5):
            for j in range(3):
                assert encloses(Ball(got.mid[i, j], got.radius[i, j]), want[i][j])  # type: ignore[index]


def test_products_in_chunks_equal_the_whole(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import bounds.graph.ball as module

    a, b = torch.randn(7, 4), torch.randn(4, 2)
    whole = Ball(a) @ Ball(b)
    monkeypatch.setattr(module, "_CHUNK", 8)
    parts = Ball(a) @ Ball(b)
    torch.testing.assert_close(whole.mid, parts.mid)
    torch.testing.assert_close(whole.radius, parts.radius)


def test_rounding_is_paid_once_and_only_where_it_happens() -> None:
    third = torch.tensor([1 / 3, 0.5], dtype=torch.float64)
    rounded = Ball(third).round(torch.float32)
    assert rounded.radius is not None
    assert abs(Fraction(float(rounded.mid[0])) - Fraction(float(third[0]))) <= Fraction(float(rounded.radius[0])) < 2e-8
    assert float(rounded.radius[1]) < 1e-200
    assert Ball(torch.tensor([0.5], dtype=torch.float64)).round(torch.float32).radius is None


def test_a_divisor_that_may_be_zero_claims_nothing() -> None:
    assert torch.isinf((ball(1.0, 0.0) / ball(0.5, 0.6)).radius).all()  # type: ignore[arg-type]
    assert torch.isinf(ball(0.5, 0.6).sqrt().radius).all()  # type: ignore[arg-type]
