"""FAB: closed forms, its costs, restarts, and the early end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.verifier.attacks.problems import bowl, linear
from verifier.attacks.base import AttackResult
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.fab import Fab, FabTargeted
from verifier.attacks.threat import Threat

BOTH = (Fab, FabTargeted)
NORMS = (math.inf, 2.0, 1.0)


def tiny() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    x = torch.rand(12, 6, dtype=torch.float64)
    return net, x, net(x).argmax(1)


def on_tiny(attack: Any, norm: float, **more: Any) -> AttackResult:
    net, x, label = tiny()
    result: AttackResult = attack.run(net, x, Misclassified(label), Threat(norm, math.inf, (-3.0, 3.0)), **more)
    return result


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [False, True])
def test_two_iterations_find_the_nearest_point_of_a_linear_classifier(cls: Any, norm: float, clip: bool) -> None:
    """The linearisation is the classifier: the first step crosses, the base's search goes back to the boundary."""
    known = linear(norm, clip=clip, dtype=torch.float64, seed=2)
    result = cls(steps=2).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=5e-4)


@pytest.mark.parametrize("cls", BOTH)
def test_a_curved_boundary_is_reached_at_its_nearest_point(cls: Any) -> None:
    known = bowl(dtype=torch.float64)
    result = cls(steps=30).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=1e-3)


def test_calls_are_a_gradient_a_class_or_one() -> None:
    """Two forward calls an iteration; the originals and the search back to the boundary cost a few more."""
    most = on_tiny(Fab(steps=5), 2.0)
    assert (most.backward_calls == 5 * 3).all()
    assert int(most.forward_calls.max()) <= 1 + 2 * 5 + 12
    each = on_tiny(FabTargeted(steps=5, classes=2), 2.0)
    assert (each.backward_calls == 5 * 2).all()
    assert int(each.forward_calls.max()) <= 2 + 2 * 5 * 2 + 12


@pytest.mark.parametrize("norm", NORMS)
def test_more_targets_never_hurt(norm: float) -> None:
    """The walks are the same, one after the other, and the nearest point counts (up to the search at the end)."""
    one, all_ = (on_tiny(FabTargeted(steps=20, classes=k), norm).distance for k in (1, 3))
    assert bool((all_ <= one * (1 + 1e-3)).all())
    assert bool((all_ < one * 0.99).any())


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_start_elsewhere_and_keep_the_nearest(norm: float) -> None:
    one, three = (on_tiny(Fab(steps=10, restarts=k), norm).distance for k in (1, 3))
    assert bool((three <= one * 1.02).all())  # the search at the end may stop elsewhere
    assert bool((three < one).any())


@pytest.mark.parametrize("cls", BOTH)
def test_stop_inside_ends_an_example_at_its_first_success_inside(cls: Any) -> None:
    full = on_tiny(cls(steps=30), 2.0)
    radius = float(full.distance.median()) * 1.2
    stopped = on_tiny(cls(steps=30, stop_inside=radius), 2.0)
    inside = full.distance <= radius
    assert 0 < int(inside.sum()) < len(inside)
    assert bool((stopped.distance[inside] <= radius).all())
    assert bool((stopped.backward_calls[inside] < full.backward_calls[inside]).all())
    assert torch.equal(stopped.backward_calls[~inside], full.backward_calls[~inside])


@pytest.mark.parametrize("cls", BOTH)
def test_a_regression_walks_to_the_boundary_of_its_tolerance(cls: Any) -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 1).double()
    x = torch.rand(5, 4, dtype=torch.float64)
    result = cls(steps=3).run(net, x, Deviates(net(x).detach(), 0.3), Threat(2.0))
    expected = 0.3 / float(net.weight.detach().norm())
    np.testing.assert_allclose(result.distance.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, "steps"), ({"restarts": 0}, "restarts"), ({"alpha_max": 1.5}, "alpha_max"), ({"eta": 0.9}, "eta"),
    ({"beta": 0.0}, "beta"), ({"stop_inside": -1.0}, "stop_inside"), ({"classes": 0}, "classes"),
])
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FabTargeted(**settings)
