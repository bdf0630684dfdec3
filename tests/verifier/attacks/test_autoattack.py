"""AutoAttack: the worst case over its parts, what it says of broken models, and two classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.verifier.attacks.problems import linear
from verifier.attacks.autoattack import AutoAttack
from verifier.attacks.criterion import Misclassified
from verifier.attacks.threat import Threat

BRIEF = AutoAttack(steps=15, queries=100)


class Function(nn.Module):
    """Outputs made by a Python function of the first feature."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.function(x)  # type: ignore[operator]
        return value


def test_the_settings_are_the_standard_ones() -> None:
    names = [(type(s).__name__, s.steps) for s in AutoAttack().stages(math.inf, 0.1)]  # type: ignore[attr-defined]
    assert names == [("ApgdCe", 100), ("ApgdTargeted", 100), ("FabTargeted", 100), ("Square", 5000)]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_stands_exactly_where_the_exact_distance_is_larger(classes: int) -> None:
    known = linear(math.inf, classes=classes, count=12, dtype=torch.float64)
    eps = float(np.median(known.distance))
    result = BRIEF.run(known.model, known.x, known.criterion, Threat(math.inf, eps))
    assert result.success.tolist() == (known.distance < eps).tolist()
    assert (result.fell_in[result.success] >= 0).all()
    assert (result.fell_in[~result.success] == -1).all()


def test_later_parts_work_on_what_still_stands() -> None:
    known = linear(math.inf, count=4)
    result = BRIEF.run(known.model, known.x, known.criterion, Threat(math.inf, 0.5 * float(known.distance.min())))
    assert not result.success.any()
    # 15 gradients of APGD, three targets of it and of FAB; 100 queries of Square.
    assert (result.backward_calls == 15 + 3 * 15 + 3 * 15).all()
    fallen = BRIEF.run(known.model, known.x, known.criterion, Threat(math.inf, 3 * float(known.distance.max())))
    assert (fallen.fell_in == 0).all()
    assert (fallen.backward_calls <= 15).all()


def test_probabilities_are_told() -> None:
    model = Function(lambda x: torch.softmax(torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1), 1))
    result = BRIEF.run(model, torch.zeros(2, 1), Misclassified(torch.zeros(2, dtype=torch.long)), Threat(math.inf, 0.1))
    assert any("probabilities" in note for note in result.notes)


def test_randomness_is_told() -> None:
    model = Function(lambda x: torch.stack([0.5 - x[:, 0] + torch.rand(len(x)), x[:, 0]], 1))
    result = BRIEF.run(model, torch.zeros(2, 1), Misclassified(torch.zeros(2, dtype=torch.long)), Threat(math.inf, 0.1))
    assert any("differently" in note for note in result.notes)


def test_masked_gradients_are_told() -> None:
    """Steps of a staircase have no gradient, and a random search climbs them."""
    def stairs(x: torch.Tensor) -> torch.Tensor:
        height = (x.flatten(1).mean(1) * 20).floor() / 20
        return torch.stack([0.35 - height, 0 * height], 1)

    model = Function(stairs)
    x = torch.zeros(3, 1, 6, 6)
    result = AutoAttack(steps=5, queries=400).run(model, x, Misclassified(torch.zeros(3, dtype=torch.long)),
                                                  Threat(math.inf, 0.5, (0.0, 1.0)))
    assert (result.zero_slopes > 0).all()
    assert any("vanish" in note for note in result.notes)
    if (result.fell_in == 3).any():
        assert any("Square" in note for note in result.notes)


def test_sound_models_raise_no_notes() -> None:
    known = linear(math.inf, classes=5)
    result = BRIEF.run(known.model, known.x, known.criterion, Threat(math.inf, 0.3 * float(known.distance.min())))
    assert result.notes == ()


@pytest.mark.parametrize("queries", [1, 2, 25])
def test_every_evaluation_is_counted(queries: int) -> None:
    known = linear(math.inf, count=3)
    seen = 0

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(x)
            y: torch.Tensor = known.model(x)
            return y

    result = BRIEF.run(Counting(), known.x, known.criterion, Threat(math.inf, 0.5 * float(known.distance.min())),
                       queries=queries)
    assert seen == int(result.forward_calls.sum()) <= 3 * queries
