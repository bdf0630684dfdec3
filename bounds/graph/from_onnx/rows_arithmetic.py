"""Importer rows of arithmetic with constants and sums of activations."""

from __future__ import annotations

import onnx

from bounds.graph.builder import Value, broadcast
from bounds.graph.from_onnx.call import Call, Constant
from bounds.graph.from_onnx.table import row
from bounds.graph.graph import UnsupportedOperator


def _two(c: Call) -> tuple[Value | Constant, Value | Constant]:
    # Operator set 6 and older broadcast only on request, along an axis that may not be the last.
    if c.integer("broadcast", 0) and c.integer("axis", -1) != -1:
        raise UnsupportedOperator("attribute 'axis' (operator set 6 and older) is not supported; convert the model to "
                                  "operator set 7 or newer")
    return c.get(0), c.get(1)


@row("Add")
def add(c: Call) -> Value:
    a, b = _two(c)
    if isinstance(a, Value):
        return c.builder.add(a, b) if isinstance(b, Value) else c.builder.shift(a, c.tensor(1))
    return c.builder.shift(c.value(1), c.tensor(0))


@row("Sub")
def sub(c: Call) -> Value:
    a, b = _two(c)
    if isinstance(a, Value):
        return c.builder.add(a, b, -1) if isinstance(b, Value) else c.builder.shift(a, -c.tensor(1))
    return c.builder.shift(c.builder.negate(c.value(1), c.dtype), c.tensor(0))


@row("Sum")
def sum_(c: Call) -> Value:
    values = [v for v in c.inputs if isinstance(v, Value)]
    total = values[0]
    for value in values[1:]:
        total = c.builder.add(total, value)
    for i, v in enumerate(c.inputs):
        if isinstance(v, Constant):
            total = c.builder.shift(total, c.tensor(i))
    return total


@row("Mul")
def mul(c: Call) -> Value:
    a, b = _two(c)
    if isinstance(a, Value) and isinstance(b, Value):
        raise UnsupportedOperator("a product of two activations has no bounds yet; one factor must be constant")
    return c.builder.scale(a, c.tensor(1)) if isinstance(a, Value) else c.builder.scale(c.value(1), c.tensor(0))


@row("Div")
def div(c: Call) -> Value:
    _, b = _two(c)
    if isinstance(b, Value):
        raise UnsupportedOperator("division by an activation has no bounds yet; the divisor must be constant")
    return c.builder.divide(c.value(0), c.tensor(1))


@row("Neg")
def neg(c: Call) -> Value:
    return c.builder.negate(c.value(), c.dtype)


@row("Identity")
def identity(c: Call) -> Value:
    return c.value()


@row("Dropout")
def dropout(c: Call) -> Value:
    c.ignore("ratio", "seed")
    old_training = c.opset < 7 and not c.integer("is_test", 0)
    if old_training or (c.has(2) and bool(c.array(2))):
        raise UnsupportedOperator("training mode drops values at random; export the network for inference")
    return c.value()


@row("Cast")
def cast(c: Call) -> Value:
    c.ignore("saturate", "round_mode")
    target = c.integer("to", onnx.TensorProto.UNDEFINED)
    if target not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
        name = known[target].name if target in known else str(target)
        raise UnsupportedOperator(f"a conversion of activations to {name} is not the identity; only float32 and "
                                  "float64 are supported")
    return c.value()


@row("Where")
def where(c: Call) -> Value:
    """With a constant condition that picks one side everywhere."""
    condition = c.array(0)
    if not (condition.all() or not condition.any()):
        raise UnsupportedOperator("a condition that picks from both sides is not supported")
    side = 1 if condition.all() else 2
    other = c.get(3 - side)
    return c.builder.expand(c.value(side), broadcast(condition.shape, other.shape))


@row("ReduceSum", "ReduceMean")
def reduce(c: Call) -> Value:
    axes = c.ints(1, "axes")
    keep, noop = bool(c.integer("keepdims", 1)), bool(c.integer("noop_with_empty_axes", 0))
    if not axes:
        if noop:
            return c.value()
        axes = list(range(len(c.value().shape)))
    return c.builder.reduce(c.value(), axes, keep=keep, mean=c.op_type == "ReduceMean")


