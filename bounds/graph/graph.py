"""The computation graph: a DAG of operators with static shapes and no batch axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise, Input, Operator, Shape

if TYPE_CHECKING:
    from pathlib import Path


class UnsupportedOperator(ValueError):
    """A network uses an operator (or a form of one) that has no sound implementation here."""


class InvalidNetwork(ValueError):
    """A network file or module cannot be read: damaged, NaN weights, several inputs, ..."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operator in its place. `inputs` are indices of earlier nodes; `shape` is without batch axis;
    `name` is the tensor's name in the source (ONNX value name or module path)."""

    name: str
    op: Operator
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class FoldError:
    """How far the parameters of a folded node lie from those that exact arithmetic on the stored ones gives:
    `|stored - exact| <= radius`, elementwise, in float64. `weight` belongs to the operator's weight (or factor), `bias`
    to its bias (or shift); None means exact."""

    weight: Tensor | None = None
    bias: Tensor | None = None

    def operator(self, op: Affine) -> Affine:
        """The operator with the radii in place of its parameters: at sizes of its inputs, how far the fold is off."""
        made = self._operators.get(op)
        if made is None:
            name, offset = ("weight", "bias") if hasattr(op, "weight") else ("factor", "shift")
            like = getattr(op, name) if getattr(op, name) is not None else getattr(op, offset)
            up = 1 + torch.finfo(like.dtype).eps
            weight = torch.zeros_like(like) if self.weight is None else self.weight.to(like) * up
            bias = None if self.bias is None else self.bias.to(like) * up
            made = self._operators[op] = dataclasses.replace(op, **{name: weight, offset: bias})
        return made

    @cached_property
    def _operators(self) -> WeakKeyDictionary[Affine, Affine]:
        return WeakKeyDictionary()

    def to(self, device: torch.device | str | None) -> FoldError:
        return FoldError(*(None if r is None else r.to(device=device) for r in (self.weight, self.bias)))


@dataclass(frozen=True, eq=False)
class Graph:
    """`nodes` in topological order, `nodes[0]` the input, `output` the index of the result.

    As read, a graph is the stored function and shares parameters with the module it came from;
    `simplify()` gives a frozen, fused twin for search. `onnx_input_shape` is the shape that an
    onnxruntime session of the source expects at batch one (None for modules). `fold_errors` maps the nodes whose
    parameters `simplify` computed to the errors of that computation (empty as read). `computed` names tensors of
    constants that the source computes by an operator whose rounding IEEE arithmetic does not determine (a product of
    matrices, an exponential). `arithmetic`: what each node is evaluated in, its rounding errors a part of what the
    graph may compute (None: the reals); see `evaluated_in`.
    """

    nodes: tuple[Node, ...]
    output: int
    onnx_input_shape: Shape | None = None
    source: str = "graph"
    fold_errors: Mapping[int, FoldError] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    arithmetic: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise InvalidNetwork(f"{self.source}: the first node must be the input")
        for i, node in enumerate(self.nodes):
            if any(not 0 <= j < i for j in node.inputs):
                raise InvalidNetwork(f"{self.source}: node {node.name} uses a later node")

    # ------------------------------------------------------------------ construction

    @staticmethod
    def from_onnx(source: str | Path | bytes, *, unpacked: bytes | None = None) -> Graph:
        """Read an ONNX file (plain or gzip; a path or its bytes). See `bounds.graph.from_onnx`."""
        from bounds.graph.from_onnx import read_onnx
        return read_onnx(source, unpacked=unpacked)

    @staticmethod
    def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
        """Trace a module; parameters stay shared with it. See `bounds.graph.from_torch`."""
        from bounds.graph.from_torch import trace_module
        return trace_module(module, input_shape)

    def simplify(self, *, merge: bool = True, fold: bool = True) -> Graph:
        """A frozen twin with constants folded and neighbouring affine maps fused; with `merge` neurons that are equal
        or opposite are kept once. Without `fold` nothing is computed: only what moves numbers goes."""
        from bounds.graph.simplify import simplify
        return simplify(self, merge=merge, fold=fold)

    def evaluated_in(self, dtype: torch.dtype) -> Graph:
        """What the nodes give when each is evaluated in `dtype`: sums in any order, with or without fused multiply-adds
        (docs/rounding.md). Priced bounds of such a graph hold for every value that it may take so.

        Raises UnsupportedOperator where that is not known: the graph must hold the source's own numbers.
        """
        if self.fold_errors:
            raise UnsupportedOperator(f"{self.source}: folded parameters are not what is evaluated; use fold=False")
        if self.dtype != dtype:
            raise UnsupportedOperator(f"{self.source}: its parameters are {self.dtype}, expected {dtype}: it is not "
                                      "evaluated in that")
        if self.computed:
            raise UnsupportedOperator(f"{self.source}: the constant {self.computed[0]!r} is computed from others by an "
                                      "operator whose rounding is not determined; store its value instead")
        for node in self.nodes:
            for f in dataclasses.fields(node.op) if isinstance(node.op, Elementwise) else ():
                value = getattr(node.op, f.name)
                if isinstance(value, float) and float(torch.tensor(value, dtype=dtype)) != value:
                    raise UnsupportedOperator(f"{self.source}: {node.op.kind} (node {node.name}): its {f.name} "
                                              f"{value!r} is no number of {dtype}")
        return dataclasses.replace(self, arithmetic=dtype)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """Parameters converted; a narrower dtype rounds them, and claims are then about the rounded network."""
        nodes = tuple(dataclasses.replace(n, op=n.op.to(dtype=dtype, device=device)) for n in self.nodes)
        errors = {i: error.to(device) for i, error in self.fold_errors.items()}
        return dataclasses.replace(self, nodes=nodes, fold_errors=errors)

    # ------------------------------------------------------------------ facts

    @property
    def input_shape(self) -> Shape:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        return self.nodes[self.output].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in dict.fromkeys(node.inputs):
                readers[j].append(i)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def relaxed_inputs(self) -> tuple[int, ...]:
        """Nodes whose bounds a linear relaxation needs: the inputs of every non-affine operator."""
        found = {j for n in self.nodes if not isinstance(n.op, (Affine, Input)) for j in n.inputs}
        return tuple(sorted(found))

    @cached_property
    def ancestors(self) -> frozenset[int]:
        """The nodes on which the output depends, itself included."""
        needed = {self.output}
        for i in range(self.output, 0, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        return frozenset(needed)

    @cached_property
    def parameter_kinds(self) -> dict[int, int]:
        """How many relaxation parameters a neuron of each elementwise node has (nodes without are left out)."""
        found = {}
        for i, node in enumerate(self.nodes):
            if isinstance(node.op, Elementwise):
                ones = torch.ones(1, *self.nodes[node.inputs[0]].shape, dtype=self.dtype, device=self.device)
                probe = node.op.parameters(Interval(-ones, ones))
                if probe is not None:
                    found[i] = probe[0].shape[0]
        return found

    def parameters(self) -> list[Tensor]:
        """Every floating-point tensor of the operators, each once."""
        seen: dict[int, Tensor] = {}
        for node in self.nodes:
            for f in dataclasses.fields(node.op):
                value: Any = getattr(node.op, f.name)
                if isinstance(value, Tensor) and value.is_floating_point():
                    seen[id(value)] = value
        return list(seen.values())

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def describe(self) -> str:
        """One line a node: index, operator, name, shape, inputs."""
        return "\n".join(f"{i:3d} {n.op.kind:14s} {n.name:30s} {n.shape!s:18s} <- {list(n.inputs)}"
                         for i, n in enumerate(self.nodes))

    # ------------------------------------------------------------------ evaluation

    def __call__(self, x: Tensor) -> Tensor:
        """x "B *input_shape" -> "B *output_shape"."""
        return self.values(x, keep=False)[self.output]

    def values(self, x: Tensor, *, keep: bool = True) -> list[Any]:
        """The value of every node at x; with `keep=False` values are dropped after their last use."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"input must have shape (B, {', '.join(map(str, self.input_shape))}), "
                             f"got {tuple(x.shape)}")
        values: list[Any] = [None] * len(self.nodes)
        values[0] = x
        last_use = {j: i for i, n in enumerate(self.nodes) for j in n.inputs}
        for i, node in enumerate(self.nodes):
            if i:
                values[i] = node.op.forward(*(values[j] for j in node.inputs))
            if not keep:
                for j in node.inputs:
                    if last_use[j] == i and j != self.output:
                        values[j] = None
        return values


def elementwise(node: Node) -> Elementwise | None:
    """The node's operator if it is elementwise."""
    return node.op if isinstance(node.op, Elementwise) else None
