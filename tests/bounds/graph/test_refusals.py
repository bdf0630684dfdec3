"""Networks that are damaged, out of scope or use what is not supported: one sentence with the file and the place."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bounds import files
from bounds.graph import Graph, InvalidNetwork, UnsupportedOperator
from tests.bounds.graph.models import Weights, integers, model, node, number, random

M = (1, 2, 6, 7)
GOOD = model([node("MatMul", "x w")], (1, 4), {"w": random(4, 3)})


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


DAMAGED = {
    "text": (b"hello, this is a note about a network\n" * 20, "text file"),
    "vnnlib": (b"; a property\n(declare-const X_0 Real)\n(assert (<= X_0 1))\n", "text file"),
    "empty": (b"", "empty"),
    "zeros": (bytes(200), "damaged|not an ONNX model"),
    "noise": (np.random.default_rng(0).bytes(500), "damaged|not an ONNX model"),
    "cut gzip": (gzip.compress(GOOD)[:-20], "gzip"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_no_networks_are_refused(name: str, tmp_path: Path) -> None:
    data, reason = DAMAGED[name]
    path = write(tmp_path, "net.onnx", data)
    with pytest.raises(InvalidNetwork, match=f"^{re.escape(str(path))}: .*({reason})"):
        Graph.from_onnx(path)


def test_every_truncation_is_refused_and_names_the_file(tmp_path: Path) -> None:
    """Wherever the file is cut, reading ends in InvalidNetwork or UnsupportedOperator."""
    for length in range(0, len(GOOD) - 1):
        path = write(tmp_path, "cut.onnx", GOOD[:length])
        with pytest.raises((InvalidNetwork, UnsupportedOperator), match=r"cut\.onnx: "):
            Graph.from_onnx(path)


def test_mutated_files_are_read_or_refused_by_name() -> None:
    """A flipped byte may leave a readable network; it never raises anything else."""
    rng = np.random.default_rng(0)
    sources = [GOOD, model([node("Conv", "x w", pads=[1, 1, 1, 1], group=1), node("Relu", "y", "z")], M,
                           {"w": random(2, 2, 3, 3)}, outputs=("z",))]
    for k in range(600):
        data = bytearray(sources[k % 2])
        for position in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[position] = rng.integers(256)
        message = "ONNX bytes: "
        try:
            Graph.from_onnx(bytes(data))
        except (InvalidNetwork, UnsupportedOperator) as error:
            message = str(error)
        assert message.startswith("ONNX bytes: ")


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidNetwork, match=r"absent\.onnx: no such file"):
        Graph.from_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InvalidNetwork, match="is a directory"):
        Graph.from_onnx(tmp_path)


def bad_weight(value: float) -> bytes:
    weight = random(4, 3)
    weight[2, 1] = value
    return model([node("MatMul", "x the_weight")], (1, 4), {"the_weight": weight})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    with pytest.raises(InvalidNetwork, match=r"'the_weight' has a value that is not finite: .* at \(2, 1\)"):
        Graph.from_onnx(bad_weight(value))


def test_huge_weights_whose_sum_overflows_are_accepted() -> None:
    weight = np.full((4, 3), 3e38, dtype=np.float32)
    assert Graph.from_onnx(model([node("MatMul", "x w")], (1, 4), {"w": weight})).output_shape == (3,)


def two_inputs() -> bytes:
    return model([node("Add", "x z")], (1, 3), inputs=("x", "z"))


def two_outputs() -> bytes:
    return model([node("Relu", "x"), node("Neg", "x", "z")], (1, 3), outputs=("y", "z"))


def weight_cut_short() -> bytes:
    proto = onnx.load_from_string(GOOD)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-5]
    return proto.SerializeToString()


OUT_OF_SCOPE = {
    "two inputs": (two_inputs(), r"expected one input, got 2 \(x, z\)"),
    "two outputs": (two_outputs(), r"expected one output, got 2 \(y, z\)"),
    "dynamic axis": (model([node("Relu", "x")], (1, "height", 3)), r"axis 1 of the input 'x' .*\(height\)"),
    "input without shape": (model([node("Relu", "x")], None), "'x' has no shape"),
    "integer input": (model([node("Neg", "x")], (1, 3), kind=TensorProto.INT64), "'x' must be a float32 or float64"),
    "constant output": (model([node("Neg", "c")], (1, 3), {"c": random(1, 3)}), "'y' does not depend on the input"),
    "output that is not computed": (model([node("Relu", "x", "z")], (1, 3)), "no node computes the output 'y'"),
    "unknown tensor": (model([node("Add", "x nowhere")], (1, 3)), r"Add \(node 'y'\): .*'nowhere'"),
    "cut weight": (weight_cut_short(), "'w' is damaged"),
    "shapes that do not fit": (model([node("MatMul", "x w")], (1, 5), {"w": random(4, 3)}), "MatMul .*4 inputs"),
    "shapes that do not broadcast": (model([node("Add", "x c")], (1, 3), {"c": random(2)}), "do not broadcast"),
    "impossible reshape": (model([node("Reshape", "x s")], (1, 3), {"s": integers(2, -1)}), "cannot reshape"),
    "attribute of the wrong type": (model([node("Gemm", "x w", transB="yes")], (1, 4), {"w": random(3, 4)}),
                                    "Mismatched attribute type in .*transB"),
    "attribute missing": (model([node("AveragePool", "x")], M), "'kernel_shape' is missing"),
    "unknown attribute": (model([node("Relu", "x", strange=1)], (1, 3)), "Unrecognized attribute: strange"),
    "tensor beyond any memory": (model([node("Expand", "x s")], (1, 3), {"s": integers(2**40, 3)}), "too large"),
    "index out of range": (model([node("Gather", "x i", axis=1)], (1, 3), {"i": integers(3)}), "out of range"),
    "division by zero": (model([node("Div", "x c")], (1, 3), {"c": number(0)}), "division by a constant zero"),
    "NaN limit": (model([node("Clip", "x c")], (1, 3), {"c": number(np.nan)}), "min <= max"),
    "kernel beyond the map": (model([node("Conv", "x w")], (1, 2, 2, 2), {"w": random(4, 2, 3, 3)}), "larger than"),
    "wrong channels": (model([node("Conv", "x w")], M, {"w": random(4, 3, 3, 3)}), "cannot take a tensor"),
}


@pytest.mark.parametrize("name", OUT_OF_SCOPE)
def test_networks_out_of_scope_are_refused_with_the_place(name: str, tmp_path: Path) -> None:
    data, reason = OUT_OF_SCOPE[name]
    path = write(tmp_path, "net.onnx", data)
    with pytest.raises(InvalidNetwork, match=f"^{re.escape(str(path))}: .*{reason}"):
        Graph.from_onnx(path)


NORM = {"s": random(2), "b": random(2), "m": random(2), "v": np.abs(random(2))}
H = node("Relu", "x", "h")

UNSUPPORTED: dict[str, tuple[Sequence[onnx.NodeProto], Sequence[int], Weights, int, str]] = {
    "operator": ([node("Sin", "x")], (1, 3), {}, 13, r"Sin \(node 'y'\): this operator has no sound bounds"),
    "operator of another domain": ([helper.make_node("Relu", ["x"], ["y"], domain="com.acme")], (1, 3), {}, 13,
                                   "Relu .*domain 'com.acme'"),
    "product of activations": ([H, node("Mul", "x h")], (1, 3), {}, 13, "Mul .*product of two activations"),
    "matrix product of activations": ([H, node("MatMul", "x h")], (3, 3), {}, 13, "product of two activations"),
    "division by an activation": ([node("Div", "c x")], (1, 3), {"c": number(1)}, 13, "division by an activation"),
    "maximum of activations": ([H, node("Max", "x h")], (1, 3), {}, 13, "Max .*two activations"),
    "maximum with a vector": ([node("Max", "x c")], (1, 3), {"c": random(3)}, 13, "only one number"),
    "weight that is an activation": ([node("Conv", "w x")], (4, 2, 3, 3), {"w": random(*M)}, 13, "Conv .*constant"),
    "mixed condition": ([node("Where", "c x z")], (1, 2), {"c": np.array([True, False]), "z": number(0)}, 13,
                        "picks from both sides"),
    "cast to integers": ([node("Cast", "x", "h", to=TensorProto.INT64), node("Cast", "h", to=TensorProto.FLOAT)],
                         (1, 3), {}, 13, "conversion of activations to INT64"),
    "half precision weights": ([node("Add", "x c")], (1, 3), {"c": random(3).astype(np.float16)}, 13, "float16"),
    "training mode": ([node("BatchNormalization", "x s b m v", "y a c", training_mode=1)], M, NORM, 14,
                      "training_mode=1"),
    "dropout in training": ([node("Dropout", "x r t")], (1, 3), {"r": number(0.5), "t": np.array(True)}, 13,
                            "training mode"),
    "second output in use": ([node("MaxPool", "x", "p i", kernel_shape=[2, 2]), node("Cast", "i", "j", to=1),
                              node("Add", "p j")], M, {}, 13, "Cast .*'i'.*MaxPool"),
    "dilated average": ([node("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2])], M, {}, 19, "'dilations'"),
    "convolution over several samples": ([node("Conv", "x w")], (2, 2, 6, 7), {"w": random(4, 2, 3, 3)}, 13,
                                         "first axis of size 2"),
    "SAME padding with dilation": ([node("Conv", "x w", auto_pad="SAME_UPPER", dilations=[2, 2])], M,
                                   {"w": random(2, 2, 3, 3)}, 13, "auto_pad 'SAME_UPPER'"),
    "SAME padding with large strides": ([node("MaxPool", "x", kernel_shape=[1, 1], strides=[3, 3],
                                              auto_pad="SAME_LOWER")], M, {}, 13, "auto_pad 'SAME_LOWER'"),
    "uneven padding of a maximum": ([node("MaxPool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], M, {}, 13,
                                    "max pooling with pads"),
    "old dropout in training": ([node("Dropout", "x", ratio=0.5)], (1, 3), {}, 6, "training mode"),
    "control flow": ([helper.make_node("If", ["c"], ["z"], then_branch=helper.make_graph([], "t", [], []),
                                       else_branch=helper.make_graph([], "e", [], [])), node("Add", "x z")],
                     (1, 3), {"c": np.array(True)}, 13, "control flow"),
    "random constant": ([node("RandomNormalLike", "c", "z"), node("Add", "x z")], (1, 3), {"c": random(3)}, 13,
                        "random"),
    "random tensor": ([node("RandomNormal", "", "z", shape=[3]), node("Add", "x z")], (1, 3), {}, 13, "random"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    nodes, shape, weights, opset, reason = UNSUPPORTED[name]
    path = write(tmp_path, "net.onnx", model(nodes, shape, weights, opset=opset))
    with pytest.raises(UnsupportedOperator, match=f"^{re.escape(str(path))}: .*{reason}"):
        Graph.from_onnx(path)


def test_refusal_names_the_node_and_what_could_be_done() -> None:
    data = model([helper.make_node("Erf", ["x"], ["y"], name="/gelu/Erf")], (1, 3))
    with pytest.raises(UnsupportedOperator, match=r"Erf \(node '/gelu/Erf'\).*Rewrite the network"):
        Graph.from_onnx(data)


def test_wrong_input_shape_is_refused() -> None:
    import torch

    with pytest.raises(ValueError, match=r"input must have shape \(B, 4\), got \(2, 5\)"):
        Graph.from_onnx(GOOD)(torch.zeros(2, 5))


# ---------------------------------------------------------------- what only looks like a network

def changed(data: bytes, change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.load_from_string(data)
    change(proto)
    return proto.SerializeToString()


def twice_given(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def twice_computed(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[0])


def computes_a_weight(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, node("Relu", "x", "w"))


def two_versions(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 9))


def own_function(proto: onnx.ModelProto) -> None:
    proto.functions.append(helper.make_function("", "MatMul", ["a", "b"], ["c"], [node("Add", "a b", "c")],
                                                [helper.make_opsetid("", 13)]))


def attribute_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.7))


def name_is_no_text(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Mat#ul"


INCONSISTENT = {
    "stored twice": (changed(GOOD, twice_given), "'w' is stored twice"),
    "computed twice": (changed(GOOD, twice_computed), "'y' is computed twice"),
    "stored and computed": (changed(GOOD, computes_a_weight), "'w' is both given and computed by a Relu"),
    "several versions": (changed(GOOD, two_versions), "several versions of the ONNX operator set, 9 and 13"),
    "version zero": (changed(GOOD, lambda p: setattr(p.opset_import[0], "version", 0)), "version 0 of the ONNX"),
    "version of the future": (changed(GOOD, lambda p: setattr(p.opset_import[0], "version", 999)), "version 999 of"),
    "format of the future": (changed(GOOD, lambda p: setattr(p, "ir_version", 999)), "format version 999"),
    "a function of its own": (changed(GOOD, own_function), "functions that the file defines itself"),
    "a name that is no text": (changed(GOOD, name_is_no_text).replace(b"Mat#ul", b"Mat\xb1ul"), "is not text"),
    "integer output": (changed(GOOD, lambda p: setattr(p.graph.output[0].type.tensor_type, "elem_type", 7)),
                       "output 'y' must be a float32 or float64"),
    "negative size": (changed(GOOD, lambda p: p.graph.initializer[0].dims.__setitem__(0, -1)),
                      r"'w' has the shape \[-1"),
    "too few inputs": (model([node("MatMul", "x")], (1, 4)), "MatMul .*has input size 1 not in range"),
    "an attribute twice": (changed(model([node("Elu", "x", alpha=0.5)], (1, 3)), attribute_twice),
                           "'alpha' appeared multiple times"),
    "an attribute of another version": (model([node("Clip", "x", min=0.0)], (1, 3)), "Unrecognized attribute: min"),
    "axes named twice": (model([node("Unsqueeze", "x a")], (1, 3), {"a": integers(0, 0)}), "name one twice"),
    "a constant without value": (model([node("Constant", "", "c"), node("Add", "x c")], (1, 3)),
                                 "expected one attribute"),
    "a bias of another size": (model([node("ConvTranspose", "x w b")], (1, 2, 4),
                                     {"w": random(2, 2, 3), "b": random(3)}),
                               r"bias has shape \(3,\), expected \(2,\)"),
    "an empty kernel": (model([node("Conv", "x w")], (1, 2, 4), {"w": random(0, 2, 3)}), "is empty"),
    "a summand that widens": (model([node("Gemm", "x w b")], (1, 4), {"w": random(4, 1), "b": random(2)}),
                              r"summand of shape \(2,\) does not fit a product of shape \(1, 1\)"),
    "slopes that widen": (model([node("PRelu", "x s")], (1, 1), {"s": random(3)}), "do not broadcast to"),
    "a factor without end": (model([node("Gemm", "x w", alpha=float("inf"))], (1, 4), {"w": random(4, 3)}),
                             "'alpha' is inf, expected a finite number"),
    "a slope that is no number": (model([node("LeakyRelu", "x", alpha=float("nan"))], (1, 4)), "'alpha' is nan"),
    "scales of another size": (model([node("BatchNormalization", "x s b m v")], (1, 2, 4), {
        "s": random(0), "b": random(2), "m": random(2), "v": np.ones(2, np.float32)}), "one scale, shift, mean"),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_what_runtimes_read_differently_or_not_at_all_is_refused(name: str) -> None:
    data, reason = INCONSISTENT[name]
    with pytest.raises((InvalidNetwork, UnsupportedOperator), match=f"^ONNX bytes: .*{reason}"):
        Graph.from_onnx(data)


# ---------------------------------------------------------------- enormous by a few numbers

def by_constant(*nodes: onnx.NodeProto, **weights: np.ndarray) -> bytes:
    return model([*nodes, node("Add", "x c")], (1, 3), weights)


BIG = 10**6
ENORMOUS = {
    "input": model([node("Relu", "x")], (1, 10**9)),
    "filled constant": by_constant(node("ConstantOfShape", "n", "c"), n=integers(BIG, BIG)),
    "tiled constant": by_constant(node("Tile", "o n", "c"), o=random(1), n=integers(10**12)),
    "counted constant": by_constant(node("Range", "a b s", "r"), node("Cast", "r", "c", to=TensorProto.FLOAT),
                                    a=np.array(0), b=np.array(10**12), s=np.array(1)),
    "outer product": by_constant(node("MatMul", "a b", "c"), a=random(BIG // 50, 1), b=random(1, BIG // 50)),
    "one-hot constant": by_constant(node("OneHot", "i n v", "c"), i=integers(0), n=np.array(10**12), v=random(2)),
    "broadcast": model([node("Expand", "x n", "e"), node("Relu", "e")], (1, 3), {"n": integers(10**9, 1)}),
    "padding": model([node("Pad", "x n")], (1, 3), {"n": integers(0, 0, 0, 10**12)}),
    "stride": model([node("ConvTranspose", "x k", strides=[10**12])], (1, 1, 3), {"k": random(1, 1, 1)}),
    "doubling": model([node("Concat", f"{a} {a}", b, axis=1) for a, b in
                       zip(["x", *(f"t{k}" for k in range(39))], [*(f"t{k}" for k in range(39)), "y"], strict=True)],
                      (1, 3)),
    "many layers": model([node("Expand", "x n", "r0"), *(node("Neg", f"r{k}", f"r{k + 1}") for k in range(99)),
                          node("Relu", "r99")], (1, 3), {"n": integers(1, 4 * BIG, 1)}),
}


@pytest.mark.parametrize("name", ENORMOUS)
def test_what_no_memory_holds_is_refused_before_it_is_made(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidNetwork, match=r"too large|at most|grows beyond"):
            Graph.from_onnx(ENORMOUS[name])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nodes", [
    [node("Conv", "x w", strides=[2**40], dilations=[2**40])],
    [node("ConvTranspose", "x w", strides=[2**40], dilations=[2**40])],
    [node("MaxPool", "x", kernel_shape=[1], strides=[2**40])],
    [node("AveragePool", "x", kernel_shape=[1], strides=[2**40])]])
def test_steps_beyond_the_input_cost_nothing(nodes: list[onnx.NodeProto]) -> None:
    x = torch.tensor([[[0.5]]])
    assert Graph.from_onnx(model(nodes, (1, 1, 1), {"w": np.full((1, 1, 1), 2, np.float32)}))(x).item() in (0.5, 1.0)


def test_gzip_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_UNPACKED", 1 << 20)
    with pytest.raises(InvalidNetwork, match="unpack to more than 1 MiB"):
        Graph.from_onnx(gzip.compress(bytes(2 << 20)))


def test_a_long_chain_is_read_and_simplified() -> None:
    """Nothing recurses over the length of a network."""
    data = model([node("Neg", f"t{k}" if k else "x", f"t{k + 1}") for k in range(3000)], (1, 3), outputs=("t3000",))
    assert Graph.from_onnx(data).simplify()(torch.ones(1, 3)).tolist() == [[1.0, 1.0, 1.0]]
