"""Attacks in l_0: sigma-zero, JSMA, and the pruning at the end of JSMA and FMN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.verifier.attacks.problems import Linear, linear
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.jsma import Jsma, best_pair
from verifier.attacks.losses import loss_named
from verifier.attacks.model import as_model
from verifier.attacks.prune import prune
from verifier.attacks.run import Run
from verifier.attacks.sigma_zero import SigmaZero
from verifier.attacks.threat import Threat


def test_pruning_leaves_the_fewest_features_of_a_linear_classifier() -> None:
    """From a success in which every feature has moved."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 20, generator=g, dtype=torch.float64)
    model = Linear(torch.cat([torch.zeros_like(weight), weight]), torch.tensor([1.0, 0.0]).double())
    x = torch.full((1, 20), 0.5, dtype=torch.float64)
    model.bias[0] = float(weight @ x[0]) + 2.0
    gain = np.sort(0.5 * weight.abs().numpy().ravel())[::-1]
    exact = int(np.searchsorted(np.cumsum(gain), 2.0) + 1)
    criterion = Misclassified(torch.tensor([0]))
    room = Threat(0.0, math.inf, (0.0, 1.0)).around(x)
    run = Run(as_model(model), room, criterion, Draws(0, torch.tensor([0])), True)
    run.begin()
    run.evaluate(torch.where(weight > 0, 0.99, 0.01), torch.tensor([0]))
    assert float(run.key[0]) == 20
    loss, _ = loss_named("margin", criterion, run.outputs)
    prune(run, torch.tensor([60]), loss)
    assert int(run.key[0]) == exact
    assert int(run.backward_calls[0]) <= 60


def test_the_best_pair_is_that_of_all_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    same = 0
    for _ in range(30):
        gain, loss = torch.randn(10, 100, generator=g), torch.randn(10, 100, generator=g)
        first, second = gain.unsqueeze(1) + gain.unsqueeze(2), loss.unsqueeze(1) + loss.unsqueeze(2)
        value = torch.where((first > 0) & (second > 0), first * second, -math.inf)
        value[:, torch.arange(100), torch.arange(100)] = -math.inf
        at = best_pair(gain, loss, 64)
        assert bool((at[:, 0] != at[:, 1]).all())
        found = value[torch.arange(10), at[:, 0], at[:, 1]]
        same += int((found == value.flatten(1).amax(1)).sum())
    assert same >= 297


def test_pairs_without_saliency_go_by_the_sum() -> None:
    gain, loss = torch.tensor([[-1.0, -0.2, -3.0]]), torch.tensor([[0.1, 0.1, 0.1]])
    assert set(best_pair(gain, loss, 64)[0].tolist()) == {0, 1}


def test_a_saliency_map_takes_the_pair_that_serves_the_target() -> None:
    """Features 0 and 3 raise class 1; feature 2 raises it more, and class 2 with it."""
    weight = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1.5, 1], [0, 0, 4, 0]])
    model = Linear(weight, torch.tensor([1.5, 0.0, 0.0]))
    result = Jsma(steps=2).run(model, torch.zeros(1, 4), Misclassified(torch.tensor([0]), torch.tensor([1])),
                               Threat(0.0, math.inf, (0.0, 1.0)))
    assert not result.success.any()
    result = Jsma(steps=4).run(model, torch.zeros(1, 4), Misclassified(torch.tensor([0]), torch.tensor([1])),
                               Threat(0.0, math.inf, (0.0, 1.0)))
    assert result.x[0].tolist() == [1, 0, 0, 1]
    assert int(result.backward_calls[0]) == 4


def test_features_go_down_as_well_as_up() -> None:
    model = Linear(torch.tensor([[1.0, 1, 0], [0, 0, 0]]), torch.tensor([0.0, 0.5]))
    x = torch.tensor([[0.9, 0.9, 0.5]])
    result = Jsma().run(model, x, Misclassified(torch.tensor([0])), Threat(0.0, math.inf, (0.0, 1.0)))
    assert result.success.all()
    assert result.x[0].tolist() == pytest.approx([0.0, 0.0, 0.5])


@pytest.mark.parametrize("attack", [Jsma(), SigmaZero(steps=200)])
def test_regression(attack: Jsma | SigmaZero) -> None:
    model = Linear(torch.tensor([[3.0, -4.0, 1.0]]), torch.zeros(1))
    x = torch.full((1, 3), 0.5)
    result = attack.run(model, x, Deviates(model(x), 1.9), Threat(0.0, math.inf, (0.0, 1.0)))
    assert int(result.distance[0]) == 1
    assert float(result.x[0, 1]) in (0.0, 1.0) or abs(float(result.x[0, 1]) - 0.5) > 0.47


def test_sigma_zero_is_exact_on_most_linear_classifiers() -> None:
    known = linear(0.0, shape=(40,), count=12, clip=True, dtype=torch.float64, seed=4)
    result = SigmaZero(steps=200).run(known.model, known.x, known.criterion, known.threat)
    finite = np.isfinite(known.distance)
    assert float((result.distance.numpy() == known.distance)[finite].mean()) >= 0.75
    assert int(result.backward_calls.max()) <= 200


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"sigma": 0.0}, {"threshold": 2.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SigmaZero(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"steps": 1}, {"candidates": 2}, {"theta": 0.0}])
def test_settings_of_saliency_maps_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Jsma(**settings)  # type: ignore[arg-type]
