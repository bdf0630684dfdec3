"""Changes of nodes: their attributes, operators, order and connections."""

from __future__ import annotations

import copy
import random

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from benchmarks.mutants.changed_tensors import NAMES
from benchmarks.mutants.pick import FLOATS, NUMBERS, Unfit, any_attribute, any_node, one_of

RENAMES = ("Relu", "Sigmoid", "Sign", "Softmax", "Sin", "NoSuchOp", "", "Loop", "Shape", "Size", "Flatten", "Transpose",
           "Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "BatchNormalization", "Concat", "Slice", "Gather", "Pad",
           "Split", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Where", "Clip", "Dropout", "Cast", "ReduceSum",
           "ReduceMean", "ConvTranspose", "Max", "Min", "Sum", "PRelu", "Constant", "ConstantOfShape", "Tile", "Range",
           "GlobalAveragePool", "LeakyRelu", "Elu", "Softplus", "Tanh", "Identity", "Neg", "Div", "Sub", "Mul", "Add")


def attribute_removed(model: onnx.ModelProto, draw: random.Random) -> None:
    node = one_of((n for n in model.graph.node if n.attribute), draw)
    del node.attribute[draw.randrange(len(node.attribute))]


def attribute_value(model: onnx.ModelProto, draw: random.Random) -> None:
    attribute = any_attribute(model, draw)
    if attribute.type == AttributeProto.INT:
        attribute.i = draw.choice(NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = draw.choice((*FLOATS, -1.0, 2.0))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = draw.choice((b"", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"reflect", b"edge", b"\xff\xfe",
                                   b"NOTSET"))
    elif attribute.type == AttributeProto.INTS:
        numbers = list(attribute.ints)
        for _ in range(draw.choice((1, 1, len(numbers) or 1))):
            if numbers:
                numbers[draw.randrange(len(numbers))] = draw.choice(NUMBERS)
        del attribute.ints[:]
        attribute.ints.extend(numbers)
    else:
        raise Unfit


def attribute_length(model: onnx.ModelProto, draw: random.Random) -> None:
    attribute = one_of((a for n in model.graph.node for a in n.attribute if a.type == AttributeProto.INTS), draw)
    numbers = list(attribute.ints)
    del attribute.ints[:]
    attribute.ints.extend(draw.choice(([], numbers[:-1], [*numbers, 1], numbers * 3)))


def attribute_type(model: onnx.ModelProto, draw: random.Random) -> None:
    attribute = any_attribute(model, draw)
    value = draw.choice((1, 0.5, "text", [1, 2], [0.5], ["a", "b"], numpy_helper.from_array(np.ones(2, np.float32)),
                         helper.make_graph([], "empty", [], [])))
    if draw.random() < 0.3:
        attribute.type = draw.randrange(16)
    else:
        attribute.CopyFrom(helper.make_attribute(attribute.name, value))


def attribute_added(model: onnx.ModelProto, draw: random.Random) -> None:
    name = draw.choice(("axis", "axes", "perm", "pads", "strides", "dilations", "group", "kernel_shape", "auto_pad",
                        "ceil_mode", "alpha", "beta", "transA", "transB", "keepdims", "mode", "to", "epsilon", "split",
                        "broadcast", "allowzero", "storage_order", "training_mode", "output_padding", "output_shape",
                        "num_outputs", "unknown", "ratio", "min", "max", "value", "starts", "ends", "shape", "is_test"))
    value = draw.choice((0, 1, -1, 2, 10**9, 0.5, "SAME_UPPER", [1, 1], [0, 0, 0, 0], [-1], [2, 2], [10**9, 1]))
    any_node(model, draw).attribute.append(helper.make_attribute(name, value))


def attribute_doubled(model: onnx.ModelProto, draw: random.Random) -> None:
    node = one_of((n for n in model.graph.node if n.attribute), draw)
    node.attribute.append(copy.deepcopy(draw.choice(list(node.attribute))))
    attribute = node.attribute[-1]
    if attribute.type == AttributeProto.INT:
        attribute.i = draw.choice(NUMBERS)


def operator_renamed(model: onnx.ModelProto, draw: random.Random) -> None:
    any_node(model, draw).op_type = draw.choice(RENAMES)


def domain_changed(model: onnx.ModelProto, draw: random.Random) -> None:
    any_node(model, draw).domain = draw.choice(("ai.onnx", "com.microsoft", "ai.onnx.ml", "none"))


def node_removed(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.node:
        raise Unfit
    del model.graph.node[draw.randrange(len(model.graph.node))]


def node_doubled(model: onnx.ModelProto, draw: random.Random) -> None:
    """Two nodes that compute the same name."""
    model.graph.node.insert(draw.randrange(len(model.graph.node) + 1), copy.deepcopy(any_node(model, draw)))


def nodes_shuffled(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = list(model.graph.node)
    draw.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cycle(model: onnx.ModelProto, draw: random.Random) -> None:
    node = one_of((n for n in model.graph.node if n.input and n.output), draw)
    late = draw.choice([n for n in model.graph.node if n.output])
    node.input[0] = late.output[0]


def input_rewired(model: onnx.ModelProto, draw: random.Random) -> None:
    names = [*(o for n in model.graph.node for o in n.output), *(i.name for i in model.graph.input),
             *(t.name for t in model.graph.initializer), "", "nowhere"]
    node = one_of((n for n in model.graph.node if n.input), draw)
    node.input[draw.randrange(len(node.input))] = draw.choice(names)


def input_count(model: onnx.ModelProto, draw: random.Random) -> None:
    node = one_of((n for n in model.graph.node if n.input), draw)
    inputs = list(node.input)
    del node.input[:]
    node.input.extend(draw.choice(([], inputs[:-1], [*inputs, inputs[0]], inputs[::-1], [*inputs, ""])))


def output_count(model: onnx.ModelProto, draw: random.Random) -> None:
    node = any_node(model, draw)
    outputs = list(node.output)
    del node.output[:]
    node.output.extend(draw.choice(([], [*outputs, "more"], ["", *outputs], [*outputs, *outputs])))


def tensor_renamed(model: onnx.ModelProto, draw: random.Random) -> None:
    node = one_of((n for n in model.graph.node if n.output), draw)
    node.output[0] = draw.choice((*NAMES, *(i.name for i in model.graph.input)))


CHANGES = (
    attribute_removed, attribute_value, attribute_length, attribute_type, attribute_added, attribute_doubled,
    operator_renamed, domain_changed, node_removed, node_doubled, nodes_shuffled, cycle, input_rewired,
    input_count, output_count, tensor_renamed)
