"""Proofs that searches record are accepted by the checker, whatever closes their leaves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bounds import Graph
from tests.verifier.models import save_network, spec
from verifier import read_vnnlib, verify
from verifier.branch_and_bound import plan
from verifier.check import Refused, Unreadable, check
from verifier.strategy import Result
from verifier.verdict import Verified


def random_network(path: Path, sizes: list[int], seed: int) -> Path:
    generator = np.random.default_rng(seed)
    return save_network(path, [(generator.standard_normal((b, a)) * (2 / a) ** 0.5, generator.standard_normal(b) * 0.3)
                               for a, b in itertools.pairwise(sizes)])


def sampled_range(net: Path, inputs: int, seed: int = 0, shape: tuple[int, ...] | None = None
                  ) -> tuple[np.ndarray, np.ndarray]:
    import torch
    graph = Graph.from_onnx(net)
    x = (torch.rand(20_000, inputs, generator=torch.Generator().manual_seed(seed)) * 4 - 2).clamp(-1, 1)  # and corners
    y = graph(x if shape is None else x.view(-1, *shape)).numpy()
    return y.min(0), y.max(0)


def proved(folder: Path, net: Path, text: str, method: str = "auto") -> tuple[Result, Path, Path]:
    """A verified property, its proof, which the checker accepts, and its specification."""
    property = folder / "property.vnnlib"
    property.write_text(text)
    proof = folder / "proof"
    result = verify(Graph.from_onnx(net), read_vnnlib(property), replayer=net, proof=proof, method=method)
    assert isinstance(result.verdict, Verified), result
    assert result.choices["proof"]["written"], result.choices["proof"]
    assert not list(folder.glob("*.partial"))
    assert check(str(net), str(property), str(proof)).startswith("verified")
    return result, proof, property


def upper_spec(net: Path, inputs: int, outputs: int, slack: float, shape: tuple[int, ...] | None = None) -> str:
    """Y_0 stays below its sampled maximum and a share of its range."""
    low, high = sampled_range(net, inputs, shape=shape)
    return spec([(-1.0, 1.0)] * inputs, outputs, f"(>= Y_0 {high[0] + slack * (high[0] - low[0])})")


@pytest.mark.parametrize("seed", range(5))
def test_input_splits_are_accepted(tmp_path: Path, seed: int) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 14, 14, 2], seed)
    proved(tmp_path, net, upper_spec(net, 3, 2, 0.02))


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_neuron_splits_are_accepted(tmp_path: Path, seed: int, cuts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CUT_ENTRIES", plan.CUT_ENTRIES * cuts)
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], seed)
    proved(tmp_path, net, upper_spec(net, 24, 2, 0.35))


@pytest.mark.parametrize("seed", range(3))
def test_trees_that_cut_neurons_are_accepted(tmp_path: Path, seed: int) -> None:
    net = random_network(tmp_path / "n.onnx", [24, 16, 2], seed)
    low, high = sampled_range(net, 24)
    middle = (low + high) / 2
    result, _, _ = proved(tmp_path, net, spec([(-1.0, 1.0)] * 24, 2, f"(>= Y_0 {high[0] + 0.2 * (high[0] - low[0])})",
                                              f"(<= Y_1 {middle[1]})"))
    assert result.choices["branch-and-bound"]["cuts"]


@pytest.mark.parametrize("inputs", [3, 24])
def test_many_regions_and_conjunctions_are_accepted(tmp_path: Path, inputs: int) -> None:
    net = random_network(tmp_path / "n.onnx", [inputs, 10, 10, 3], 7)
    low, high = sampled_range(net, inputs)
    reach = high + (0.05 if inputs == 3 else 0.4) * (high - low)
    boxes = " ".join(f"(and (>= X_0 {a}) (<= X_0 {b}) (>= Y_0 {reach[0]}) (>= Y_1 {low[1]}))"
                     for a, b in ((-1.0, -0.4), (-0.2, 0.3), (0.5, 1.0)))
    asserts = f"(or {boxes} (and (>= Y_1 {reach[1]}) (<= Y_2 {high[2]})))"
    proved(tmp_path, net, spec([(-1.0, 1.0)] * inputs, 3, asserts))


def test_rows_over_inputs_and_outputs_are_accepted(tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 10, 10, 2], 2)
    _, high = sampled_range(net, 3)
    proved(tmp_path, net, spec([(-1.0, 1.0)] * 3, 2, f"(> (+ Y_0 (* 0.5 X_1)) {high[0] + 0.6})", "(>= X_0 X_1)"))


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "bab", "milp"])
def test_what_other_methods_decide_is_proved_by_a_tree(tmp_path: Path, method: str) -> None:
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], 1)
    proved(tmp_path, net, upper_spec(net, 24, 2, 0.5 if method == "milp" else 30.0), method)


def test_a_proof_is_about_weights_in_other_files_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker reads them beside the network, wherever it runs, and refuses others."""
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        model = onnx.load(random_network(tmp_path / name / "n.onnx", [3, 8, 2], seed))
        onnx.save(model, tmp_path / name / "n.onnx", save_as_external_data=True, location="weights.bin",
                  size_threshold=0)
    net, other = tmp_path / "one" / "n.onnx", tmp_path / "two" / "n.onnx"
    assert net.read_bytes() == other.read_bytes()
    monkeypatch.chdir(other.parent)
    _, proof, property = proved(tmp_path, net, upper_spec(net, 3, 2, 0.5))
    with pytest.raises(Refused, match="another network"):
        check(str(other), str(property), str(proof))
    assert check("../one/n.onnx", str(property), str(proof), exact=True).startswith("verified")
    net.with_name("weights.bin").unlink()
    with pytest.raises(Unreadable, match=r"n\.onnx: .*weights\.bin"):
        check(str(net), str(property), str(proof))


def layered(path: Path, shape: list[int], nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], outputs: int
            ) -> Path:
    """A network of given nodes from `x` to `y`."""
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def residual(path: Path, seed: int) -> Path:
    """Convolutions with strides and padding, batch normalisation, a sum of two branches."""
    r = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    weights = {"k0": normal(3, 1, 3, 3), "c0": normal(3), "k1": normal(3, 3, 3, 3), "k2": normal(3, 3, 1, 1),
               "scale": np.float32([1.0, 0.5, 2.0]), "shift": normal(3), "mean": normal(3),
               "var": np.float32([1.0, 2.0, 0.5]), "w": normal(6, 27), "v": normal(2, 6), "b": normal(6),
               "mu": normal(1),
               "sd": np.float32([0.7])}
    make = helper.make_node
    nodes = [make("Sub", ["x", "mu"], ["x0"]), make("Div", ["x0", "sd"], ["x1"]),
             make("Conv", ["x1", "k0", "c0"], ["z0"], pads=[1, 1, 1, 1], strides=[2, 2]),
             make("Relu", ["z0"], ["a0"]),
             make("Conv", ["a0", "k1"], ["u"], pads=[1, 1, 1, 1]),
             make("BatchNormalization", ["u", "scale", "shift", "mean", "var"], ["n"]), make("Relu", ["n"], ["a1"]),
             make("Conv", ["a1", "k2"], ["t"]), make("Add", ["t", "a0"], ["s"]), make("Relu", ["s"], ["a2"]),
             make("Flatten", ["a2"], ["f"]), make("Gemm", ["f", "w", "b"], ["z3"], transB=1),
             make("Relu", ["z3"], ["a3"]), make("Gemm", ["a3", "v"], ["y"], transB=1)]
    return layered(path, [1, 1, 6, 6], nodes, weights, 2)


def smooth(path: Path, kinds: list[str], seed: int) -> Path:
    """Dense layers of 8 with an activation each."""
    r = np.random.default_rng(seed)
    nodes, weights, last, width = [], {}, "x", 6
    for k, kind in enumerate([*kinds, ""]):
        size = 8 if kind else 2
        weights |= {f"w{k}": (1.5 * r.standard_normal((size, width)) / width**0.5).astype(np.float32),
                    f"b{k}": (0.5 * r.standard_normal(size)).astype(np.float32)}
        nodes.append(helper.make_node("Gemm", [last, f"w{k}", f"b{k}"], [f"z{k}" if kind else "y"], transB=1))
        last, width = f"a{k}", size
        if kind:
            nodes.append(helper.make_node(kind, [f"z{k}"], [last]))
    return layered(path, [1, 6], nodes, weights, 2)


@pytest.mark.parametrize("slack", [0.6, 1.2])
def test_residual_convolutions_are_accepted(tmp_path: Path, slack: float) -> None:
    net = residual(tmp_path / "n.onnx", 0)
    proved(tmp_path, net, upper_spec(net, 36, 2, slack, (1, 6, 6)))


@pytest.mark.parametrize("kinds", [["Sigmoid", "Sigmoid"], ["Tanh", "Tanh"], ["Relu", "Sigmoid"],
                                   ["LeakyRelu", "Relu", "Tanh"]], ids="-".join)
def test_other_activations_are_accepted(tmp_path: Path, kinds: list[str]) -> None:
    net = smooth(tmp_path / "n.onnx", kinds, 3)
    proved(tmp_path, net, upper_spec(net, 6, 2, 0.1))


def test_nothing_is_written_unless_decided(tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], 1)
    text = tmp_path / "p.vnnlib"
    text.write_text(upper_spec(net, 24, 2, 0.001))
    result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=tmp_path / "proof", method="ibp")
    assert result.name == "unknown"
    assert not list(tmp_path.glob("proof*"))


def test_a_search_that_is_stopped_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CROWN verifies; the search that is to record a proof has no time for it."""
    monkeypatch.setattr("verifier.branch_and_bound.stage.LAST_BATCH_S", float("inf"))
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], 1)
    text = tmp_path / "p.vnnlib"
    text.write_text(upper_spec(net, 24, 2, 5.0))
    result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=tmp_path / "proof", method="crown")
    assert result.name == "verified" and not result.choices["proof"]["written"]
    assert not list(tmp_path.glob("proof*"))


def test_a_witness_is_accepted(tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 14, 14, 2], 3)
    low, high = sampled_range(net, 3)
    text = tmp_path / "p.vnnlib"
    text.write_text(spec([(-1.0, 1.0)] * 3, 2, f"(>= Y_0 {(low[0] + high[0]) / 2})"))
    result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=tmp_path / "proof")
    assert result.name == "falsified"
    assert check(str(net), str(text), str(tmp_path / "proof")) == "falsified: the witness is unsafe"
