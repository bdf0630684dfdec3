"""FMN and what it shares: projections against slow oracles, the known nearest points of a bowl, budgets."""

from __future__ import annotations

import math

import pytest
import torch

from tests.verifier.attacks.problems import Linear, bowl, linear
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.fmn import Fmn, project_l1
from verifier.attacks.threat import Threat, soft_threshold


def test_bowl_is_left_along_its_radius() -> None:
    known = bowl(dtype=torch.float64)
    result = Fmn(steps=100).run(known.model, known.x, known.criterion, known.threat)
    assert result.success.all()
    torch.testing.assert_close(result.distance, torch.from_numpy(known.distance), rtol=1e-3, atol=0)


def test_l1_projection_onto_ball_and_box_is_the_nearest_point() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        move = torch.randn(8, 3, 10, generator=g, dtype=torch.float64)
        low, high = -torch.rand(8, 3, 10, generator=g), torch.rand(8, 3, 10, generator=g)
        low, high = low.double(), high.double()
        high[0] = math.inf
        low[0] = -math.inf
        eps = 6 * torch.rand(8, generator=g, dtype=torch.float64)
        inside = torch.minimum(torch.maximum(move, low), high).abs().flatten(1).sum(1)
        expected = soft_threshold(move, torch.minimum(eps, inside), low, high)
        torch.testing.assert_close(project_l1(move, eps, low, high), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0, 0.0])
def test_steps_are_gradients(norm: float) -> None:
    known = linear(norm, clip=True)
    result = Fmn(steps=30).run(known.model, known.x, known.criterion, known.threat)
    assert int(result.backward_calls.max()) <= 30
    assert int(result.backward_calls.min()) >= 27


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_nothing_depends_on_the_scale_of_inputs(norm: float) -> None:
    known = linear(norm, dtype=torch.float64)
    wide = Linear(known.model.weight / 256, known.model.bias)
    small = Fmn(steps=50).run(known.model, known.x, known.criterion, Threat(norm))
    large = Fmn(steps=50).run(wide, known.x * 256, known.criterion, Threat(norm))
    torch.testing.assert_close(large.distance, small.distance * 256, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0, 0.0])
def test_a_plateau_is_left_in_random_directions(norm: float) -> None:
    """The gradient vanishes at the originals."""

    class Plateau(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            far = torch.relu(x.flatten(1).abs() - 0.05).sum(1)
            return torch.stack([torch.full_like(far, 0.1), far], 1)

    x = torch.zeros(3, 6)
    result = Fmn(steps=100).run(Plateau(), x, Misclassified(torch.zeros(3, dtype=torch.long)),
                                Threat(norm, math.inf, (-1.0, 1.0)))
    assert result.success.all()
    assert int(result.zero_slopes.min()) >= 1


def test_regression_moves_as_far_as_the_tolerance_asks() -> None:
    weight = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    model = Linear(weight, torch.zeros(1, dtype=torch.float64))
    x = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    for norm, exact in ((math.inf, 1 / 7), (2.0, 1 / 5), (1.0, 1 / 4)):
        result = Fmn(steps=150).run(model, x, Deviates(model(x), 1.0), Threat(norm))
        assert float(result.distance[0]) == pytest.approx(exact, rel=1e-2), norm


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"gamma": 1.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Fmn(**settings)  # type: ignore[arg-type]
