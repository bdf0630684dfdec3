"""Questions answered on a CUDA device; counterexamples are replayed on the CPU, as always."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from bounds import Graph
from verifier import read_vnnlib, robustness, verify
from verifier.cli import run
from verifier.demo import EXAMPLES
from verifier.verdict import Falsified

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

with (EXAMPLES / "instances.csv").open(newline="") as file:
    QUESTIONS = [(row[0], row[1]) for row in csv.reader(file)]


@pytest.mark.parametrize(("network", "spec"), QUESTIONS, ids=[spec for _, spec in QUESTIONS])
def test_verdicts_do_not_contradict_the_cpu(network: str, spec: str) -> None:
    graph, property = Graph.from_onnx(EXAMPLES / network), read_vnnlib(EXAMPLES / spec)
    here, there = (verify(graph, property, replayer=EXAMPLES / network, time_limit_s=10, device=device)
                   for device in ("cpu", "cuda"))
    assert there.detail == ""
    assert {here.name, there.name} != {"verified", "falsified"}
    if spec.endswith("_small.vnnlib"):
        assert there.name == "verified"
    if isinstance(there.verdict, Falsified):
        assert property.holds_unsafe(there.verdict.witness.x.ravel(), there.verdict.witness.y)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_balls_are_decided_on_the_device(norm: float) -> None:
    digits = np.load(EXAMPLES / "digits.npz")
    network = EXAMPLES / "digits_mlp.onnx"
    property = robustness(digits["x"][0], int(digits["y"][0]), 0.01, norm=norm, clip=(0, 1), classes=10)
    assert verify(Graph.from_onnx(network), property, replayer=network, device="cuda").name == "verified"


def test_the_command_takes_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(EXAMPLES / "digits_cnn.onnx"), str(EXAMPLES / "cnn_image0_small.vnnlib")]
    assert run(["verify", *files, "--device", "cuda"]) == 0
    assert run(["bounds", *files, "--method", "ibp,crown", "--device", "cuda"]) == 0
    assert "crown" in capsys.readouterr().out
