"""`rmax train` from end to end: files, resumption, cards that repeat a run, and sentences for wrong use."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from bounds.graph import Graph
from certify.cascade import Certifier, run_cascade, uncertified
from certify.cli.train import command
from certify.data.registry import load
from certify.journal import draw_curves
from certify.settings import TrainSettings, parsed, resolve
from certify.training import CARD, LOG, NETWORK, SETTINGS, command_of, said, train
from tests.certify.cases import examples
from verifier.run_folder import only_user

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--epochs", "2", "--batch-size", "20", "--set", "model.hidden=[8]", "--set", "ramp_end=1",
         "--set", "ramp_begin=0", "--set", "milestones=[]"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A data file."""
    x, y = examples(120, 3)
    test_x, test_y = examples(30, 4)
    path = tmp_path / "made.npz"
    np.savez(path, x=x.numpy(), y=y.numpy(), x_test=test_x.numpy(), y_test=test_y.numpy())
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_a_run_leaves_a_network_that_its_card_describes(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("--data", made, "--eps", "0.03", *SHORT, "--out", out)
    assert result.exit_code == 0, result.output
    assert {CARD, LOG, NETWORK, SETTINGS, "curves.png", "checkpoint.pt"} <= {p.name for p in out.iterdir()}
    card = json.loads((out / CARD).read_text())
    rows = list(csv.DictReader((out / LOG).open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[-1]["eps"]) == 0.03
    x, y = examples(30, 4)
    graph = Graph.from_onnx(out / NETWORK)
    assert float((graph(x).argmax(1) == y).float().mean()) == pytest.approx(card["test"]["clean"], abs=1e-6)
    worth = card["test"]
    assert max(worth["ibp"], worth["crown"]) <= worth["pgd-20"] <= worth["clean"]
    assert "clean" in result.output and "input" in result.output


def test_the_command_on_a_card_trains_the_same_network(made: Path, tmp_path: Path) -> None:
    first = train({"data": str(made), "epochs": 1, "model.hidden": [8], "ramp_end": 0.5, "ramp_begin": 0, "lr": 3e-3,
                   "milestones": [0.5, 0.75]})
    words = shlex.split(first.card["command"])
    assert words[:2] == ["rmax", "train"]
    result = run(*words[2:], "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    again = Graph.from_onnx(tmp_path / "again" / NETWORK)
    x, _ = examples(10, 5)
    with torch.no_grad():
        assert torch.equal(first.model.graph(x), again(x))


def test_the_command_on_a_card_says_what_a_recipe_would_say_otherwise() -> None:
    """A default that was asked for against a recipe, and a method without the recipe's settings."""
    for settings in (resolve({"data": "digits", "lr": 1e-3, "ramp_begin": 0, "milestones": []}),
                     TrainSettings(method="sabr", model_settings={"hidden": [8]})):
        whole = said(settings, None)
        words = shlex.split(command_of(whole))[2:]
        given = {"method": words[1], "model": words[3], "data": words[5]}
        given |= {key: parsed(value) for key, _, value in (w.partition("=") for w in words[7::2])}
        assert resolve(given) == whole == resolve(whole.as_dict())


def test_data_that_are_handed_over_are_those_on_the_card(made: Path) -> None:
    data = replace(load(str(made)), name="mine")
    card = train({"epochs": 0.2, "model.hidden": [8]}, data=data).card
    assert card["settings"]["data"] == "mine" and "--data mine" in card["command"] and "mine" in card["name"]
    assert card["settings"]["lr"] == TrainSettings().lr, "no recipe of other data"


def test_a_run_that_was_refused_does_not_block_its_folder(made: Path, tmp_path: Path) -> None:
    flags = ["--data", made, "--out", tmp_path / "run"]
    assert run(*flags, "--set", "model.hidden=5").exit_code == 2
    assert run(*flags, *SHORT).exit_code == 0


def test_a_resumed_run_of_a_changed_configuration_is_refused(made: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    text = f"method: {{name: sabr, shrink: 4e-1}}\nmodel: {{name: mlp, hidden: [8]}}\ndata: {made}\nepochs: 0.2\n"
    config.write_text(text)
    assert run(config, "--out", tmp_path / "run").exit_code == 0
    assert run(config, "--out", tmp_path / "run", "--resume").exit_code == 0
    config.write_text(text.replace("4e-1", "0.5"))
    result = run(config, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 2 and "'shrink': 0.5" in result.output


def test_a_cascade_ends_where_too_few_examples_are_left_to_hold_out(made: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    monkeypatch.setattr("certify.training.uncertified", lambda *_: torch.arange(40))
    given = {"data": str(made), "epochs": 1, "batch_size": 10, "model.hidden": [4], "cascade": 2, "validation": 60}
    assert not train(given).later
    assert train({**given, "validation": 20}).later
    few = train({"data": str(made), "epochs": 1, "batch_size": 500, "cascade": 2, "model.hidden": [4]})
    assert few.card["cascade"]["answered"], "fewer examples than a minibatch holds, and yet a first network"


def test_methods_that_begin_on_a_small_radius_do_so_on_data_without_a_recipe(made: Path) -> None:
    given = {"data": str(made), "epochs": 2, "model.hidden": [8], "batch_size": 20, "keep": "last"}
    found = [train({**given, "method": name}, worth=()) for name in ("ibp", "crown-ibp")]
    weights = [torch.cat([p.flatten() for p in trained.model.module.parameters()]) for trained in found]
    assert not torch.equal(*weights), "CROWN-IBP is IBP where the radius does not grow"
    rows: list[dict[str, str]] = []
    train({**given, "method": "fast-ibp"}, worth=(), tell=lambda told: rows.append(dict.fromkeys(told.means(), "")))
    assert any("tightness" in row for row in rows)


def test_a_yaml_file_mirrors_the_flags(made: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"method: {{name: ibp}}\nmodel: {{name: mlp, hidden: [8]}}\ndata: {made}\neps: 2e-2\nepochs: 1\n"
                      "ramp_begin: 0\nramp_end: 0.5\nmilestones: []\n")
    result = run(config, "--seed", 3, "--json", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout)
    assert card["settings"]["seed"] == 3 and card["settings"]["eps"] == 0.02
    assert card["settings"]["model_settings"] == {"hidden": [8]}


def test_a_killed_process_goes_on_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    flags = ["--data", str(made), "--epochs", "30", "--batch-size", "20", "--set", "model.hidden=[8]", "--set",
             "ramp_end=5", "--set", "ramp_begin=0", "--set", "milestones=[]"]
    assert run(*flags, "--out", tmp_path / "whole").exit_code == 0
    broken = tmp_path / "broken"
    process = subprocess.Popen([sys.executable, "-c", "from certify.cli.train import command; command()", *flags,
                                "--out", str(broken)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (broken / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / NETWORK).exists(), "killed before its end"
    assert run("--out", broken, "--resume").exit_code == 0
    whole, again = (Graph.from_onnx(tmp_path / name / NETWORK) for name in ("whole", "broken"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    tables = [[{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader((tmp_path / n / LOG).open())]
              for n in ("whole", "broken")]
    assert tables[0] == tables[1] and len(tables[0]) == 30


def test_a_cascade_trains_on_what_is_left_and_answers_in_turn(made: Path, tmp_path: Path) -> None:
    flags = ["--data", made, "--eps", "0.15", "--epochs", "4", "--batch-size", "10", "--set", "model.hidden=[16]",
             "--set", "lr=1e-2", "--set", "cascade=2", "--out", tmp_path / "run"]
    result = run(*flags)
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "run" / CARD).read_text())
    stages = [Graph.from_onnx(tmp_path / "run" / f"stage{k}" / NETWORK) for k in (1, 2)]
    certifier = Certifier(0.15, clip=(0.0, 1.0))
    x, y = examples(30, 4)
    answers = run_cascade(stages, certifier, x, y)
    assert card["cascade"]["stage_certified"] == pytest.approx(1 - answers.robust_error, abs=1e-6)
    assert "certified" not in card["cascade"], "it is no bound of the cascade"
    assert "no bound of the cascade" in " ".join(result.output.split())
    assert card["cascade"]["answered"] == [int((answers.stage == k).sum()) for k in (0, 1)]
    assert card["cascade"]["stage_certified"] >= card["stages"][0]["ibp"]
    left = uncertified(stages[:1], certifier, examples(120, 3)[0])
    assert card["uncertified_training_examples"] <= len(left) < 120
    assert run(*flags, "--resume").exit_code == 0


@pytest.mark.parametrize(("flags", "words"), [
    (["--data", "nowhere.npz"], "nowhere.npz"), (["--set", "epocs=3"], "unknown setting 'epocs'"),
    (["--set", "lr"], "KEY=VALUE"), (["--set", "method.speed=3"], "has no setting speed"),
    (["--set", "model.depth=3"], "has no setting depth"), (["--data", "mnist", "--data-dir", "/nowhere"], "mnist"),
    (["--set", "lr=["], "--set lr: expected"), (["--set", "batch_size=.inf"], "batch_size: expected a whole number"),
    (["--method", "sabr", "--set", "method.shrink=abc"], "shrink: expected a number"),
    (["--method", "sabr", "--set", "method.steps=2.5"], "steps: expected a whole number"),
    (["--method", "crown-ibp", "--set", "method.fusion=maybe"], "fusion: expected true or false"),
    (["--set", "model.hidden=5"], "hidden: expected a list"), (["--set", "model.hidden=[0]"], "hidden[0]"),
    (["--set", "lr_factor=-1"], "lr_factor"), (["--set", "validation=-2"], "validation"),
    (["--set", "method.name=3"], "method: expected a word"), (["--set", "seed=1e30"], "seed: expected a whole number"),
    (["--set", "model.hidden=[1e30]"], "hidden: expected a whole number"),
    (["--method", "zonotope", "--set", "method.memory_gib=.inf"], "memory_gib must be"),
    (["--method", "zonotope", "--set", "method.memory_gib=1e-9"], "more than the budget"),
    (["--eps", "-1"], "eps must be > 0"), (["missing.yaml"], "missing.yaml"), (["--resume"], "--out"),
])
def test_wrong_use_is_told_in_a_sentence(flags: list[str], words: str, tmp_path: Path) -> None:
    result = run(*flags, *([] if flags == ["--resume"] else ["--out", tmp_path / "run"]))
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 4


def test_a_folder_with_a_run_is_not_overwritten(made: Path, tmp_path: Path) -> None:
    flags = ["--data", made, *SHORT, "--out", tmp_path / "run"]
    assert run(*flags).exit_code == 0
    again = run(*flags)
    assert again.exit_code == 2 and "--resume" in again.output
    other = run(*flags, "--resume", "--seed", 5)
    assert other.exit_code == 2 and "seed 0, not 5" in other.output


@pytest.mark.parametrize("gone", [("checkpoint.pt",), (SETTINGS,), ("checkpoint.pt", SETTINGS, CARD),
                                  ("checkpoint.pt", SETTINGS, NETWORK)])
def test_neither_is_one_with_a_part_of_a_run(gone: tuple[str, ...], made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--data", made, *SHORT, "--out", out]
    assert run(*flags).exit_code == 0
    for name in gone:
        (out / name).unlink()
    before = files(out)
    again = run(*flags, "--seed", 1)
    assert again.exit_code == 2 and "already holds a run" in again.output
    assert files(out) == before
    if "checkpoint.pt" in gone:
        assert "no checkpoint" in run(*flags, "--resume").output and files(out) == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stages", [1, 2])
def test_a_run_without_its_settings_goes_on_with_those_of_the_checkpoint(stages: int, made: Path, tmp_path: Path
                                                                        ) -> None:
    out = tmp_path / "run"
    assert run("--data", made, *SHORT, "--set", f"cascade={stages}", "--out", out).exit_code == 0
    settings = (out / SETTINGS).read_text()
    (out / SETTINGS).unlink()
    before = files(out)
    other = run("--out", out, "--resume", "--seed", 5)
    assert other.exit_code == 2 and "seed 0, not 5" in other.output and files(out) == before
    result = run("--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert (out / SETTINGS).read_text() == settings


def test_a_run_is_one_process_s_at_a_time(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--data", made, *SHORT, "--out", out]
    for more in ([], ["--resume"]):
        out.mkdir(exist_ok=True)
        with only_user(out):
            before = files(out)
            result = run(*flags, *more)
            assert result.exit_code == 2 and "another process is working on this run" in " ".join(result.output.split())
            assert files(out) == before
        assert run(*flags, *more).exit_code == 0


def test_curves_of_a_run_without_validation_are_drawn_in_silence(made: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run("--data", made, "--method", "pgd", "--epochs", "1", "--set", "model.hidden=[8]",
                     "--set", "validation=0", "--set", "keep=last", "--out", tmp_path / "run")
        assert result.exit_code == 0, result.output
        draw_curves([{"epoch": 1, "eps": 0.0, "natural_weight": 1.0, "note": ""}], tmp_path / "none.png", "none")


def test_inputs_that_a_network_does_not_take_are_refused(tmp_path: Path) -> None:
    x, y = examples(30, 3)
    np.savez(tmp_path / "flat.npz", x=x.numpy().reshape(30, -1), y=y.numpy())
    result = run("--data", tmp_path / "flat.npz", "--model", "wk-small", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "image" in result.output, result.output
