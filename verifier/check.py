"""The checker of proof files: does this file prove this property of this network? (docs/proofs.md states the format.)

It uses NumPy and onnx and nothing else of this project: what the search believed is of no interest here, every bound is
computed anew. `verifier.check_input` reads network and property; then from top to bottom: the file, lines, bounds, what
a file says, the tree, the verdict.

The one operation. For a linear function A z of the neurons of some tensor, `Bounds.pull` finds a linear function of the
input below it: through affine maps exactly, through an activation f on [l, u] by lines s z + t below or above f, by the
sign of A's entries. A line's slope comes from the file and may be anything; its intercept t is computed here. A
multiplier s on a neuron with l <= z <= u changes A: `A z >= (A - s) z + max(s, 0) l + min(s, 0) u`. The minimum over
the box bounds neurons (rows +-z) and the property's rows; a bound > 0 means that the node holds no unsafe point.

Rounding. With u = 2^-53, n products summed in any order, fused or not, give sum x_i y_i (1 + d_i) with |d_i| <= n u
/ (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 3). So for a computed A' = fl(A W)
`|(A W - A') z| <= n u |A| (|W| |z|)` up to second order: A' is taken as exact from there on, and `n u |A| v` is charged
to the row, with v >= |W| |z| + |b| over all nodes of the batch. With n enlarged by `Network.extra` the same charge
covers A b, later additions to the constant, and the sums where A' meets other rows or multipliers. Before an activation
|A'| |z| is charged for the same. Charges are sums of non-negative terms; SAFETY covers their own rounding and second
orders. Underflow adds less than `Bounds.tiny`. Intervals: centre W c + b, radius |W| r + n u v. What is not finite
proves nothing. With --exact the same code runs on Fractions, with u = 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from verifier.check_input import Activation, Affine, Array, Branch, Network, Numbers, Row, U, Unreadable, read_question

MAGIC = b"rmax-proof 2\n"
MOST_BLOCK = 1 << 28          # unpacked bytes of a block: far above what a writer makes of one batch
CLOSED, KEPT = 0, 1           # what a certificate is for
SAFETY = 1.01
BLOCK_ENTRIES = 1 << 16       # entries of a block of rows: it stays in the cache
BATCH_ENTRIES = 1 << 21       # entries of the intervals of a batch of nodes
Block = tuple[dict[str, Any], dict[str, Array]]


class Refused(Exception):
    """The file does not prove the property; the message says where and why."""


# ---------------------------------------------------------------------- the file


def blocks(path: str) -> Iterator[Block]:
    """(head, columns) of every block, after the digest of the whole file was compared."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if not data.startswith(MAGIC):
        raise Refused("not a proof file of version 2")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Refused("the digest does not match the content: damaged or changed")
    at, head = len(MAGIC), dict[str, Any]()
    while at < len(data) - 32:
        try:
            end = at + 4 + struct.unpack_from("<I", data, at)[0]
            head, columns = unpacked(data[at + 4:end])
        except (zlib.error, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refused(f"a block cannot be read ({error})") from error
        yield head, columns
        at = end
    if head.get("block") != "end":
        raise Refused("the file is not complete")


def unpacked(packed: bytes) -> Block:
    """(head, columns) of one block; no more is unpacked than a block may hold."""
    unpacker = zlib.decompressobj()
    line, _, rest = unpacker.decompress(packed, MOST_BLOCK).partition(b"\n")
    head, columns, at = json.loads(line), {}, 0
    for name, (kind, count) in head.pop("columns").items():
        if kind not in ("u1", "i1", "<u2", "<i4", "<f4", "<f8") or count < 0:
            raise ValueError("a column of unknown type")
        columns[name] = np.frombuffer(rest, kind, count, at) if count else np.zeros(0, kind)
        at += columns[name].nbytes
    if at != len(rest) or not unpacker.eof:
        raise ValueError("too large, or not filled by its columns")
    return head, columns


# ---------------------------------------------------------------------- lines around activations


def sigmoid(z: Array) -> tuple[Array, Array]:
    """Enclosures of 1 / (1 + exp(-z)). exp(-|z|) = 2^k times a Taylor sum in r = -|z| - k log 2, |r| < 0.35, whose
    remainder is below 1e-20; LOG_HIGH has 40 bits, so that k LOG_HIGH is exact. All roundings together stay below 20 u
    of the result; 64 u are taken off and put on. Beyond 700 one end is that of 700, which holds as well."""
    x = -np.minimum(np.abs(z), 700.0)
    k = np.rint(x / LOG_HIGH)
    r, total = (x - k * LOG_HIGH) - k * LOG_LOW, np.ones_like(x)
    for i in range(15, 0, -1):
        total = 1 + total * r / i
    e = np.ldexp(total, k.astype(np.int64))
    value = np.where(z >= 0, 1, e) / (1 + e)
    return np.where(z < -700, 0.0, value * (1 - 64 * U)), np.minimum(value * (1 + 64 * U), 1.0)


LOG_HIGH = math.floor(math.log(2) * 2**40) / 2**40
LOG_LOW = float(Fraction("0.693147180559945309417232121458176568") - Fraction(LOG_HIGH))


def below_sigmoid(s: Array, a: Array, b: Array) -> Array:
    """At most the minimum of f(z) - s z over [a, b]. Where f is convex, up to 0, it lies above its tangent at any p
    (the best has f'(p) = s, nothing rests on it); from 0 on it is concave, and least at an end."""
    end = np.minimum(b, 0)
    with np.errstate(all="ignore"):
        t = (1 - np.sqrt(np.maximum(1 - 4 * s, 0))) / 2
        p = np.clip(np.nan_to_num(np.log(t / (1 - t)), nan=-1e9), a, np.maximum(a, end))
    low, high = sigmoid(p)
    turns = low * (1 - high) * (1 - 8 * U) - s, high * (1 - low) * (1 + 8 * U) - s   # around f'(p) - s
    rise = np.minimum.reduce([g * (z - p) - 8 * U * np.abs(g * (z - p)) for g in turns for z in (a, end)])
    convex = low - s * p + rise - 8 * U * (1 + np.abs(s * p) + np.abs(rise))
    ends = [f - s * z - 8 * U * (f + np.abs(s * z)) for z in (np.maximum(a, 0), b) for f in (sigmoid(z)[0],)]
    return np.minimum(np.where(a <= 0, convex, np.inf), np.where(b >= 0, np.minimum(*ends), np.inf))


def intercepts(step: Activation, s: Any, t: Any, low: Array, high: Array, u: Any) -> tuple[Array, Array]:
    """c, d with s z + c <= f(z) <= t z + d on [low, high], for any slopes."""
    if step.kind in ("Sigmoid", "Tanh"):   # f(z) = h g(h z) + 1 - h for the sigmoid g, and g(z) = 1 - g(-z)
        h = 1 if step.kind == "Sigmoid" else 2
        c = h * below_sigmoid(s / h**2, h * low, h * high) + (1 - h)
        d = 1 - h * below_sigmoid(t / h**2, -h * high, -h * low)
        return c - 8 * u * (2 + np.abs(c)), d + 8 * u * (2 + np.abs(d))
    kinks = (step.low, step.high) if step.kind == "Clip" else (0,)
    turns = [low, high, *(np.minimum(np.maximum(low, k), high) for k in kinks)]
    values = [step.value(z) for z in turns]
    under = [f - s * z - 4 * u * (np.abs(f) + np.abs(s * z) + u) for z, f in zip(turns, values, strict=True)]
    over = [f - t * z + 4 * u * (np.abs(f) + np.abs(t * z) + u) for z, f in zip(turns, values, strict=True)]
    return np.minimum.reduce(under), np.maximum.reduce(over)


# ---------------------------------------------------------------------- bounds over a batch of nodes


def dot(a: Array, b: Array) -> Array:
    """Row by row."""
    return np.asarray(np.einsum("...n,...n->...", a, b))


def parts(count: int, size: int) -> Iterator[Array]:
    """0 .. count - 1 in blocks."""
    return (np.arange(k, min(k + size, count)) for k in range(0, count, size))


@dataclass
class Stated:
    """What a file says of a batch of nodes. lines "B slopes": default lines; codes "B neurons" or None: 1 (2): the row
    +z (-z) shows the sign, the interval is cut at zero; 3: both rows count in full; narrow: (node, slope, value) of
    upper slopes; polish: (node, neuron, sign, slopes of rows) of rows besides."""

    lines: Array
    codes: Array | None = None
    narrow: tuple[Array, Array, Array] = (np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    polish: tuple[Array, Array, Array, Callable[[Array], Array]] | None = None


class Bounds:
    """Intervals "B n" of all tensors over B nodes, and what rows need on their way. given: "B neurons", both ends."""

    def __init__(self, net: Network, low: Array, high: Array, ball: Any, given: tuple[Array, Array], stated: Stated
                 ) -> None:
        self.net, self.u, self.ball, self.given, self.stated = net, net.numbers.u, ball, given, stated
        self.low, self.high = {0: low}, {0: high}
        self.most: dict[int, Array] = {}     # tensor -> |z| at most, over all nodes
        self.size: dict[int, Array] = {}     # affine tensor -> v: what charges for rows over it are measured by
        self.lines: dict[int, tuple[Any, ...]] = {}
        self.steps = {step.out: step for step in net.steps}
        self.empty, self.tiny = np.zeros(len(low), bool), 0 * self.u
        self.block = max(16, BLOCK_ENTRIES // max(net.sizes))
        self._settle(0)
        for step in net.steps:
            if isinstance(step, Affine):
                self._map(step)
            else:
                self._activate(step)
            self._settle(step.out)

    def charge(self, n: int) -> Any:
        return SAFETY * (n + self.net.extra) * U if self.u else 0

    def _map(self, step: Affine) -> None:
        half = self.net.numbers.half
        centres = [self.low[i] * half + self.high[i] * half for i in step.inputs]
        radii = [np.maximum(self.high[i] - c, c - self.low[i]) * (1 + 4 * self.u)
                 for i, c in zip(step.inputs, centres, strict=True)]
        self.size[step.out] = v = step.apply([self.most[i][None] for i in step.inputs], step.reach)[0] + step.size
        y = step.apply(centres, step.weights) + step.bias
        radius = step.apply(radii, step.moduli) + (self.charge(step.n) * v + self.tiny)
        known = np.isfinite((y + radius).astype(float))
        self.low[step.out] = np.where(known, y - radius, -np.inf)
        self.high[step.out] = np.where(known, y + radius, np.inf)

    def _activate(self, step: Activation) -> None:
        low, high = self.low[step.inputs[0]], self.high[step.inputs[0]]
        n = low.shape[1]
        s, t = self.stated.lines[:, step.at:step.at + n], self.stated.lines[:, step.at + n:step.at + 2 * n]
        if step.kind == "Relu":   # below it any line s z with 0 <= s <= 1, above it the chord
            inside = (low < 0) & (high > 0)
            t = np.where(inside, high / np.where(inside, high - low, 1), low >= 0)
            node, slope, value = self.stated.narrow
            here = (slope >= step.at) & (slope < step.at + n)
            t[node[here], slope[here] - step.at] = value[here]
        below, above = intercepts(step, s, t, low, high, self.u)
        self.lines[step.out] = s, t, None if step.kind == "Relu" else below, above
        self.low[step.out], self.high[step.out] = intercepts(step, 0 * low, 0 * low, low, high, self.u)

    def _settle(self, tensor: int) -> None:
        """Meet the intervals of a tensor with what is given and with rows, and measure it."""
        if tensor in self.net.neurons:
            first, count = self.net.neurons[tensor]
            low = np.maximum(self.low[tensor], self.given[0][:, first:first + count])
            high = np.minimum(self.high[tensor], self.given[1][:, first:first + count])
            if self.stated.codes is not None:
                low, high = self._by_rows(tensor, low, high, self.stated.codes[:, first:first + count])
            self.empty |= (low > high).any(1)
            self.low[tensor], self.high[tensor] = np.minimum(low, high), np.maximum(low, high)
        self.most[tensor] = np.maximum(np.abs(self.low[tensor]), np.abs(self.high[tensor])).max(0)
        if self.u:
            size, n = self.size.get(tensor, self.most[tensor]), getattr(self.steps.get(tensor), "n", 0)
            self.tiny += 2.0**-1060 * (self.net.extra + n) * float(size.sum() + len(size)) + 2.0**-1000

    def _by_rows(self, tensor: int, low: Array, high: Array, codes: Array) -> tuple[Array, Array]:
        best, first = np.full((2, *low.shape), -np.inf, low.dtype), self.net.neurons[tensor][0]
        for side in (0, 1):
            node, neuron = np.nonzero(codes & (side + 1))
            best[side, node, neuron] = self._row_bounds(tensor, node, neuron, np.full(len(node), 1 - 2 * side))
        if self.stated.polish is not None:
            node, neuron, sign, slopes = self.stated.polish
            here = np.flatnonzero((neuron >= first) & (neuron < first + codes.shape[1]))
            node, neuron, sign = node[here], neuron[here] - first, sign[here]
            value = self._row_bounds(tensor, node, neuron, sign, lambda part: slopes(here[part]))
            np.maximum.at(best, ((1 - sign) // 2, node, neuron), value)
        (up, down), full = (best[0], -best[1]), codes == 3
        return np.maximum(low, np.where(full, up, np.minimum(up, 0))), \
            np.minimum(high, np.where(full, down, np.maximum(down, 0)))

    def _row_bounds(self, tensor: int, node: Array, neuron: Array, sign: Array, slopes: Any = None) -> Array:
        """Lower bounds of rows `sign z[neuron]` over their nodes; `slopes(part)` gives lines of their own."""
        value = np.zeros(len(node), self.low[0].dtype)
        for part in parts(len(node), self.block):
            A, b = self.pull(*self.units(tensor, neuron[part], sign[part]), node[part], slopes and slopes(part))
            value[part] = self.minimum(A, b, node[part])
        return value

    def units(self, tensor: int, neuron: Array, sign: Array) -> tuple[dict[int, Array], Any, Any]:
        """What `pull` starts from for rows `sign z[neuron]`: rows of the affine step before, if it is one."""
        step, rows = self.steps.get(tensor), dict[int, Array]()
        if not isinstance(step, Affine):
            A = np.zeros((len(neuron), self.net.sizes[tensor]), self.low[0].dtype)
            A[np.arange(len(neuron)), neuron] = sign
            return {tensor: A}, 0 * sign, 0 * sign
        for i, A in zip(step.inputs, step.units(neuron, sign), strict=True):
            rows[i] = rows[i] + A if i in rows else A
        return rows, step.bias[neuron] * sign, self.charge(step.n) * self.size[tensor][neuron]

    def pull(self, rows: dict[int, Array], c: Any, e: Any, node: Array, slopes: Array | None = None,
             multipliers: Array | None = None) -> tuple[Array, Array]:
        """(A "R inputs", b "R") with `sum rows z + c >= A x + b` for all x of each row's node, where c and the rows are
        off by at most e. rows "R n" by tensor; slopes "R slopes": lines of the rows' own; multipliers "R neurons"."""
        rows = dict(rows)
        if multipliers is not None:
            for i, (first, count) in self.net.neurons.items():
                s, low, high = multipliers[:, first:first + count], self.low[i][node], self.high[i][node]
                c = c + dot(np.maximum(s, 0), low) + dot(np.minimum(s, 0), high)
                e = e + self.charge(count) * dot(np.abs(s), np.maximum(np.abs(low), np.abs(high)))
                rows[i] = rows[i] - s if i in rows else -s
        for step in self.net.steps[::-1]:
            if (A := rows.pop(step.out, None)) is None:
                continue
            if isinstance(step, Affine):
                constant, error = A @ step.bias, self.charge(step.n) * (np.abs(A) @ self.size[step.out])
                found = step.pull(A)
            else:
                constant, error, *found = self._through(step, A, node, slopes)
            c, e = c + constant, e + error
            for i, B in zip(step.inputs, found, strict=True):
                rows[i] = rows[i] + B if i in rows else B
        A = rows.get(0, np.zeros((len(node), self.net.sizes[0]), self.low[0].dtype))
        return A, c - e - self.tiny

    def _through(self, step: Activation, A: Array, node: Array, slopes: Array | None) -> tuple[Array, Array, Array]:
        """(constant, what it and the rows may be off by, rows before an activation)."""
        place = node if len(self.low[0]) > 1 else slice(None)   # one node's lines serve all rows
        lines: list[Any] = [line if line is None else line[place] for line in self.lines[step.out]]
        (s, t, below, above), n, before = lines, A.shape[1], step.inputs[0]
        if slopes is not None:
            s = slopes[:, step.at:step.at + n]
            if step.kind != "Relu":
                t = slopes[:, step.at + n:step.at + 2 * n]
                below, above = intercepts(step, s, t, self.low[before][place], self.high[before][place], self.u)
        negative = np.minimum(A, 0)
        constant, size = dot(negative, above), -dot(negative, np.abs(above))
        if below is not None:
            positive = A - negative
            constant, size = constant + dot(positive, below), size + dot(positive, np.abs(below))
        B = A * np.where(A > 0, s, t)
        return constant, self.charge(n) * size + self.charge(0) * (np.abs(B) @ self.most[before]), B

    def of_neurons(self) -> tuple[Array, Array]:
        """Intervals of all neurons, in the file's order."""
        low, high = (np.concatenate([end[0][:, :0], *(end[t] for t in self.net.neurons)], 1)
                     for end in (self.low, self.high))
        return low, high

    def minimum(self, A: Array, b: Array, node: Array) -> Array:
        """At most the minimum of A x + b over each row's node."""
        low, high, charge = self.low[0][node], self.high[0][node], self.charge(A.shape[1])
        value, of = over_box(A, b, low, high, self.most[0], charge), self.net.numbers.of
        if self.ball is not None:   # A = B + (A - B), B over the ball by its dual norm, the rest over the box
            c, r, p = self.ball
            row, least, most = (v.astype(float) for v in (A, low - c, high - c))   # B is found in floats
            B = of(np.nan_to_num(part_for_ball(row, least, most, float(r), p)))
            norm = np.sqrt((B * B).sum(1)) if p == 2 else np.abs(B).max(1)
            error = 4 * charge * ((np.abs(A) + np.abs(B)) @ (self.most[0] + np.abs(c)) + np.abs(b) + r * norm)
            value = np.fmax(value, over_box(A - B, b + B @ c - r * norm, low, high, self.most[0], charge) - error)
        return np.where(np.isfinite(value.astype(float)), value, -np.inf)


def over_box(A: Array, b: Array, low: Array, high: Array, most: Array, charge: Any) -> Array:
    """At most the minimum of A x + b over the box of each row."""
    centre = low / 2 + high / 2   # Fractions, or floats
    radius = np.maximum(high - centre, centre - low) * (1 + (4 * U if charge else 0))
    size = np.abs(A)
    return b + dot(A, centre) - dot(size, radius) - charge * (size @ most + np.abs(b))


def last(holds: Callable[[Array], Array], count: int) -> Array:
    """For every row about the largest s up to which `holds(s "rows 1")`, which turns from true to false."""
    least, most = np.full((count, 1), -60.0), np.full((count, 1), 60.0)   # of log2 s
    for _ in range(50):
        middle = (least + most) / 2
        holding = holds(2**middle)[:, None]
        least, most = np.where(holding, middle, least), np.where(holding, most, middle)
    return 2**least


def part_for_ball(A: Array, low: Array, high: Array, r: float, p: float) -> Array:
    """A good part B of the rows to be bounded over the ball (any is valid): at the optimum of p = 2 the minimiser is
    z = clip(-s A) with |z| = r and B = -z / s; for p = 1 B = A cut off at +-1 / s, where the rest has used up r."""
    if p == 2:
        s = last(lambda s: (np.clip(-s * A, low, high)**2).sum(1) <= r * r, len(A))
        return -np.clip(-s * A, low, high) / s
    s = last(lambda s: (np.where(A > 0, -low, high) * (np.abs(A) * s > 1)).sum(1) <= r, len(A))
    return np.clip(A, -1 / s, 1 / s)


# ---------------------------------------------------------------------- what a file says, and the tree


class Proof:
    """What a file has said so far: how it numbers neurons, slopes and regions, and a tree. This has roots 0 .. R - 1
    and the nodes R + 2 k, R + 2 k + 1 that the k-th split makes. A node is the set of inputs of its root's box that are
    left by the splits on the way down to it."""

    def __init__(self, net: Network, branches: list[Branch], head: dict[str, Any], columns: dict[str, Array]) -> None:
        self.net, self.region, self.inputs, of = net, columns["region"], net.sizes[0], net.numbers
        boxes = {k: (of.down(b.low), of.up(b.high)) for k, b in {id(b.low): b for b in branches}.items()}   # few
        self.low, self.high = (np.stack([boxes[id(b.low)][k] for b in branches]) for k in (0, 1))
        self.ball = None
        if branches[0].ball is not None:
            centre, radius, p = branches[0].ball
            self.ball = of.up(centre), of.up([radius])[0], p   # the centre is given in floats
        self.rows = [self.table(b.rows) for b in branches]
        self.strict = [np.array([row.strict for row in b.rows], bool) for b in branches]
        for name, count in head["neurons"]:
            if net.sizes[net.names[name]] != count or net.names[name] in net.neurons:
                raise Refused(f"names neurons {name!r} that the network does not have")
            net.neurons[net.names[name]] = sum(c for _, c in net.neurons.values()), count
        self.neurons = sum(c for _, c in net.neurons.values())
        self.activations = [s for name in head["activations"] for s in net.steps if s.out == net.names[name]]
        for step in self.activations:
            step.at, net.slopes = net.slopes, net.slopes + net.sizes[step.out] * (1 if step.kind == "Relu" else 2)
        if sorted(s.out for s in net.steps if isinstance(s, Activation)) != sorted(s.out for s in self.activations) \
                or {s.inputs[0] for s in self.activations} != set(net.neurons):
            raise Refused("does not name the network's activations and the neurons that they read")
        nothing = np.full((1, self.neurons), np.inf)
        self.nothing: tuple[Array, Array] = -nothing, nothing    # is known of neurons before
        self.passes: dict[int, tuple[Array, Array]] = {}         # region -> intervals of neurons
        self.proved: set[int] = set()
        self.nodes, self.roots, self.batch = 0, 0, max(1, BATCH_ENTRIES // sum(net.sizes))

    def table(self, rows: list[Row]) -> Array:
        """Coefficients of x and y, to the nearest, and minus the bound."""
        found = np.zeros((len(rows), self.inputs + self.net.sizes[self.net.output] + 1), self.low.dtype)
        for k, row in enumerate(rows):
            for i, coefficient in (*row.x, *((self.inputs + i, c) for i, c in row.y), (-1, -row.bound)):
                found[k, i] = coefficient
        return found

    def read(self, file: Iterator[Block]) -> str:
        """Follow the file to its end; what it proves, in words."""
        for head, columns in file:
            if head["block"] == "passes":
                self.whole(columns)
            elif head["block"] == "tree":
                self.begin(head, columns)
            elif head["block"] == "nodes" and self.roots:
                if "split.parent" in columns:
                    self.split(*(columns[f"split.{name}"] for name in ("parent", "variable", "point")))
                if "visit.node" in columns:
                    self.visit(columns)
            elif head["block"] == "closed" and self.roots:
                self.close()
        if missing := set(range(len(self.rows))) - self.proved:
            raise Refused(f"branch {min(missing)} of the property is not proved")
        return f"verified: {len(self.rows)} branches, {self.nodes} nodes"

    def legal(self, slopes: Array) -> Array:
        for step in self.activations:
            part = slopes[:, step.at:step.at + self.net.sizes[step.out]]
            if step.kind == "Relu" and not ((part >= 0) & (part <= 1)).all():
                raise Refused("a slope below a ReLU that is not between 0 and 1")
        return slopes

    def stated(self, columns: dict[str, Array], table: str, count: int, part: Array) -> Stated:
        """What a block says of entries `part` of a table (`pass`, `visit`) of `count`."""
        lines, of = columns[f"{table}.lines"], self.net.numbers.of
        if lines.dtype == np.uint8:
            lines = np.unpackbits(lines.reshape(count, -(-self.net.slopes // 8)), axis=1, count=self.net.slopes)
        found = Stated(self.legal(of(lines.reshape(count, self.net.slopes)[part])))
        if f"{table}.rows" in columns:
            packed = columns[f"{table}.rows"].reshape(count, -(-self.neurons // 4))[part]
            codes = np.stack([packed >> k & 3 for k in (0, 2, 4, 6)], -1).reshape(len(part), -1)
            found.codes = codes[:, :self.neurons]
        place = np.full(count, -1)
        place[part] = np.arange(len(part))
        if "narrow.at" in columns:
            own = np.flatnonzero(place[columns["narrow.at"]] >= 0)
            at, slope, value = (columns[f"narrow.{name}"][own] for name in ("at", "slope", "value"))
            found.narrow = place[at], slope, of(value)
        if "polish.at" in columns:
            own = np.flatnonzero(place[columns["polish.at"]] >= 0)
            node, lines_of = place[columns["polish.at"][own]], self.lines_of(columns, "polish")
            sign = np.where(columns["polish.sign"][own] > 0, 1, -1)
            found.polish = (node, columns["polish.neuron"][own].astype(int), sign,
                            lambda rows: lines_of(own[rows], found.lines[node[rows]]))
        return found

    def lines_of(self, columns: dict[str, Array], table: str) -> Callable[[Array, Array], Array]:
        """(rows of a table, default lines) -> lines, some of which the rows state on their own."""
        mask, values = columns[f"{table}.mask"].reshape(-1, -(-self.net.slopes // 8)), columns[f"{table}.slopes"]
        given = np.unpackbits(mask, axis=1, count=self.net.slopes).astype(bool)
        values = self.net.numbers.of(values / {"u1": 128, "<u2": 32768}.get(values.dtype.str.lstrip("|"), 1))
        ends = np.append(0, np.cumsum(given.sum(1)))

        def lines(index: Array, default: Array) -> Array:
            for line, k in zip(default, index.tolist(), strict=True):
                line[given[k]] = values[ends[k]:ends[k + 1]]
            return self.legal(default)
        return lines

    def boxes(self, regions: Array) -> Array:
        """For each region a branch whose box it is."""
        return np.array([np.flatnonzero(self.region == r)[0] for r in regions], int)

    def whole(self, columns: dict[str, Array]) -> None:
        """Intervals of neurons over whole regions, from which later trees start."""
        regions, box = columns["pass.region"].tolist(), self.boxes(columns["pass.region"])
        for part in parts(len(box), self.batch):
            stated = self.stated(columns, "pass", len(box), part)
            bounds = Bounds(self.net, self.low[box[part]], self.high[box[part]], self.ball, self.nothing, stated)
            for k, low, high in zip(part.tolist(), *bounds.of_neurons(), strict=True):
                self.passes[regions[k]] = low[None], high[None]

    def begin(self, head: dict[str, Any], columns: dict[str, Array]) -> None:
        region, count = columns["region"], columns["count"].astype(int)
        self.cuts, self.roots = bool(head["cuts"]), len(region)
        self.box = self.boxes(region)
        self.branches = np.full((len(count), count.max()), -1)
        self.branches[np.arange(count.max()) < count[:, None]] = columns["branch"]
        own = self.branches >= 0
        within = ((self.low[self.box][:, None] <= self.low[self.branches])
                  & (self.high[self.branches] <= self.high[self.box][:, None])).all(2)
        if not (within | ~own).all() or (self.cuts and (count != 1).any()):
            raise Refused("a branch does not lie in the box of its root, or too many do")
        self.closed = ~own     # node, place among its root's branches
        self.parent, self.variable, self.point = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        self.start = [self.passes.get(r, self.nothing) for r in region.tolist()]
        self.known: dict[int, tuple[Array, Array, Any]] = {}   # where cuts are: intervals of a node, and its plane
        if self.cuts:
            self.planes = self.affine_planes()

    def split(self, parent: Array, variable: Array, point: Array) -> None:
        exists = (parent >= 0) & (parent < len(self.closed) + 2 * np.arange(len(parent)))
        if not (exists & (variable >= 0) & (variable < self.inputs + self.neurons) & np.isfinite(point)).all():
            raise Refused("a split that cannot be")
        self.parent, self.variable = np.append(self.parent, parent), np.append(self.variable, variable)
        self.point = np.append(self.point, self.net.numbers.of(point))
        self.closed = np.concatenate([self.closed, np.zeros((2 * len(parent), self.closed.shape[1]), bool)])

    def sets(self, nodes: Array) -> tuple[Array, Array, Array]:
        """(root, low, high of inputs and neurons) of nodes."""
        root = nodes.copy()
        low, high = (np.full((len(root), self.inputs + self.neurons), v, self.low.dtype) for v in (-np.inf, np.inf))
        while len(rows := np.flatnonzero(root >= self.roots)):
            k, upper = np.divmod(root[rows] - self.roots, 2)
            v, point = self.variable[k], self.point[k]
            low[rows, v] = np.maximum(low[rows, v], np.where(upper, point, -np.inf))
            high[rows, v] = np.minimum(high[rows, v], np.where(upper, np.inf, point))
            root[rows] = self.parent[k]
        low[:, :self.inputs] = np.maximum(low[:, :self.inputs], self.low[self.box[root]])
        high[:, :self.inputs] = np.minimum(high[:, :self.inputs], self.high[self.box[root]])
        return root, low, high

    def visit(self, columns: dict[str, Array]) -> None:
        """Close what the certificates of a block close."""
        nodes, n = columns["visit.node"].astype(int), self.inputs
        if (nodes < 0).any() or (nodes >= len(self.closed)).any():
            raise Refused("a visit of a node that does not exist")
        for part in parts(len(nodes), self.batch):
            root, low, high = self.sets(nodes[part])
            if len(bare := np.flatnonzero((low[:, :n] > high[:, :n]).any(1))):
                raise Refused(f"node {nodes[part[bare[0]]]}: its box is empty")
            least = np.maximum(np.concatenate([self.start[r][0] for r in root]), low[:, n:])
            most = np.minimum(np.concatenate([self.start[r][1] for r in root]), high[:, n:])
            if self.cuts:
                self.cut(nodes[part], low[:, :n], high[:, :n], least, most)
            stated = self.stated(columns, "visit", len(nodes), part)
            bounds = Bounds(self.net, low[:, :n], high[:, :n], self.ball, (least, most), stated)
            self.closed[nodes[part[bounds.empty]]] = True
            if self.cuts:
                for node, *ends in zip(nodes[part].tolist(), *bounds.of_neurons(), strict=True):
                    self.known[node] = (*ends, None)
            for table in ("certificate", "fine"):
                if f"{table}.at" in columns:
                    self.certify(columns, table, nodes, part, root, bounds)

    def certify(self, columns: dict[str, Array], table: str, nodes: Array, part: Array, root: Array, bounds: Bounds
                ) -> None:
        """Evaluate the certificates of a batch of visits."""
        at, branch, kind, weights, count, neuron, value = (columns[f"{table}.{name}"] for name in (
            "at", "branch", "kind", "weights", "m_count", "m_neuron", "m_value"))
        weights, value = self.net.numbers.of(weights), self.net.numbers.of(value)
        lines_of = self.lines_of(columns, table)
        if (weights < 0).any():
            raise Refused("a weight of a row is negative")
        of_weights = np.cumsum([0, *(len(self.rows[b]) if b >= 0 else 0 for b in branch.tolist())])
        of_values, n, output = np.append(0, np.cumsum(count)), self.inputs, self.net.output
        most = np.concatenate([bounds.most[0], bounds.most[output], self.net.numbers.of([1])])
        reach = {j: np.abs(self.rows[j]) @ most for j in set(branch.tolist())}
        mine = np.flatnonzero((at >= part[0]) & (at <= part[-1]))
        mine = mine[~bounds.empty[at[mine] - part[0]]]
        for block in parts(len(mine), bounds.block):
            index, place = mine[block], at[mine[block]] - part[0]
            rows, s, size = (np.zeros((len(index), width), most.dtype) for width in (len(most), self.neurons, 1))
            strict = np.zeros(len(index), bool)
            for i, (k, j) in enumerate(zip(index.tolist(), branch[index].tolist(), strict=True)):
                if count[k]:
                    own = slice(of_values[k], of_values[k + 1])
                    s[i, neuron[own]] = value[own]
                if j >= 0:
                    w = weights[of_weights[k]:of_weights[k + 1]]
                    rows[i], size[i], strict[i] = w @ self.rows[j], w @ reach[j], (w > 0) @ self.strict[j]
            error = bounds.charge(max(map(len, self.rows)) + len(most)) * size[:, 0]
            start = {0: rows[:, :n], output: rows[:, n:-1]} if output else {0: rows[:, :n] + rows[:, n:-1]}
            A, b = bounds.pull(start, rows[:, -1], error, place, lines_of(index, bounds.stated.lines[place]), s)
            least = bounds.minimum(A, b, place)
            for i, (k, node, own) in enumerate(zip(index, nodes[at[index]], self.branches[root[place]], strict=True)):
                if kind[k] == KEPT and self.cuts and branch[k] == own[0]:
                    h = b[i] - bounds.charge(0) * (np.abs(A[i]) @ most[:n])
                    self.known[node] = (*self.known[node][:2], (A[i], h))
                elif least[i] > 0 or (strict[i] and least[i] >= 0):
                    self.closed[node] |= (own == branch[k]) | (branch[k] < 0)
                else:
                    raise Refused(f"node {node}, branch {branch[k]}: its certificate proves {float(least[i]):.6g} only")

    def cut(self, nodes: Array, low: Array, high: Array, least: Array, most: Array) -> None:
        """Start from the last visit of each node or of its parent (least, most: in place); neurons that are affine in
        the input are bounded anew where its last split, and the plane of that visit, leave less of the box."""
        neurons, A, b = self.planes
        for k, node in enumerate(nodes.tolist()):
            halves, source = [], node
            if node not in self.known and node >= self.roots:
                split, upper = divmod(node - self.roots, 2)
                source, point = int(self.parent[split]), self.point[split]
                for j in np.flatnonzero(neurons == self.variable[split] - self.inputs):   # +-(z - point) <= 0
                    halves.append((A[upper, j], b[upper, j] + (point if upper else -point)))
            if source not in self.known:
                continue
            *ends, plane = self.known[source]
            least[k], most[k] = np.maximum(least[k], ends[0]), np.minimum(most[k], ends[1])
            is_open = np.flatnonzero((least[k, neurons] < 0) & (most[k, neurons] > 0))
            at = neurons[is_open]
            for g, h in halves + ([plane] if plane is not None else []):
                up, down = (self.behind(A[side, is_open], b[side, is_open], g, h, low[k], high[k]) for side in (0, 1))
                least[k, at], most[k, at] = np.maximum(least[k, at], up), np.minimum(most[k, at], -down)

    def affine_planes(self) -> tuple[Array, Array, Array]:
        """(neurons that are affine in the input "K", A "2 K inputs", b "2 K") of planes A x + b below them and below
        their negatives, over the boxes of all roots."""
        net, affine, found = self.net, {0}, []
        low, high = self.low[self.box].min(0, keepdims=True), self.high[self.box].max(0, keepdims=True)
        bounds = Bounds(net, low, high, None, self.nothing, Stated(net.numbers.of(np.zeros((1, net.slopes)))))
        for step in net.steps:
            if isinstance(step, Affine) and affine.issuperset(step.inputs):
                affine.add(step.out)
        for tensor in affine.intersection(net.neurons):
            first, count = net.neurons[tensor]
            each, zero = np.arange(count), np.zeros(count, int)
            planes = [bounds.pull(*bounds.units(tensor, each, zero + sign), zero) for sign in (1, -1)]
            found.append((first + each, np.stack([A for A, _ in planes]), np.stack([b for _, b in planes])))
        neurons, A, b = zip(*found, strict=True)
        return np.concatenate(neurons), np.concatenate(A, 1), np.concatenate(b, 1)

    def behind(self, A: Array, b: Array, g: Array, h: Any, low: Array, high: Array) -> Array:
        """At most the minima of A x + b over {low <= x <= high, g x + h <= 0}: those of (A + t g) x + b + t h over the
        box, for about the best t >= 0 (any would do)."""
        t = last(lambda t: (g * np.where(A + t * g > 0, low, high)).sum(1) + h > 0, len(A))
        t, most = self.net.numbers.of(t), np.maximum(np.abs(low), np.abs(high))
        charge = SAFETY * (len(g) + 16) * U if self.net.numbers.u else 0
        error = charge * ((np.abs(A) + t * np.abs(g)) @ most + np.abs(b) + t[:, 0] * np.abs(h))
        value = over_box(A + t * g, b + t[:, 0] * h, low, high, most, charge) - error
        return np.where(np.isfinite(value.astype(float)), value, -np.inf)

    def close(self) -> None:
        """The tree is over: every leaf has all branches of its root closed at it or above it."""
        for k, parent in enumerate(self.parent.tolist()):
            self.closed[self.roots + 2 * k:self.roots + 2 * k + 2] |= self.closed[parent]
        leaves = np.setdiff1d(np.arange(len(self.closed)), self.parent)
        if len(still := leaves[~self.closed[leaves].all(1)]):
            raise Refused(f"node {still[0]} is neither split nor closed")
        self.proved |= set(self.branches[self.branches >= 0].tolist())
        self.nodes, self.roots = self.nodes + len(self.closed), 0


# ---------------------------------------------------------------------- the verdict


def check(net_path: str, spec: str | None, proof: str, flags: dict[str, Any] | None = None, exact: bool = False) -> str:
    """What the proof file proves, in words; raises Refused or Unreadable."""
    file = blocks(proof)
    head, columns = next(file)
    net, branches, about = read_question(net_path, spec, flags, Numbers(exact))
    for key, what in about.items():
        if head.get(key) != what:
            raise Refused(f"it is about another {key}")
    try:
        with np.errstate(all="ignore"):
            if head["verdict"] == "falsified":
                return check_witness(net, branches[head["branch"]], [Fraction(v) for v in head["x"]])
            return Proof(net, branches, head, columns).read(file)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"the file is malformed ({type(error).__name__}: {error})") from error


def check_witness(net: Network, branch: Branch, x: list[Fraction]) -> str:
    """The point lies in the branch's set, and the network's outputs there, enclosed, meet all its rows."""
    if len(x) != net.sizes[0] or any(not a <= v <= b for a, v, b in zip(branch.low, x, branch.high, strict=True)):
        raise Refused("the witness does not lie in the input set")
    if branch.ball is not None:
        centre, radius, p = branch.ball
        if sum(abs(v - c)**int(p) for v, c in zip(x, centre, strict=True)) > radius**int(p):
            raise Refused("the witness does not lie in the ball")
    lines = np.zeros((1, 2 * sum(net.sizes)), net.numbers.of(0).dtype)   # no row needs them
    bounds = Bounds(net, net.numbers.down(x)[None], net.numbers.up(x)[None], None, (lines, lines), Stated(lines))
    low, high = ([Fraction(v) for v in end[net.output][0]] for end in (bounds.low, bounds.high))
    for row in branch.rows:
        most = sum(c * (high if c > 0 else low)[i] for i, c in row.y) + sum(c * x[j] for j, c in row.x) - row.bound
        if most > 0 or (row.strict and most == 0):
            raise Refused(f"at the witness a row is met up to {float(most):.3g} only: it is none of the real network")
    return "falsified: the witness is unsafe"
