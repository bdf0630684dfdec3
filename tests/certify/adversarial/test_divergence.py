"""TRADES and MART against their formulas, example by example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from certify.adversarial.mart import Mart, boosted_cross_entropy
from certify.adversarial.trades import Trades, divergence
from certify.inner import moved, nearby
from tests.certify.cases import network, step_of


def kl(p: Tensor, q: Tensor) -> float:
    return sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True))


def test_divergence_equals_its_definition_and_that_of_pytorch() -> None:
    a, b = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = a.softmax(1), b.softmax(1)
    expected = torch.tensor([kl(p[i], q[i]) for i in range(7)], dtype=torch.float64)
    torch.testing.assert_close(divergence(a, b), expected)
    torch.testing.assert_close(divergence(a, b).mean(), functional.kl_div(q.log(), p, reduction="batchmean"))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_equals_its_formula(beta: float) -> None:
    method, step = Trades(beta=beta, steps=3), step_of(network("mlp", dtype=torch.float64))
    points = method.points(step_of(network("mlp", dtype=torch.float64)))
    p, q = step.model(step.x).detach().softmax(1), step.model(points).detach().softmax(1)
    total = sum(-math.log(float(p[i, step.y[i]])) + beta * kl(p[i], q[i]) for i in range(len(p))) / len(p)
    assert float(method.loss(step).total.detach()) == pytest.approx(total, rel=1e-10)


def test_trades_attacks_the_divergence_not_the_label() -> None:
    step = step_of(network("mlp", dtype=torch.float64), eps=0.1)
    clean = step.model(step.x).detach()
    start = divergence(clean, step.model(nearby(step, 1e-3)))
    points = Trades().points(step)
    reached = divergence(clean, step.model(points))
    assert bool((reached > start).all())
    wrong = step_of(network("mlp", dtype=torch.float64), eps=0.1)
    wrong.y.copy_((wrong.y + 1) % 4)
    assert torch.equal(Trades().points(wrong), Trades().points(step_of(network("mlp", dtype=torch.float64), eps=0.1)))
    assert step.y.ne(wrong.y).all()


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_trades_points_equal_a_plain_ascent_of_the_divergence(norm: float) -> None:
    net, eps = network("mlp", dtype=torch.float64), 0.1 if norm == math.inf else 0.5
    with torch.no_grad():
        for p in net.parameters():
            p *= 2.5  # so that the two directions of the divergence differ
    again = step_of(net, eps=eps, norm=norm)
    x = nearby(again, 1e-3)
    for _ in range(3):
        x = x.detach().requires_grad_(True)
        functional.kl_div(net(x).log_softmax(1), net(again.x).softmax(1), reduction="sum").backward(inputs=[x])
        x = moved(again.room(), x.detach(), x.grad, 0.25 * eps, again.everyone)
    torch.testing.assert_close(Trades(steps=3).points(step_of(net, eps=eps, norm=norm)), x, rtol=0, atol=1e-9)


def test_the_clean_side_of_the_divergence_is_differentiated_too() -> None:
    net = network("mlp", dtype=torch.float64)
    method, step = Trades(beta=6.0, steps=3), step_of(net)
    points = method.points(step_of(net))
    method.loss(step).total.backward()
    got = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    clean = net(step.x)
    (functional.cross_entropy(clean, step.y) + 6.0 * functional.kl_div(
        net(points).log_softmax(1), clean.softmax(1), reduction="batchmean")).backward()
    for a, p in zip(got, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_boosted_cross_entropy_equals_its_formula() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    y = torch.arange(9) % 4
    p = logits.softmax(1)
    for i, value in enumerate(boosted_cross_entropy(logits, y)):
        wrong = max(float(p[i, k]) for k in range(4) if k != int(y[i]))
        assert float(value) == pytest.approx(-math.log(float(p[i, y[i]])) - math.log(1 - wrong), rel=1e-10)
    assert bool(torch.isfinite(boosted_cross_entropy(torch.tensor([[0.0, 200.0, 0.0, 0.0]]), torch.tensor([0]))).all())


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_mart_equals_its_formula(weight: float) -> None:
    net = network("mlp", dtype=torch.float64)
    method, step = Mart(weight=weight, steps=3), step_of(net)
    points = method.points(step_of(net))
    p, q = net(step.x).detach().softmax(1), net(points).detach().softmax(1)
    total = 0.0
    for i, label in enumerate(step.y.tolist()):
        wrong = max(float(q[i, k]) for k in range(4) if k != label)
        total += -math.log(float(q[i, label])) - math.log(1 - wrong)
        total += weight * kl(p[i], q[i]) * (1 - float(p[i, label]))
    assert float(method.loss(step).total.detach()) == pytest.approx(total / len(p), rel=1e-10)


def test_starts_lie_beside_the_inputs_and_inside_the_set() -> None:
    step = step_of(network("mlp"), eps=0.05)
    start = nearby(step, 1e-3)
    assert 0 < float((start - step.x).abs().max()) < 0.01
    assert float(start.min()) >= 0 and float(start.max()) <= 1
    assert float((nearby(step, 10.0) - step.x).abs().max()) <= 0.05 + 1e-6
