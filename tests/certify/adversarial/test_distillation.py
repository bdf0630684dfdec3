"""Defensive distillation: a teacher of its own, soft labels, a student at the same temperature."""

from __future__ import annotations

from typing import Any

import torch

from certify.adversarial.distillation import Distillation
from certify.classifier import Classifier
from tests.certify.cases import SHAPE, examples, network, step_of


def test_the_loss_is_the_cross_entropy_to_the_teachers_softened_answers() -> None:
    net, teacher = network("norm", dtype=torch.float64), network("norm", seed=5, dtype=torch.float64)
    memory: dict[str, Any] = {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    step = step_of(net, memory=memory)
    total = Distillation(temperature=7.0).loss(step).total
    soft = (teacher.eval()(step.x) / 7.0).softmax(1)
    expected = -(soft * (network("norm", dtype=torch.float64)(step.x) / 7.0).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(total, expected)
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_the_teacher_is_trained_apart_and_once() -> None:
    net = network("mlp")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = examples(64, 5)
    memory: dict[str, Any] = {}
    method = Distillation(temperature=5.0, teacher_epochs=40, teacher_lr=1e-2, teacher_batch=21)  # 64 = 3 * 21 + 1
    method.prepare(Classifier(net, SHAPE), x, y, memory, 0)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()), "the student has not begun"
    teacher = network("mlp")
    teacher.load_state_dict({k.removeprefix("teacher."): v for k, v in memory.items()})
    assert float((teacher(x).argmax(1) == y).float().mean()) > 0.95
    assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in memory.values())
    kept = {k: v.clone() for k, v in memory.items()}
    method.prepare(Classifier(network("mlp", seed=3), SHAPE), x, y, memory, 1)
    assert all(torch.equal(kept[k], memory[k]) for k in kept), "a resumed run keeps its teacher"
    twin: dict[str, Any] = {}
    method.prepare(Classifier(network("mlp"), SHAPE), x, y, twin, 0)
    assert all(torch.equal(kept[k], twin[k]) for k in kept)


def test_a_student_learns_and_its_logits_are_large() -> None:
    x, y = examples(64, 5)
    sizes = []
    for temperature in (1.0, 20.0):
        net, memory = network("mlp"), {}
        model = Classifier(net, SHAPE)
        method = Distillation(temperature=temperature, teacher_epochs=100, teacher_lr=1e-2)
        method.prepare(model, x, y, memory, 0)
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for k in range(100):
            optimiser.zero_grad()
            method.loss(step_of(net, count=64, seed=5, update=k, memory=memory)).total.backward()
            optimiser.step()
        assert float((net(x).argmax(1) == y).float().mean()) > 0.9
        top = net(x).sort(1, descending=True).values
        sizes.append(float((top[:, 0] - top[:, 1]).detach().mean()))
    assert sizes[1] > 3 * sizes[0], sizes
