"""DeepFool: one step for linear boundaries, the exact step inside a box, what the polish is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.verifier.attacks.problems import Linear, bowl, linear, reach
from verifier.attacks.criterion import Misclassified
from verifier.attacks.deepfool import DeepFool, to_half_space
from verifier.attacks.threat import Threat


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_a_step_is_the_nearest_point_of_half_space_and_box(norm: float) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(40, 12, generator=g, dtype=torch.float64)
    slope = torch.randn(40, 12, generator=g, dtype=torch.float64)
    need = 3 * torch.rand(40, generator=g, dtype=torch.float64)
    d = to_half_space(need, slope, -x, 1 - x, norm)
    gain, length = (slope * d).sum(1), torch.linalg.vector_norm(d, ord=norm, dim=1)
    reached = 0
    for k in range(40):
        w = slope[k].numpy()
        exact = reach(w, -float(need[k]) - w @ x[k].numpy(), x[k].numpy(), norm, (0.0, 1.0))
        if math.isfinite(exact):
            reached += 1
            assert float(length[k]) == pytest.approx(exact, abs=1e-9)
            assert float(gain[k]) >= float(need[k]) - 1e-9
        else:
            torch.testing.assert_close(x[k] + d[k], (slope[k] > 0).double())
    assert 0 < reached < 40


@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("clip", [False, True])
def test_linear_boundaries_are_crossed_in_one_step(norm: float, clip: bool) -> None:
    known = linear(norm, clip=clip, dtype=torch.float64)
    result = DeepFool(polish=False).run(known.model, known.x, known.criterion, known.threat)
    most = 3 if clip else 1  # which class is nearest is guessed without the clip range
    assert int(result.backward_calls.max()) <= 3 * (most + 1)
    if not clip:
        np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=1e-4)


def test_fewer_candidates_cost_fewer_gradients() -> None:
    known = linear(2.0)
    result = DeepFool(polish=False, candidates=2).run(known.model, known.x, known.criterion, known.threat)
    assert int(result.backward_calls.max()) <= 2 * 50
    assert int(result.backward_calls.min()) == 2


def test_the_polish_finds_nearer_points_of_a_curved_boundary() -> None:
    """y = x_1 + x_0^2 - 1 from (1/2, -1): the first linear step leads past the nearest point."""

    class Parabola(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([1 - x[:, 1] - x[:, 0] ** 2, torch.zeros_like(x[:, 0])], 1)

    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    t = np.linspace(-3, 3, 2_000_001)
    exact = float(np.sqrt((t - 0.5) ** 2 + (2 - t**2) ** 2).min())
    criterion = Misclassified(torch.tensor([0]))
    plain = DeepFool(polish=False).run(Parabola(), x, criterion, Threat(2.0))
    polished = DeepFool().run(Parabola(), x, criterion, Threat(2.0))
    assert float(polished.distance[0]) == pytest.approx(exact, rel=1e-3)
    assert float(plain.distance[0]) > 1.02 * exact


def test_bowl_is_left_along_its_radius() -> None:
    known = bowl(dtype=torch.float64)
    result = DeepFool().run(known.model, known.x, known.criterion, known.threat)
    torch.testing.assert_close(result.distance, torch.from_numpy(known.distance), rtol=1e-3, atol=0)


def test_flat_functions_have_no_boundary() -> None:
    model = Linear(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 0.0]))
    result = DeepFool(steps=5).run(model, torch.rand(2, 4), Misclassified(torch.tensor([0, 0])),
                                   Threat(2.0, math.inf, (0.0, 1.0)))
    assert result.distance.shape == (2,)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"candidates": 1}, {"overshoot": -1.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DeepFool(**settings)  # type: ignore[arg-type]
