"""`rmax attack`: what it prints and stores, how it resumes, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.verifier.attacks.problems import linear
from tests.verifier.models import save_network
from verifier import attack_data as module
from verifier.attacks.model import as_model
from verifier.attacks.pgd import Pgd
from verifier.attacks.registry import ATTACKS
from verifier.attacks.threat import Threat
from verifier.cli import run
from verifier.demo import EXAMPLES

Output = Callable[[], tuple[str, str]]
KEYS = {"index", "attack", "norm", "eps", "success", "distance", "calls", "queries"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx: class 0 where x_0 + x_1 > 1. data.npz: points 0.1, 0.2 and 0.3 from there in l_inf, and a wrong one."""
    save_network(tmp_path / "net.onnx", [(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([-1.0, 0.0]))])
    x = np.array([[0.6, 0.6], [0.7, 0.7], [0.8, 0.8], [0.4, 0.4]], np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(4, np.int64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: str | Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_line_an_example_and_a_summary(here: Path, output: Output) -> None:
    assert run(["attack", "net.onnx", "data.npz", "--attack", "pgd", "--eps", "0.15", "--clip", "0", "1",
                "--json", "found.jsonl", "--csv", "found.csv", "--examples", "found.npz"]) == 0
    *records, total = lines("found.jsonl")
    assert [r["success"] for r in records] == [True, False, False, True]
    assert all(set(r) >= KEYS for r in records)
    assert records[3]["distance"] == 0
    assert records[3]["calls"] == 0
    assert 0.1 <= float(records[0]["distance"]) <= 0.15  # type: ignore[arg-type]
    assert (total["count"], total["clean"], total["robust"], total["fallen"]) == (4, 0.75, 0.5, 2)
    with Path("found.csv").open(newline="") as file:
        assert [row["success"] for row in csv.DictReader(file)] == ["True", "False", "False", "True"]
    with np.load("found.npz") as found:
        assert found["x"].shape == (4, 2)
        assert found["x"][0].sum() < 1
        assert np.abs(found["x"][0] - 0.6).max() <= 0.15
    out, err = output()
    assert "standing 50.00 %" in out
    assert "fell 2" in out
    assert err == ""


def test_minimum_norms_need_no_eps(here: Path, output: Output) -> None:
    assert run(["attack", "net.onnx", "data.npz", "--attack", "fab", "--norm", "inf", "--json", "-"]) == 0
    out, _ = output()
    *records, _ = [json.loads(line) for line in out.splitlines()]  # stdout holds JSON and nothing else
    assert [r["distance"] for r in records] == pytest.approx([0.1, 0.2, 0.3, 0.0], rel=0.01)


def test_a_target_leaves_out_its_own_examples(here: Path) -> None:
    np.savez("data.npz", x=np.array([[0.6, 0.6], [0.2, 0.2]], np.float32), y=np.array([0, 1]))
    assert run(["attack", "net.onnx", "data.npz", "--attack", "bim", "--eps", "0.2", "--target", "1",
                "--json", "found.jsonl"]) == 0
    *records, total = lines("found.jsonl")
    assert [(r["index"], r["became"]) for r in records] == [(0, 1)]
    assert total["left"] == 0


def test_index_count_and_mask(here: Path) -> None:
    np.save("mask.npy", np.array([True, False]))
    assert run(["attack", "net.onnx", "data.npz", "--attack", "bim", "--eps", "0.25", "--mask", "mask.npy",
                "--index", "1", "--index", "0", "--json", "found.jsonl", "--examples", "found.npz"]) == 0
    *records, _ = lines("found.jsonl")
    assert [(r["index"], r["success"]) for r in records] == [(0, True), (1, False)]
    with np.load("found.npz") as found:
        assert (found["x"][:, 1] == np.array([0.6, 0.7], np.float32)).all()
    assert run(["attack", "net.onnx", "data.npz", "--attack", "bim", "--eps", "0.1", "--count", "2",
                "--json", "found.jsonl"]) == 0
    assert len(lines("found.jsonl")) == 3


def test_a_killed_run_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    whole = ["attack", "net.onnx", "data.npz", "--attack", "pgd", "--eps", "0.15", "--json", "b.jsonl"]
    command = [*whole[:-1], "a.jsonl", "--out", "run"]
    original = module._records
    calls = []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_records", interrupted)
    monkeypatch.setattr(module.attack_data, "__kwdefaults__", {**module.attack_data.__kwdefaults__, "piece": 2})
    assert run(command) == 0
    assert "interrupted" in output()[0]
    *records, total = lines("a.jsonl")
    assert ([r["index"] for r in records], total["left"]) == ([0, 1], 2)
    monkeypatch.setattr(module, "_records", original)
    assert run([*command, "--resume"]) == 0
    assert run(whole) == 0
    *resumed, after = lines("a.jsonl")
    *straight, _ = lines("b.jsonl")
    assert resumed == straight
    assert (after["count"], after["left"]) == (4, 0)
    assert run([*command[:6], "0.2", *command[7:], "--resume"]) == 2
    assert "was run with eps 0.15, not 0.2" in output()[1]
    assert run(command) == 2
    assert "--resume" in output()[1]


def test_through_onnxruntime_there_are_no_gradients(here: Path, output: Output) -> None:
    assert run(["attack", "net.onnx", "data.npz", "--attack", "pgd", "--eps", "0.1", "--onnxruntime"]) == 2
    assert "pgd needs gradients, the model gives scores only" in output()[1]
    assert run(["attack", "net.onnx", "data.npz", "--attack", "square", "--eps", "0.15", "--onnxruntime",
                "--queries", "200", "--json", "found.jsonl"]) == 0
    *records, _ = lines("found.jsonl")
    assert [r["success"] for r in records] == [True, False, False, True]
    assert all(r["calls"] == 0 for r in records)
    assert all(int(r["queries"]) <= 200 for r in records)  # type: ignore[call-overload]


def test_help_lists_every_attack_with_its_source(output: Output) -> None:
    assert run(["attack", "--help"]) == 0
    text = output()[0]
    for name, entry in ATTACKS.items():
        assert f" {name} " in text
        assert entry.source in text


@pytest.mark.parametrize(("arguments", "words"), [
    (["--attack", "nothing"], "nothing"),
    (["--attack", "pgd"], "pgd needs eps"),
    (["--attack", "pgd", "--eps", "-1"], "--eps must be"),
    (["--attack", "pgd", "--eps", "nan"], "--eps must be"),
    (["--attack", "ddn", "--norm", "inf"], "works in the norms 2"),
    (["--attack", "pgd", "--eps", "0.1", "--clip", "0.5", "1"], "input 3 has entries"),
    (["--attack", "pgd", "--eps", "0.1", "--clip", "1", "0"], "--clip needs two numbers"),
    (["--attack", "pgd", "--eps", "0.1", "--target", "7"], "--target 7 is out of range"),
    (["--attack", "pgd", "--eps", "0.1", "--index", "9"], "index 9 is out of range"),
    (["--attack", "pgd", "--eps", "0.1", "--set", "stepz=3"], "no setting 'stepz'"),
    (["--attack", "fgsm", "--eps", "0.1", "--steps", "3"], "no setting 'steps'"),
    (["--attack", "pgd", "--eps", "0.1", "--set", "loss=\"hinge\""], "loss must be one of"),
    (["--attack", "pgd", "--eps", "0.1", "--resume"], "--out"),
    (["--attack", "fmn", "--norm", "0", "--fosc"], "--fosc needs gradients"),
    (["--attack", "pgd", "--eps", "0.1", "--mask", "data.npz"], "data.npz"),
    (["--attack", "pgd", "--eps", "0.1", "--json", "no/where.jsonl"], "--json"),
])
def test_wrong_use_is_one_sentence(here: Path, output: Output, arguments: list[str], words: str) -> None:
    assert run(["attack", "net.onnx", "data.npz", *arguments]) == 2
    out, err = output()
    assert words in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(("arrays", "words"), [
    ({"x": np.zeros((2, 2), np.float32)}, "expected x (N, *input shape) and y"),
    ({"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.int64)}, "the network expects (N, 2)"),
    ({"x": np.zeros((2, 2), np.float32), "y": np.zeros(3, np.int64)}, "one label an input"),
    ({"x": np.zeros((2, 2), np.float32), "y": np.zeros(2)}, "integer labels"),
    ({"x": np.zeros((2, 2), np.float32), "y": np.array([0, 5])}, "label 5 of example 1"),
    ({"x": np.full((1, 2), np.nan, np.float32), "y": np.zeros(1, np.int64)}, "NaN"),
    ({"x": np.zeros((0, 2), np.float32), "y": np.zeros(0, np.int64)}, "no examples"),
])
def test_unusable_data_are_told(here: Path, output: Output, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez("bad.npz", **arrays)  # type: ignore[arg-type]
    assert run(["attack", "net.onnx", "bad.npz", "--attack", "pgd", "--eps", "0.1"]) == 2
    err = output()[1]
    assert words in err
    assert "bad.npz" in err


def test_files_that_are_none_are_told(here: Path, output: Output) -> None:
    Path("text.npz").write_text("no archive")
    for name in ("text.npz", "missing.npz", "net.onnx"):
        assert run(["attack", "net.onnx", name, "--attack", "pgd", "--eps", "0.1"]) == 2
        assert name in output()[1]


def test_the_bundled_digits_fall_and_are_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "found.png"
    assert run(["attack", str(EXAMPLES / "digits_mlp.onnx"), str(EXAMPLES / "digits.npz"), "--attack", "apgd-ce",
                "--eps", "0.3", "--clip", "0", "1", "--count", "4", "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_proved_to_stand_is_not_attacked(here: Path, output: Output) -> None:
    common = ["attack", "net.onnx", "data.npz", "--attack", "pgd", "--eps", "0.15"]
    assert run([*common, "--json", "a.jsonl"]) == 0
    assert run([*common, "--json", "b.jsonl", "--skip-proved"]) == 0
    attacked, spared = lines("a.jsonl"), lines("b.jsonl")
    by_number = sorted(spared[:-1], key=lambda r: str(r["index"]))
    assert [r["success"] for r in by_number] == [r["success"] for r in attacked[:-1]]
    assert [r["proved"] for r in by_number] == [False, True, True, False]
    assert all(r["queries"] == 0 for r in by_number if r["proved"])
    assert spared[-1]["robust"] == attacked[-1]["robust"]
    assert "2 proved to stand" in output()[0]
    assert run(["attack", "net.onnx", "data.npz", "--attack", "fab", "--skip-proved"]) == 2
    assert "--skip-proved needs" in output()[1]


def test_transfer_tries_what_fells_a_surrogate(here: Path, output: Output) -> None:
    save_network(here / "other.onnx", [(np.array([[2.0, 1.9], [0.0, 0.0]]), np.array([-2.0, 0.0]))])
    common = ["attack", "net.onnx", "data.npz", "--attack", "transfer", "--eps", "0.15", "--json", "found.jsonl"]
    assert run([*common, "--surrogate", "other.onnx", "--out", "run"]) == 0
    *records, _ = lines("found.jsonl")
    assert [r["success"] for r in records] == [True, False, False, True]
    assert run([*common, "--surrogate", "other.onnx", "--out", "run", "--resume"]) == 0
    assert run(common) == 2
    assert "transfer needs a surrogate" in output()[1]


def test_only_what_the_original_file_confirms_is_a_success() -> None:
    known = linear(math.inf, clip=True)
    where = Threat(math.inf, 1.3 * float(known.distance.max()), (0.0, 1.0))
    result = Pgd(steps=80).run(known.model, known.x, known.criterion, where)
    assert result.success.all()
    agrees = module.confirmed(result, as_model(known.model), known.x, known.criterion, where)
    assert agrees[1].all()
    assert torch.equal(agrees[0], result.x)
    tied = module.confirmed(result, as_model(lambda x: np.zeros((len(x), 4))), known.x, known.criterion, where)
    assert not tied[1].any()
    assert torch.isinf(tied[2]).all()
    broken = module.confirmed(result, as_model(lambda x: np.full((len(x), 4), np.nan)), known.x, known.criterion, where)
    assert not broken[1].any()


def test_what_stands_keeps_its_own_class_and_the_target_class_is_left_out(here: Path) -> None:
    x = np.array([[0.9, 0.9], [0.9, 0.8], [0.1, 0.1]], np.float32)
    np.savez("wrong.npz", x=x, y=np.array([2, 0, 1]))
    save_network(here / "three.onnx", [(np.array([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]), np.array([-1.0, 0.0, -0.6]))])
    common = ["attack", "three.onnx", "wrong.npz", "--attack", "fgsm", "--eps", "0.01", "--target", "1"]
    assert run([*common, "--json", "a.jsonl"]) == 0
    assert run([*common, "--json", "b.jsonl", "--skip-proved"]) == 0
    attacked, spared = lines("a.jsonl"), lines("b.jsonl")
    assert spared[-1]["proved"] == 2
    assert spared[-1]["clean"] == attacked[-1]["clean"] == 0.5
    assert spared[-1]["left"] == attacked[-1]["left"] == 0


def test_starting_points_come_from_the_file_whatever_is_chosen(here: Path) -> None:
    g = np.random.default_rng(0)
    x = g.uniform(0, 1, (12, 2)).astype(np.float32)
    np.savez("many.npz", x=x, y=(x.sum(1) <= 1).astype(np.int64))
    distances = []
    for chosen in (["--count", "3"], ["--count", "9"], ["--index", "1"]):
        assert run(["attack", "net.onnx", "many.npz", "--attack", "hopskipjump", "--steps", "2", "--clip", "0", "1",
                    *chosen, "--json", "found.jsonl"]) == 0
        distances += [(r["distance"], r["queries"]) for r in lines("found.jsonl") if r.get("index") == 1]
    assert len(set(distances)) == 1


def test_a_softmax_over_groups_of_outputs_stays(here: Path) -> None:
    """Within a group it keeps the order, between groups it does not: only one over all outputs may be left out."""
    from bounds import Graph
    from verifier.attacks.model import GraphModel
    for groups, kept in ((1, False), (2, True)):
        module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Unflatten(1, (groups, 4 // groups)),
                                     torch.nn.Softmax(2))
        model = GraphModel(Graph.from_torch(module, (2,)))
        assert (model.note is None) == kept


def test_one_output_is_told_before_anything_is_proved(here: Path, output: Output) -> None:
    save_network(here / "one.onnx", [(np.array([[1.0, 1.0]]), np.array([0.0]))])
    np.savez("one.npz", x=np.zeros((1, 2), np.float32), y=np.zeros(1, np.int64))
    for flags in ([], ["--skip-proved"]):
        assert run(["attack", "one.onnx", "one.npz", "--attack", "fgsm", "--eps", "0.1", *flags]) == 2
        assert "at least 2 outputs" in output()[1]
    assert run(["attack", "net.onnx", "data.npz", "--attack", "jsma", "--eps", "3", "--skip-proved"]) == 2
    assert "--skip-proved needs" in output()[1]
