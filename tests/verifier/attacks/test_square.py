"""Square Attack: what it asks for, the paper's schedule and shapes, and the optimum of linear problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.verifier.attacks.problems import Linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.square import Square, bumps
from verifier.attacks.threat import Threat


class Watched(Linear):
    """Keeps the points it is asked for."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return super().forward(x)


def two_classes(shape: tuple[int, ...], *, lead: float = 50.0, dtype: torch.dtype = torch.float32,
                ) -> tuple[Watched, Tensor, Tensor]:
    """A linear classifier that class 0 wins by far, two originals, and the row of class 0 minus that of class 1."""
    g = torch.Generator().manual_seed(0)
    row = torch.randn(math.prod(shape), generator=g, dtype=dtype)
    model = Watched(torch.stack([row, torch.zeros_like(row)]), torch.tensor([lead, 0.0], dtype=dtype))
    return model, 0.3 + 0.4 * torch.rand(2, *shape, generator=g, dtype=dtype), row


ZEROS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
def test_reaches_the_corner_that_is_the_optimum_of_a_linear_margin(shape: tuple[int, ...]) -> None:
    model, x, row = two_classes(shape, dtype=torch.float64)
    result = Square(steps=600).run(model, x, Misclassified(ZEROS), Threat(math.inf, 0.1))
    best = model(x)[:, 0] - 0.1 * row.abs().sum()
    torch.testing.assert_close(result.margin, best, rtol=1e-9, atol=0)


def test_comes_near_the_optimum_of_a_linear_margin_in_l2() -> None:
    model, x, row = two_classes((1, 8, 8), dtype=torch.float64)
    result = Square(steps=800).run(model, x, Misclassified(ZEROS), Threat(2.0, 1.0))
    gain = model(x)[:, 0] - result.margin
    assert (gain <= row.norm()).all()
    assert (gain > 0.6 * row.norm()).all(), gain / row.norm()


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 9, 9), (40,)])
def test_every_query_repaints_one_window_of_the_best_point_and_changes_it(shape: tuple[int, ...]) -> None:
    model, x, _ = two_classes(shape)
    x = x[:1]
    Square(steps=200).run(model, x, Misclassified(ZEROS[:1]), Threat(math.inf, 0.1, (0.0, 0.75)))
    low, high = (x - 0.1).clamp(0, 0.75), (x + 0.1).clamp(0, 0.75)
    asked = model.asked[1:]  # behind the original
    assert len(asked) == 200
    best, margin = asked[0], Linear.forward(model, asked[0])[0, 0]
    for point in asked[1:]:
        assert (((point - low).abs() < 1e-6) | ((point - high).abs() < 1e-6)).all(), "every feature at one end"
        changed = (point != best)[0].reshape(-1, *(shape[1:] if len(shape) == 3 else shape)).any(0).nonzero()
        assert len(changed), "a query that repaints what is there is lost"
        sides = changed.amax(0) - changed.amin(0) + 1
        assert sides.max() <= math.ceil(math.sqrt(0.8) * 9 if len(shape) == 3 else 0.8 * 40)
        if (score := Linear.forward(model, point)[0, 0]) < margin:
            best, margin = point, score


def test_stripes_are_where_it_starts() -> None:
    model, x, _ = two_classes((3, 6, 7))
    Square(steps=1).run(model, x, Misclassified(ZEROS), Threat(math.inf, 0.1))
    move = (model.asked[1] - x).sign()
    assert (move == move[:, :, :1]).all(), "one sign a column and channel"
    assert len(torch.unique(move.flatten(2)[:, :, :7].flatten(0, 1), dim=0)) > 1


@pytest.mark.parametrize("shape", [(2, 12, 12), (30,), (1, 3, 3)])
def test_l2_points_use_the_whole_radius_and_no_more(shape: tuple[int, ...]) -> None:
    model, x, _ = two_classes(shape)
    Square(steps=100).run(model, x, Misclassified(ZEROS), Threat(2.0, 0.7))
    assert len(model.asked) == 101
    for point in model.asked[1:]:
        far = (point.double() - x.double()).flatten(1).norm(dim=1)
        assert (far <= 0.7).all()
        assert (far > 0.7 * (1 - 1e-5)).all()


def test_l2_windows_exchange_energy_and_leave_the_rest() -> None:
    model, x, _ = two_classes((1, 16, 16))
    Square(steps=400, p_init=0.1).run(model, x[:1], Misclassified(ZEROS[:1]), Threat(2.0, 0.7))
    best, margin = model.asked[1], Linear.forward(model, model.asked[1])[0, 0]
    for point in model.asked[2:]:
        changed = ((point - best).abs() > 1e-6)[0, 0]
        assert int(changed.sum()) <= 2 * 25, "two windows of at most 5 x 5"
        if (score := Linear.forward(model, point)[0, 0]) < margin:
            best, margin = point, score


@pytest.mark.parametrize(("h", "w"), [(3, 3), (7, 7), (6, 6), (1, 5), (1, 2), (5, 5)])
def test_bumps_are_opposite_and_of_length_one(h: int, w: int) -> None:
    pair = bumps(h, w)
    assert pair.shape == (h, w)
    assert float(pair.norm()) == pytest.approx(1.0)
    cut = w // 2 if h == 1 else h // 2
    first, second = (pair[:, :cut], pair[:, cut:]) if h == 1 else (pair[:cut], pair[cut:])
    assert (first > 0).all()
    assert (second < 0).all()
    assert float(first.norm()) == pytest.approx(float(second.norm()))


def test_a_bump_has_the_heights_of_the_paper() -> None:
    """Of 3 x 5 the peak lies in the middle; the sums run over 1, 1/4, 1/9."""
    lower = -bumps(6, 5)[3:].double().numpy()
    rings = np.maximum(np.abs(np.arange(3) - 1)[:, None], np.abs(np.arange(5) - 2))
    heights = np.array([1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9])[rings]
    np.testing.assert_allclose(lower / lower.max(), heights / heights.max(), rtol=1e-6)


def test_windows_shrink_as_in_the_paper() -> None:
    """Halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 of 10,000 queries."""
    square = Square(p_init=0.8)
    expected = {10: 0.8, 11: 0.4, 50: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 4001: 0.00625,
                6001: 0.003125, 8001: 0.0015625, 9999: 0.0015625}
    assert {k: square._share(k / 10000) for k in expected} == pytest.approx(expected)


def test_fallen_examples_cost_no_more_queries() -> None:
    g = torch.Generator().manual_seed(1)
    row = torch.randn(6, generator=g)
    model = Linear(torch.stack([row, torch.zeros_like(row)]), torch.tensor([0.0, 0.0]))
    x = 0.5 + torch.stack([0.001 * row, 3 * row])
    result = Square(steps=300).run(model, x - 0.5 * row * (x @ row / row.square().sum()).clamp(max=0).unsqueeze(1),
                                   Misclassified(ZEROS), Threat(math.inf, 0.5), seed=0)
    easy, hard = result.forward_calls.tolist()
    assert result.success.tolist() == [True, False]
    assert easy < 100
    assert hard == 301


def test_the_schedule_follows_the_limit_of_queries() -> None:
    model, x, _ = two_classes((1, 20, 20))
    result = Square(steps=5000).run(model, x, Misclassified(ZEROS), Threat(math.inf, 0.1), queries=60)
    assert (result.forward_calls == 60).all()
    last, before = model.asked[-1], model.asked[-2]
    assert int((last != before)[0].sum()) <= 2 * 2 * 2, "the last windows are the smallest"


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Square(**settings)  # type: ignore[arg-type]
