"""Evaluates nodes that depend on no input: shape arithmetic, constants of constants.

Values are computed in the constants' own precision, as a runtime would when it loads the file.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bounds.graph.graph import InvalidNetwork, UnsupportedOperator

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def constant_node(node: onnx.NodeProto) -> np.ndarray:
    """The value of a `Constant` node."""
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            return numpy_helper.to_array(value)
        case "value_float" | "value_floats":
            return np.asarray(value, dtype=np.float32)
        case "value_int" | "value_ints":
            return np.asarray(value, dtype=np.int64)
    raise UnsupportedOperator(f"a constant given as {attribute.name!r}")


def evaluate(node: onnx.NodeProto, inputs: dict[str, np.ndarray], opset: int) -> list[np.ndarray | None]:
    """The outputs of a node whose inputs are all known, by ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type in _RANDOM:
        raise UnsupportedOperator("its output is random")
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        raise UnsupportedOperator("control flow is not supported; export the network with fixed branches")
    declared = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in inputs.items()]
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "constant", declared, [onnx.ValueInfoProto(name=name) for name in names])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, inputs)
    except NotImplementedError as error:
        raise UnsupportedOperator(f"it has constant inputs, but cannot be evaluated ({error})") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, MemoryError) as error:
        raise InvalidNetwork(f"it has constant inputs, but cannot be evaluated ({error})") from error
    by_name = dict(zip(names, results, strict=True))
    return [None if not name else np.asarray(by_name[name]) for name in node.output]
