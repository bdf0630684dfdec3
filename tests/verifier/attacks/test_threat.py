"""Rooms: nothing in them is further from its original than eps, exactly, or outside the clip range."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verifier.attacks.threat import Threat, soft_threshold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.1, 0.3, 1e-7, 2.5, 1 / 3]), clip=st.booleans())
def test_projected_points_are_inside_exactly(dtype: torch.dtype, norm: float, seed: int, eps: float,
                                             clip: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(4, 7, generator=g, dtype=dtype)
    room = Threat(norm, eps, (0.0, 1.0) if clip else None).around(x0)
    owner = torch.tensor([0, 1, 2, 3, 3, 0])
    far = x0[owner] + 10 ** float(torch.rand((), generator=g) * 4 - 3) * torch.randn(6, 7, generator=g, dtype=dtype)
    x = room.project(far, owner)
    for p, o in zip(x, owner, strict=True):
        moves = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(p, x0[o], strict=True)]
        if norm == math.inf:
            assert max(moves) <= Fraction(eps)
        else:
            assert sum(m ** int(norm) for m in moves) <= Fraction(eps) ** int(norm)
    if clip:
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
    assert (room.distance(x, owner) <= eps).all()


def test_the_box_reaches_as_far_as_the_dtype_allows() -> None:
    """Inward by less than one unit in the last place: the next number is outside."""
    x0 = torch.rand(1, 50, generator=torch.Generator().manual_seed(0))
    room = Threat(math.inf, 0.1).around(x0)
    beyond = torch.nextafter(room.upper, torch.tensor(math.inf)).double() - x0.double()
    assert (beyond > 0.1).all()


@given(seed=st.integers(0, 10**6), radius=st.floats(0.05, 3.0))
def test_soft_threshold_is_the_nearest_point(seed: int, radius: float) -> None:
    """No feasible point in the direction of random ones is nearer (projection onto a convex set)."""
    g = torch.Generator().manual_seed(seed)
    move = torch.randn(1, 6, generator=g, dtype=torch.float64)
    low, high = -torch.rand(1, 6, generator=g, dtype=torch.float64), torch.rand(1, 6, generator=g, dtype=torch.float64)
    move = torch.minimum(torch.maximum(move, low), high)
    y = soft_threshold(move, torch.tensor([radius], dtype=torch.float64), low, high)
    assert float(y.abs().sum()) <= radius * (1 + 1e-9)
    others = low + (high - low) * torch.rand(200, 6, generator=g, dtype=torch.float64)
    others = others * (radius / others.abs().sum(1, keepdim=True)).clamp(max=1)
    # The variational inequality of a projection: <move - y, other - y> <= 0.
    assert float(((move - y) * (others - y)).sum(1).max()) <= 1e-7


def test_l0_keeps_what_moved_most() -> None:
    x0 = torch.zeros(1, 5)
    room = Threat(0.0, 2.0).around(x0)
    x = room.project(torch.tensor([[0.1, -3.0, 0.0, 2.0, -0.5]]), torch.arange(1))
    assert x.tolist() == [[0.0, -3.0, 0.0, 2.0, 0.0]]


def test_masks_pin_features() -> None:
    x0 = torch.full((2, 3), 0.5)
    room = Threat(math.inf, 0.2, (0.0, 1.0), torch.tensor([True, False, True])).around(x0)
    x = room.project(torch.ones(2, 3), torch.arange(2))
    assert (x[:, 1] == 0.5).all()
    assert (x[:, 0] > 0.69).all()


@pytest.mark.parametrize(("change", "words"), [
    ({"norm": 3.0}, "norm must be"), ({"eps": -1.0}, "eps must be"), ({"eps": math.nan}, "eps must be"),
    ({"clip": (1.0, 0.0)}, "clip must be"), ({"clip": (0.0, math.inf)}, "clip must be")])
def test_wrong_threats_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Threat(**change)  # type: ignore[arg-type]


def test_wrong_originals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input 1 .* outside the clip range .* normalised"):
        Threat(math.inf, 0.1, (0.0, 1.0)).around(torch.tensor([[0.5], [2.1]]))
    with pytest.raises(ValueError, match=r"input 0 .* not finite"):
        Threat(math.inf, 0.1).around(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="mask"):
        Threat(math.inf, 0.1, mask=torch.ones(3)).around(torch.zeros(1, 2))


def test_pinned_features_may_lie_outside_the_clip_range() -> None:
    room = Threat(math.inf, 0.1, (0.0, 1.0), torch.tensor([True, False])).around(torch.tensor([[0.5, 7.0]]))
    assert float(room.lower[0, 1]) == float(room.upper[0, 1]) == 7.0


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_sets_hold_every_point_of_a_room(norm: float) -> None:
    """0.7 is no float32: what bounds are taken over must not be a smaller ball than attacks may use."""
    x0 = torch.tensor([[0.70000005, 5e-8]])
    room = Threat(norm, 0.7, (0.0, 1.0)).around(x0)
    inside = torch.tensor([[4.9e-8, 5e-8]])
    assert torch.equal(room.project(inside, torch.arange(1)), inside)
    assert bool(room.sets.to(dtype=torch.float64).contains(inside.double())[0])
    assert (room.sets.to(dtype=torch.float64).radius >= 0.7).all()  # type: ignore[operator]


def test_distances_in_linf_are_exact_or_rounded_up() -> None:
    room = Threat(math.inf).around(torch.tensor([[-1e-20], [0.25]], dtype=torch.float64))
    far = room.distance(torch.tensor([[0.5], [0.75]], dtype=torch.float64), torch.arange(2))
    assert far[0] > 0.5  # by 1e-20, which no float64 holds
    assert far[1] == 0.5
