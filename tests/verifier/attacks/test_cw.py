"""Carlini and Wagner's l_2 attack: known distances, budgets, settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.verifier.attacks.problems import bowl, linear
from verifier.attacks.criterion import Deviates
from verifier.attacks.cw import CarliniWagner
from verifier.attacks.threat import Threat


def test_a_curved_boundary_is_reached_at_its_nearest_point() -> None:
    known = bowl(dtype=torch.float64)
    result = CarliniWagner(steps=60).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=2e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_logits_does_not_matter(scale: float) -> None:
    """The first constant follows margin and gradient: another scale gives the same points."""
    known = linear(2.0, clip=True, dtype=torch.float64, seed=2)
    attack = CarliniWagner(steps=30)
    plain = attack.run(known.model, known.x, known.criterion, known.threat)
    assert isinstance(known.model.weight, nn.Parameter)
    assert isinstance(known.model.bias, nn.Parameter)
    known.model.weight.mul_(scale)
    known.model.bias.mul_(scale)
    scaled = attack.run(known.model, known.x, known.criterion, known.threat)
    torch.testing.assert_close(scaled.distance, plain.distance, rtol=1e-3, atol=0)


def test_a_constant_too_small_is_raised_until_it_suffices() -> None:
    """Below the least constant only overshooting succeeds; a search succeeds once growth has made up for it."""
    known = linear(2.0, dtype=torch.float64, seed=2)
    one, more = (CarliniWagner(initial=1e-3, binary_search_steps=k).run(known.model, known.x, known.criterion,
                                                                       known.threat) for k in (1, 6))
    assert not one.success.all()
    assert more.success.all()


def test_gradients_are_those_of_the_settings() -> None:
    known = linear(2.0)
    result = CarliniWagner(binary_search_steps=3, steps=7).run(known.model, known.x, known.criterion, known.threat)
    assert (result.backward_calls == 1 + 3 * 7).all()


def test_aborting_early_saves_gradients_and_costs_little() -> None:
    known = bowl(dtype=torch.float64)
    full, short = (CarliniWagner(abort_early=early, steps=50).run(known.model, known.x, known.criterion, known.threat)
                   for early in (False, True))
    assert int(short.backward_calls.max()) < int(full.backward_calls.min())
    assert bool((short.distance <= full.distance * 1.05).all())


def test_kappa_asks_a_search_for_more_than_the_boundary() -> None:
    """The points of the last search, as the model sees them, lie as far beyond the boundary as kappa says."""
    known = bowl(dtype=torch.float64)
    deepest = []
    for kappa in (0.0, 2.0):
        seen: list[float] = []
        hook = known.model.register_forward_hook(lambda _, __, y, seen=seen: seen.append(float(y[:, 0].detach().min())))
        CarliniWagner(kappa=kappa, steps=50).run(known.model, known.x, known.criterion, known.threat)
        hook.remove()
        deepest.append(float(np.median(seen[-100:-20])))
    assert deepest[0] == pytest.approx(0.0, abs=0.2)
    assert deepest[1] == pytest.approx(-2.0, abs=0.4)


def test_a_regression_reaches_the_boundary_of_its_tolerance() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 1).double()
    x = torch.rand(5, 4, dtype=torch.float64)
    result = CarliniWagner(steps=60).run(net, x, Deviates(net(x).detach(), 0.3), Threat(2.0))
    np.testing.assert_allclose(result.distance.numpy(), 0.3 / float(net.weight.detach().norm()), rtol=2e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, "steps"), ({"binary_search_steps": 0}, "binary_search_steps"), ({"step_size": 0.0}, "step_size"),
    ({"kappa": -1.0}, "kappa"), ({"grow": 1.0}, "grow"), ({"initial": -math.inf}, "initial"),
])
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CarliniWagner(**settings)
