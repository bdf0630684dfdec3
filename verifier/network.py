"""A network read once: as stored, in search form, and as the session on which counterexamples are replayed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bounds.files import existing, read_bytes
from bounds.graph import Graph
from bounds.graph.from_onnx.file import external_files, load_bytes
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
        """What tells the network from every other (`digest_of`)."""
        return digest_of(self.path, unpacked=self.unpacked)

    @property
    def bytes(self) -> int:
        """What it holds of memory."""
        return sum(p.numel() * p.element_size() for p in self.graph.parameters()) + len(self.unpacked or b"")


def digest_of(source: str | Path | bytes, *, unpacked: bytes | None = None) -> str:
    """SHA-256 of the unpacked bytes of an ONNX file, followed by the SHA-256 of every other file that holds weights of
    it, in the order in which it names them."""
    data = read_bytes(source) if unpacked is None else unpacked
    whole = hashlib.sha256(data)
    if not isinstance(source, bytes):
        for name in external_files(data, str(source)):
            with (Path(source).parent / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


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
