"""Rows of operations that move, repeat or select entries, and of questions about shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.graph.builder import Value, normalise
from bounds.graph.from_torch.table import Trace, activation, function, module
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator

# ---------------------------------------------------------------------- shapes


def _sizes(sizes: tuple[Any, ...]) -> list[int]:
    """`f(2, 3)` or `f((2, 3))`."""
    chosen = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return [int(n) for n in chosen]


@function(torch.reshape, methods=("reshape", "view"), aliases=True)
def reshape(t: Trace, input: Value, *shape: Any) -> Value:
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise UnsupportedOperator("a view of another dtype is not supported")
    sizes, total = _sizes(shape), math.prod(input.shape)
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) > 1 or known == 0 or (-1 in sizes and total % known):
        raise InvalidNetwork(f"cannot reshape {input.shape} to {tuple(sizes)}")
    return t.builder.reshape(input, tuple(total // known if n == -1 else n for n in sizes))


@function(torch.flatten, methods=("flatten",), aliases=True)
def flatten(t: Trace, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    rank = len(input.shape)
    first, last = normalise(start_dim, rank), normalise(end_dim, rank)
    joined = (math.prod(input.shape[first:last + 1]),)
    return t.builder.reshape(input, input.shape[:first] + joined + input.shape[last + 1:])


@module(nn.Flatten, aliases=True)
def _flatten(t: Trace, m: nn.Flatten, x: Value) -> Value:
    return flatten(t, x, m.start_dim, m.end_dim)


@function(torch.unflatten, methods=("unflatten",), aliases=True)
def unflatten(t: Trace, input: Value, dim: int, sizes: Sequence[int]) -> Value:
    axis = normalise(dim, len(input.shape))
    return reshape(t, input, [*input.shape[:axis], *_filled(sizes, input.shape[axis]), *input.shape[axis + 1:]])


def _filled(sizes: Sequence[int], total: int) -> list[int]:
    known = math.prod(n for n in sizes if n != -1)
    return [total // known if n == -1 else n for n in sizes]


@module(nn.Unflatten, aliases=True)
def _unflatten(t: Trace, m: nn.Unflatten, x: Value) -> Value:
    return unflatten(t, x, m.dim, m.unflattened_size)


@function(torch.squeeze, methods=("squeeze",), aliases=True)
def squeeze(t: Trace, input: Value, dim: Any = None) -> Value:
    rank = len(input.shape)
    axes = range(rank) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    gone = {a for a in (normalise(a, rank) for a in axes) if input.shape[a] == 1}
    return t.builder.reshape(input, tuple(n for i, n in enumerate(input.shape) if i not in gone))


@function(torch.unsqueeze, methods=("unsqueeze",), aliases=True)
def unsqueeze(t: Trace, input: Value, dim: int) -> Value:
    axis = normalise(dim, len(input.shape) + 1)
    return t.builder.reshape(input, (*input.shape[:axis], 1, *input.shape[axis:]))


@function(torch.permute, methods=("permute",), aliases=True)
def permute(t: Trace, input: Value, *dims: Any) -> Value:
    return t.builder.transpose(input, [normalise(d, len(input.shape)) for d in _sizes(dims)])


@function(torch.transpose, torch.swapaxes, methods=("transpose", "swapaxes"), aliases=True)
def transpose(t: Trace, input: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(input.shape)))
    a, b = normalise(dim0, len(order)), normalise(dim1, len(order))
    order[a], order[b] = order[b], order[a]
    return t.builder.transpose(input, order)


@function(torch.t, methods=("t",), aliases=True)
def turn(t: Trace, input: Value) -> Value:
    return t.builder.transpose(input, list(reversed(range(len(input.shape)))))


@function(getattr, aliases=True)
def attribute(t: Trace, x: Value, name: str) -> Any:
    match name:
        case "shape":
            return torch.Size(x.shape)
        case "ndim":
            return len(x.shape)
        case "dtype":
            return t.dtype
        case "device":
            return t.device
        case "T":
            return turn(t, x)
        case "mT":
            return transpose(t, x, -1, -2)
    raise UnsupportedOperator(f"the attribute {name!r} of a tensor is not supported")


@function(methods=("size",))
def size(t: Trace, x: Value, dim: int | None = None) -> Any:
    return torch.Size(x.shape) if dim is None else x.shape[dim]


@function(methods=("dim", "ndimension"))
def rank(t: Trace, x: Value) -> int:
    return len(x.shape)


@function(torch.numel, methods=("numel",))
def numel(t: Trace, x: Value) -> int:
    return math.prod(x.shape)


@function(methods=("contiguous", "clone", "requires_grad_", "cpu", "cuda"), aliases=True)
def unchanged(t: Trace, x: Value, *_: Any, **__: Any) -> Value:
    return x


@function(methods=("to", "float", "double", "type_as"), aliases=True)
def to(t: Trace, x: Value, *where: Any, **kwargs: Any) -> Value:
    for target in (*where, *kwargs.values()):
        if isinstance(target, torch.dtype) and target != t.dtype:
            raise UnsupportedOperator(f"a conversion to {target} in a network of {t.dtype}")
    return x


# ---------------------------------------------------------------------- joining and selecting


@function(torch.cat, torch.concat, torch.concatenate)
def cat(t: Trace, tensors: Sequence[Any], dim: int = 0) -> Value:
    return t.builder.concat([p if isinstance(p, Value) else t.fixed(p) for p in tensors], dim)


@function(torch.stack)
def stack(t: Trace, tensors: Sequence[Any], dim: int = 0) -> Value:
    return cat(t, [unsqueeze(t, p, dim) if isinstance(p, Value) else t.fixed(p).unsqueeze(dim) for p in tensors],
               dim)


@function(torch.split, methods=("split",), aliases=True)
def split(t: Trace, tensor: Value, split_size_or_sections: Any, dim: int = 0) -> tuple[Value, ...]:
    axis = normalise(dim, len(tensor.shape))
    total, each = tensor.shape[axis], split_size_or_sections
    sizes = list(each) if isinstance(each, (tuple, list)) else [min(each, total - i) for i in range(0, total, each)]
    if sum(sizes) != total:
        raise InvalidNetwork(f"cannot split an axis of {total} into {sizes}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(t.builder.slice(tensor, axis, start, start + n, 1) for start, n in zip(starts, sizes, strict=True))


@function(torch.chunk, methods=("chunk",), aliases=True)
def chunk(t: Trace, input: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return split(t, input, -(-input.shape[dim] // chunks), dim)


@function(torch.narrow, methods=("narrow",), aliases=True)
def narrow(t: Trace, input: Value, dim: int, start: int, length: int) -> Value:
    start = start + input.shape[dim] if start < 0 else start
    return t.builder.slice(input, dim, start, start + length, 1)


@function(torch.select, methods=("select",), aliases=True)
def select(t: Trace, input: Value, dim: int, index: int) -> Value:
    return t.builder.gather(input, dim, torch.tensor(index))


@function(torch.index_select, methods=("index_select",))
def index_select(t: Trace, input: Value, dim: int, index: Tensor) -> Value:
    return t.builder.gather(input, dim, index)


@function(torch.flip, methods=("flip",))
def flip(t: Trace, input: Value, *dims: Any) -> Value:
    for axis in _sizes(dims):
        input = t.builder.slice(input, axis, -1, -input.shape[axis] - 1, -1)
    return input


@function(methods=("expand",), aliases=True)
def expand(t: Trace, input: Value, *sizes: Any) -> Value:
    wanted = _sizes(sizes)
    kept = (1,) * (len(wanted) - len(input.shape)) + input.shape
    return t.builder.expand(input, tuple(k if n == -1 else n for n, k in zip(wanted, kept, strict=True)))


@function(operator.getitem, aliases=True)
def getitem(t: Trace, x: Any, index: Any) -> Any:
    """Integers, slices, None, Ellipsis and one list or tensor of integers."""
    if not isinstance(x, Value):
        return x[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if sum(isinstance(i, (list, Tensor)) for i in items) > 1:
        raise UnsupportedOperator("indexing by several lists is not supported")
    if any(i is Ellipsis for i in items):
        here = next(k for k, i in enumerate(items) if i is Ellipsis)
        missing = len(x.shape) - sum(i is not None and i is not Ellipsis for i in items)
        items[here:here + 1] = [slice(None)] * missing
    axis = 0
    for item in items:
        if item is None:
            x = unsqueeze(t, x, axis)
        elif isinstance(item, slice):
            x = t.builder.slice(x, axis, item.start, item.stop, item.step or 1)
        elif isinstance(item, bool) or (isinstance(item, Tensor) and item.dtype == torch.bool):
            raise UnsupportedOperator("indexing by a mask is not supported; use the integer positions")
        elif isinstance(item, (int, list, Tensor)):
            positions = torch.as_tensor(item)
            x = t.builder.gather(x, axis, positions.long())
            axis += positions.dim() - 1
        else:
            raise UnsupportedOperator(f"an index of type {type(item).__name__}")
        axis += 1
    return x


# ---------------------------------------------------------------------- padding

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@function(F.pad)
def pad(t: Trace, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    """`pad` starts at the last axis."""
    if mode not in _MODES:
        raise UnsupportedOperator(f"padding mode {mode!r}")
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    pads = [(0, 0)] * (len(input.shape) - len(pairs)) + list(reversed(pairs))
    return t.builder.pad(activation(input, "the input"), pads, value or 0.0, _MODES[mode])


def _padding_module(mode: str) -> Any:
    def row(t: Trace, m: Any, x: Value) -> Value:
        return pad(t, x, m.padding, mode, getattr(m, "value", 0.0))
    return row


module(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
       nn.ConstantPad3d)(_padding_module("constant"))
module(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)(_padding_module("reflect"))
module(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)(_padding_module("replicate"))
module(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)(_padding_module("circular"))
