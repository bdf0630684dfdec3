"""Choices within an ONNX model, and odd numbers to put there."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

NUMBERS = (0, -1, 1, 2, 3, 7, 1000, 10**6, 10**9, 2**31 - 1, 2**40, 2**62, -2, -5, -(2**31), -(2**63))
SIZES = (0, -1, 1, 2, 3, 5, 1000, 10**5, 10**9, 2**40, -7)
FLOATS = (float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-45, 0.0)


class Unfit(Exception):
    """The model has nothing that a change could change."""


def one_of(things: Iterable[Any], draw: random.Random) -> Any:
    found = list(things)
    if not found:
        raise Unfit
    return draw.choice(found)


def any_node(model: onnx.ModelProto, draw: random.Random) -> onnx.NodeProto:
    return one_of(model.graph.node, draw)


def any_weight(model: onnx.ModelProto, draw: random.Random) -> TensorProto:
    """A stored tensor: an initialiser or a Constant's value."""
    constants = (a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t"))
    return one_of((*model.graph.initializer, *constants), draw)


def any_attribute(model: onnx.ModelProto, draw: random.Random) -> AttributeProto:
    return one_of((a for n in model.graph.node for a in n.attribute), draw)


def store(weight: TensorProto, array: np.ndarray) -> None:
    name = weight.name
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
