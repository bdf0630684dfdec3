"""Two-layer networks: slopes against autograd, critical points against functions whose points are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.studies.two_layer import (
    EXACT,
    TwoLayer,
    ascended,
    at_angles,
    circle_extrema,
    drawn,
    first_of_each,
    in_ball,
    is_on_sphere,
    kinds,
    projected,
    safe_rate,
    settled,
)


class Quadratic(TwoLayer):
    """L(delta) = delta' A delta + b' delta on one sphere, with the same interface."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__(a.unsqueeze(0), b.unsqueeze(0), b.unsqueeze(0), b.new_zeros(1))

    def loss(self, delta: Tensor) -> Tensor:
        return ((delta @ self.w) * delta).sum(2) + delta @ self.a[0]

    def loss_and_slope(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(delta), 2 * delta @ self.w + self.a

    def curvature(self, delta: Tensor) -> Tensor:
        return 2 * self.w.unsqueeze(1).expand(-1, delta.shape[1], -1, -1)


def test_slopes_and_curvature_are_those_of_autograd() -> None:
    net = drawn(0, 2, 3, 20, 1.0)
    delta = in_ball(1, 2, 4, 3, 2.0).requires_grad_()
    (slope,) = torch.autograd.grad(net.loss(delta).sum(), delta, create_graph=True)
    loss, ours = net.loss_and_slope(delta)
    torch.testing.assert_close(loss, net.loss(delta))
    torch.testing.assert_close(ours, slope)
    rows = [torch.autograd.grad(slope[..., k].sum(), delta, retain_graph=True)[0] for k in range(3)]
    torch.testing.assert_close(net.curvature(delta), torch.stack(rows, 2))
    (output,) = torch.autograd.grad(net.output(delta).sum(), delta)
    torch.testing.assert_close(net.output_slope(delta), output)


def test_scales_share_weights_and_directions_and_labels_are_wrong() -> None:
    small, large = drawn(3, 5, 4, 30, 0.01), drawn(3, 5, 4, 30, 100.0)
    assert torch.equal(small.w, large.w) and torch.equal(small.a, large.a)
    torch.testing.assert_close(1e4 * small.x, large.x)
    torch.testing.assert_close(torch.linalg.vector_norm(large.x, dim=1), torch.full((5,), 100.0, dtype=EXACT))
    for net in (small, large):
        assert (net.loss(torch.zeros(5, 1, 4, dtype=EXACT)) >= 1).all()
    assert small.w.std() == pytest.approx(4**-0.5, rel=0.1) and (small.a.abs() == 30**-0.5).all()


def test_starts_fill_the_ball_evenly() -> None:
    far = torch.linalg.vector_norm(in_ball(0, 1, 20_000, 3, 2.0), dim=2)
    assert far.max() <= 2 and far.mean() == pytest.approx(2 * 3 / 4, rel=0.01)


def test_the_ball_holds_what_is_projected() -> None:
    delta = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]], dtype=EXACT)
    moved = projected(delta, 1.0)
    torch.testing.assert_close(moved, torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]], dtype=EXACT))
    assert is_on_sphere(moved, 1.0).tolist() == [[True, False, False]]


def test_a_small_circle_has_one_maximum_where_the_gradient_points() -> None:
    net = drawn(0, 1, 2, 50, 1.0)
    found = circle_extrema(net, 1e-6)
    _, slope = net.loss_and_slope(torch.zeros(1, 1, 2, dtype=EXACT))
    angle = math.atan2(float(slope[0, 0, 1]), float(slope[0, 0, 0]))
    assert len(found.maxima) == len(found.minima) == 1 and found.resolved
    assert math.cos(found.maxima[0] - angle) == pytest.approx(1, abs=1e-9)
    assert math.cos(found.minima[0] - angle) == pytest.approx(-1, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_large_circles_have_as_many_as_a_very_fine_grid_shows(seed: int) -> None:
    net, eps = drawn(seed, 1, 2, 10, 100.0), 1000.0
    found = circle_extrema(net, eps)
    angles = torch.arange(200_000, dtype=EXACT) * (2 * math.pi / 200_000)
    loss = net.loss(at_angles(angles, eps).unsqueeze(0))[0]
    peaks = (loss > loss.roll(1)) & (loss >= loss.roll(-1))
    assert len(found.maxima) == int(peaks.sum()) and len(found.minima) == len(found.maxima)
    assert max(found.highs) >= float(loss.max()) * (1 - 1e-12)
    assert max(found.highs) == pytest.approx(float(loss.max()), rel=1e-6)


def test_critical_points_of_a_quadratic_are_eigenvectors() -> None:
    """On the sphere x'Ax has a pair for each eigenvector: the ends are extrema, all others saddles."""
    values = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=EXACT)
    net, eps = Quadratic(torch.diag(values), torch.zeros(4, dtype=EXACT)), 0.7
    start = eps * functional.normalize(in_ball(0, 1, 200, 4, 1.0), dim=2)
    points, is_critical = settled(net, start, eps)
    assert is_critical.double().mean() > 0.9
    new = first_of_each(points, eps, is_critical)
    assert int(new.sum()) == 8
    kept, kind = points[new], kinds(net, points)[new]
    assert torch.allclose(kept.abs().amax(1), torch.tensor(eps, dtype=EXACT))
    place = kept.abs().argmax(1)
    assert kind[place == 3].tolist() == [1, 1] and kind[place == 0].tolist() == [-1, -1]
    assert kind[(place == 1) | (place == 2)].tolist() == [0] * 4


def test_points_count_once_and_only_where_valid() -> None:
    delta = torch.tensor([[[1.0, 0.0], [1.0, 1e-6], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]], dtype=EXACT)
    valid = torch.tensor([[False, True, True, True, True]])
    assert first_of_each(delta, 1.0, valid).tolist() == [[False, True, True, False, True]]


def test_safe_ascent_climbs_to_a_maximum_on_the_sphere() -> None:
    net, eps = drawn(0, 3, 5, 100, 1.0), 0.1
    start = in_ball(0, 3, 4, 5, eps)
    end = ascended(net, start, eps, safe_rate(net, start, eps), 200)
    assert is_on_sphere(end, eps).all() and (net.loss(end) > net.loss(start)).all()
    points, is_critical = settled(net, end, eps)
    assert is_critical.all() and (kinds(net, points) == 1).all()
    assert (torch.linalg.vector_norm(points - end, dim=2) < 1e-6 * eps).all()
