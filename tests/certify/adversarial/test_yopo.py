"""YOPO: which layer is the first, what is frozen, and along which gradients the weights move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.adversarial.yopo import Yopo, first_layer
from certify.classifier import Classifier
from certify.inner import moved
from certify.models.normalise import Normalise
from tests.certify.cases import CLASSES, SHAPE, network, step_of
from verifier.attacks.steps import random_start


class TwiceRead(nn.Module):
    """The input goes around the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(36, 36), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(self.first(x) + x)


def network_of(kind: str) -> nn.Module:
    """normalised: normalisation of inputs before the first layer."""
    if kind == "normalised":
        net = network("conv", dtype=torch.float64)
        return nn.Sequential(Normalise([0.4], [0.3], 3).double(), *net).train()
    return network(kind, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "kinds"), [
    ("mlp", ["Linear", "Relu"]), ("conv", ["Conv", "Relu"]), ("norm", ["Conv"]), ("residual", ["Conv", "Relu"]),
    ("normalised", ["Conv", "Relu"])])
def test_the_first_layer_is_found_after_normalisation(kind: str, kinds: list[str]) -> None:
    net = network_of(kind)
    graph = Classifier(net, SHAPE).graph
    found = [graph.nodes[i].op.kind for i in first_layer(graph).nodes]
    assert found[-len(kinds) :] == kinds
    assert not {"Conv", "Linear", "Relu"} & set(found[: -len(kinds)])
    assert first_layer(graph).nodes[0] == 1, "everything from the input on belongs to it"


@pytest.mark.parametrize(("net", "found"), [
    (TwiceRead(), "is read by 2"),
    (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, CLASSES)), "BatchNorm"),
    (nn.Sequential(nn.ReLU(), nn.Flatten()), "is read by 0"),
])
def test_networks_without_one_are_refused_with_a_sentence(net: nn.Module, found: str) -> None:
    model = Classifier(net, SHAPE)
    with pytest.raises(ValueError, match=f"first dense or convolutional layer.*{found}"):
        Yopo().prepare(model, torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.long), {}, 0)


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm", "residual", "normalised"])
def test_with_p_frozen_the_first_inner_slope_is_the_full_gradient(kind: str) -> None:
    net = network_of(kind)
    step = step_of(net)
    first = first_layer(step.model.graph)
    values, _ = step.model.values(step.x)
    loss = functional.cross_entropy(values[step.model.graph.output], step.y)
    (p,) = torch.autograd.grad(loss, values[first.place])
    x = step.x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(functional.cross_entropy(net(x), step.y), x)
    torch.testing.assert_close(first.slope(step.x, p), expected)


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (3, 1), (2, 3)])
def test_points_and_gradients_equal_a_plain_loop(outer: int, inner: int) -> None:
    net = network("mlp", dtype=torch.float64)
    eps, size = 0.1, 0.25
    step = step_of(net, eps=eps)
    terms = Yopo(outer=outer, inner=inner, step_size=size).loss(step)
    terms.total.backward()
    got = [p.grad.clone() for p in net.parameters()]

    again = step_of(net, eps=eps)
    room, front, back = again.room(), net[:3], net[3:]
    x, losses = random_start(room, again.draws, again.everyone), []
    for _ in range(outer):
        z = front(x).detach().requires_grad_(True)
        (p,) = torch.autograd.grad(functional.cross_entropy(back(z), again.y), z)
        for _ in range(inner):
            here = x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad((front(here) * p).sum(), here)
            x = moved(room, x, slope, size * eps, again.everyone)
        losses.append(functional.cross_entropy(net(x), again.y))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(terms.total, expected)
    for a, b in zip(got, torch.autograd.grad(expected, list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_inner_steps_take_no_further_pass_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    values = Classifier.values
    monkeypatch.setattr(Classifier, "values", lambda self, x: (passes.append(1), values(self, x))[1])
    monkeypatch.setattr(Classifier, "__call__", lambda self, x: pytest.fail("a pass of the module"))
    Yopo(outer=3, inner=7).loss(step_of(network("conv")))
    assert len(passes) == 4
