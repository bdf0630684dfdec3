"""Evaluates nodes that depend on no input: shape arithmetic, constants of constants.

Values are computed in the constants' own precision, as a runtime would when it loads the file.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from bounds.graph.from_onnx.call import to_array
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator
from bounds.graph.limits import LARGEST_TENSOR

SMALL_INPUT = 64  # entries: more are no shape
# One correctly rounded operation an entry, or none.
_DETERMINED = {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Floor", "Gather",
    "GatherElements", "Identity", "Max", "Min", "Mul", "Neg", "Pad", "Relu", "Reshape", "Shape", "Sign", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def constant_node(node: onnx.NodeProto) -> np.ndarray:
    """The value of a `Constant` node."""
    if len(node.attribute) != 1:
        raise InvalidNetwork(f"expected one attribute, its value, got {len(node.attribute)}")
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            if not isinstance(value, onnx.TensorProto):
                raise InvalidNetwork(f"the attribute 'value' has the wrong type: {type(value).__name__}")
            return to_array(value)
        case "value_float" | "value_floats":
            return np.asarray(value, dtype=np.float32)
        case "value_int" | "value_ints":
            return np.asarray(value, dtype=np.int64)
    raise UnsupportedOperator(f"a constant given as {attribute.name!r}")


def is_determined(node: onnx.NodeProto, result: np.ndarray) -> bool:
    """Whether every runtime must compute the same value of a node on constants: no sum of several, no library's
    function."""
    return not np.issubdtype(result.dtype, np.floating) or node.op_type in _DETERMINED


def evaluate(node: onnx.NodeProto, inputs: dict[str, np.ndarray], opset: int, *,
             largest: int = LARGEST_TENSOR) -> list[np.ndarray | None]:
    """The outputs of a node whose inputs are all known, by ONNX's reference implementation. Each may have `largest` or
    `LARGEST_TENSOR` entries, whichever is more."""
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
    _check_sizes(model, inputs, max(largest, LARGEST_TENSOR))
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, inputs)
    except NotImplementedError as error:
        raise UnsupportedOperator(f"it has constant inputs, but cannot be evaluated ({_first_line(error)})") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, MemoryError) as error:
        raise InvalidNetwork(f"it has constant inputs, but cannot be evaluated ({_first_line(error)})") from error
    by_name = dict(zip(names, results, strict=True))
    return [None if not name else np.asarray(by_name[name]) for name in node.output]


def _check_sizes(model: onnx.ModelProto, inputs: dict[str, np.ndarray], largest: int) -> None:
    """Refuses a node whose outputs are too large, before they are computed: by ONNX's shape inference, which reads the
    values of small inputs (shapes, repeats, pads)."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in inputs.items()
                                   if array.size <= SMALL_INPUT)
    try:
        inferred = shape_inference.infer_shapes(known, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise InvalidNetwork(f"it has constant inputs, but no shape follows ({_first_line(error)})") from error
    for output in inferred.graph.output:
        sizes = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        if math.prod(sizes) > largest:
            raise InvalidNetwork(f"it computes a constant of shape {tuple(sizes)}: expected at most {largest} entries")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
