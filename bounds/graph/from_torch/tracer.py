"""Records a module with `torch.fx` and builds its graph; parameters stay shared with the module.

The module is recorded in evaluation mode (its modes are restored): dropout is the identity and batch normalisation
uses its running statistics. In-place operations are read as their results, and refused where the overwritten value is
read again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from bounds.graph.builder import Builder, Value
from bounds.graph.from_torch import rows_arithmetic, rows_layers, rows_move  # noqa: F401
from bounds.graph.from_torch.table import ALIASING, FUNCTIONS, METHODS, MODULES, STALE, Row, Trace
from bounds.graph.graph import Graph, InvalidNetwork, UnsupportedOperator
from bounds.ops.base import Shape

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def trace_module(module: nn.Module, input_shape: Shape) -> Graph:
    """The graph of `module` on inputs "B *input_shape".

    Operators hold the module's own parameters and buffers, so gradients reach them and training changes the graph.
    Raises UnsupportedOperator, naming the place in the module, for whatever has no row.
    """
    source = type(module).__name__
    shape = tuple(int(n) for n in input_shape)
    if any(n < 1 for n in shape):
        raise InvalidNetwork(f"{source}: input_shape must hold positive sizes, got {input_shape}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidNetwork(f"{source}: the tensor {name!r} has a value that is not finite")
    if any(t in MODULES for t in type(module).__mro__):  # a layer by itself
        module = nn.Sequential(module)
    with _evaluating(module):
        try:
            recorded = _Tracer().trace(module)
        except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise UnsupportedOperator(f"{source}: its forward cannot be recorded ({error}); it must not branch on "
                                      "values of tensors") from error
        return _Walk(module, recorded, shape, source).run()


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that `self.buffer.expand(x.shape[0], ...)` is recorded too


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the modes as they were, without the constants that recording adds."""
    modes, attributes = [(m, m.training) for m in module.modules()], set(vars(module))
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
        for name in set(vars(module)) - attributes:
            delattr(module, name)


class _Walk:
    def __init__(self, module: nn.Module, recorded: fx.Graph, shape: Shape, source: str) -> None:
        self.module = module
        self.recorded = recorded
        self.source = source
        stored = (_attribute(module, str(n.target)) for n in recorded.nodes if n.op == "get_attr")
        like = next((p for p in (*module.parameters(), *module.buffers(), *stored)
                     if isinstance(p, Tensor) and p.is_floating_point()), torch.zeros(()))
        self.input_shape = (1, *shape)
        self.builder = Builder("input", self.input_shape, source)
        self.trace = Trace(self.builder, like.dtype, like.device)
        self.env: dict[fx.Node, Any] = {}
        self.position = {node: i for i, node in enumerate(recorded.nodes)}
        self.memory: dict[fx.Node, set[fx.Node]] = {}  # nodes that may share memory
        self.names: set[str] = set()

    def run(self) -> Graph:
        self._inputs()
        for node in self.recorded.nodes:
            if node.op == "output":
                return self._finish(node)
            if node.op != "placeholder":
                self.env[node] = self._visit(node)
        raise InvalidNetwork(f"{self.source}: its forward returns nothing")

    def _inputs(self) -> None:
        first, *others = [n for n in self.recorded.nodes if n.op == "placeholder"] or [None]
        if first is None:
            raise InvalidNetwork(f"{self.source}: its forward takes no input")
        if any(not n.args for n in others):
            raise InvalidNetwork(f"{self.source}: expected one input, its forward takes {1 + len(others)}")
        self.env[first] = self.builder.input
        self.env.update({n: n.args[0] for n in others})  # arguments with a default keep it

    def _finish(self, node: fx.Node) -> Graph:
        result = self._look_up(node.args[0])
        if not isinstance(result, Value):
            several = isinstance(result, (tuple, list, dict))
            raise InvalidNetwork(f"{self.source}: expected one tensor that depends on the input, its forward returns "
                                 + ("several values" if several else type(result).__name__))
        return self.builder.graph(result, None)

    # ------------------------------------------------------------------ one recorded node

    def _look_up(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: self.env[n])

    def _visit(self, node: fx.Node) -> Any:
        args, kwargs = self._look_up(node.args), self._look_up(node.kwargs)
        name = self._fresh_name(str(node.target) if node.op in ("call_module", "get_attr") else node.name)
        self.builder.start(name)
        try:
            result = self._result(node, args, kwargs)
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"{self.source}: {self._where(node)}: {error}") from error
        except ValueError as error:  # of a row (InvalidNetwork) or of an operator that checks itself
            raise InvalidNetwork(f"{self.source}: {self._where(node)}: {error}") from error
        if isinstance(result, Value):
            self.builder.finish(result, name)
        return result

    def _result(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        if node.op == "call_module":
            target = self.module.get_submodule(str(node.target))
            row = next((MODULES[t] for t in type(target).__mro__ if t in MODULES), None)
            if row is None:
                raise UnsupportedOperator("this module has no sound bounds here; rewrite it with supported ones, or "
                                          "add the operator")
            self._share_memory(node, row, getattr(target, "inplace", False))
            return row(self.trace, target, *args, **kwargs)
        if not _holds_value((args, kwargs)):
            return _evaluated(node, args, kwargs)
        name = str(node.target)
        row = METHODS.get(name, METHODS.get(name.rstrip("_"))) if node.op == "call_method" \
            else FUNCTIONS.get(node.target)
        if row is None:
            raise UnsupportedOperator("this operation has no sound bounds here; rewrite it with supported ones, or add "
                                      "the operator")
        method_in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        self._share_memory(node, row, method_in_place or node.target in _IN_PLACE or bool(kwargs.get("inplace")))
        try:
            return row(self.trace, *args, **{k: v for k, v in kwargs.items() if k != "inplace"})
        except TypeError as error:
            raise UnsupportedOperator(f"called in a form that is not supported ({error})") from error

    # ------------------------------------------------------------------ in-place operations

    def _share_memory(self, node: fx.Node, row: Row, in_place: bool) -> None:
        """Remembers which recorded values may share memory, and refuses to overwrite one that is read later."""
        sources = [n for n in node.all_input_nodes if isinstance(self.env.get(n), (Value, tuple, list))]
        if not (in_place or row in ALIASING) or not sources:
            self.memory[node] = {node}
            return
        group = self.memory.setdefault(sources[0], {sources[0]})
        group.add(node)
        self.memory[node] = group
        if in_place:
            late = [user for n in group - {node} for user in n.users if self.position[user] > self.position[node]]
            if late:
                raise UnsupportedOperator(f"it overwrites a value in place that {late[0].name!r} reads later; use the "
                                          "form that is not in place")

    # ------------------------------------------------------------------ names

    def _fresh_name(self, name: str) -> str:
        """A module that is called twice gets `name@1`."""
        k, fresh = 0, name
        while fresh in self.names:
            k += 1
            fresh = f"{name}@{k}"
        self.names.add(fresh)
        return fresh

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.module.get_submodule(str(node.target))).__name__} (module {str(node.target)!r})"
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0] if stack else ""
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"{called} (node {node.name!r} in {'module ' + repr(path) if path else 'forward'})"


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _holds_value(arguments: Any) -> bool:
    if isinstance(arguments, (tuple, list)):
        return any(map(_holds_value, arguments))
    if isinstance(arguments, dict):
        return any(map(_holds_value, arguments.values()))
    if isinstance(arguments, slice):
        return any(map(_holds_value, (arguments.start, arguments.stop, arguments.step)))
    return isinstance(arguments, Value)


def _evaluated(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation on constants. A parameter's view stays shared; a copy would go stale in training."""
    if node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    if isinstance(result, Tensor) and result.requires_grad and not result.is_leaf:
        base = result._base if result._is_view() else None
        if base is None or not base.is_leaf:
            raise UnsupportedOperator(STALE)
    return result
