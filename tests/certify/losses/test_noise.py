"""Gaussian noise in training: the loss is that of noisy inputs, with exact gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from certify.losses.noise import Noise
from certify.registry import method_named
from tests.certify.cases import assert_gradients_agree, network, short_run, step_of


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_gradients_agree_with_differences(kind: str) -> None:
    net = network(kind, dtype=torch.float64)
    assert_gradients_agree(lambda: Noise(sigma=0.3, noises=2).loss(step_of(net)).total, net)


def test_without_noise_it_is_the_cross_entropy() -> None:
    step = step_of(network("conv"))
    clean = functional.cross_entropy(step.model(step.x), step.y)
    for noises in (1, 3):
        torch.testing.assert_close(Noise(sigma=0.0, noises=noises).loss(step).total, clean)


def test_the_noise_has_the_stated_size_and_is_fresh_in_every_step() -> None:
    net, seen = network("mlp"), []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return net(x)
    for update in (0, 0, 1):
        step = step_of(net, update=update, count=40)
        object.__setattr__(step, "model", forward)
        Noise(sigma=0.3, noises=8).loss(step)
    noise = [points.view(40, 8, -1) - step.x.flatten(1).unsqueeze(1) for points in seen]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert float(noise[0].mean()) == pytest.approx(0, abs=0.01)
    assert float(noise[0].std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise[0][0, 0] @ noise[0][1, 0]) ** 2 < 0.25 * float(noise[0][0, 0].square().sum()) ** 2, "independent"


def test_a_short_run_lowers_it() -> None:
    done = short_run(method_named("smoothing", sigma=0.1), network("conv"), updates=40)
    assert float(done[-1].total.detach()) < 0.8 * float(done[0].total.detach())


@pytest.mark.parametrize("wrong", [{"sigma": -0.1}, {"noises": 0}, {"sigma": float("nan")}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sigma >= 0 and noises >= 1"):
        method_named("smoothing", **wrong)
