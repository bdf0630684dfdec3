"""Builds a graph from operations on tensors as their source sees them: with a batch axis of one.

Both importers speak of tensors by their full shape in the source (`Value.shape`, at batch one); the graph has no
batch axis. The rule between them: a tensor of at least two axes whose first has size one is held without it, any
other tensor as it is. Where an operation touches the first axis itself, the tensor is viewed whole for it (a
`Reshape` before, another after), so that networks which squeeze, flatten or permute their batch axis away, or have
none, need no special case.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds.graph.graph import Graph, InvalidNetwork, Node, UnsupportedOperator
from bounds.graph.limits import LARGEST_NETWORK, LARGEST_TENSOR, MOST_NODES
from bounds.ops.add import Add
from bounds.ops.avg_pool import AvgPool, pooled_size
from bounds.ops.base import Input, Operator, Shape
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.concat import Concat
from bounds.ops.conv import Conv
from bounds.ops.conv_transpose import ConvTranspose
from bounds.ops.divide import Divide
from bounds.ops.expand import Expand
from bounds.ops.gather import Gather
from bounds.ops.linear import Linear
from bounds.ops.matmul import MatMul
from bounds.ops.pad import Pad
from bounds.ops.reduce import Reduce
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.slice import Slice
from bounds.ops.transpose import Transpose


@dataclass(frozen=True)
class Value:
    """An activation: the node that holds it and its full shape in the source, batch axis of one included."""

    index: int
    shape: Shape


def drops_batch(shape: Shape) -> bool:
    """Whether the graph holds a tensor of this full shape without its first axis."""
    return len(shape) > 1 and shape[0] == 1


def held(shape: Shape) -> Shape:
    """The shape, without batch axis, in which the graph holds a tensor of this full shape."""
    return shape[1:] if drops_batch(shape) else shape or (1,)


def broadcast(*shapes: Shape) -> Shape:
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*shapes))  # torch.broadcast_shapes would load sympy
    except ValueError:
        raise InvalidNetwork(f"shapes {' and '.join(map(str, shapes))} do not broadcast") from None


def normalise(axis: int, rank: int) -> int:
    if not -rank <= axis < max(rank, 1):
        raise InvalidNetwork(f"axis {axis} is out of range for a tensor of {rank} axes")
    return axis + rank if axis < 0 else axis


class Builder:
    """Collects nodes. Each method appends what one operation needs and returns the Value of its result."""

    def __init__(self, name: str, shape: Shape, source: str) -> None:
        self.source = source
        _check_size(shape)
        self._entries = math.prod(shape)
        self.nodes = [Node(name, Input(), (), held(shape))]
        self.input = Value(0, shape)
        self.scope = name
        self._mark = 1

    # ------------------------------------------------------------------ names

    def start(self, name: str) -> None:
        """Nodes made from now on belong to the source's tensor `name`."""
        self.scope, self._mark = name, len(self.nodes)

    def finish(self, value: Value, name: str) -> None:
        """`value` is the source's tensor `name`; helper nodes on the way keep `name~k`."""
        if value.index >= self._mark:
            self.nodes[value.index] = dataclasses.replace(self.nodes[value.index], name=name)

    def graph(self, output: Value, onnx_input_shape: Shape | None) -> Graph:
        """The finished graph, without the nodes that its output does not need."""
        needed = {0, output.index}
        for i in range(len(self.nodes) - 1, 0, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        place = {old: new for new, old in enumerate(sorted(needed))}
        nodes = tuple(dataclasses.replace(self.nodes[i], inputs=tuple(place[j] for j in self.nodes[i].inputs))
                      for i in sorted(needed))
        return Graph(nodes, place[output.index], onnx_input_shape, self.source)

    # ------------------------------------------------------------------ nodes and views

    def node(self, op: Operator, inputs: Sequence[int], shape: Shape) -> int:
        _check_size(shape)
        self._entries += math.prod(shape)
        if self._entries > LARGEST_NETWORK or len(self.nodes) >= MOST_NODES:
            raise InvalidNetwork(f"the network grows beyond {LARGEST_NETWORK} entries of all its layers or "
                                 f"{MOST_NODES} nodes")
        self.nodes.append(Node(f"{self.scope}~{len(self.nodes) - self._mark}", op, tuple(inputs), shape))
        return len(self.nodes) - 1

    def emit(self, op: Operator, inputs: Sequence[int], shape: Shape, full: Shape) -> Value:
        """A node whose result has graph shape `shape` and is the source's tensor of full shape `full`."""
        index = self.node(op, inputs, shape)
        if shape != held(full):
            index = self.node(Reshape(held(full)), (index,), held(full))
        return Value(index, full)

    def whole(self, x: Value) -> int:
        """A node that holds x with its first axis."""
        return self.node(Reshape(x.shape), (x.index,), x.shape) if held(x.shape) != x.shape else x.index

    def along(self, x: Value, axes: Sequence[int]) -> tuple[int, int]:
        """A node to work on along `axes`, and how many leading axes it lacks (0 or 1)."""
        return (x.index, 1) if drops_batch(x.shape) and 0 not in axes else (self.whole(x), 0)

    def batched(self, x: Value, rank: int, what: str) -> int:
        """A node holding x "1 C *map" without its batch axis."""
        if len(x.shape) != rank:
            raise UnsupportedOperator(f"{what} over {rank - 2} axes needs an input of {rank} axes, got {x.shape}")
        if x.shape[0] != 1:
            raise UnsupportedOperator(f"{what} over a first axis of size {x.shape[0]}: store the network with batch "
                                      "size one or a dynamic batch")
        return x.index

    def elementwise(self, op: Operator, x: Value) -> Value:
        return self.emit(op, (x.index,), held(x.shape), x.shape)

    def constant_for(self, c: Tensor, full: Shape) -> Tensor:
        """A constant that broadcasts to `full`, as it broadcasts to the tensor held for it."""
        return c.squeeze(0) if drops_batch(full) and c.dim() == len(full) else c

    # ------------------------------------------------------------------ shapes

    def reshape(self, x: Value, shape: Shape) -> Value:
        if math.prod(shape) != math.prod(x.shape):
            raise InvalidNetwork(f"cannot reshape {x.shape} to {shape}")
        if held(shape) == held(x.shape):
            return Value(x.index, shape)
        return self.emit(Reshape(held(shape)), (x.index,), held(shape), shape)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if sorted(perm) != list(range(len(x.shape))):
            raise InvalidNetwork(f"{tuple(perm)} is no permutation of {len(x.shape)} axes")
        full = tuple(x.shape[p] for p in perm)
        if list(perm) == sorted(perm):
            return x
        if drops_batch(x.shape) and perm[0] == 0:
            return self.emit(Transpose(tuple(p - 1 for p in perm[1:])), (x.index,), full[1:], full)
        return self.emit(Transpose(tuple(perm)), (self.whole(x),), full, full)

    def expand(self, x: Value, shape: Shape) -> Value:
        """x repeated to `shape`, as broadcasting does (ONNX Expand: both ways)."""
        full = broadcast(x.shape, shape)
        x = self.reshape(x, (1,) * (len(full) - len(x.shape)) + x.shape)
        if x.shape == full:
            return x
        index, lacks = self.along(x, [i for i in range(len(full)) if full[i] != x.shape[i]])
        return self.emit(Expand(full[lacks:]), (index,), full[lacks:], full)

    def concat(self, parts: Sequence[Value | Tensor], axis: int) -> Value:
        """Constants among the parts become padding and a shift."""
        rank = len(parts[0].shape)
        axis = normalise(axis, rank)
        if any(len(p.shape) != rank or any(a != b for i, (a, b) in enumerate(zip(p.shape, parts[0].shape, strict=True))
                                           if i != axis) for p in parts):
            raise InvalidNetwork(f"cannot join shapes {', '.join(str(tuple(p.shape)) for p in parts)} along {axis}")
        parts = [p for p in parts if p.shape[axis] > 0]
        full = tuple(sum(p.shape[axis] for p in parts) if i == axis else n for i, n in enumerate(parts[0].shape))
        values = [(i, p) for i, p in enumerate(parts) if isinstance(p, Value)]
        if len(parts) == 1:
            return values[0][1]
        pieces = []
        for k, (i, value) in enumerate(values):
            first = values[k - 1][0] + 1 if k else 0
            before = sum(p.shape[axis] for p in parts[first:i])
            after = sum(p.shape[axis] for p in parts[i + 1:]) if k == len(values) - 1 else 0
            pieces.append(self.pad(value, [(before, after) if a == axis else (0, 0) for a in range(rank)], 0.0))
        result = pieces[0]
        if len(pieces) > 1:
            indices = [self.along(p, [axis]) for p in pieces]
            lacks = indices[0][1]
            result = self.emit(Concat(axis - lacks), [i for i, _ in indices], full[lacks:], full)
        constants = [p for p in parts if isinstance(p, Tensor)]
        if constants:
            shift = torch.cat([p if isinstance(p, Tensor) else constants[0].new_zeros(p.shape) for p in parts], axis)
            result = self.shift(result, shift)
        return result

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int) -> Value:
        """`x[start:stop:step]` along one axis, with Python's rules (which are ONNX's)."""
        axis = normalise(axis, len(x.shape))
        chosen = range(x.shape[axis])[start:stop:step]
        if len(chosen) == x.shape[axis] and step == 1:
            return x
        if not chosen:
            raise UnsupportedOperator(f"an empty slice of axis {axis} of {x.shape}")
        if step < 0:
            return self.gather(x, axis, torch.tensor(list(chosen)))
        full = tuple(len(chosen) if i == axis else n for i, n in enumerate(x.shape))
        index, lacks = self.along(x, [axis])
        return self.emit(Slice(axis - lacks, chosen[0], chosen[-1] + 1, step), (index,), full[lacks:], full)

    def gather(self, x: Value, axis: int, indices: Tensor) -> Value:
        """Entries along one axis; the shape of `indices` takes that axis's place."""
        axis = normalise(axis, len(x.shape))
        size = x.shape[axis]
        if bool(((indices < -size) | (indices >= size)).any()):
            raise InvalidNetwork(f"index out of range for axis {axis} of {x.shape}")
        indices = torch.where(indices < 0, indices + size, indices)
        flat = indices.reshape(-1)
        chosen = tuple(flat.numel() if i == axis else n for i, n in enumerate(x.shape))
        index, lacks = self.along(x, [axis])
        steps = flat.diff()
        if flat.numel() and bool((steps == 1).all()):
            op: Operator = Slice(axis - lacks, int(flat[0]), int(flat[-1]) + 1)
        else:
            op = Gather(axis - lacks, flat)
        full = x.shape[:axis] + tuple(indices.shape) + x.shape[axis + 1:]
        return self.reshape(self.emit(op, (index,), chosen[lacks:], chosen), full)

    def pad(self, x: Value, pads: Sequence[tuple[int, int]], value: float, mode: str = "constant") -> Value:
        """`mode` is constant, edge, reflect or wrap; negative pads crop."""
        if all(pair == (0, 0) for pair in pads):
            return x
        full = tuple(n + before + after for n, (before, after) in zip(x.shape, pads, strict=True))
        if min(full) < 1:
            raise InvalidNetwork(f"pads {list(pads)} leave nothing of {x.shape}")
        _check_size(full)
        if mode == "constant":
            index, lacks = self.along(x, [i for i, pair in enumerate(pads) if pair != (0, 0)])
            return self.emit(Pad(tuple(pads[lacks:]), value), (index,), full[lacks:], full)
        for axis, (before, after) in enumerate(pads):
            if (before, after) != (0, 0):
                x = self.gather(x, axis, _mirror(x.shape[axis], before, after, mode))
        return x

    def reduce(self, x: Value, axes: Sequence[int], *, keep: bool, mean: bool) -> Value:
        axes = sorted({normalise(a, len(x.shape)) for a in axes})
        if not axes:
            return x
        kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        full = kept if keep else tuple(n for i, n in enumerate(x.shape) if i not in axes)
        if math.prod(x.shape[a] for a in axes) == 1:
            return self.reshape(x, full)
        index, lacks = self.along(x, axes)
        op = Reduce(tuple(a - lacks for a in axes), True, mean)
        return self.reshape(self.emit(op, (index,), kept[lacks:], kept), full)

    # ------------------------------------------------------------------ arithmetic

    def add(self, x: Value, y: Value, sign: int = 1) -> Value:
        full = broadcast(x.shape, y.shape)
        return self.emit(Add(sign), (x.index, y.index), held(full), full)

    def _enlarged(self, x: Value, c: Tensor) -> tuple[Value, Tensor]:
        full = broadcast(x.shape, tuple(c.shape))
        return self.expand(x, full), self.constant_for(c, full)

    def shift(self, x: Value, c: Tensor) -> Value:
        """x + c"""
        x, c = self._enlarged(x, c)
        return self.elementwise(Scale(None, c), x)

    def scale(self, x: Value, c: Tensor) -> Value:
        """x * c"""
        x, c = self._enlarged(x, c)
        return self.elementwise(Scale(c), x)

    def divide(self, x: Value, c: Tensor) -> Value:
        """x / c"""
        if bool((c == 0).any()):
            raise InvalidNetwork("division by a constant zero")
        x, c = self._enlarged(x, c)
        return self.elementwise(Divide(c), x)

    def negate(self, x: Value, dtype: torch.dtype) -> Value:
        return self.scale(x, torch.tensor(-1.0, dtype=dtype))

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
        """weight "out in", bias "out" or None, on the last axis."""
        if not x.shape or x.shape[-1] != weight.shape[1]:
            raise InvalidNetwork(f"a dense layer with {weight.shape[1]} inputs cannot take a tensor of shape {x.shape}")
        full = (*x.shape[:-1], weight.shape[0])
        return self.emit(Linear(weight, bias), (x.index,), (*held(x.shape)[:-1], weight.shape[0]), full)

    def matmul(self, x: Value, weight: Tensor, *, left: bool = False) -> Value:
        """x @ weight, or weight @ x, with NumPy's rules for one axis and for more than two."""
        shapes = (tuple(weight.shape), x.shape) if left else (x.shape, tuple(weight.shape))
        full = _product_shape(*shapes)
        if len(x.shape) == 1:  # a row on the left, a column on the right
            x = self.reshape(x, (*x.shape, 1) if left else (1, *x.shape))
        if weight.dim() == 1:
            weight = weight.unsqueeze(0) if left else weight.unsqueeze(-1)
        shapes = (tuple(weight.shape), x.shape) if left else (x.shape, tuple(weight.shape))
        padded = _product_shape(*shapes)
        x = self.reshape(x, (1,) * (len(padded) - len(x.shape)) + x.shape)
        lacks = 1 if drops_batch(padded) and drops_batch(x.shape) and (len(padded) > 2 or not left) else 0
        index = x.index if lacks else self.whole(x)
        weight = weight.squeeze(0) if lacks and weight.dim() == len(padded) > 2 else weight
        op = MatMul(weight, left)
        return self.reshape(self.emit(op, (index,), padded[lacks:], padded), full)

    def conv(self, x: Value, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int],
             before: Sequence[int], after: Sequence[int], dilation: Sequence[int], groups: int) -> Value:
        axes = weight.dim() - 2
        index = self.batched(x, weight.dim(), "a convolution")
        if not 1 <= axes <= 3:
            raise UnsupportedOperator(f"a convolution over {axes} axes")
        _check_kernel(weight, bias, weight.shape[0])
        if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
            raise InvalidNetwork(f"a convolution with weight {tuple(weight.shape)} and {groups} groups cannot take "
                                 f"a tensor of shape {x.shape}")
        if tuple(before) != tuple(after):
            x = self.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], 0.0)
            index, before = x.index, (0,) * axes
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1
                 for n, p, d, k, s in zip(x.shape[2:], before, dilation, weight.shape[2:], stride, strict=True)]
        if min(sizes) < 1:
            raise InvalidNetwork(f"a convolution kernel {tuple(weight.shape[2:])} is larger than its input {x.shape}")
        full = (1, weight.shape[0], *sizes)
        # A stride beyond the input or a dilation of one cell says nothing, and a huge one is too much for PyTorch.
        stride = [min(s, n + 2 * p) for n, p, s in zip(x.shape[2:], before, stride, strict=True)]
        dilation = [1 if k == 1 else d for k, d in zip(weight.shape[2:], dilation, strict=True)]
        op = Conv(weight, bias, tuple(stride), tuple(before), tuple(dilation), groups)
        return self.emit(op, (index,), full[1:], full)

    def conv_transpose(self, x: Value, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int],
                       before: Sequence[int], after: Sequence[int], output_padding: Sequence[int],
                       dilation: Sequence[int], groups: int) -> Value:
        axes = weight.dim() - 2
        index = self.batched(x, weight.dim(), "a transposed convolution")
        if not 1 <= axes <= 3:
            raise UnsupportedOperator(f"a transposed convolution over {axes} axes")
        _check_kernel(weight, bias, weight.shape[1] * groups)
        if x.shape[1] != weight.shape[0]:
            raise InvalidNetwork(f"a transposed convolution with weight {tuple(weight.shape)} cannot take a tensor of "
                                 f"shape {x.shape}")
        # PyTorch takes one padding for both ends, and an output padding below the stride only: pad or crop the rest.
        far = [o - a for o, a in zip(output_padding, after, strict=True)]
        direct = all(b == a and 0 <= o < max(s, d) for b, a, o, s, d
                     in zip(before, after, output_padding, stride, dilation, strict=True))
        padding = tuple(before) if direct else (0,) * axes
        extra = tuple(output_padding) if direct else (0,) * axes
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, s, p, d, k, o
                 in zip(x.shape[2:], stride, padding, dilation, weight.shape[2:], extra, strict=True)]
        full = (1, weight.shape[1] * groups, *sizes)
        _check_size(full)
        if direct and not any(extra):  # a stride from one cell says nothing, and PyTorch takes memory for a huge one
            stride = [1 if n == 1 else s for n, s in zip(x.shape[2:], stride, strict=True)]
            dilation = [1 if k == 1 else d for k, d in zip(weight.shape[2:], dilation, strict=True)]
        op = ConvTranspose(weight, None if not direct else bias, tuple(stride), padding, extra, tuple(dilation), groups)
        y = self.emit(op, (index,), full[1:], full)
        if direct:
            return y
        y = self.pad(y, [(0, 0), (0, 0), *((-b, f) for b, f in zip(before, far, strict=True))], 0.0)
        return y if bias is None else self.shift(y, bias.reshape(1, -1, *(1,) * axes))

    def batch_norm(self, x: Value, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                   eps: float) -> Value:
        if len(x.shape) < 2 or x.shape[0] != 1 or x.shape[1] != mean.numel():
            raise UnsupportedOperator(f"batch normalisation of {mean.numel()} channels over a tensor of shape "
                                      f"{x.shape}")
        if any(t is not None and t.shape != mean.shape for t in (weight, bias, variance)) or mean.dim() != 1:
            raise InvalidNetwork("batch normalisation needs one scale, shift, mean and variance a channel, got shapes "
                                 + ", ".join(str(tuple(t.shape)) for t in (weight, bias, mean, variance)
                                             if t is not None))
        return self.elementwise(BatchNorm(weight, bias, mean, variance, eps), x)

    def avg_pool(self, x: Value, *, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int],
                 after: Sequence[int], ceil: bool, count_padding: bool) -> Value:
        index = self.batched(x, len(kernel) + 2, "average pooling")
        sizes = [pooled_size(n, k, s, b, a, ceil)
                 for n, k, s, b, a in zip(x.shape[2:], kernel, stride, before, after, strict=True)]
        if min(sizes) < 1:
            raise InvalidNetwork(f"a pooling window {tuple(kernel)} is larger than its input {x.shape}")
        stride = [min(s, n + b + a) for n, s, b, a in zip(x.shape[2:], stride, before, after, strict=True)]
        op = AvgPool(tuple(kernel), tuple(stride), tuple(before), tuple(after), ceil, count_padding)
        full = (*x.shape[:2], *sizes)
        return self.emit(op, (index,), full[1:], full)

    def max_pool(self, x: Value, *, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int],
                 after: Sequence[int], dilation: Sequence[int], ceil: bool) -> Value:
        from bounds.ops.max_pool import MaxPool

        index = self.batched(x, len(kernel) + 2, "max pooling")
        if tuple(before) != tuple(after) or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
            raise UnsupportedOperator(f"max pooling with pads {tuple(before)} and {tuple(after)}: only equal pads of "
                                      "at most half a window are supported")
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sizes = [pooled_size(n, r, s, b, a, ceil)
                 for n, r, s, b, a in zip(x.shape[2:], reach, stride, before, after, strict=True)]
        if min(sizes) < 1:
            raise InvalidNetwork(f"a pooling window {tuple(kernel)} is larger than its input {x.shape}")
        stride = [min(s, n + 2 * b) for n, s, b in zip(x.shape[2:], stride, before, strict=True)]
        op = MaxPool(tuple(kernel), tuple(stride), tuple(before), tuple(dilation), ceil)
        full = (*x.shape[:2], *sizes)
        return self.emit(op, (index,), full[1:], full)

    def softmax(self, x: Value, axis: int) -> Value:
        """The operator counts its axis from the end, so it does not depend on the batch axis."""
        from bounds.ops.softmax import Softmax

        axis = normalise(axis, len(x.shape))
        index, lacks = self.along(x, [axis])
        return self.emit(Softmax(axis - len(x.shape)), (index,), x.shape[lacks:], x.shape)


def _check_size(shape: Shape) -> None:
    if math.prod(shape) > LARGEST_TENSOR:
        raise InvalidNetwork(f"a tensor of shape {shape} is too large: expected at most {LARGEST_TENSOR} entries")
    if math.prod(shape) < 1:
        raise InvalidNetwork(f"a tensor of shape {shape} is empty")


def _check_kernel(weight: Tensor, bias: Tensor | None, channels: int) -> None:
    if min(weight.shape) < 1:
        raise InvalidNetwork(f"a convolution's weight of shape {tuple(weight.shape)} is empty")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise InvalidNetwork(f"a convolution's bias has shape {tuple(bias.shape)}, expected ({channels},)")


def _product_shape(a: Shape, b: Shape) -> Shape:
    rows, columns = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    if not a or not b or rows[-1] != columns[-2]:
        raise InvalidNetwork(f"cannot multiply shapes {a} and {b}")
    full = broadcast(rows[:-2], columns[:-2])
    return full + ((rows[-2],) if len(a) > 1 else ()) + ((columns[-1],) if len(b) > 1 else ())


def _mirror(size: int, before: int, after: int, mode: str) -> Tensor:
    """Which cell each cell of a padded axis copies."""
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    if mode == "reflect" and max(before, after) < size:
        return size - 1 - (size - 1 - index.abs()).abs()
    raise UnsupportedOperator(f"padding mode {mode!r} with pads {before} and {after} of an axis of {size}")


__all__ = ["Builder", "Value", "drops_batch", "held"]
