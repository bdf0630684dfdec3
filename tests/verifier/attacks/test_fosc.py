"""The stationarity gap: equal to a brute-force linear maximisation, zero at constrained maxima, a rule to stop by."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.verifier.attacks.problems import linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.pgd import Pgd
from verifier.attacks.threat import Room, Threat


def rooms(norm: float, *, clip: tuple[float, float] | None, seed: int = 0) -> tuple[Room, Tensor, Tensor]:
    """(three rooms with a pinned feature, points in them, gradients), float64."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, 3, generator=g, dtype=torch.float64)
    room = Threat(norm, 0.4, clip, torch.tensor([True, True, False])).around(x0)
    owner = torch.arange(3)
    x = room.project(x0 + torch.randn(3, 3, generator=g, dtype=torch.float64), owner)
    return room, x, torch.randn(3, 3, generator=g, dtype=torch.float64)


def extreme_points(room: Room, i: int) -> Tensor:
    """Points among which every linear function over ball and box (nearly) has its maximum: a fine sample of the two
    features that move, with the corners of the box and the ball's axes."""
    lower, upper, x0 = room.lower[i], room.upper[i], room.x0[i]
    grids = [torch.linspace(float(lower[k]), float(upper[k]), 401, dtype=torch.float64) for k in (0, 1)]
    grids = [torch.cat([g, x0[k : k + 1]]) for k, g in zip((0, 1), grids, strict=True)]
    points = torch.cartesian_prod(*grids)
    z = torch.cat([points, x0[2].expand(len(points), 1)], 1)
    if room.norm == math.inf:
        return z
    length = (z - x0).norm(p=room.norm, dim=1, keepdim=True)
    pulled = x0 + (z - x0) * (room.eps / length.clamp(min=1e-12)).clamp(max=1)
    return pulled


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
@pytest.mark.parametrize("clip", [None, (0.1, 0.9)])
def test_equals_brute_force_linear_maximisation(norm: float, clip: tuple[float, float] | None) -> None:
    for seed in range(5):
        room, x, slope = rooms(norm, clip=None, seed=seed)
        if clip is not None:
            x0 = room.x0.clamp(*clip)
            room = Threat(norm, 0.4, clip, torch.tensor([True, True, False])).around(x0)
            x = room.project(x, torch.arange(3))
        gap = stationarity_gap(slope, x, room, torch.arange(3))
        for i in range(3):
            points = extreme_points(room, i)
            best = ((points - x[i]) @ slope[i]).max()
            assert float(gap[i]) >= float(best) - 1e-9
            assert float(gap[i]) == pytest.approx(float(best), abs=4e-3)


def test_is_the_formula_of_the_paper_without_other_limits() -> None:
    room, x, slope = rooms(math.inf, clip=None)
    free = Threat(math.inf, 0.4).around(room.x0)
    gap = stationarity_gap(slope, x, free, torch.arange(3))
    paper = 0.4 * slope.abs().sum(1) - ((x - room.x0) * slope).sum(1)
    torch.testing.assert_close(gap, paper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_is_zero_where_a_linear_loss_has_its_maximum(norm: float) -> None:
    room, _, slope = rooms(norm, clip=None)
    best = room.sets.minimiser(-slope)
    assert stationarity_gap(slope, best, room, torch.arange(3)).max() < 1e-7


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_pgd_of_a_linear_classifier_ends_stationary(norm: float) -> None:
    known = linear(norm, classes=2, dtype=torch.float64)
    tight = Threat(norm, 0.5 * float(known.distance.min()))
    result = Pgd(steps=60, loss="margin").run(known.model, known.x, known.criterion, tight, fosc=True)
    still = Pgd(steps=1, step_size=1e-9, random_start=False)
    start = still.run(known.model, known.x, known.criterion, tight, fosc=True)
    # In l_2 a step of constant length turns the point by a constant share of the angle that is left.
    assert (result.fosc < (1e-3 if norm == math.inf else 0.05) * start.fosc).all()


def test_an_example_stops_at_the_gap_that_is_asked_for() -> None:
    known = linear(math.inf, dtype=torch.float64)
    where = Threat(math.inf, 0.5 * float(known.distance.min()))
    free = Pgd(steps=50).run(known.model, known.x, known.criterion, where)
    stopped = Pgd(steps=50).run(known.model, known.x, known.criterion, where, fosc_stop=1e-2)
    assert (free.backward_calls == 50).all()
    assert (stopped.backward_calls < 50).all()
    assert (stopped.fosc <= 1e-2).all()
    # The rule is each example's own: alone it stops after as many steps.
    single = Pgd(steps=50).run(known.model, known.x[2:3], Misclassified(known.label[2:3]), where, fosc_stop=1e-2,
                               ids=torch.tensor([2]))
    assert int(single.backward_calls[0]) == int(stopped.backward_calls[2])


def test_needs_a_bounded_set() -> None:
    x = torch.zeros(1, 2)
    for room in (Threat(0.0, 1.0).around(x), Threat(2.0).around(x)):
        with pytest.raises(ValueError, match="bounded"):
            stationarity_gap(x, x, room, torch.arange(1))


def test_corners_of_the_box_are_counted() -> None:
    """In l_1 with a clip range the maximum fills one feature after the other."""
    x0 = torch.full((1, 3), 0.5, dtype=torch.float64)
    room = Threat(1.0, 0.8, (0.0, 1.0)).around(x0)
    slope = torch.tensor([[3.0, -2.0, 1.0]], dtype=torch.float64)
    corners = [torch.tensor(s, dtype=torch.float64) for s in itertools.product((-0.5, 0.0, 0.5), repeat=3)]
    assert float(stationarity_gap(slope, x0, room, torch.arange(1))) == pytest.approx(3 * 0.5 + 2 * 0.3)
    assert max(float(c @ slope[0]) for c in corners if float(c.abs().sum()) <= 0.8) < 3 * 0.5 + 2 * 0.3
