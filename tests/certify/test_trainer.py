"""The loop: what is random depends on the seed and the place alone, and a killed run ends as one that was not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certify.checkpoint import UnusableCheckpoint, load
from certify.classifier import Classifier
from certify.data.dataset import Examples, TrainingData
from certify.settings import TrainSettings
from certify.terms import LossTerms, Step
from certify.trainer import CHECKPOINT, Diverged, Points, Told, Trainer, held_out
from certify.training import train
from tests.certify.cases import CLASSES, examples

SMALL = TrainSettings(method="ibp", model="mlp", eps=0.05, epochs=3, batch_size=16, ramp_end=1.5, lr=5e-3,
                      validation=16, validate_with="ibp", model_settings={"hidden": [12]})


def data(count: int = 80) -> TrainingData:
    x, y = examples(count, 3)
    return TrainingData("made", Examples(x, y), Examples(*examples(20, 4)), CLASSES)


def pictures() -> TrainingData:
    random = torch.Generator().manual_seed(5)
    x, y = torch.rand(80, 1, 8, 8, generator=random), torch.arange(80) % CLASSES
    return TrainingData("pictures", Examples(x, y), Examples(x[:20], y[:20]), CLASSES)


class Killed(Exception):
    pass


def killed_after(updates: int) -> Any:
    seen = []

    def tell(told: Told) -> None:
        seen.extend([told] * (not told.doing))
        if len(seen) == updates:
            raise Killed
    return tell


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [v.clone() for v in trainer.module.state_dict().values()]


@pytest.mark.parametrize("updates", [1, 4, 5, 9])
@pytest.mark.parametrize("change", [{}, {"optimiser": "sgd"}, {"average": "ema"},
                                    {"average": "swa", "average_from": 1}], ids=["adam", "sgd", "ema", "swa"])
def test_a_killed_run_that_goes_on_ends_with_the_same_weights(updates: int, change: dict[str, Any], tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.trainer.CHECKPOINT_S", -1.0)  # after every step
    settings = replace(SMALL, **change)
    whole = Trainer(settings, data())
    whole.run()
    broken = Trainer(settings, data(), tmp_path, tell=killed_after(updates))
    with pytest.raises(Killed):
        broken.run()
    again = Trainer(settings, data(), tmp_path)
    again.restore(tmp_path / CHECKPOINT)
    assert again.update == updates
    again.run()
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in t.rows] for t in (whole, again)]
    assert strip[0] == strip[1] and len(strip[0]) == 3
    assert whole.chosen_epoch == again.chosen_epoch


@pytest.mark.parametrize("change", [
    {"method": "lipschitz-margin", "average": "swa"}, {"method": "taps", "average": "ema"}, {"method": "parseval"},
    {"method": "wong-kolter", "norm": "2", "method_settings": {"projections": 3}}], ids=lambda c: str(c["method"]))
def test_so_does_one_of_batch_statistics_memory_and_half_an_epoch(change: dict[str, Any], tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.trainer.CHECKPOINT_S", -1.0)
    settings = replace(SMALL, epochs=2.5, validate_with="pgd", model="cnn5", model_settings={"width": 2, "hidden": 8},
                       **change)
    whole, broken, again, over = (Trainer(settings, data(), f, tell=t) for f, t in (
        (None, None), (tmp_path, killed_after(9)), (tmp_path, None), (tmp_path, None)))
    whole.run()
    with pytest.raises(Killed):
        broken.run()
    for trainer in (again, over):  # the second finds a run that is over
        trainer.restore(tmp_path / CHECKPOINT)
        trainer.run()
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(trainer), strict=True))
        assert whole.memory.keys() == trainer.memory.keys() and whole.chosen_epoch == trainer.chosen_epoch


def test_another_seed_gives_another_network() -> None:
    first, second, other = (Trainer(replace(SMALL, seed=seed), data()) for seed in (0, 0, 1))
    for trainer in (first, second, other):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    Trainer(SMALL, data(), tmp_path).run()
    with pytest.raises(ValueError, match=r"lr 0\.005, not 0\.1"):
        Trainer(replace(SMALL, lr=0.1), data(), tmp_path).restore(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="other training examples than made holds now"):
        Trainer(SMALL, data(81), tmp_path).restore(tmp_path / CHECKPOINT)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    torch.save(torch.zeros(3), tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="not a checkpoint"):
        Trainer(SMALL, data(), tmp_path).restore(tmp_path / CHECKPOINT)
    (tmp_path / CHECKPOINT).write_bytes(whole)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:500])
    with pytest.raises(ValueError, match="not a checkpoint"):
        Trainer(SMALL, data(), tmp_path).restore(tmp_path / CHECKPOINT)


@pytest.mark.parametrize(("change", "words"), [
    ({"test": Examples(*examples(20, 5))}, "other test examples than made holds now"),
    ({"clip": (0.0, 2.0)}, r"made with clip \(0\.0, 1\.0\), not \(0\.0, 2\.0\)"),
    ({"clip": None}, "not None"), ({"mean": (0.1,), "std": (2.0,)}, r"made with mean \(\), not \(0\.1,\)"),
    ({"classes": CLASSES + 1}, f"made with classes {CLASSES}"), ({"augmentation": "flip-crop"}, "augmentation none"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_checkpoint_of_other_data_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    Trainer(replace(SMALL, epochs=0.3), data(), tmp_path).run()
    with pytest.raises(ValueError, match=words):
        Trainer(replace(SMALL, epochs=0.3), replace(data(), **change), tmp_path).restore(tmp_path / CHECKPOINT)


def test_a_checkpoint_with_one_other_byte_is_refused_or_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Bytes that carry nothing may be others; where a number is another one, the run would go on from it."""
    trainer = Trainer(replace(SMALL, epochs=0.3), data(), tmp_path)
    trainer.run()
    path = tmp_path / CHECKPOINT
    whole, wanted = path.read_bytes(), load(path)
    refused = 0
    for k in range(0, len(whole), 97):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 16]) + whole[k + 1:])
        try:
            found = load(path)
        except UnusableCheckpoint:
            refused += 1
            continue
        for name, value in wanted["module"].items():
            assert torch.equal(found["module"][name], value), k
        assert {**found, "module": {}, "optimiser": {}, "best_state": {}, "sums": []} == {
            **wanted, "module": {}, "optimiser": {}, "best_state": {}, "sums": []}, k
    assert refused > 20


@pytest.mark.parametrize(("batch_size", "count"), [(1, 80), (16, 1)])
def test_minibatches_of_one_and_batch_normalisation_of_single_numbers_are_refused(batch_size: int, count: int) -> None:
    settings = replace(SMALL, batch_size=batch_size, validation=0, model="cnn5", keep="last",
                       model_settings={"width": 2, "hidden": 4})
    few = replace(pictures(), train=pictures().train.take(slice(0, count)))
    with pytest.raises(ValueError, match=f"batch_size {batch_size}.*one example"):
        Trainer(settings, few)
    Trainer(replace(settings, epochs=0.05, model="wang4", validate_with="pgd"), few).run()  # norms of whole maps
    Trainer(replace(settings, epochs=0.05, model="mlp", model_settings={}), few).run()


def test_a_run_with_settings_in_tuples_goes_on(tmp_path: Path) -> None:
    settings = replace(SMALL, model_settings={"hidden": (12,)}, milestones=(0.5, 1.0), epochs=1)
    for resume in (False, True):
        train(settings, data=data(), out=tmp_path / "run", resume=resume)


def test_data_that_do_not_fit_together_are_refused() -> None:
    part = data().train
    with pytest.raises(ValueError, match=f"label {CLASSES - 1} is out of range"):
        TrainingData("made", part, part, CLASSES - 1)
    with pytest.raises(ValueError, match="outside their range"):
        TrainingData("made", part, part, CLASSES, (0.2, 1.0))
    with pytest.raises(ValueError, match="test inputs have shape"):
        TrainingData("made", part, Examples(part.x.flatten(1), part.y), CLASSES)


def test_schedules_are_what_steps_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float, float, float]] = []
    before = Trainer._run_batch

    def look(self: Trainer, step: Step) -> None:
        before(self, step)
        told.append((step.progress.epoch, step.eps, step.natural, self.optimiser.param_groups[0]["lr"]))
    monkeypatch.setattr(Trainer, "_run_batch", look)
    Trainer(replace(SMALL, epochs=2.5, train_eps=2.0, ramp_begin=0.5, natural_last=0.2, milestones=(2.0,),
                    lr_warmup=1.0), data()).run()
    assert len(told) == 10, "four minibatches an epoch, the last epoch half"
    for epoch, eps, natural, lr in told:
        share = min(1.0, max(0.0, epoch - 0.5))
        assert eps == pytest.approx(0.1 * share) and natural == pytest.approx(1 - 0.8 * share)
        assert lr == pytest.approx(5e-3 * min(1.0, epoch) * (0.2 if epoch >= 2 else 1.0))


@pytest.mark.parametrize(("schedule", "at"), [("cosine", (1 + math.cos(math.pi / 4)) / 2), ("one-cycle", 0.75)])
def test_other_learning_rates_fall_to_zero(schedule: str, at: float) -> None:
    trainer = Trainer(replace(SMALL, lr_schedule=schedule, lr_warmup=1.0, epochs=5), data())
    assert trainer.learning_rate(0.5) == pytest.approx(2.5e-3)
    assert trainer.learning_rate(2.0) == pytest.approx(5e-3 * at)
    assert trainer.learning_rate(5.0) == pytest.approx(0.0)


def test_the_epoch_that_validates_best_after_the_ramp_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.3, 0.5, 0.5, 0.1])
    states = []

    def measured(model: Any, *rest: Any) -> dict[str, float]:
        states.append([p.detach().clone() for p in model.module.parameters()])
        return {"clean": 1.0, "pgd": 1.0, "ibp": next(scores)}
    monkeypatch.setattr("certify.trainer.measure", measured)
    trainer = Trainer(replace(SMALL, epochs=5), data())
    model = trainer.run()
    assert trainer.chosen_epoch == 4, "the later one of equals; the first epoch was before the end of the ramp"
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), states[3], strict=True))
    assert not model.module.training


def test_a_loss_that_is_no_number_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from certify.losses.ibp import Ibp

    def loss(self: Ibp, step: Step) -> LossTerms:
        return LossTerms(step.model(step.x).sum() * torch.nan)
    monkeypatch.setattr(Ibp, "loss", loss)
    trainer = Trainer(SMALL, data())
    before = weights(trainer)
    with pytest.raises(Diverged, match="nan in epoch 1"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True)), "no step was made of it"


def test_weights_that_are_no_numbers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose slope is not: with one step in the run no loss sees what it made."""
    from certify.losses.ibp import Ibp

    def loss(self: Ibp, step: Step) -> LossTerms:
        return LossTerms((0 * step.model(step.x)).sum().abs().sqrt())
    monkeypatch.setattr(Ibp, "loss", loss)
    with pytest.raises(Diverged, match="weights are no numbers in epoch 1"):
        Trainer(replace(SMALL, epochs=0.2), data()).run()


def test_gradients_are_clipped_and_weights_penalised() -> None:
    clipped = Trainer(replace(SMALL, clip_gradient=1e-6, optimiser="sgd", momentum=0.0, epochs=1), data())
    before = weights(clipped)
    clipped.run()
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(before, weights(clipped), strict=True)))
    assert 0 < moved <= 4 * SMALL.lr * 1e-6 * (1 + 1e-3)
    sizes = []
    for l1 in (0.0, 1e-2):
        trainer = Trainer(replace(SMALL, l1=l1, epochs=4), data())
        trainer.run()
        layers = [m for m in trainer.module.modules() if isinstance(m, nn.Linear)]
        sizes.append(sum(float(m.weight.detach().abs().sum()) for m in layers))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("count", [0, 16])
def test_methods_measure_on_what_is_held_out_or_else_on_training_examples(count: int,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(replace(SMALL, method="fgsm", epochs=1, ramp_end=0.0, validation=count), data())
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(type(trainer.method), "after_epoch", lambda self, end: seen.append(end.held_out.x))
    trainer.run()
    assert torch.equal(seen[0], trainer.validation.x if count else trainer.train.x)


def test_looking_at_a_run_shows_each_epoch_and_changes_nothing() -> None:
    seen: list[tuple[int, bool, torch.Tensor]] = []

    def look(epoch: int, model: Classifier) -> None:
        with model.attacked():
            model(pictures().train.x)
        torch.rand(3)
        seen.append((epoch, model.module.training, next(model.module.parameters()).detach().clone()))
    settings = replace(SMALL, model="cnn5", model_settings={"width": 2}, method="standard", keep="last")
    watched = train(settings, data=pictures(), look=look)
    alone = train(settings, data=pictures())
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3] and not any(training for _, training, _ in seen)
    assert not torch.equal(seen[0][2], seen[1][2])
    assert torch.equal(seen[2][2], next(watched.model.module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(watched.model.module.state_dict().values(),
                                                 alone.model.module.state_dict().values(), strict=True))


def test_the_card_says_what_is_asked_for() -> None:
    settings = replace(SMALL, epochs=0.3)
    assert set(train(settings, data=data(), worth=("clean",)).card["test"]) == {"examples", "eps", "norm", "clean"}
    cascade = train(replace(settings, cascade=2), data=data(), worth=("clean", "ibp")).card
    assert all(set(stage) == {"examples", "eps", "norm", "clean", "ibp"} for stage in cascade["stages"])


def test_validation_examples_are_not_trained_on() -> None:
    whole = data().train
    train, validation = held_out(whole, 16, 0)
    assert len(train) == 64 and len(validation) == 16
    rows = {tuple(row.flatten().tolist()) for row in train.x}
    assert not any(tuple(row.flatten().tolist()) in rows for row in validation.x)
    assert len(held_out(whole, -1, 0)[1]) == 8 and len(held_out(whole, 0, 0)[1]) == 0
    with pytest.raises(ValueError, match="only 80"):
        held_out(whole, 80, 0)


def test_the_points_of_an_adversarial_method_are_shown() -> None:
    """Where it would take its loss next: in each set, by the lesson that is reached; the run ends as it did alone."""
    met: list[tuple[int, torch.Tensor]] = []
    asked = Examples(*examples(6, 9))

    def meet(epoch: int, model: Classifier, points: Points) -> None:
        met.append((epoch, points(asked)))
        assert torch.equal(met[-1][1], points(asked)) and not model.module.training
    settings = replace(SMALL, method="curriculum", keep="last", validate_with="pgd",
                       method_settings={"last": 2, "threshold": 1e-6, "mixing": False})
    watched, alone = train(settings, data=data(), meet=meet, worth=("clean",)), train(settings, data=data(), worth=())
    assert [epoch for epoch, _ in met] == [1, 2, 3] and set(watched.card["test"]) - set(alone.card["test"]) == {"clean"}
    moves = [float((x - asked.x).abs().max()) for _, x in met]
    assert all(0 < move <= SMALL.eps + 1e-6 for move in moves), "lesson 0 is over after the first epoch"
    assert all(torch.equal(a, b) for a, b in zip(watched.model.module.state_dict().values(),
                                                 alone.model.module.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="ibp does not train on adversarial points alone"):
        train(SMALL, data=data(), meet=meet)
    with pytest.raises(ValueError, match="worth: expected some of clean, pgd"):
        train(SMALL, data=data(), worth=("acc",))
