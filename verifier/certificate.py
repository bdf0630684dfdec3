"""Proof files: the tree of a search and what closes its leaves, to be evaluated again without searching.

The file is a zip archive (deflate or stored) that `numpy.load` reads as an .npz. First `header.json`, last
`end.json`, between them numbered chunks; member `000017/groups.branch.npy` is column `branch` of table `groups` in
chunk 17. Chunks are written while the search runs. All columns of a table have one entry a row, unless they say
otherwise. Nothing in the file is trusted: every value only says what is to be computed. Notation: n flat inputs, `m`
relaxed neurons (see `neurons`), `P` relaxation parameters (see `activations`), `grid` 128, `fine_grid` 32768.

header.json
    format "rmax-proof", version 1, claim "real", evidence "float" (no rounding error was accounted for);
    network {"sha256"} of the decompressed ONNX bytes; property {"sha256"} of the decompressed VNN-LIB bytes, or the
    property's flags: {"input_sha256" of the .npy file, "label", "eps", "target", "norm", "clip", "mask_sha256"};
    inputs n; free_inputs: flat inputs that move in some region; grid, fine_grid; float "float32"|"float64" of the
    search;
    neurons: [{"name", "size"}] the tensors whose bounds relaxations need, in order: ONNX value name and number of
        elements without the batch axis. A neuron is a place in their flat (C order) concatenation;
    activations: [{"output", "input", "kind", "parameters" K}] element-wise operators with relaxation parameters, in
        order; each has K parameters a neuron, "K *shape" flat, and P counts them all. ReLU has one: the lower slope,
        between 0 and 1. LeakyRelu and PRelu: the slope of the free line, between the left slope and 1. Tanh and
        sigmoid: the tangent points of lower and upper line. A parameter q stands for `low + (high - low) q / grid`
        of its box, which follows from the neuron's interval.

end.json
    members: all other members in order; sha256: digest over, for each of these, its name (UTF-8), a zero byte and
    its bytes (uncompressed); trees: [{"first", "nodes", "branches", "refresh", "clips", "cuts"}] the finished trees:
    their nodes have the ids first .. first + nodes - 1 and they prove `branches` (positions in the property's OR).
    What belongs to no finished tree is to be skipped. A proof is complete when every branch is proved by some tree.

How a tree is evaluated. A node has a box, an interval for each neuron, and open branches. An interval that is proved
at a node holds in all nodes below it. In the order of the file:

    passes      bounds of neurons over whole regions: number "1" of the pass (equal numbers: one batch), region,
                codes.
    polish      rows of neurons of a pass: pass (number), region, neuron (place), sign, mask, slopes.
    widened     pass, region, neuron, low, high: as `narrow`, in a pass.
                Together they bound the neurons of the region's box; every root over the region starts with the meet
                of all passes over it (none: unbounded).
    roots       node, region (number of the branch's input set, in order of first use), count; column `branch` holds
                `count` open branches for each root, one after the other. The box is the region.
    splits      parent, variable, point, lower, upper: the node is cut into {v <= point} (node `lower`) and {v >=
                point} (`upper`); v is input `variable`, or neuron `variable - n`. Boxes, intervals, open branches
                are inherited.
    fences      node, low, high over the free inputs: the box of a child of a neuron split. Outside of it (inside of the
                parent's box) the split neuron's row `z` (lower child) or `-z` (upper), pulled back with default lines
                and the parent's intervals, exceeds `point` or `-point`.
    again       parent, node: the node once more, with all that is known by then (a unary branching).
    visits      node, flags, codes "m/4 bytes"; in each chunk column `count` cuts the rows into batches.
                The node's neurons are bounded, in the order of the tensors: interval arithmetic from the intervals
                before, met with the node's own; and in trees that say `refresh` by rows (see below).
                flags 1: the intervals contradict each other (some lower end exceeds its upper one): the node is
                empty. flags 2: nothing is left of its box after clipping: all its open branches are closed.
    narrow      node, neuron, low, high: the neuron's interval is taken as [low, high], once it is shown to lie
                within (its width is of the size of rounding errors, and lines over it should not depend on them).
    groups, fine  node, branch, kind, and columns of a certificate (below), slopes in multiples of 1/grid (`groups`,
                uint8) or 1/fine_grid (`fine`, uint16). The bound of `sum w_r (C_r y + D_r x - bound_r)` over the
                node that follows must be > 0 (>= 0 where all rows are strict; with all weights zero > 0): then kind
                0 (CLOSED) closes the branch for the node and all below. Kind 2 (EMPTY): branch -1, the bound of no
                row at all (zero) is > 0: the node is empty. Kind 1 (OPEN): its plane `A x + b` is used for clipping.
    single      node, branch, row: closed by this row of the branch alone, with default lines.
    clips       node, low, high over the free inputs: the node's box from here on. Outside of it (inside of its old
                box) every open branch has a plane that is positive: the plane of its OPEN certificate, or that of one
                of its rows with default lines, if it has more than one.

A node without `splits` or `again` must have no open branch left (or be empty).

Rows of neurons. A neuron has a code of two bits (first neuron in the lowest bits): 0 its operator was linear on its
interval before its row could run; 1 and 2 undecided; 3 decided by its own rows. Rows `+z` and `-z` of neurons with
codes 1, 2, 3 are pulled back to the input with default lines. Tensors that are images of the box under interval
arithmetic (one affine step, scalings and moves) need none. A neuron with code 3 whose row shows one sign (at the
input, or with the intervals of a tensor on its way) gets that sign, and keeps its other end; all others are met with
both rows, then with `polish`. Default lines: those of the operator (ReLU: lower slope 1 where u > -l, else 0), where
code 1 and 2 say which: 1 the low end of the parameter's box, 2 the high end.

Where a tree says `cuts`, neurons that are affine in the input are bounded anew before anything else at a node: over
the part of the box that the last split (of such a neuron) leaves, and over {plane <= 0} for the OPEN plane of the
parent, if exactly one branch is open there: `max over t >= 0 of min over the box of (a + t g) x + c + t h` for the
half-space g x + h <= 0.

Certificates. mask "P/8 bytes" (first parameter in the highest bit, as numpy.packbits): parameters that are given,
their q in `slopes`, row after row; others take default values. m_count, m_neuron, m_value: nonzero signed
multipliers s, for l <= z <= u: `A z >= (A - s) z + max(s, 0) l + min(s, 0) u`. weights "R" of the branch's rows in
order, padded with zeros (absent from `groups` where every branch has one row: weight 1).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT, VERSION = "rmax-proof", 1
CLOSED, OPEN, EMPTY = 0, 1, 2
CONTRADICTED, CLIPPED_AWAY = 1, 2
CHUNK_BYTES = 4 << 20
Array = NDArray[Any]


class ProofError(ValueError):
    """A proof file that cannot be read, or does not prove what it says; the message names the place."""


class ProofWriter:
    """Writes OUT.partial; `finish` turns it into OUT at once, `discard` removes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._zip = zipfile.ZipFile(self.partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._digest = hashlib.sha256()
        self._members: list[str] = []
        self._columns: dict[str, list[Array]] = {}
        self._bytes = 0
        self._chunk = 0

    def header(self, content: dict[str, Any]) -> None:
        self._member("header.json", _json({"format": FORMAT, "version": VERSION, **content}))

    def add(self, table: str, **columns: Array) -> None:
        """Append rows to a table. What is added between two calls of `settle` comes into one chunk."""
        for name, values in columns.items():
            self._columns.setdefault(f"{table}.{name}", []).append(values)
            self._bytes += values.nbytes

    def settle(self) -> None:
        """Write what is waiting, if it is enough for a chunk."""
        if self._bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one chunk."""
        for name, parts in self._columns.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.concatenate(parts), allow_pickle=False)
            self._member(f"{self._chunk:06d}/{name}.npy", buffer.getvalue())
        if self._columns:
            self._chunk += 1
        self._columns, self._bytes = {}, 0

    def finish(self, content: dict[str, Any]) -> int:
        """Close the file under its own name; its size in bytes."""
        self.flush()
        self._zip.writestr("end.json", _json({**content, "members": self._members, "sha256": self._digest.hexdigest()}))
        self._zip.close()
        os.replace(self.partial, self.path)
        return self.path.stat().st_size

    def discard(self) -> None:
        if self._zip.fp is not None:
            self._columns = {}
            self._zip.close()
        self.partial.unlink(missing_ok=True)

    def _member(self, name: str, data: bytes) -> None:
        self._zip.writestr(name, data)
        self._members.append(name)
        _update(self._digest, name, data)


class ProofReader:
    """header and end of a proof file, and its chunks in order; the digest is compared before anything is handed out."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
            self.end = json.loads(self._zip.read("end.json"))
            self.header = json.loads(self._zip.read("header.json"))
            digest = hashlib.sha256()
            for name in self.end["members"]:
                _update(digest, name, self._zip.read(name))
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise ProofError(f"{path}: not a proof file, or damaged ({error})") from error
        if self.header.get("format") != FORMAT or self.header.get("version") != VERSION:
            raise ProofError(f"{path}: expected {FORMAT} version {VERSION}, got {self.header.get('format')} "
                             f"{self.header.get('version')}")
        if digest.hexdigest() != self.end["sha256"]:
            raise ProofError(f"{path}: the digest does not match the content")
        if sorted(self._zip.namelist()) != sorted([*self.end["members"], "end.json"]):
            raise ProofError(f"{path}: members that its end does not list")

    def __enter__(self) -> ProofReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
                 ) -> None:
        self._zip.close()

    def chunks(self) -> Iterator[dict[str, dict[str, Array]]]:
        """{table: {column: values}} of every chunk."""
        chunk: dict[str, dict[str, Array]] = {}
        number = None
        for name in self.end["members"]:
            if name == "header.json":
                continue
            folder, _, rest = name.partition("/")
            if folder != number and chunk:
                yield chunk
                chunk = {}
            number = folder
            table, column = rest.removesuffix(".npy").split(".")
            chunk.setdefault(table, {})[column] = np.lib.format.read_array(io.BytesIO(self._zip.read(name)),
                                                                           allow_pickle=False)
        if chunk:
            yield chunk


def pack_codes(codes: Array) -> Array:
    """Two bits a neuron: "B m" (0 to 3) -> "B ceil(m / 4)" bytes."""
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // 4) * 4), np.uint8)
    padded[:, :codes.shape[1]] = codes
    four = padded.reshape(len(codes), -1, 4)
    packed: Array = four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
    return packed


def unpack_codes(packed: Array, count: int) -> Array:
    """The other way, "B count"."""
    four = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    return four.reshape(len(packed), -1)[:, :count]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


def _update(digest: Any, name: str, data: bytes) -> None:
    digest.update(name.encode() + b"\0")
    digest.update(data)


__all__ = ["CLIPPED_AWAY", "CLOSED", "CONTRADICTED", "EMPTY", "OPEN", "ProofError", "ProofReader", "ProofWriter",
           "pack_codes",
           "sha256", "unpack_codes"]
