"""Reads an ONNX file: a path (also stored as PATH.gz), or its bytes, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bounds.files import DamagedFile, read_bytes, trouble
from bounds.graph.graph import InvalidNetwork

LOCATION = "location"  # the key under which a tensor names the file that holds it


def load_bytes(source: str | Path | bytes) -> tuple[bytes, str]:
    """The decompressed bytes and the name by which messages call them."""
    name = "ONNX bytes" if isinstance(source, bytes) else str(source)
    try:
        return read_bytes(source), name
    except DamagedFile as error:
        raise InvalidNetwork(f"{name}: {error}") from error
    except OSError as error:
        raise InvalidNetwork(f"{name}: {trouble(error)}") from error


def parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise InvalidNetwork(f"{name}: the file is empty, expected an ONNX model")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidNetwork(f"{name}: {_what_is_wrong(data)}") from error
    # Text can parse by accident, and a file cut between two fields parses without its graph.
    graph = model.graph
    hands_on = {i.name for i in graph.input} >= {o.name for o in graph.output}  # needs no node
    if not model.HasField("graph") or not graph.output or not (graph.node or hands_on):
        raise InvalidNetwork(f"{name}: {_what_is_wrong(data)}")
    if model.ir_version > onnx.IR_VERSION:
        raise InvalidNetwork(f"{name}: states format version {model.ir_version}, expected at most {onnx.IR_VERSION}")
    operator_set(model, name)
    for text in _names(graph):
        if not isinstance(text, str):  # what is no UTF-8 arrives as bytes
            raise InvalidNetwork(f"{name}: damaged: the name {text!r} is not text")
    return model


def external_files(data: bytes, name: str = "network") -> list[str]:
    """The files that hold weights of a network (its unpacked bytes), as it names them, beside its own file: each once,
    in the order of the tensors."""
    return named_files(parse(data, name)) if LOCATION.encode() in data else []


def named_files(model: onnx.ModelProto) -> list[str]:
    """The same of a model that was parsed."""
    attributes = (a for node in model.graph.node for a in node.attribute)
    tensors = (*model.graph.initializer, *(t for a in attributes for t in (a.t, *a.tensors)))
    return list(dict.fromkeys(entry.value for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL
                              for entry in t.external_data if entry.key == LOCATION))


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name


def operator_set(model: onnx.ModelProto, name: str) -> int:
    """The version of the ONNX operators that the file was written for."""
    versions = {opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")}
    if not versions:
        raise InvalidNetwork(f"{name}: names no version of the ONNX operator set (opset_import): cut off?")
    if len(versions) > 1:
        raise InvalidNetwork(f"{name}: names several versions of the ONNX operator set, "
                             f"{' and '.join(map(str, sorted(versions)))}; expected one")
    (version,) = versions
    if not 1 <= version <= onnx.defs.onnx_opset_version():
        raise InvalidNetwork(f"{name}: states version {version} of the ONNX operator set, expected 1 to "
                             f"{onnx.defs.onnx_opset_version()}")
    return version


def _what_is_wrong(data: bytes) -> str:
    head = data[:512]
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "a text file, not an ONNX model"
    return f"damaged, truncated or not an ONNX model ({len(data)} bytes)"
