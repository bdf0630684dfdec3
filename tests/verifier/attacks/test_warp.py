"""Moved images against whole-pixel shifts, quarter turns, a slow sampler and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from verifier.attacks.warp import check_images, flowed, rotated, roughness, variation


def images(count: int = 2, shape: tuple[int, ...] = (3, 5, 7), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 6), (2, 4, 1)])
@pytest.mark.parametrize("border", [False, True])
def test_no_turn_and_no_shift_is_the_identity(shape: tuple[int, ...], border: bool) -> None:
    for dtype, near in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        x = images(shape=shape, dtype=dtype)
        still = rotated(x, torch.zeros(2), torch.zeros(2, 2), border=border)
        torch.testing.assert_close(still, x, rtol=0, atol=near)
        torch.testing.assert_close(flowed(x, x.new_zeros(2, 2, *shape[1:])), x, rtol=0, atol=near)


def test_whole_pixels_shift_the_image_and_uncover_the_fill() -> None:
    x = images()
    shift = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    zero, border = (rotated(x, torch.zeros(2), shift, border=b) for b in (False, True))
    for moved in (zero, border):
        torch.testing.assert_close(moved[0, :, 1:, 2:], x[0, :, :-1, :-2])
        torch.testing.assert_close(moved[1, :, :-1], x[1, :, 1:])
    assert (zero[0, :, 0].abs() < 1e-12).all()
    assert (zero[0, :, :, :2].abs() < 1e-12).all()
    torch.testing.assert_close(border[1, :, -1], x[1, :, -1])


def test_a_quarter_turn_is_counter_clockwise_and_exact() -> None:
    x = images(shape=(2, 6, 6))
    torch.testing.assert_close(rotated(x, torch.full((2,), 90.0), torch.zeros(2, 2), border=False),
                               x.rot90(1, (2, 3)))


def test_a_turn_comes_before_the_shift() -> None:
    x = images(shape=(1, 6, 6))
    both = rotated(x, torch.full((2,), 90.0), torch.tensor([[0.0, 2.0]]).expand(2, 2), border=False)
    torch.testing.assert_close(both[..., 2:], x.rot90(1, (2, 3))[..., :-2])


def test_a_flow_samples_bilinearly() -> None:
    """Against one pixel after the other."""
    x = images(1, (1, 4, 5))
    flow = 3 * torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for r in range(4):
        for c in range(5):
            row = min(max(r + float(flow[0, 0, r, c]), 0.0), 3.0)
            column = min(max(c + float(flow[0, 1, r, c]), 0.0), 4.0)
            top, left = min(int(row), 2), min(int(column), 3)
            down, right = row - top, column - left
            patch = x[0, 0, top : top + 2, left : left + 2]
            weights = torch.outer(patch.new_tensor([1 - down, down]), patch.new_tensor([1 - right, right]))
            assert float(flowed(x, flow)[0, 0, r, c]) == pytest.approx(float((patch * weights).sum()), abs=1e-12)


def test_gradient_in_the_flow_by_finite_differences() -> None:
    x = images(1, (2, 4, 4))
    flow = 0.3 * torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: flowed(x, f), (flow.requires_grad_(),))
    assert torch.autograd.gradcheck(roughness, (flow,))


def test_roughness_is_zero_for_a_shift_and_counts_each_pair_twice() -> None:
    flow = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    flow[:, 0] = 1.5
    assert float(roughness(flow)) == pytest.approx(0.0, abs=1e-12)
    flow[0, :, 1, 1] += torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert float(roughness(flow)) == pytest.approx(2 * 4 * 5.0, rel=1e-3)


def test_variation_of_one_moved_pixel() -> None:
    flow = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    flow[0, :, 1, 1] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    # In each direction two of the twelve pixels differ from their neighbour by 5.
    assert float(variation(flow)) == pytest.approx(math.sqrt(2 * 25 / 12))
    assert float(variation(-2 * flow)) == pytest.approx(2 * float(variation(flow)))
    constant = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    # Outside nothing flows: three rows of the left edge differ, and four columns of the upper one.
    assert float(variation(constant)) == pytest.approx(math.sqrt(4 * 2 / 12))
    strip = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    strip[0, 0, :, :2] = 1.0
    # Six pixels differ from their left neighbour, two from the one above.
    assert float(variation(strip)) == pytest.approx(math.sqrt(6 / 12))
    assert float(variation(strip.transpose(2, 3))) == pytest.approx(math.sqrt(6 / 12))


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"spatial moves images.*\(3, 8\)"):
        check_images("spatial", torch.zeros(3, 8))
