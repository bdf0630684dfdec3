"""The bundled example: small, offline, with proofs and counterexamples; what was trained to be proved holds longer."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib.image
import numpy as np
import onnxruntime
import pytest

from verifier.cli import run
from verifier.demo import EXAMPLES, Answer, run_demo
from verifier.strategy import Result
from verifier.verdict import Falsified, Reason, Unknown


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    return run_demo()


def test_an_interrupt_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(Unknown(Reason.INTERRUPTED), "auto", 0.1)
    monkeypatch.setattr("verifier.demo.verify", lambda *_, **__: result)
    assert run(["demo"]) == 3


def test_examples_are_small() -> None:
    assert sum(f.stat().st_size for f in EXAMPLES.iterdir() if f.is_file()) < 1_000_000


def test_both_networks_are_proved_and_attacked(answers: list[Answer]) -> None:
    for network in ("digits_mlp.onnx", "digits_cnn.onnx"):
        verdicts = {a.result.name for a in answers if a.network == network}
        assert {"verified", "falsified"} <= verdicts


def test_what_was_trained_to_be_proved_is_proved_where_the_other_is(answers: list[Answer]) -> None:
    proved = {network: {(a.image, a.eps) for a in answers if a.network == network and a.result.name == "verified"}
              for network in ("digits_mlp.onnx", "digits_certified.onnx")}
    assert proved["digits_mlp.onnx"] < proved["digits_certified.onnx"]


def test_a_larger_radius_never_turns_falsified_into_verified(answers: list[Answer]) -> None:
    for network, image in {(a.network, a.image) for a in answers}:
        row = sorted((a for a in answers if (a.network, a.image) == (network, image)), key=lambda a: float(a.eps))
        seen = [a.result.name for a in row]
        assert "verified" not in seen[seen.index("falsified"):] if "falsified" in seen else True


def test_every_counterexample_changes_the_class_in_onnxruntime(answers: list[Answer]) -> None:
    digits = np.load(EXAMPLES / "digits.npz")
    for a in answers:
        if isinstance(a.result.verdict, Falsified):
            session = onnxruntime.InferenceSession(EXAMPLES / a.network)
            x = a.result.verdict.witness.x.reshape(1, 1, 8, 8)
            (scores,) = session.run(None, {"image": x})
            assert np.delete(scores[0], a.label).max() >= scores[0, a.label]
            assert np.abs(x - digits["x"][a.image]).max() <= float(a.eps) + 1e-7
            assert x.min() >= 0
            assert x.max() <= 1


def test_no_random_point_contradicts_a_proof(answers: list[Answer]) -> None:
    digits, rng = np.load(EXAMPLES / "digits.npz"), np.random.default_rng(0)
    for a in answers:
        if a.result.name == "verified":
            session = onnxruntime.InferenceSession(EXAMPLES / a.network)
            noise = rng.choice([-1.0, 1.0], size=(500, 1, 8, 8)) * float(a.eps)
            x = np.clip(digits["x"][a.image] + noise, 0, 1).astype(np.float32)
            (scores,) = session.run(None, {"image": x})
            gap = scores[:, a.label] - np.delete(scores, a.label, axis=1).max(1)
            assert gap.min() >= a.result.lower - 1e-5


def test_the_command_prints_a_table_and_saves_a_picture(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert run(["demo", "--picture", str(tmp_path / "digit.png")]) == 0
    assert time.monotonic() - start < 60
    out = capsys.readouterr().out
    assert "mlp" in out and "certified" in out
    assert "27 questions in" in out
    assert (tmp_path / "digit.png").stat().st_size < 200_000
    assert matplotlib.image.imread(tmp_path / "digit.png").shape[0] > 200


def test_the_picture_needs_a_folder_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--picture", str(tmp_path / "absent" / "digit.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
