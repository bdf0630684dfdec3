"""The table of the peers' attacks, and the module that stands for the network: both without the peers' packages."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.network import Counted, NotSequential, check, sequential
from benchmarks.peers.run_attacks import DRIVERS, PACKAGES, distances
from benchmarks.peers.table import LIBRARIES, NORMS, ROWS, Budget, NoSuchAttack, find, listed

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Budget(90, 0.1, 10, 784)


def test_every_row_is_of_a_known_library_and_stands_once() -> None:
    assert {row.library for row in ROWS} == set(LIBRARIES) == set(DRIVERS) == set(PACKAGES)
    assert {row.norm for row in ROWS} == set(NORMS)
    assert len({(row.attack, row.library, row.norm) for row in ROWS}) == len(ROWS)


def test_no_attack_is_given_more_steps_than_asked_for() -> None:
    # What an iteration costs stands in the table; iterations alone must never exceed the budget.
    for row in ROWS:
        settings = row.settings(BUDGET)
        for name in ("steps", "n_iter", "max_iter", "num_steps", "n_queries", "max_iterations", "iter"):
            assert settings.get(name, 1) <= BUDGET.steps, (row, name)


def test_the_table_is_printed_as_plain_values() -> None:
    assert len(json.loads(json.dumps(listed(BUDGET), allow_nan=False))) == len(ROWS)


def test_a_missing_attack_is_refused_with_what_there_is() -> None:
    with pytest.raises(NoSuchAttack, match=r"advlib has no ddn in norm 1 \(norms 2\); others: foolbox 2"):
        find("ddn", "advlib", "1")


@pytest.mark.parametrize("name", ["verifier/examples/digits_mlp.onnx", "verifier/examples/digits_cnn.onnx",
                                  "benchmarks/nets/mnist_cnn.onnx"])
def test_the_module_gives_the_logits_of_another_runtime(name: str) -> None:
    import onnxruntime
    session = onnxruntime.InferenceSession(ROOT / name, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    x = np.random.default_rng(0).random((7, *shape), dtype=np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    net = sequential(ROOT / name)
    assert check(net, ROOT / name, torch.from_numpy(x), logits) < 1e-4
    with pytest.raises(ValueError, match="differ"):
        check(net, ROOT / name, torch.from_numpy(x), logits + 0.1)


def test_weights_behind_matmul_take_the_bias_of_add_and_a_branch_is_refused(tmp_path: Path) -> None:
    w, b = np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.array([7, 8], np.float32)
    stored = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]

    def saved(last: onnx.NodeProto) -> Path:
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["p"]), last], "g",
                                  [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
                                  [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])], stored)
        onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    net = sequential(saved(helper.make_node("Add", ["p", "b"], ["y"])))
    assert net(torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [[16.0, 20.0]]
    with pytest.raises(NotSequential, match="Add"):
        sequential(saved(helper.make_node("Add", ["p", "p"], ["y"])))


def test_images_and_gradients_are_counted() -> None:
    model = Counted(torch.nn.Linear(4, 3))
    x = torch.zeros(5, 4, requires_grad=True)
    with torch.no_grad():
        model(x)
    logits = model(x)
    for j in range(3):
        torch.autograd.grad(logits[:, j].sum(), x, retain_graph=True)
    torch.autograd.grad(logits.sum() + x.square().sum(), x)  # the other term is not the network's
    assert (model.forwards, model.backwards) == (10, 20)


def test_distances_are_those_of_the_norms() -> None:
    a, b = torch.tensor([[3.0, -4.0, 0.0]]), torch.zeros(1, 3)
    assert [float(distances(a, b, norm)) for norm in NORMS] == [4.0, 5.0, 7.0, 2.0]
    assert math.isclose(float(distances(a, b, "2")), float((a - b).norm()))
