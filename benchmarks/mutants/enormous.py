"""Operators that a few numbers make enormous, behind a model's output."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from benchmarks.mutants.pick import Unfit

LENGTHS = (10**4, 10**6, 10**8, 10**9, 10**12, 2**62)
LONGEST_STORED = 10**5  # of what the file itself holds
Store = Callable[[str, object, type], None]


def expanded(name: str, size: int, store: Store) -> list[NodeProto]:
    store("big", [size, 1, 1], np.int64)
    return [helper.make_node("Expand", [name, "big"], ["wide"])]


def padded(name: str, size: int, store: Store) -> list[NodeProto]:
    store("big", [0, 0, 0, size], np.int64)
    return [helper.make_node("Pad", [name, "big"], ["wide"])]


def filled(name: str, size: int, store: Store) -> list[NodeProto]:
    store("big", [size, size], np.int64)
    return [helper.make_node("ConstantOfShape", ["big"], ["c"]), helper.make_node("Add", [name, "c"], ["wide"])]


def filled_row(name: str, size: int, store: Store) -> list[NodeProto]:
    store("big", [1, size], np.int64)
    return [helper.make_node("ConstantOfShape", ["big"], ["c"]), helper.make_node("Add", [name, "c"], ["wide"])]


def tiled(name: str, size: int, store: Store) -> list[NodeProto]:
    store("one", [1, 1], np.float32)
    store("big", [size], np.int64)
    return [helper.make_node("Tile", ["one", "big"], ["c"]), helper.make_node("Add", [name, "c"], ["wide"])]


def counted(name: str, size: int, store: Store) -> list[NodeProto]:
    for label, value in (("first", 0), ("last", size), ("step", 1)):
        store(label, value, np.int64)
    return [helper.make_node("Range", ["first", "last", "step"], ["r"]), helper.make_node("Cast", ["r"], ["c"], to=1),
            helper.make_node("Add", [name, "c"], ["wide"])]


def one_hot(name: str, size: int, store: Store) -> list[NodeProto]:
    store("hot", [0, 1], np.int64)
    store("depth", size, np.int64)
    store("values", [0, 1], np.float32)
    return [helper.make_node("OneHot", ["hot", "depth", "values"], ["c"]),
            helper.make_node("Add", [name, "c"], ["wide"])]


def outer_product(name: str, size: int, store: Store) -> list[NodeProto]:
    length = min(size, LONGEST_STORED)
    store("column", np.ones((length, 1)), np.float32)
    store("row", np.ones((1, length)), np.float32)
    return [helper.make_node("MatMul", ["column", "row"], ["c"]), helper.make_node("Add", [name, "c"], ["wide"])]


def outer_sum(name: str, size: int, store: Store) -> list[NodeProto]:
    """Of an activation and a constant, by broadcasting."""
    store("column", np.ones((min(size, LONGEST_STORED), 1, 1)), np.float32)
    return [helper.make_node("Add", [name, "column"], ["w"]), helper.make_node("Mul", ["w", "column"], ["wide"])]


def doubled(name: str, size: int, store: Store) -> list[NodeProto]:
    nodes = []
    for k in range(size.bit_length()):
        nodes.append(helper.make_node("Concat", [name, name], [f"twice{k}"], axis=1))
        name = f"twice{k}"
    return [*nodes, helper.make_node("Relu", [name], ["wide"])]


def strided(name: str, size: int, store: Store) -> list[NodeProto]:
    store("kernel", np.ones((1, 1, 1)), np.float32)
    store("map", [1, 1, -1], np.int64)
    return [helper.make_node("Reshape", [name, "map"], ["m"]),
            helper.make_node("ConvTranspose", ["m", "kernel"], ["wide"], strides=[size])]


KINDS = (expanded, padded, filled, filled_row, tiled, counted, one_hot, outer_product, outer_sum, doubled, strided)


def enormous(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.output:
        raise Unfit

    def store(label: str, values: object, kind: type) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), label))
    nodes = draw.choice(KINDS)(model.graph.output[0].name, draw.choice(LENGTHS), store)
    model.graph.node.extend([*nodes, helper.make_node("ReduceSum", ["wide"], ["total"], keepdims=1)])
    model.graph.output[0].name = "total"
