"""The commands for MNIST that the documentation shows: each is read as the command line reads it, and takes a step."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from certify.cli import evaluate, train
from certify.data.dataset import Examples, TrainingData
from certify.settings import TrainSettings
from certify.trainer import Trainer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
CHAPTERS = {title: PAGE.read_text(encoding="utf-8").split(f"\n## {title}")[1].split("\n## ")[0]
            for title in ("MNIST on two cores", "On a GPU")}
LINES = {title: re.findall(r"^rmax (train|evaluate) (.*)$", text, re.MULTILINE) for title, text in CHAPTERS.items()}
COMMANDS = [("cuda" if title == "On a GPU" else "cpu", name, words)
            for title, lines in LINES.items() for name, words in lines]


def made(*_: object, **__: object) -> TrainingData:
    """A few images of MNIST's shape."""
    x = torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 10
    return TrainingData("mnist", Examples(x, y), Examples(x[:4], y[:4]), 10)


class Read(Exception):
    """The settings that the command line came to."""

    def __init__(self, settings: TrainSettings, device: str | None) -> None:
        self.settings, self.device = settings, device


def read(monkeypatch: pytest.MonkeyPatch, words: str) -> Read:
    def training(settings: TrainSettings, *, device: str | None, **_: Any) -> None:
        raise Read(settings, device)
    monkeypatch.setattr("certify.cli.train.check_device", lambda device: None)
    monkeypatch.setattr("certify.data.registry.load", made)
    monkeypatch.setattr("certify.training.train", training)
    result = CliRunner().invoke(train.command, shlex.split(words))
    assert isinstance(result.exception, Read), result.output
    return result.exception


def test_the_chapters_have_them_all() -> None:
    assert [("--eps 0.1" in words, "--eps 0.3" in words) for device, name, words in COMMANDS if device == "cpu"] == [
        (True, False), (False, True)]
    trained = [words for device, name, words in COMMANDS if device == "cuda" and name == "train"]
    for wanted in ("fast-ibp --eps 0.1", "fast-ibp --eps 0.3", "crown-ibp --eps 0.1", "crown-ibp --eps 0.3",
                   "mtl-ibp", "wk-small --method wong-kolter", "wk-large --method wong-kolter", "pgd --eps 0.3",
                   "dynamic --eps 0.3"):
        assert any(wanted in words for words in trained), wanted
    assert len({words.split("--out")[1] for words in trained}) == len(trained)


@pytest.mark.parametrize(("device", "words"), [(device, words) for device, name, words in COMMANDS if name == "train"])
def test_each_takes_a_step(device: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, words)
    assert (found.device or "cpu") == device and found.settings.data == "mnist"
    data = made()
    trainer = Trainer(replace(found.settings, validation=4), data)
    trainer.method.prepare(trainer.model, data.train.x, data.train.y, trainer.memory, 0)
    before = [p.detach().clone() for p in trainer.module.parameters()]
    trainer._run_batch(trainer.step(data.train.x[:2], data.train.y[:2], torch.arange(2), 0.9 * found.settings.epochs))
    assert all(bool(torch.isfinite(p).all()) for p in trainer.module.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(trainer.module.parameters(), before, strict=True))


@pytest.mark.parametrize("words", [words for _, name, words in COMMANDS if name == "evaluate"])
def test_each_evaluation_is_read(words: str) -> None:
    with evaluate.command.make_context("evaluate", shlex.split(words)) as context:
        assert context.params["device"] == "cuda" and context.params["data"] == "mnist"
