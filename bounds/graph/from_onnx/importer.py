"""Walks the nodes of an ONNX file and builds the graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch

from bounds.graph.builder import Builder, Value
from bounds.graph.from_onnx import rows_activation, rows_arithmetic, rows_dense, rows_move, rows_spatial  # noqa: F401
from bounds.graph.from_onnx.call import Call, Constant, attributes_of, to_array
from bounds.graph.from_onnx.constants import constant_node, evaluate, is_determined
from bounds.graph.from_onnx.definitions import Definitions
from bounds.graph.from_onnx.file import load_bytes, named_files, operator_set, parse
from bounds.graph.from_onnx.table import ROWS
from bounds.graph.graph import Graph, InvalidNetwork, UnsupportedOperator
from bounds.graph.limits import shown
from bounds.ops.base import Shape

_FLOATS = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64}


def read_onnx(source: str | Path | bytes, *, unpacked: bytes | None = None) -> Graph:
    """The network of an ONNX file (or its bytes), plain or gzip; `PATH` may be stored as `PATH.gz`. A caller that has
    the file's bytes already passes them as `unpacked`.

    Raises InvalidNetwork for a file that is damaged or out of scope, UnsupportedOperator for an operator (or an option
    of one) without a row; both name the file and the place.
    """
    data, name = load_bytes(source) if unpacked is None else (unpacked, str(source))
    model = parse(data, name)
    del data
    if named_files(model):
        _load_external(model, source, name)
    return _Importer(model, name).run()


def _load_external(model: onnx.ModelProto, source: str | Path | bytes, name: str) -> None:
    from onnx.external_data_helper import load_external_data_for_model

    if isinstance(source, bytes):
        raise InvalidNetwork(f"{name}: its weights are stored in other files; pass the path instead of the bytes")
    try:
        load_external_data_for_model(model, str(Path(source).parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidNetwork(f"{name}: the files of its weights cannot be read ({error})") from error


class _Importer:
    def __init__(self, model: onnx.ModelProto, source: str) -> None:
        self.graph = model.graph
        self.source = source
        self.opset = operator_set(model, source)
        self.definitions = Definitions(model, self.opset)
        self.weights = {t.name: t for t in self.graph.initializer}
        self.stored = sum(t.ByteSize() for t in self.graph.initializer) // 4  # numbers in the file, about
        self.known: dict[str, Value | Constant] = {}
        self.computed: list[str] = []  # constants whose rounding is not determined
        self.missing: dict[str, str] = {}  # outputs that no row offers, and their nodes

    def run(self) -> Graph:
        self._check_names()
        builder, shape = self._input()
        output = self._only_output()
        producers = {out: node for node in self.graph.node for out in node.output if out}
        for node in self._needed(output, producers):
            self._import(builder, node)
        result = self.known.get(output)
        if result is None:
            raise InvalidNetwork(f"{self.source}: no node computes the output {output!r}")
        if isinstance(result, Constant):
            raise InvalidNetwork(f"{self.source}: the output {output!r} does not depend on the input")
        return dataclasses.replace(builder.graph(result, shape), computed=tuple(self.computed))

    def _check_names(self) -> None:
        """Each tensor has one origin: runtimes choose differently between two."""
        for what, names in (("stored", [t.name for t in self.graph.initializer]),
                            ("an input", [i.name for i in self.graph.input]),
                            ("computed", [out for node in self.graph.node for out in node.output if out])):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise InvalidNetwork(f"{self.source}: the tensor {shown(twice[0])} is {what} twice, expected one "
                                     "origin of each tensor")
        given = {i.name for i in self.graph.input} | self.weights.keys()
        for node in self.graph.node:
            if clash := given.intersection(node.output):
                raise InvalidNetwork(f"{self.source}: the tensor {shown(min(clash))} is both given and computed by a "
                                     f"{node.op_type}, expected one origin of each tensor")

    # ------------------------------------------------------------------ ends of the network

    def _input(self) -> tuple[Builder, Shape]:
        inputs = [i for i in self.graph.input if i.name not in self.weights]
        if len(inputs) != 1:
            raise InvalidNetwork(f"{self.source}: expected one input, got {len(inputs)}"
                                 + (f" ({', '.join(i.name for i in inputs)})" if inputs else ""))
        (info,) = inputs
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") or kind.elem_type not in _FLOATS:
            raise InvalidNetwork(f"{self.source}: the input {info.name!r} must be a float32 or float64 tensor")
        if not kind.HasField("shape"):
            raise InvalidNetwork(f"{self.source}: the input {info.name!r} has no shape; export it with a static one")
        # Parameters in float64 behind a Cast must not be rounded to the input's float32.
        self.dtype = torch.float64 if self._stores_double() else _FLOATS[kind.elem_type]
        shape = []
        for i, dim in enumerate(kind.shape.dim):
            size = dim.dim_value if dim.HasField("dim_value") else 0
            if size < 1:
                if i > 0:
                    label = dim.dim_param or "?"
                    raise InvalidNetwork(f"{self.source}: axis {i} of the input {info.name!r} has no fixed size "
                                         f"({label}); only the batch axis may be dynamic")
                size = 1
            shape.append(size)
        self.known[info.name] = Value(0, tuple(shape))
        return Builder(info.name, tuple(shape), self.source), tuple(shape)

    def _stores_double(self) -> bool:
        constants = (a.t for node in self.graph.node if node.op_type == "Constant" for a in node.attribute)
        return any(t.data_type == onnx.TensorProto.DOUBLE for t in (*self.graph.initializer, *constants))

    def _only_output(self) -> str:
        names = [o.name for o in self.graph.output]
        if len(names) != 1:
            raise InvalidNetwork(f"{self.source}: expected one output, got {len(names)} ({', '.join(names)})")
        declared = self.graph.output[0].type
        if declared.HasField("tensor_type") and declared.tensor_type.elem_type not in (*_FLOATS, 0):
            raise InvalidNetwork(f"{self.source}: the output {shown(names[0])} must be a float32 or float64 tensor")
        return names[0]

    def _needed(self, output: str, producers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes that the output depends on, in the order of the file."""
        open_names, seen = [output], set()
        while open_names:
            node = producers.get(open_names.pop())
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                open_names.extend(node.input)
        return [node for node in self.graph.node if id(node) in seen]

    # ------------------------------------------------------------------ nodes

    def _import(self, builder: Builder, node: onnx.NodeProto) -> None:
        label = f"{node.op_type} (node {shown(node.name or node.output[0])})"
        try:
            self.definitions.check(node)
            inputs = [self._lookup(name) if name else None for name in node.input]
            results = self._results(builder, node, inputs)
            pairs = zip(node.output, results, strict=False)
            self.known.update({name: result for name, result in pairs if name and result is not None})
            self.missing.update({name: label for name in node.output[len(results):] if name})
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"{self.source}: {label}: {error}") from error
        except ValueError as error:  # of a row (InvalidNetwork) or of an operator that checks itself
            raise InvalidNetwork(f"{self.source}: {label}: {error}") from error

    def _lookup(self, name: str) -> Value | Constant:
        if name not in self.known:
            if name in self.missing:
                raise UnsupportedOperator(f"its input {name!r} is an output of {self.missing[name]} that is not "
                                          "supported")
            if name not in self.weights:
                raise InvalidNetwork(f"its input {name!r} is computed by no earlier node and stored nowhere")
            self.known[name] = Constant(name, to_array(self.weights[name]))
        return self.known[name]

    def _results(self, builder: Builder, node: onnx.NodeProto,
                 inputs: list[Value | Constant | None]) -> list[Value | Constant | None]:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperator(f"operators of the domain {node.domain!r} are not supported")
        if node.op_type == "Constant":
            return [Constant(node.output[0], constant_node(node))]
        if node.op_type in ("Shape", "Size") and inputs and isinstance(inputs[0], Value):
            return [_shape_of(node, inputs[0])]
        if all(i is None or isinstance(i, Constant) for i in inputs):
            arrays = {name: i.array for name, i in zip(node.input, inputs, strict=True) if isinstance(i, Constant)}
            known = list(zip(node.output, evaluate(node, arrays, self.opset, largest=self.stored), strict=True))
            self.computed += [name for name, out in known if out is not None and not is_determined(node, out)]
            return [None if out is None else Constant(name, out) for name, out in known]
        if node.op_type not in ROWS:
            raise UnsupportedOperator(
                f"this operator has no sound bounds here; supported are {', '.join(sorted(ROWS))}. Rewrite the network "
                "with those, or add the operator (one file in bounds/ops and one importer row)")
        builder.start(node.output[0])
        call = Call(builder, node.op_type, self.opset, inputs, list(node.output),
                    attributes_of(node), self.dtype)
        results = ROWS[node.op_type](call)
        call.refuse_unread_attributes()
        results = results if isinstance(results, list) else [results]
        for name, value in zip(node.output, results, strict=False):
            builder.finish(value, name)
        return list(results)


def _shape_of(node: onnx.NodeProto, value: Value) -> Constant:
    """Shapes are static, at batch one."""
    settings = attributes_of(node)
    if node.op_type == "Size":
        return Constant(node.output[0], np.array(int(np.prod(value.shape)), dtype=np.int64))
    chosen = value.shape[settings.get("start", 0):settings.get("end")]
    return Constant(node.output[0], np.array(chosen, dtype=np.int64))


__all__ = ["read_onnx"]
