"""Changes of a model as a whole: inputs, outputs, versions, functions, sheer length."""

from __future__ import annotations

import random

import onnx
from onnx import TensorProto, helper

from benchmarks.mutants.pick import Unfit, any_node, one_of


def no_outputs(model: onnx.ModelProto, draw: random.Random) -> None:
    del model.graph.output[:]


def another_output(model: onnx.ModelProto, draw: random.Random) -> None:
    names = [o for n in model.graph.node for o in n.output if o] or ["y"]
    info = helper.make_tensor_value_info(draw.choice(names), TensorProto.FLOAT, None)
    if draw.random() < 0.5:
        del model.graph.output[:]
    model.graph.output.append(info)


def another_input(model: onnx.ModelProto, draw: random.Random) -> None:
    model.graph.input.append(helper.make_tensor_value_info(draw.choice(("second", "x")), TensorProto.FLOAT, [1, 2]))


def no_inputs(model: onnx.ModelProto, draw: random.Random) -> None:
    del model.graph.input[:]


def operator_set(model: onnx.ModelProto, draw: random.Random) -> None:
    one_of(model.opset_import, draw).version = draw.choice(
        (0, -1, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 99, 2**40))


def operator_sets(model: onnx.ModelProto, draw: random.Random) -> None:
    if draw.random() < 0.3:
        del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid(draw.choice(("", "ai.onnx", "none")), draw.choice((1, 6, 13, 99))))


def versions(model: onnx.ModelProto, draw: random.Random) -> None:
    model.ir_version = draw.choice((0, 1, 3, 4, 99, 2**40))


def local_function(model: onnx.ModelProto, draw: random.Random) -> None:
    """A function of the file's own under the name of an operator."""
    node = any_node(model, draw)
    model.functions.append(helper.make_function(
        node.domain, node.op_type, ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
        [helper.make_opsetid("", 13)]))


def many_nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    """A long chain behind the output."""
    if not model.graph.output:
        raise Unfit
    operator, name = draw.choice(("Relu", "Neg", "Identity", "Sigmoid")), model.graph.output[0].name
    for k in range(draw.choice((100, 2000))):
        model.graph.node.append(helper.make_node(operator, [name], [f"late{k}"]))
        name = f"late{k}"
    model.graph.output[0].name = name


CHANGES = (
    no_outputs, another_output, another_input, no_inputs, operator_set, operator_sets, versions, local_function,
    many_nodes)
