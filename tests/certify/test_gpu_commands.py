"""The commands for a GPU that the documentation shows: each is read as the command line reads it, and takes a step."""

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
CHAPTER = PAGE.read_text(encoding="utf-8").split("## On a GPU")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^rmax (train|evaluate) (.*)$", CHAPTER, re.MULTILINE)


def made(*_: object, **__: object) -> TrainingData:
    """A few images of MNIST's shape."""
    x = torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 10
    return TrainingData("mnist", Examples(x, y), Examples(x[:4], y[:4]), 10)


class Read(Exception):
    """The settings that the command line came to."""

    def __init__(self, settings: TrainSettings, device: str) -> None:
        self.settings, self.device = settings, device


def read(monkeypatch: pytest.MonkeyPatch, words: str) -> Read:
    def training(settings: TrainSettings, *, device: str, **_: Any) -> None:
        raise Read(settings, device)
    monkeypatch.setattr("certify.cli.train.check_device", lambda device: None)
    monkeypatch.setattr("certify.data.registry.load", made)
    monkeypatch.setattr("certify.training.train", training)
    result = CliRunner().invoke(train.command, shlex.split(words))
    assert isinstance(result.exception, Read), result.output
    return result.exception


def test_the_chapter_has_them_all() -> None:
    trained = [words for name, words in COMMANDS if name == "train"]
    for wanted in ("fast-ibp --eps 0.1", "fast-ibp --eps 0.3", "crown-ibp --eps 0.1", "crown-ibp --eps 0.3",
                   "mtl-ibp", "wk-small --method wong-kolter", "wk-large --method wong-kolter", "pgd --eps 0.3",
                   "dynamic --eps 0.3"):
        assert any(wanted in words for words in trained), wanted
    assert len({words.split("--out")[1] for words in trained}) == len(trained)


@pytest.mark.parametrize("words", [words for name, words in COMMANDS if name == "train"])
def test_each_takes_a_step(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, words)
    assert found.device == "cuda" and found.settings.data == "mnist"
    data = made()
    trainer = Trainer(replace(found.settings, validation=4), data)
    trainer.method.prepare(trainer.model, data.train.x, data.train.y, trainer.memory, 0)
    before = [p.detach().clone() for p in trainer.module.parameters()]
    trainer._run_batch(trainer.step(data.train.x[:2], data.train.y[:2], torch.arange(2), 0.9 * found.settings.epochs))
    assert all(bool(torch.isfinite(p).all()) for p in trainer.module.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(trainer.module.parameters(), before, strict=True))


@pytest.mark.parametrize("words", [words for name, words in COMMANDS if name == "evaluate"])
def test_each_evaluation_is_read(words: str) -> None:
    with evaluate.command.make_context("evaluate", shlex.split(words)) as context:
        assert context.params["device"] == "cuda" and context.params["data"] == "mnist"
