"""Attacks that grow over a run: by what a network withstands (curriculum), by its gradients (guided)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from certify.adversarial import curriculum
from certify.adversarial.curriculum import Curriculum
from certify.adversarial.guided import Guided
from certify.adversarial.pgd import Pgd
from certify.inner import ascend
from certify.method import EpochEnd
from certify.terms import Progress
from tests.certify.cases import network, step_of


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """k-accuracies to be reported, one an epoch."""
    values: list[float] = []
    monkeypatch.setattr(curriculum, "accuracy", lambda step, x: values.pop(0))
    return values


def epochs(method: Curriculum, count: int) -> tuple[list[int], list[str]]:
    """(the lesson after each epoch, notes)."""
    memory: dict[str, Any] = {}
    lessons, notes = [], []
    for _ in range(count):
        end = EpochEnd(step_of(network("mlp"), memory=memory), memory, [])
        method.after_epoch(end)
        lessons.append(memory.get("lesson", 0))
        notes += end.notes
    return lessons, notes


def test_a_lesson_ends_when_its_accuracy_stagnates(reached: list[float]) -> None:
    reached += [0.5, 0.6, 0.6, 0.55, 0.3, 0.2, 0.1]
    lessons, notes = epochs(Curriculum(last=5, patience=2), 7)
    assert lessons == [0, 0, 0, 1, 1, 1, 2], "a new lesson begins with no best of its own"
    assert len(notes) == 2 and "0-accuracy 0.550" in notes[0] and "lesson 1 of 5" in notes[0]


def test_or_when_the_accuracy_is_high_enough_and_the_last_lesson_stays(reached: list[float]) -> None:
    reached += [0.95, 0.5, 0.95]
    lessons, _ = epochs(Curriculum(last=2, threshold=0.9, patience=9), 5)
    assert lessons == [1, 1, 2, 2, 2]
    assert not reached


def test_the_accuracy_is_that_under_the_attack_of_the_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(curriculum, "accuracy", lambda step, x: seen.append(x) or 0.0)
    for lesson in (0, 2):
        memory: dict[str, Any] = {"lesson": lesson}
        Curriculum().after_epoch(EpochEnd(step_of(network("mlp")), memory, []))
    assert torch.equal(seen[0], step_of(network("mlp")).x)
    assert torch.equal(seen[1], ascend(step_of(network("mlp")), steps=2))


def test_without_mixing_lesson_k_is_pgd_with_k_steps() -> None:
    net = network("mlp", dtype=torch.float64)
    for k in (1, 4):
        points = Curriculum(mixing=False).points(step_of(net, memory={"lesson": k}))
        assert torch.equal(points, Pgd(steps=k).points(step_of(net)))
    assert torch.equal(Curriculum().points(step_of(net)), step_of(net).x), "the first lesson is clean"


def test_mixing_gives_every_example_an_attack_of_the_lessons_so_far() -> None:
    net = network("mlp", dtype=torch.float64)
    step = step_of(net, count=400, eps=0.1, memory={"lesson": 3})
    points = Curriculum().points(step)
    again = step_of(net, count=400, eps=0.1)
    steps = again.draws.integers(again.everyone, (), 4)
    counts = torch.bincount(steps, minlength=4)
    assert int(counts.min()) > 70 and len(counts) == 4
    assert torch.equal(points[steps == 0], step.x[steps == 0])
    # The draws of starts go on where those of lessons ended.
    for k in (1, 2, 3):
        fresh = step_of(net, count=400, eps=0.1)
        fresh.draws.integers(fresh.everyone, (), 4)
        torch.testing.assert_close(points[steps == k], ascend(fresh, steps=k)[steps == k], rtol=0, atol=1e-12)


def magnitudes(method: Guided, values: list[float]) -> tuple[list[int], list[str]]:
    """(the number of steps after each epoch, notes), for epochs that sum up to these magnitudes."""
    memory: dict[str, Any] = {}
    steps, notes = [], []
    for value in values:
        memory["magnitude"] = torch.tensor(value)
        end = EpochEnd(step_of(network("mlp"), memory=memory), memory, [])
        method.after_epoch(end)
        steps.append(memory["steps"])
        notes += end.notes
        assert "magnitude" not in memory
    return steps, notes


def test_steps_grow_when_the_magnitude_does() -> None:
    #         0 steps | threshold 11 | 10 <= 11 | 12 > 11, now 13.2 | 13 | 14 > 13.2 | most
    values = [5.0, 10.0, 10.0, 12.0, 13.0, 14.0, 99.0]
    steps, notes = magnitudes(Guided(gamma=1.1, step_size=1.0, most=3), values)
    assert steps == [1, 1, 1, 2, 2, 3, 3]
    assert len(notes) == 2 and "12" in notes[0]


def test_steps_grow_anyway_until_they_can_cross_the_radius() -> None:
    steps, _ = magnitudes(Guided(gamma=10.0, step_size=0.25), [1.0] * 7)
    assert steps == [1, 1, 2, 3, 4, 4, 4]


def test_the_magnitude_is_the_sum_of_gradients_at_the_last_step() -> None:
    net = network("mlp", dtype=torch.float64)
    step = step_of(net, memory={"steps": 2, "magnitude": 1.5})
    points = Guided().points(step)
    assert torch.equal(points, Pgd(steps=2).points(step_of(net)))
    before = Pgd(steps=1).points(step_of(net)).requires_grad_(True)
    (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(before), step.y, reduction="sum"), before)
    assert float(step.memory["magnitude"]) == pytest.approx(1.5 + float(g.abs().sum()))


def test_the_first_epoch_trains_on_random_points() -> None:
    step = step_of(network("mlp"))
    assert torch.equal(Guided().points(step), ascend(step_of(network("mlp")), steps=0))
    assert "magnitude" not in step.memory


@pytest.mark.parametrize("method", [Curriculum(), Guided()])
def test_epochs_without_a_look_are_refused(method: Curriculum | Guided) -> None:
    with pytest.raises(ValueError, match="validation > 0"):
        method.points(step_of(network("mlp"), progress=Progress(1.0, 5, 4)))
    memory: dict[str, Any] = {}
    method.after_epoch(EpochEnd(step_of(network("mlp"), memory=memory), memory, []))
    method.points(step_of(network("mlp"), progress=Progress(1.0, 5, 4), memory=memory))
