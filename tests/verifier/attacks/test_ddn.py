"""DDN: a bowl's nearest points, a sure network, scale."""

from __future__ import annotations

import pytest
import torch

from tests.verifier.attacks.problems import Linear, bowl, linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.ddn import Ddn
from verifier.attacks.losses import loss_named
from verifier.attacks.threat import Threat


def test_bowl_is_left_along_its_radius() -> None:
    known = bowl(dtype=torch.float64)
    result = Ddn(steps=200).run(known.model, known.x, known.criterion, known.threat)
    torch.testing.assert_close(result.distance, torch.from_numpy(known.distance), rtol=2e-3, atol=0)
    assert int(result.backward_calls.max()) == 200


def test_a_network_that_is_sure_of_itself_has_gradients() -> None:
    """At a margin of 1,000 the gradient of the cross-entropy is zero in float32; its direction is not lost here."""
    known = linear(2.0)
    sure = Linear(known.model.weight * 5000, known.model.bias * 5000)
    plain = Ddn(steps=100).run(known.model, known.x, known.criterion, Threat(2.0))
    result = Ddn(steps=100).run(sure, known.x, known.criterion, Threat(2.0))
    assert int(result.zero_slopes.max()) == 0
    assert float(result.distance.median()) <= 1.01 * float(plain.distance.median())
    lost = Ddn(steps=100, loss="ce").run(sure, known.x, known.criterion, Threat(2.0))
    assert int(lost.zero_slopes.max()) > 0


def test_steps_follow_the_clip_range() -> None:
    known = linear(2.0, clip=True, dtype=torch.float64)
    grey = Linear(known.model.weight / 255, known.model.bias)
    small = Ddn(steps=80).run(known.model, known.x, known.criterion, known.threat)
    large = Ddn(steps=80).run(grey, known.x * 255, known.criterion, Threat(2.0, clip=(0.0, 255.0)))
    torch.testing.assert_close(large.distance, small.distance * 255, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"first_norm": 0.0}, {"gamma": 0.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Ddn(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [None, torch.tensor([1, 3, 0])])
def test_the_smooth_margin_has_the_direction_of_the_cross_entropy(target: torch.Tensor | None) -> None:
    y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    slopes = []
    for name in ("smooth", "ce"):
        loss, _ = loss_named(name, Misclassified(torch.tensor([0, 2, 4]), target), 5)
        (slope,) = torch.autograd.grad(loss(y, y, torch.arange(3)).sum(), y)
        slopes.append(slope / slope.norm(dim=1, keepdim=True))
    torch.testing.assert_close(slopes[0], slopes[1])
