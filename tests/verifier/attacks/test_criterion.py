"""Criteria: what margins mean, and attacks that go for each kind of them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifier.attacks.problems import linear
from verifier.attacks.criterion import Deviates, Misclassified, Outranked, Unsafe
from verifier.attacks.registry import attack_named
from verifier.attacks.threat import Threat
from verifier.property import Branch, Property, Region, Row

ONE = Fraction(1)


class Square(nn.Module):
    """y = (x_0^2, x_0 + x_1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0].square(), x[:, 0] + x[:, 1]], 1)


def test_a_tie_is_no_success() -> None:
    y = torch.tensor([[1.0, 1.0], [1.0, 1.001], [1.001, 1.0]])
    goal = Misclassified(torch.tensor([0]))
    owner = torch.zeros(3, dtype=torch.long)
    margin = goal.margin(y, y, owner)
    assert goal.met(y, y, owner, margin).tolist() == [False, True, False]


def test_a_target_outranks_the_label_below_a_third_class() -> None:
    y = torch.tensor([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0], [1.0, 1.0, 0.0]])
    goal = Outranked(torch.tensor([0, 0]), torch.tensor([1, 1]))
    owner = torch.tensor([0, 1, 0])
    margin = goal.margin(y, y, owner)
    assert margin.tolist() == [-1.0, 1.0, 0.0]
    assert goal.met(y, y, owner, margin).tolist() == [True, False, False]
    assert goal.index(torch.tensor([1])).batch == 1
    with pytest.raises(ValueError, match="one target a label"):
        Outranked(torch.tensor([0, 0]), torch.tensor([1]))


@pytest.mark.parametrize(("name", "settings", "norm", "eps"), [
    ("pgd", {"steps": 30, "random_start": False}, math.inf, 0.25), ("apgd-ce", {"steps": 30}, 2.0, 0.25),
    ("fmn", {"steps": 100}, math.inf, math.inf), ("ddn", {"steps": 100}, 2.0, math.inf),
    ("fab", {"steps": 30}, math.inf, math.inf), ("square", {"steps": 300}, math.inf, 0.25),
    ("cw", {"steps": 40}, 2.0, math.inf), ("nes", {"steps": 20}, math.inf, 0.25)])
def test_regression_leaves_its_tolerance(name: str, settings: dict[str, object], norm: float, eps: float) -> None:
    """|x_0^2 - 1| > 0.4 from x_0 = 1 needs x_0 above 1.1832: 0.1832 away (or x_0 + x_1 to change by 0.4)."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    goal = Deviates(Square()(x), 0.4)
    result = attack_named(name, **settings).run(Square(), x, goal, Threat(norm, eps))
    assert result.success.all()
    assert float((Square()(result.x) - goal.reference).abs().max()) > 0.4
    if math.isinf(eps):
        exact = math.sqrt(1.4) - 1
        assert exact <= float(result.distance[0]) <= 1.02 * exact
    blocked = attack_named(name, **settings).run(Square(), x, goal, Threat(norm, 0.9 * 0.1832))
    assert not blocked.success.any()


def test_a_property_is_a_goal() -> None:
    """Unsafe: y_0 <= 0.49 and y_1 >= 0.5, that is |x_0| <= 0.7 and x_1 >= 0.5 - x_0."""
    region = Region((-5, -5), (5, 5))
    rows = (Row(((0, ONE),), (), Fraction(49, 100)), Row(((1, -ONE),), (), Fraction(-1, 2)))
    tensors = Property((Branch(region, rows),), 2, 2).tensors((2,), dtype=torch.float64)
    x = torch.tensor([[1.0, -0.2], [1.0, -1.0]], dtype=torch.float64)
    result = attack_named("apgd-ce").run(Square(), x, Unsafe(tensors, 2), Threat(math.inf, 0.85))
    y = Square()(result.x)
    assert result.success.all()
    assert (y[:, 0] <= 0.49).all()
    assert (y[:, 1] >= 0.5).all()
    blocked = attack_named("apgd-ce").run(Square(), x, Unsafe(tensors, 2), Threat(math.inf, 0.35))
    assert blocked.success.tolist() == [True, False]  # 0.3 and 0.8 away


def test_strict_rows_are_strict() -> None:
    region = Region((-5,), (5,))
    x = torch.zeros(1, 1, dtype=torch.float64)
    for strict in (False, True):
        tensors = Property((Branch(region, (Row(((0, ONE),), (), Fraction(0), strict),)),), 1, 1).tensors(
            (1,), dtype=torch.float64)
        goal = Unsafe(tensors, 1)
        y, owner = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
        assert bool(goal.met(y, x, owner, goal.margin(y, x, owner))) is not strict


def test_wrong_criteria_are_refused() -> None:
    with pytest.raises(ValueError, match="target must differ"):
        Misclassified(torch.tensor([1, 2]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="labels must be integers"):
        Misclassified(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="one target a label"):
        Misclassified(torch.tensor([1, 2]), torch.tensor([0]))
    with pytest.raises(ValueError, match="tolerance"):
        Deviates(torch.zeros(1, 1), -1.0)
    known = linear(math.inf)
    with pytest.raises(ValueError, match="criteria for"):
        attack_named("pgd").run(known.model, known.x, Misclassified(known.label[:2]), Threat(math.inf, 0.1))
    with pytest.raises(ValueError, match="0 to 3"):
        attack_named("pgd").run(known.model, known.x, Misclassified(known.label + 7), Threat(math.inf, 0.1))


@pytest.mark.parametrize(("name", "settings"), [("fmn", {"steps": 50}), ("ddn", {"steps": 50}), ("fab", {"steps": 20}),
                                                ("deepfool", {}), ("cw", {"steps": 20}), ("bb", {"steps": 20})])
def test_an_original_on_the_boundary_falls_next_to_itself(name: str, settings: dict[str, object]) -> None:
    """Both logits are equal there: no success as it is, and the least move in the right direction is one."""
    known = linear(2.0, classes=2, dtype=torch.float64)
    w = known.model.weight[0] - known.model.weight[1]  # type: ignore[index, operator]
    b = known.model.bias[0] - known.model.bias[1]  # type: ignore[index, operator]
    flat = known.x.flatten(1)
    x = (flat - ((flat @ w + b) / w.square().sum()).unsqueeze(1) * w).view_as(known.x)
    result = attack_named(name, **settings).run(known.model, x, known.criterion, Threat(2.0))
    assert result.success.all()
    assert float(result.distance.max()) < 1e-2 * float(known.distance.mean())


def test_an_infinite_output_is_no_success() -> None:
    def overflowing(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0.5, np.inf, 0 * x)

    x = torch.zeros(1, 1)
    goal = Deviates(torch.zeros(1, 1), 0.9)
    result = attack_named("square", steps=50).run(overflowing, x, goal, Threat(math.inf, 1.0))
    assert not result.success.any()
    assert result.not_finite.all()


def test_one_example_without_queries_costs_the_others_nothing() -> None:
    """An original on the boundary uses more evaluations: its neighbours in the batch keep their gradients."""
    known = linear(math.inf, classes=2, dtype=torch.float64, count=4)
    w = known.model.weight[0] - known.model.weight[1]  # type: ignore[index, operator]
    b = known.model.bias[0] - known.model.bias[1]  # type: ignore[index, operator]
    x = known.x.clone()
    x[0] -= ((x[0].flatten() @ w + b) / w.square().sum() * w).view_as(x[0])
    attack = attack_named("fmn", steps=40)
    together = attack.run(known.model, x, known.criterion, Threat(math.inf), queries=30)
    apart = attack.run(known.model, x[1:], known.criterion.index(torch.tensor([1, 2, 3])), Threat(math.inf), queries=30,
                       ids=torch.tensor([1, 2, 3]))
    torch.testing.assert_close(together.distance[1:], apart.distance, rtol=1e-12, atol=0)
    assert int(together.forward_calls.max()) <= 30


@pytest.mark.parametrize(("settings", "words"), [
    ({"steps": 2.5}, "steps must be int"), ({"steps": True}, "steps must be int"), ({"loss": 3}, "loss must be str"),
    ({"step_size": "big"}, "step_size must be float")])
def test_settings_have_their_types(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attack_named("pgd", **settings)
    assert attack_named("pgd", step_size=1).step_size == 1  # type: ignore[attr-defined]
