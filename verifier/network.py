"""A network read once: as stored, in search form, and as the session on which counterexamples are replayed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bounds.files import existing, read_bytes
from bounds.graph import Graph
from bounds.graph.from_onnx.file import load_bytes
from verifier.witness import OnnxReplayer

PACKED = ".gz"
KEPT_BYTES = 1 << 29     # of an unpacked file
CACHE_BYTES = 256 << 20  # of parameters; networks that are larger are read anew when they come back


@dataclass(frozen=True, eq=False)
class Network:
    """The stored function of an ONNX file; the rest is made when first asked for."""

    path: Path
    graph: Graph
    unpacked: bytes | None = None
    """The bytes of a compressed file: unpacking takes longer than all other reading, and replays read them again."""

    @classmethod
    def read(cls, path: str | Path) -> Network:
        """Raises OSError, InvalidNetwork or UnsupportedOperator, which name the file or the node."""
        found = existing(path)
        if found.suffix != PACKED:
            return cls(found, Graph.from_onnx(found))
        data, _ = load_bytes(found)
        return cls(found, Graph.from_onnx(found, unpacked=data), data if len(data) <= KEPT_BYTES else None)

    @cached_property
    def simplified(self) -> Graph:
        return self.graph.simplify()

    @cached_property
    def replayer(self) -> OnnxReplayer:
        return OnnxReplayer(self.path, unpacked=self.unpacked)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's unpacked bytes."""
        return hashlib.sha256(self.unpacked if self.unpacked is not None else read_bytes(self.path)).hexdigest()

    @property
    def bytes(self) -> int:
        """What it holds of memory."""
        return sum(p.numel() * p.element_size() for p in self.graph.parameters()) + len(self.unpacked or b"")


class NetworkCache:
    """The networks used last, up to `limit_bytes` of parameters; at least the one in use."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._networks: OrderedDict[Path, Network] = OrderedDict()

    def get(self, path: Path) -> Network:
        if path in self._networks:
            self._networks.move_to_end(path)
            return self._networks[path]
        if any(n.bytes > self.limit_bytes for n in self._networks.values()):
            self._networks.clear()  # never two huge ones at a time
        network = Network.read(path)
        self._networks[path] = network
        while len(self._networks) > 1 and sum(n.bytes for n in self._networks.values()) > self.limit_bytes:
            self._networks.popitem(last=False)
        return network
