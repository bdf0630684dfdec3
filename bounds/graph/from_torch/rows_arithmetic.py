"""Rows of arithmetic: sums, differences, products and quotients with constants, reductions."""

from __future__ import annotations

import operator
from typing import Any

import torch

from bounds.graph.builder import Value
from bounds.graph.from_torch.table import Trace, activation, function
from bounds.graph.graph import UnsupportedOperator


def _scaled(t: Trace, x: Any, alpha: Any) -> Any:
    if alpha == 1:
        return x
    return t.builder.scale(x, t.constant(alpha)) if isinstance(x, Value) else t.fixed(x) * alpha


@function(operator.add, operator.iadd, torch.add, methods=("add", "__add__", "__radd__"))
def add(t: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    b = _scaled(t, b, alpha)
    if isinstance(a, Value) and isinstance(b, Value):
        return t.builder.add(a, b)
    return t.builder.shift(a, t.constant(b)) if isinstance(a, Value) else t.builder.shift(b, t.constant(a))


@function(operator.sub, operator.isub, torch.sub, torch.subtract, methods=("sub", "subtract", "__sub__"))
def sub(t: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    b = _scaled(t, b, alpha)
    if isinstance(a, Value) and isinstance(b, Value):
        return t.builder.add(a, b, -1)
    if isinstance(b, Value):
        return t.builder.shift(neg(t, b), t.constant(a))
    c = t.constant(b)
    # -(-x + c) keeps a parameter shared; its negative would be a copy
    return neg(t, t.builder.shift(neg(t, a), c)) if c.requires_grad else t.builder.shift(a, -c)


@function(torch.rsub, methods=("__rsub__",))
def rsub(t: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    return sub(t, b, _scaled(t, a, alpha))


@function(operator.neg, torch.neg, torch.negative, methods=("neg", "negative", "__neg__"))
def neg(t: Trace, x: Value) -> Value:
    return t.builder.scale(x, t.constant(-1.0))


@function(operator.mul, operator.imul, torch.mul, torch.multiply, methods=("mul", "multiply", "__mul__", "__rmul__"))
def mul(t: Trace, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        raise UnsupportedOperator("a product of two activations has no bounds yet; one factor must be constant")
    return t.builder.scale(a, t.constant(b)) if isinstance(a, Value) else t.builder.scale(b, t.constant(a))


@function(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide,
          methods=("div", "divide", "true_divide", "__truediv__"))
def div(t: Trace, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if isinstance(b, Value):
        raise UnsupportedOperator("division by an activation has no bounds yet; the divisor must be constant")
    if rounding_mode is not None:
        raise UnsupportedOperator(f"rounding_mode={rounding_mode!r} is not supported")
    return t.builder.divide(a, t.constant(b))


def _axes(x: Value, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(len(x.shape)))
    return list(dim) if isinstance(dim, (tuple, list)) else [dim]


@function(torch.sum, methods=("sum",))
def sum_(t: Trace, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    _same_dtype(t, dtype)
    return t.builder.reduce(activation(input, "the input"), _axes(input, dim), keep=keepdim, mean=False)


@function(torch.mean, methods=("mean",))
def mean(t: Trace, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    _same_dtype(t, dtype)
    return t.builder.reduce(activation(input, "the input"), _axes(input, dim), keep=keepdim, mean=True)


def _same_dtype(t: Trace, dtype: Any) -> None:
    if dtype is not None and dtype != t.dtype:
        raise UnsupportedOperator(f"a conversion to {dtype} in a network of {t.dtype}")


@function(operator.matmul)
def _matmul(t: Trace, a: Any, b: Any) -> Value:
    from bounds.graph.from_torch.rows_layers import matmul

    return matmul(t, a, b)


@function(torch.addmm, methods=("addmm",))
def addmm(t: Trace, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Value:
    from bounds.graph.from_torch.rows_layers import matmul

    product = _scaled(t, matmul(t, mat1, mat2), alpha)
    return add(t, product, input, alpha=beta)


