"""Importer rows of operators that move, repeat or select entries."""

from __future__ import annotations

import math

import torch

from bounds.graph.builder import Value, normalise
from bounds.graph.from_onnx.call import Call, Constant, as_parameter
from bounds.graph.from_onnx.table import row
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator


@row("Flatten")
def flatten(c: Call) -> Value:
    x = c.value()
    axis = c.integer("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return c.builder.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@row("Reshape")
def reshape(c: Call) -> Value:
    """0 keeps an axis (unless `allowzero`), -1 takes what is left."""
    x = c.value()
    shape = c.ints(1, "shape")
    if shape is None:
        raise InvalidNetwork("the new shape is missing")
    if not c.integer("allowzero", 0):
        if any(n == 0 and i >= len(x.shape) for i, n in enumerate(shape)):
            raise InvalidNetwork(f"cannot copy axes of {x.shape} to {shape}")
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return c.builder.reshape(x, fill(shape, math.prod(x.shape)))


def fill(shape: list[int], total: int) -> tuple[int, ...]:
    """Replace one -1 so that the product is `total`."""
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) > 1 or any(n < -1 for n in shape) or (-1 in shape and (known == 0 or total % known)):
        raise InvalidNetwork(f"cannot reshape {total} entries to {shape}")
    return tuple(total // known if n == -1 else n for n in shape)


@row("Squeeze")
def squeeze(c: Call) -> Value:
    x = c.value()
    axes = c.ints(1, "axes")
    gone = {i for i, n in enumerate(x.shape) if n == 1} if axes is None else {normalise(a, len(x.shape)) for a in axes}
    if any(x.shape[a] != 1 for a in gone):
        raise InvalidNetwork(f"cannot squeeze the axes {sorted(gone)} of {x.shape}")
    return c.builder.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in gone))


@row("Unsqueeze")
def unsqueeze(c: Call) -> Value:
    x = c.value()
    axes = c.ints(1, "axes") or []
    rank = len(x.shape) + len(axes)
    new = {normalise(a, rank) for a in axes}
    if len(new) != len(axes):
        raise InvalidNetwork(f"the axes {axes} name one twice")
    rest = iter(x.shape)
    return c.builder.reshape(x, tuple(1 if i in new else next(rest) for i in range(rank)))


@row("Transpose")
def transpose(c: Call) -> Value:
    x = c.value()
    return c.builder.transpose(x, c.integers("perm") or list(reversed(range(len(x.shape)))))


@row("Expand")
def expand(c: Call) -> Value:
    return c.builder.expand(c.value(), tuple(c.ints(1) or ()))


@row("Concat")
def concat(c: Call) -> Value:
    parts = [as_parameter(v, c.dtype) if isinstance(v, Constant) else c.value(i) for i, v in enumerate(c.inputs)]
    return c.builder.concat(parts, c.integer("axis", 1))


@row("Slice")
def slice_(c: Call) -> Value:
    x = c.value()
    starts, ends = c.ints(1, "starts"), c.ints(2, "ends")
    if starts is None or ends is None:
        raise InvalidNetwork("starts or ends are missing")
    axes = c.ints(3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = c.ints(4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise InvalidNetwork("starts, ends, axes and steps differ in length")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = c.builder.slice(x, axis, start, end, step)
    return x


@row("Split")
def split(c: Call) -> list[Value]:
    x = c.value()
    axis = normalise(c.integer("axis", 0), len(x.shape))
    sizes = c.ints(1, "split")
    parts = c.integer("num_outputs", len(c.outputs))
    if sizes is None:
        each = -(-x.shape[axis] // parts)
        sizes = [min(each, x.shape[axis] - i * each) for i in range(parts)]
    if sum(sizes) != x.shape[axis] or min(sizes) < 0 or len(sizes) != len(c.outputs):
        raise InvalidNetwork(f"cannot split axis {axis} of {x.shape} into {sizes}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [c.builder.slice(x, axis, start, start + size, 1) for start, size in zip(starts, sizes, strict=True)]


@row("Gather")
def gather(c: Call) -> Value:
    x = c.value()
    return c.builder.gather(x, c.integer("axis", 0), torch.from_numpy(c.array(1).astype("int64")))


@row("Pad")
def pad(c: Call) -> Value:
    x = c.value()
    mode = c.text("mode", "constant")
    amounts = c.ints(1, "pads")
    fill_value = c.optional_number("value")
    if fill_value is None:
        fill_value = c.scalar(2) if c.has(2) and mode == "constant" else 0.0
    if not math.isfinite(fill_value):
        raise InvalidNetwork(f"padding with {fill_value}, expected a finite number")
    axes = c.ints(3)
    axes = list(range(len(x.shape))) if axes is None else [normalise(a, len(x.shape)) for a in axes]
    if amounts is None or len(amounts) != 2 * len(axes):
        raise InvalidNetwork(f"expected {2 * len(axes)} pads, got {amounts}")
    pads = [(0, 0)] * len(x.shape)
    for k, axis in enumerate(axes):
        pads[axis] = (amounts[k], amounts[k + len(axes)])
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise UnsupportedOperator(f"padding mode {mode!r}")
    return c.builder.pad(x, pads, float(fill_value), mode)
