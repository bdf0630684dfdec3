"""Free adversarial training against a plain loop: one pass for weights and perturbation, nothing reset in between."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from certify.adversarial.free import Free
from certify.classifier import Classifier
from certify.terms import Progress, Step
from tests.certify.cases import SHAPE, examples, network


@pytest.mark.parametrize("replays", [1, 3])
def test_equals_the_algorithm_of_the_paper(replays: int) -> None:
    eps, sizes = 0.1, [8, 8, 5, 8]
    x, y = examples(29, 5, torch.float64)
    net = network("mlp", dtype=torch.float64)
    optimiser, memory = torch.optim.SGD(net.parameters(), 0.1), {}
    model, start = Classifier(net, SHAPE), 0
    for size in sizes:
        part = torch.arange(start, start + size)
        start += size
        step = Step(model, x[part], y[part], part, eps, eps, 0.0, math.inf, (0.0, 1.0), Progress(0, 1, 0), 0, memory)
        for update in Free(replays=replays).updates(step):
            optimiser.zero_grad()
            update().total.backward()
            optimiser.step()

    twin = network("mlp", dtype=torch.float64)
    delta, start = torch.zeros(8, *SHAPE, dtype=torch.float64), 0
    for size in sizes:
        part = slice(start, start + size)
        start += size
        for _ in range(replays):
            point = (x[part] + delta[:size]).clamp(0, 1).requires_grad_(True)
            loss = functional.cross_entropy(twin(point), y[part])
            *slopes, by_point = torch.autograd.grad(loss, [*twin.parameters(), point])
            with torch.no_grad():
                for p, g in zip(twin.parameters(), slopes, strict=True):
                    p -= 0.1 * g
            delta[:size] = (delta[:size] + eps * by_point.sign()).clamp(-eps, eps)
    torch.testing.assert_close(memory["delta"], delta, rtol=0, atol=1e-12)
    assert float(delta.abs().max()) == pytest.approx(eps)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_a_smaller_radius_draws_the_perturbation_in() -> None:
    memory: dict[str, Any] = {"delta": torch.full((12, *SHAPE), 0.2)}
    net = network("mlp")
    x, y = examples(12)
    step = Step(Classifier(net, SHAPE), x, y, torch.arange(12), 0.05, 0.05, 0.0, math.inf, None, Progress(0, 1, 0), 0,
                memory)
    update = next(Free().updates(step))
    terms = update()
    expected = functional.cross_entropy(net(x + 0.05), y)
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(Free().loss(replace(step, memory={})).total, functional.cross_entropy(net(x), y))


def test_a_loop_without_gradients_is_told() -> None:
    net = network("mlp")
    x, y = examples(12)
    step = Step(Classifier(net, SHAPE), x, y, torch.arange(12), 0.05, 0.05, 0.0, math.inf, None, Progress(0, 1, 0), 0)
    updates = Free().updates(step)
    next(updates)()
    with pytest.raises(RuntimeError, match="backward"):
        next(updates)
