"""Importer rows of products with constant matrices: Gemm, MatMul."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.graph.builder import Builder, Value, broadcast
from bounds.graph.from_onnx.call import Call, Constant
from bounds.graph.from_onnx.table import row
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator


@row("MatMul")
def matmul(c: Call) -> Value:
    a, b = c.get(0), c.get(1)
    if isinstance(a, Value) and isinstance(b, Constant):
        weight = c.tensor(1)
        return c.builder.linear(a, weight.t(), None) if weight.dim() == 2 and a.shape else c.builder.matmul(a, weight)
    if isinstance(a, Constant) and isinstance(b, Value):
        return c.builder.matmul(b, c.tensor(0), left=True)
    raise UnsupportedOperator("a product of two activations has no bounds yet; one factor must be constant")


@row("Gemm")
def gemm(c: Call) -> Value:
    """alpha A' B' + beta C."""
    a, b = c.get(0), c.get(1)
    alpha, beta = c.number("alpha", 1.0), c.number("beta", 1.0)
    turn_a, turn_b = bool(c.integer("transA", 0)), bool(c.integer("transB", 0))
    c.ignore("broadcast")  # operator set 6 and older; newer ones always broadcast
    if isinstance(a, Value) and isinstance(b, Value):
        raise UnsupportedOperator("a product of two activations has no bounds yet; one factor must be constant")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise InvalidNetwork(f"expected two matrices, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if isinstance(b, Constant):
        assert isinstance(a, Value), "two constants are folded"
        x = c.builder.transpose(a, (1, 0)) if turn_a else a
        weight = c.tensor(1) if turn_b else c.tensor(1).t()
        plain = alpha == 1.0 and beta == 1.0 and c.has(2) and isinstance(c.inputs[2], Constant)
        bias = c.tensor(2) if plain else None
        if bias is not None and bias.numel() == weight.shape[0] and bias.shape[-1:] == (weight.shape[0],):
            return c.builder.linear(x, weight, bias.reshape(-1))
        product = c.builder.linear(x, weight, None)
    else:
        x = c.builder.transpose(b, (1, 0)) if turn_b else b
        product = c.builder.matmul(x, c.tensor(0).t() if turn_a else c.tensor(0), left=True)
    product = _times(c, product, alpha)
    if not c.has(2) or beta == 0.0:
        return product
    addend = c.get(2)
    if broadcast(product.shape, tuple(addend.shape)) != product.shape:  # one way only
        raise InvalidNetwork(f"the summand of shape {tuple(addend.shape)} does not fit a product of shape "
                             f"{product.shape}")
    if isinstance(addend, Value):
        return c.builder.add(product, _times(c, addend, beta))
    return _add_product(c.builder, product, beta, c.tensor(2))


def _times(c: Call, x: Value, factor: float) -> Value:
    return x if factor == 1.0 else c.builder.scale(x, torch.tensor(factor, dtype=c.dtype))


def _add_product(builder: Builder, x: Value, factor: float, addend: Tensor) -> Value:
    """x + factor * addend, exactly: a rounded product would not be the stored function, so its rest is added too."""
    exact = factor * addend.double()
    main = exact.to(addend.dtype)
    rest = (exact - main.double()).to(addend.dtype)
    x = builder.shift(x, main)
    return builder.shift(x, rest) if bool(rest.any()) else x
