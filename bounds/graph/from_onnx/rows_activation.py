"""Importer rows of activations. Their files are loaded when a network uses them."""

from __future__ import annotations

import math

from bounds.graph.builder import Value, broadcast
from bounds.graph.from_onnx.call import Call, Constant, scalar
from bounds.graph.from_onnx.table import row
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator


@row("Relu")
def relu(c: Call) -> Value:
    from bounds.ops.relu import Relu

    return c.builder.elementwise(Relu(), c.value())


@row("LeakyRelu")
def leaky_relu(c: Call) -> Value:
    from bounds.ops.leaky_relu import LeakyRelu

    return c.builder.elementwise(LeakyRelu(c.number("alpha", 0.01)), c.value())


@row("PRelu")
def prelu(c: Call) -> Value:
    from bounds.ops.prelu import PRelu

    x, slope = c.value(), c.tensor(1)
    if broadcast(x.shape, tuple(slope.shape)) != x.shape:  # one way only
        raise InvalidNetwork(f"slopes of shape {tuple(slope.shape)} do not broadcast to {x.shape}")
    return c.builder.elementwise(PRelu(c.builder.constant_for(slope, x.shape)), x)


@row("Elu")
def elu(c: Call) -> Value:
    from bounds.ops.elu import Elu

    return c.builder.elementwise(Elu(c.number("alpha", 1.0)), c.value())


@row("Softplus")
def softplus(c: Call) -> Value:
    from bounds.ops.softplus import Softplus

    # ONNX has no threshold; at 80 the operator errs by exp(-80), which its bounds include, and exp does not overflow.
    return c.builder.elementwise(Softplus(1.0, 80.0), c.value())


@row("Sigmoid")
def sigmoid(c: Call) -> Value:
    from bounds.ops.sigmoid import Sigmoid

    return c.builder.elementwise(Sigmoid(), c.value())


@row("Sign")
def sign(c: Call) -> Value:
    from bounds.ops.sign import Sign

    return c.builder.elementwise(Sign(), c.value())


@row("Tanh")
def tanh(c: Call) -> Value:
    from bounds.ops.tanh import Tanh

    return c.builder.elementwise(Tanh(), c.value())


@row("Clip")
def clip(c: Call) -> Value:
    low = _limit(c, 1, "min", -math.inf)
    high = _limit(c, 2, "max", math.inf)
    return _clipped(c, c.value(), low, high)


def _limit(c: Call, i: int, attribute: str, default: float) -> float:
    stored = c.optional_number(attribute)
    if stored is None:
        stored = c.scalar(i) if c.has(i) else default
    return float(stored)


def _clipped(c: Call, x: Value, low: float, high: float) -> Value:
    from bounds.ops.clip import Clip
    from bounds.ops.relu import Relu

    if not low <= high:  # NaN too
        raise InvalidNetwork(f"clipping needs min <= max, got {low} and {high}")
    if (low, high) == (-math.inf, math.inf):
        return x
    return c.builder.elementwise(Relu() if (low, high) == (0.0, math.inf) else Clip(low, high), x)


@row("Max", "Min")
def extremum(c: Call) -> Value:
    """With constants of one number: a clip."""
    values = [v for v in c.inputs if isinstance(v, Value)]
    if len(values) > 1:
        raise UnsupportedOperator("the maximum or minimum of two activations has no bounds yet; rewrite it with Relu: "
                                  "max(a, b) = a + Relu(b - a)")
    limits = [scalar(v.array) for v in c.inputs if isinstance(v, Constant)]
    if c.op_type == "Max":
        return _clipped(c, values[0], max(limits, default=-math.inf), math.inf)
    return _clipped(c, values[0], -math.inf, min(limits, default=math.inf))


@row("Softmax")
def softmax(c: Call) -> Value:
    x = c.value()
    if c.opset >= 13:
        return c.builder.softmax(x, c.integer("axis", -1))
    # Older operator sets flatten the axes from `axis` on and normalise over all of them.
    axis = c.integer("axis", 1) % max(len(x.shape), 1)
    rows = c.builder.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return c.builder.reshape(c.builder.softmax(rows, -1), x.shape)
