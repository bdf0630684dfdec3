"""Reads an ONNX file: a path (also stored as PATH.gz), or its bytes, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bounds.graph.graph import InvalidNetwork

_GZIP = b"\x1f\x8b"


def load_bytes(source: str | Path | bytes) -> tuple[bytes, str]:
    """The decompressed bytes and the name by which messages call them."""
    if isinstance(source, bytes):
        return _unpack(source, "ONNX bytes"), "ONNX bytes"
    path = Path(source)
    stored = path if path.exists() else path.with_name(path.name + ".gz")
    if not stored.exists():
        raise InvalidNetwork(f"{path}: no such file (nor {stored.name})")
    if stored.is_dir():
        raise InvalidNetwork(f"{path}: a directory, expected an ONNX file")
    try:
        return _unpack(stored.read_bytes(), str(path)), str(path)
    except OSError as error:
        raise InvalidNetwork(f"{path}: cannot be read ({error.strerror or error})") from error


def _unpack(data: bytes, name: str) -> bytes:
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidNetwork(f"{name}: damaged gzip file ({error})") from error


def parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise InvalidNetwork(f"{name}: the file is empty, expected an ONNX model")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidNetwork(f"{name}: {_what_is_wrong(data)}") from error
    # Text can parse by accident, and a file cut between two fields parses without its graph.
    if not model.HasField("graph") or not model.graph.node or not model.graph.output:
        raise InvalidNetwork(f"{name}: {_what_is_wrong(data)}")
    if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):
        raise InvalidNetwork(f"{name}: names no version of the ONNX operator set (opset_import): cut off?")
    return model


def _what_is_wrong(data: bytes) -> str:
    head = data[:512]
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "a text file, not an ONNX model"
    return f"damaged, truncated or not an ONNX model ({len(data)} bytes)"
