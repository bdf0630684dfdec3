"""Single-step attacks, and the guard that sees when a network has learned to defeat just that step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certify.adversarial.fgsm import Fgsm
from certify.adversarial.fgsm_rs import FgsmRs
from certify.adversarial.n_fgsm import NFgsm
from certify.adversarial.single_step import SingleStep
from certify.classifier import Classifier
from certify.inner import ascend
from certify.method import EpochEnd
from certify.terms import Progress, Step
from tests.certify.cases import network, step_of


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), y, reduction="sum"), x)
    return g


def test_fgsm_is_one_step_of_eps_from_the_input() -> None:
    net = network("mlp", dtype=torch.float64)
    step = step_of(net, eps=0.05)
    expected = (step.x + 0.05 * gradient(net, step.x, step.y).sign()).clamp(0, 1)
    torch.testing.assert_close(Fgsm().points(step), expected)


def test_fgsm_rs_goes_beyond_eps_from_its_start_and_is_drawn_in() -> None:
    net = network("mlp", dtype=torch.float64)
    step = step_of(net, eps=0.05)
    points = FgsmRs().points(step)
    assert torch.equal(points, ascend(step_of(net, eps=0.05), steps=1, step_size=1.25, random=True))
    assert float((points - step.x).abs().max()) == pytest.approx(0.05)
    other = step_of(net, eps=0.05, update=1)
    assert not torch.equal(FgsmRs().points(other), points), "another start at another update"


def test_n_fgsm_is_noise_and_a_step_without_projection() -> None:
    net = network("mlp", dtype=torch.float64)
    step = step_of(net, eps=0.05, clip=None)
    points = NFgsm().points(step)
    again = step_of(net, eps=0.05, clip=None)
    low, high = again.x - 0.1, again.x + 0.1
    start = low + (high - low) * again.draws.uniform(again.everyone, again.x.shape[1:], torch.float64)
    torch.testing.assert_close(points, start + 0.05 * gradient(net, start, again.y).sign())
    assert float((points - step.x).abs().max()) > 0.1


class Trapped(nn.Module):
    """Right at 0.5 and 0.1 around it, wrong within 0.025 of 0.45: a step of 0.1 jumps over the hole."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = nn.Linear(1, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.split.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.split.bias.copy_(torch.tensor([-0.45, 0.45]))
            self.join.weight.copy_(torch.tensor([[20.0, 20.0], [0.0, 0.0]]))
            self.join.bias.copy_(torch.tensor([-0.5, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.split(x).relu())


def end_of_epoch(net: nn.Module, x: Tensor, y: Tensor, memory: dict[str, Any]) -> EpochEnd:
    step = Step(Classifier(net, tuple(x.shape[1:])), x, y, torch.arange(len(x)), 0.1, 0.1, 0.0, math.inf, (0.0, 1.0),
                Progress(1, 2, 9), 0, memory)
    return EpochEnd(step, memory, [])


@pytest.mark.parametrize("method", [FgsmRs(), NFgsm(), Fgsm(guard=0.5)])
def test_the_guard_sees_the_collapse_and_asks_for_steps(method: SingleStep) -> None:
    memory: dict[str, Any] = {}
    end = end_of_epoch(Trapped(), torch.full((16, 1), 0.5), torch.zeros(16, dtype=torch.long), memory)
    method.after_epoch(end)
    assert memory["steps"] == 2
    (note,) = end.notes
    assert "0.000 under PGD-10" in note and "1.000 under FGSM" in note and "2 steps" in note
    net = network("mlp", dtype=torch.float64)
    points = method.points(step_of(net, memory=memory))
    twin = ascend(step_of(net), steps=2, step_size=2 * method.alpha / 3, random=not isinstance(method, Fgsm))
    assert torch.equal(points, twin)
    memory["steps"] = method.most
    method.after_epoch(end)
    assert memory["steps"] == method.most and "stays at its 10 steps" in end.notes[-1]


def test_without_a_collapse_or_a_guard_nothing_changes() -> None:
    for net, guard in ((network("mlp"), 0.5), (Trapped(), 0.0)):
        memory: dict[str, Any] = {}
        if guard:
            step = step_of(net)
            x, y = step.x, net(step.x).argmax(1)  # right by definition, whatever it is
            end = end_of_epoch(net, x, y, memory)
        else:
            end = end_of_epoch(net, torch.full((16, 1), 0.5), torch.zeros(16, dtype=torch.long), memory)
        FgsmRs(guard=guard).after_epoch(end)
        assert "steps" not in memory and not end.notes


@pytest.mark.parametrize(("single", "several", "collapsed"), [
    (0.05, 0.0, False), (0.3, 0.14, True), (0.3, 0.16, False)])
def test_a_collapse_is_a_share_and_a_gap(single: float, several: float, collapsed: bool,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network, right about nearly nothing under either attack, has not collapsed."""
    reached = [single, several]
    monkeypatch.setattr("certify.adversarial.single_step.accuracy", lambda step, x: reached.pop(0))
    memory: dict[str, Any] = {}
    FgsmRs().after_epoch(end_of_epoch(Trapped(), torch.full((16, 1), 0.5), torch.zeros(16, dtype=torch.long), memory))
    assert ("steps" in memory) == collapsed
