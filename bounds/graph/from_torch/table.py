"""The tables from PyTorch modules, functions and tensor methods to the functions that import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bounds.graph.builder import Builder, Value
from bounds.graph.graph import UnsupportedOperator

Row = Callable[..., Any]
MODULES: dict[type[nn.Module], Row] = {}
FUNCTIONS: dict[Any, Row] = {}
METHODS: dict[str, Row] = {}
STALE = ("it computes with parameters, and the result would not follow their training; store the result as a "
         "parameter, or call requires_grad_(False) first")
ALIASING: set[Row] = set()  # rows whose result may share memory with their argument


def module(*types: type[nn.Module], aliases: bool = False) -> Callable[[Row], Row]:
    """`row(trace, module, *args)` imports calls of these modules."""
    def register(row: Row) -> Row:
        MODULES.update(dict.fromkeys(types, row))
        if aliases:
            ALIASING.add(row)
        return row
    return register


def function(*functions: Any, methods: tuple[str, ...] = (), aliases: bool = False) -> Callable[[Row], Row]:
    """`row(trace, *args, **kwargs)` imports calls of these functions and tensor methods, with their arguments."""
    def register(row: Row) -> Row:
        FUNCTIONS.update(dict.fromkeys(functions, row))
        METHODS.update(dict.fromkeys(methods, row))
        if aliases:
            ALIASING.add(row)
        return row
    return register


class Trace:
    """What rows work with: the builder, and the dtype and device of constants."""

    def __init__(self, builder: Builder, dtype: torch.dtype, device: torch.device) -> None:
        self.builder = builder
        self.dtype = dtype
        self.device = device

    def constant(self, c: Any) -> Tensor:
        """A number or a tensor as an operator's parameter; a parameter of the module stays itself."""
        if isinstance(c, (bool, int, float)):
            return torch.tensor(c, dtype=self.dtype, device=self.device)
        if not isinstance(c, Tensor):
            raise UnsupportedOperator(f"expected a number or a tensor, got {type(c).__name__}")
        if not c.is_floating_point():
            return c.to(self.dtype)
        if c.dtype != self.dtype:
            raise UnsupportedOperator(f"a tensor of {c.dtype} in a network of {self.dtype}")
        return c

    def fixed(self, c: Any) -> Tensor:
        """A constant that the caller computes with: not one that training changes."""
        c = self.constant(c)
        if c.requires_grad:
            raise UnsupportedOperator(STALE)
        return c


def activation(x: Any, what: str) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedOperator(f"{what} must be an activation, got {type(x).__name__}")
    return x


def several(n: int | tuple[int, ...] | list[int], axes: int) -> tuple[int, ...]:
    """One number for every axis, or a tuple of them."""
    values = tuple(n) if isinstance(n, (tuple, list)) else (n,) * axes
    return values * axes if len(values) == 1 else values
