"""What every adversarial method owes: points inside the set, exact gradients, a resume that changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certify.adversarial.attacked import accuracy
from certify.classifier import Classifier
from certify.data.dataset import Examples, TrainingData
from certify.inner import ascend
from certify.method import EpochEnd, Method
from certify.registry import METHODS, method_named
from certify.settings import TrainSettings
from certify.terms import LossTerms, Progress, Step
from certify.trainer import CHECKPOINT, Told, Trainer
from tests.certify.cases import CLASSES, SHAPE, assert_gradients_agree, examples, network, step_of

QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 4}, "fgsm": {"guard": 0.5}, "fgsm-pgd": {"steps": 4}, "fgsm-rs": {}, "n-fgsm": {},
    "free": {"replays": 2}, "yopo": {"outer": 2, "inner": 2}, "trades": {"steps": 4}, "mart": {"steps": 4},
    "curriculum": {"threshold": 0.1, "last": 3}, "dynamic": {"c_max": 0.05, "steps": 4}, "guided": {"gamma": 0.5},
    "distillation": {"teacher_epochs": 2},
}
WITH_POINTS = [name for name in QUICK if name not in ("free", "yopo", "distillation")]
MEMORY = {"curriculum": {"lesson": 3}, "guided": {"steps": 3}}


def quick(name: str) -> Method:
    return method_named(name, **QUICK[name])


def test_every_adversarial_method_is_registered_and_tested() -> None:
    rows = {name for name, entry in METHODS.items() if entry.where.startswith("certify.adversarial.")}
    assert rows == set(QUICK)
    for name in rows:
        assert quick(name).name == name and quick(name).paper.startswith(METHODS[name].source)
        assert not quick(name).bounds_sets


@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("name", WITH_POINTS)
def test_points_stay_in_ball_and_range_and_move(name: str, norm: float) -> None:
    eps = 0.1 if norm == math.inf else 0.5
    step = step_of(network("conv"), eps=eps, norm=norm, memory=dict(MEMORY.get(name, {})))
    points = quick(name).points(step)  # type: ignore[attr-defined]
    reach = 3 * eps if name == "n-fgsm" else eps
    moves = (points - step.x).flatten(1).norm(p=norm, dim=1)
    assert bool((moves <= reach * (1 + 1e-5)).all())
    assert float(points.min()) >= 0.0 and float(points.max()) <= 1.0
    assert float(moves.max()) > 0.5 * eps
    assert not points.requires_grad


def test_accuracy_is_that_of_the_network_in_use() -> None:
    """With running statistics, which a network in training mode does not use."""
    net, other = network("norm"), network("norm").eval()
    with torch.no_grad():
        for p in (*net.parameters(), *other.parameters()):
            p *= 3
        for n in (net, other):
            n[1].running_mean.fill_(1.0)  # type: ignore[operator, union-attr]
    step = step_of(net, count=64)
    step.y.copy_(other(step.x).argmax(1))
    assert accuracy(step, step.x) == 1.0
    assert float((net(step.x).argmax(1) == step.y).float().mean()) < 0.9
    assert net.training


def test_pgd_attacks_as_its_settings_say() -> None:
    net = network("mlp", dtype=torch.float64)
    for settings in ({"steps": 3, "step_size": 0.1}, {"steps": 2, "restarts": 3}, {"steps": 2, "random": False}):
        points = method_named("pgd", **settings).points(step_of(net))  # type: ignore[attr-defined]
        assert torch.equal(points, ascend(step_of(net), **settings))
        assert not torch.equal(points, ascend(step_of(net)))


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_points_of_free_and_yopo_stay_in_ball_and_range(norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    eps = 0.1 if norm == math.inf else 0.5
    seen: list[Tensor] = []
    call, values = Classifier.__call__, Classifier.values
    monkeypatch.setattr(Classifier, "__call__", lambda self, x: (seen.append(x.detach()), call(self, x))[1])
    monkeypatch.setattr(Classifier, "values", lambda self, x: (seen.append(x.detach()), values(self, x))[1])
    for name in ("free", "yopo"):
        step = step_of(network("conv"), eps=eps, norm=norm)
        for update in method_named(name).updates(step):
            update().total.backward()
        for x in seen:
            assert bool(((x - step.x).flatten(1).norm(p=norm, dim=1) <= eps * (1 + 1e-5)).all())
            assert float(x.min()) >= 0.0 and float(x.max()) <= 1.0
        assert float((seen[-1] - step.x).flatten(1).norm(p=norm, dim=1).max()) > 0.5 * eps
        assert len(seen) == (8 if name == "free" else 6)
        seen.clear()


@pytest.mark.parametrize("name", list(QUICK))
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_gradients_agree_with_differences(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, method = network(kind, dtype=torch.float64), quick(name)
    memory: dict[str, Any] = dict(MEMORY.get(name, {}))
    step = step_of(net, memory=memory)
    method.prepare(step.model, step.x, step.y, memory, 0)
    if name in WITH_POINTS:
        points = method.points(step)  # type: ignore[attr-defined]
        monkeypatch.setattr(type(method), "points", lambda self, step: points)
    # A step of its own for every evaluation: the same draws, the same memory.
    assert_gradients_agree(lambda: method.loss(replace(step, memory=dict(memory))).total, net, entries=4)


@pytest.mark.parametrize("name", WITH_POINTS)
def test_an_attack_leaves_mode_statistics_and_gradients_alone(name: str) -> None:
    net = network("norm")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quick(name).points(step_of(net))  # type: ignore[attr-defined]
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


class Killed(Exception):
    pass


def killed_after(updates: int) -> Any:
    seen: list[Told] = []

    def tell(told: Told) -> None:
        seen.extend([told] * (not told.doing))
        if len(seen) == updates:
            raise Killed
    return tell


@pytest.mark.parametrize("name", list(QUICK))
def test_a_killed_run_that_goes_on_makes_the_same_updates(name: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatches of 16, 16, 16 and 12, and a method's own look at every epoch's end."""
    monkeypatch.setattr("certify.trainer.CHECKPOINT_S", -1.0)  # after every step
    x, y = examples(76, 5)
    data = TrainingData("made", Examples(x, y), Examples(*examples(20, 4)), CLASSES)
    settings = TrainSettings(method=name, model="mlp", eps=0.1, epochs=5, batch_size=16, lr=5e-3, validation=16,
                             method_settings=QUICK[name], model_settings={"hidden": [12]})
    whole = Trainer(settings, data)
    whole.run()
    broken = Trainer(settings, data, tmp_path, tell=killed_after(14))
    with pytest.raises(Killed):
        broken.run()
    again = Trainer(settings, data, tmp_path)
    again.restore(tmp_path / CHECKPOINT)
    assert again.update == 14
    again.run()
    one, other = whole.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert whole.memory.keys() == again.memory.keys()
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(again.memory[k])) for k, v in whole.memory.items())
    assert [row["note"] for row in whole.rows] == [row["note"] for row in again.rows]
    if name in ("curriculum", "guided"):
        assert any(row["note"] for row in whole.rows)


def attacked(net: nn.Module) -> float:
    x, y = examples(128, 9)
    step = Step(Classifier(net, SHAPE), x, y, torch.arange(128), 0.25, 0.25, 0.0, math.inf, (0.0, 1.0),
                Progress(0, 1, 0), 3)
    return accuracy(step, ascend(step, steps=20))


def trained(method: Method, settings: dict[str, Any] | None = None) -> nn.Module:
    """30 epochs of a dense network at radius 0.25, the held-out step after each."""
    net = network("mlp")
    optimiser, memory = torch.optim.Adam(net.parameters(), 5e-3), {}
    model, (x, y), (held_x, held_y) = Classifier(net, SHAPE), examples(64, 5), examples(32, 6)
    method.prepare(model, x, y, memory, 0)
    for k in range(60):
        part = torch.arange(32 * (k % 2), 32 * (k % 2) + 32)
        step = Step(model, x[part], y[part], part, 0.25, 0.25, 0.0, math.inf, (0.0, 1.0), Progress(k / 2, 30, k), 0,
                    memory)
        for update in method.updates(step):
            optimiser.zero_grad()
            update().total.backward()
            optimiser.step()
        if k % 2:
            held = replace(step, x=held_x, y=held_y, number=torch.arange(32))
            method.after_epoch(EpochEnd(held, memory, []))
    return net.eval()


@pytest.fixture(scope="module")
def standard() -> float:
    return attacked(trained(method_named("standard")))


@pytest.mark.parametrize("name", [name for name in QUICK if name != "distillation"])
def test_training_withstands_attacks_better_than_standard_training(name: str, standard: float) -> None:
    settings = {"curriculum": {"last": 5}, "dynamic": {"c_max": 0.1}}.get(name, {})
    assert attacked(trained(method_named(name, **settings))) > standard + 0.1


@pytest.mark.parametrize(("name", "wrong"), [
    ("pgd", {"steps": 0}), ("pgd", {"step_size": 0.0}), ("pgd", {"restarts": 0}), ("fgsm", {"alpha": -1.0}),
    ("fgsm-rs", {"guard": 1.0}), ("fgsm-rs", {"most": 0}), ("n-fgsm", {"noise": -0.1}), ("n-fgsm", {"alpha": 0.0}),
    ("free", {"replays": 0}), ("free", {"step_size": 0.0}), ("yopo", {"outer": 0}), ("yopo", {"inner": 0}),
    ("trades", {"beta": -1.0}), ("trades", {"noise": 0.0}), ("mart", {"weight": -1.0}), ("curriculum", {"last": -1}),
    ("curriculum", {"patience": 0}), ("dynamic", {"c_max": -0.1}), ("dynamic", {"control": 0.0}),
    ("dynamic", {"control": 1.1}), ("fgsm-pgd", {"first": 1.5}), ("fgsm-pgd", {"steps": 0}), ("guided", {"gamma": 0.0}),
    ("guided", {"most": 0}),
    ("distillation", {"temperature": 0.0}), ("distillation", {"teacher_batch": 1}),
])
def test_settings_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    (setting,) = wrong
    with pytest.raises(ValueError, match=setting):
        method_named(name, **wrong)


@pytest.mark.parametrize("name", [name for name in QUICK if name not in ("curriculum", "guided", "distillation")])
def test_without_a_radius_points_are_the_inputs(name: str) -> None:
    step = step_of(network("mlp"), eps=0.0)
    seen: list[LossTerms] = [update() for update in [next(quick(name).updates(step))]]
    expected = nn.functional.cross_entropy(step.model(step.x), step.y)
    key = {"trades": "natural"}.get(name, "adversarial")
    if name == "mart":
        assert float(seen[0].parts["divergence"]) == pytest.approx(0.0, abs=1e-9)
    else:
        torch.testing.assert_close(seen[0].parts[key], expected.detach())
