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
to the row, with v >= |W| |z| + |b| over all nodes of the batch. v also bounds the map's own output, so that the same
charge, with n enlarged by `Network.extra`, covers A b, slopes and multipliers applied just before, and all additions to
the constant. Charges are sums of non-negative terms; SAFETY covers their own rounding and second orders. Underflow adds
less than `Bounds.tiny`. Intervals: centre W c + b, radius |W| r + n u v. What is not finite proves nothing. With
--exact the same code runs on Fractions, with u = 0.
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

from verifier.check_input import (
    Activation,
    Affine,
    Array,
    Branch,
    Network,
    Numbers,
    U,
    Unreadable,
    read_file,
    read_network,
    read_vnnlib,
    robustness,
)

MAGIC = b"rmax-proof 2\n"
MOST_BLOCK = 1 << 28          # unpacked bytes of a block: far above what a writer makes of one batch
CLOSED, KEPT = 0, 1           # what a certificate is for
SAFETY = 1.01
BLOCK_ENTRIES = 1 << 16       # entries of a block of rows: it stays in the cache
BATCH_ENTRIES = 1 << 21       # entries of the intervals of a batch of nodes


class Refused(Exception):
    """The file does not prove the property; the message says where and why."""


# ---------------------------------------------------------------------- the file


def blocks(path: str) -> Iterator[tuple[dict[str, Any], dict[str, Array]]]:
    """(head, columns) of every block, after the digest of the whole file was compared."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    with file:
        end, digest = file.seek(0, 2) - 32, hashlib.sha256()
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise Refused("not a proof file of version 2")
        file.seek(0)
        while file.tell() < end:
            digest.update(file.read(min(end - file.tell(), 1 << 20)))
        if file.read() != digest.digest():
            raise Refused("the digest does not match the content: damaged or changed")
        file.seek(len(MAGIC))
        head: dict[str, Any] = {}
        while file.tell() < end:
            try:
                unpacker = zlib.decompressobj()
                data = unpacker.decompress(file.read(struct.unpack("<I", file.read(4))[0]), MOST_BLOCK)
                line, _, rest = data.partition(b"\n")
                head, columns, at = json.loads(line), {}, 0
                for name, (kind, count) in head.pop("columns").items():
                    if kind not in ("u1", "i1", "<u2", "<i4", "<f4", "<f8") or count < 0:
                        raise ValueError("a column of unknown type")
                    columns[name] = np.frombuffer(rest, kind, count, at) if count else np.zeros(0, kind)
                    at += columns[name].nbytes
                if at != len(rest) or not unpacker.eof:
                    raise ValueError("too large, or not filled by its columns")
            except (zlib.error, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise Refused(f"a block cannot be read ({error})") from error
            yield head, columns
        if head.get("block") != "end":
            raise Refused("the file is not complete")


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
    kinks = [k for k in ((0,) if step.kind != "Clip" else (step.low, step.high)) if k is not None]
    under, over = [], []
    for z in (low, high, *(np.minimum(np.maximum(low, k), high) for k in kinks)):
        f = np.maximum(z, 0) if step.kind == "Relu" else np.where(z >= 0, z, step.alpha * z) \
            if step.kind == "LeakyRelu" else z
        if step.kind == "Clip":
            f = np.maximum(f, step.low) if step.low is not None else f
            f = np.minimum(f, step.high) if step.high is not None else f
        under.append(f - s * z - 4 * u * (np.abs(f) + np.abs(s * z) + u))
        over.append(f - t * z + 4 * u * (np.abs(f) + np.abs(t * z) + u))
    return np.minimum.reduce(under), np.maximum.reduce(over)


# ---------------------------------------------------------------------- bounds over a batch of nodes


def dot(a: Array, b: Array) -> Array:
    """Row by row."""
    return np.asarray((a * b).sum(-1)) if object in (a.dtype, b.dtype) else np.einsum("...n,...n->...", a, b)


@dataclass
class Chosen:
    """Slopes that rows of their own state: given "R slopes" (bool) and value "R slopes"."""

    given: Array
    value: Array


@dataclass
class Stated:
    """What a file says of a batch of nodes. lines "B slopes": default lines; codes "B neurons" or None: 1 (2): the row
    +z (-z) shows the sign, the interval is cut at zero; 3: both rows count in full; narrow: (node, slope, value) of
    upper slopes; polish: (node, neuron, sign, slopes of rows) of rows besides."""

    lines: Array
    codes: Array | None = None
    narrow: tuple[Array, Array, Array] = (np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    polish: tuple[Array, Array, Array, Callable[[Array], Chosen]] | None = None


class Bounds:
    """Intervals "B n" of all tensors over B nodes, and what rows need on their way. given: "B neurons", both ends."""

    def __init__(self, net: Network, low: Array, high: Array, ball: Any, given: tuple[Array, Array], stated: Stated
                 ) -> None:
        self.net, self.u, self.ball, self.given, self.stated = net, net.numbers.u, ball, given, stated
        self.low, self.high = {0: low}, {0: high}
        self.most: dict[int, Array] = {}     # tensor -> |z| at most, over all nodes
        self.size: dict[int, Array] = {}     # tensor -> v: what charges for rows over it are measured by
        self.lines: dict[int, tuple[Any, ...]] = {}
        self.empty = np.zeros(len(low), bool)
        self.tiny: Any = 0 if net.numbers.exact else 2.0**-1000
        self._settle(0, 0)
        for step in net.steps:
            if isinstance(step, Affine):
                self._map(step)
            else:
                self._activate(step)
            self._settle(step.out, step.n)

    def charge(self, n: int) -> Any:
        return 0 if self.net.numbers.exact else SAFETY * (n + self.net.extra) * U

    def _map(self, step: Affine) -> None:
        centres = [self.low[i] / 2 + self.high[i] / 2 for i in step.inputs]
        radii = [np.maximum(self.high[i] - c, c - self.low[i]) * (1 + 4 * self.u)
                 for i, c in zip(step.inputs, centres, strict=True)]
        self.size[step.out] = v = step.reach([self.most[i][None] for i in step.inputs])[0]
        y = step.apply(centres) + step.bias
        radius = step.apply(radii, absolute=True) + (self.charge(step.n) * v + self.tiny)
        known = np.isfinite((y + radius).astype(float))
        self.low[step.out] = np.where(known, y - radius, -np.inf)
        self.high[step.out] = np.where(known, y + radius, np.inf)

    def _activate(self, step: Activation) -> None:
        low, high = self.low[step.inputs[0]], self.high[step.inputs[0]]
        n, flat = low.shape[1], 0 * low
        s = self.stated.lines[:, step.at:step.at + n]
        if step.kind == "Relu":   # below it any line s z with 0 <= s <= 1, above it the chord
            inside = (low < 0) & (high > 0)
            t = np.where(inside, high / np.where(inside, high - low, 1), low >= 0)
            node, slope, value = self.stated.narrow
            here = (slope >= step.at) & (slope < step.at + n)
            t[node[here], slope[here] - step.at] = value[here]
            self.lines[step.out] = (s, t, None, intercepts(step, s, t, low, high, self.u)[1])
        else:
            t = self.stated.lines[:, step.at + n:step.at + 2 * n]
            self.lines[step.out] = (s, t, *intercepts(step, s, t, low, high, self.u))
        self.low[step.out], self.high[step.out] = intercepts(step, flat, flat, low, high, self.u)

    def _settle(self, tensor: int, n: int) -> None:
        """Meet the intervals of a tensor with what is given and with rows, and measure it."""
        if tensor in self.net.neurons:
            first, count = self.net.neurons[tensor]
            part = slice(first, first + count)
            low = np.maximum(self.low[tensor], self.given[0][:, part])
            high = np.minimum(self.high[tensor], self.given[1][:, part])
            if self.stated.codes is not None:
                low, high = self._by_rows(tensor, low, high, self.stated.codes[:, part], first)
            self.empty |= (low > high).any(1)
            self.low[tensor], self.high[tensor] = np.minimum(low, high), np.maximum(low, high)
        self.most[tensor] = np.maximum(np.abs(self.low[tensor]), np.abs(self.high[tensor])).max(0)
        self.size.setdefault(tensor, self.most[tensor])
        if not self.net.numbers.exact:
            self.tiny += 2.0**-1060 * (self.net.extra + n) * float(self.size[tensor].sum() + self.net.sizes[tensor])

    def _by_rows(self, tensor: int, low: Array, high: Array, codes: Array, first: int) -> tuple[Array, Array]:
        best = np.full((2, *low.shape), -np.inf, low.dtype)
        for side in (0, 1):
            node, neuron = np.nonzero(codes & (side + 1))
            best[side, node, neuron] = self._row_bounds(tensor, node, neuron, np.full(len(node), 1 - 2 * side))
        if self.stated.polish is not None:
            node, neuron, sign, slopes = self.stated.polish
            here = np.flatnonzero((neuron >= first) & (neuron < first + codes.shape[1]))
            value = self._row_bounds(tensor, node[here], neuron[here] - first, sign[here], lambda p: slopes(here[p]))
            np.maximum.at(best, ((1 - sign[here]) // 2, node[here], neuron[here] - first), value)
        up, down = best[0], -best[1]
        low = np.where(codes == 3, np.maximum(low, up), np.where(codes == 1, np.maximum(low, np.minimum(up, 0)), low))
        return low, np.where(codes == 3, np.minimum(high, down),
                             np.where(codes == 2, np.minimum(high, np.maximum(down, 0)), high))

    def _row_bounds(self, tensor: int, node: Array, neuron: Array, sign: Array, slopes: Any = None) -> Array:
        """Lower bounds of rows `sign z[neuron]` over their nodes; `slopes(part)` gives lines of their own."""
        value = np.zeros(len(node), self.low[0].dtype)
        for part in self.parts(len(node)):
            A, b = self.pull(tensor, (neuron[part], sign[part]), node[part], 0, 0, slopes and slopes(part))
            value[part] = self.minimum(A, b, node[part])
        return value

    def parts(self, count: int) -> Iterator[slice]:
        """Blocks of rows that stay in the cache."""
        size = max(16, BLOCK_ENTRIES // max(self.net.sizes))
        return (slice(k, min(k + size, count)) for k in range(0, count, size))

    def pull(self, tensor: int, rows: Any, node: Array, c: Any, e: Any, chosen: Chosen | None = None,
             multipliers: Array | None = None) -> tuple[Array, Array]:
        """(A "R inputs", b "R") with `rows z + c >= A x + b` for all x of each row's node, where c is off by at most e.
        rows: "R n" over a tensor, or (neuron, sign) of unit rows."""
        pending: dict[int, Any] = {tensor: rows}
        for step in (*self.net.steps[::-1], None):
            i = 0 if step is None else step.out
            A = pending.pop(i, None)
            if isinstance(A, tuple):
                index, sign = A
                c, e, A = 0 * sign, 0 * sign, None
                if isinstance(step, Affine) and (units := step.units(index, sign)) is not None:
                    c = step.bias[index] * sign   # exactly, as the row itself
                    pending |= zip(step.inputs, units, strict=True)
                    continue
                A = np.zeros((len(index), self.net.sizes[i]), self.low[0].dtype)
                A[np.arange(len(index)), index] = sign
            if multipliers is not None and i in self.net.neurons:
                first, count = self.net.neurons[i]
                s, low, high = multipliers[:, first:first + count], self.low[i][node], self.high[i][node]
                c = c + dot(np.maximum(s, 0), low) + dot(np.minimum(s, 0), high)
                e = e + self.charge(count) * dot(np.abs(s), np.maximum(np.abs(low), np.abs(high)))
                A = -s if A is None else A - s
            if step is None:
                A = np.zeros((len(node), self.net.sizes[0]), self.low[0].dtype) if A is None else A
                break
            if A is None:
                continue
            e = e + self.charge(step.n) * (np.abs(A) @ self.size[i])
            if isinstance(step, Affine):
                c, found = c + A @ step.bias, step.pull(A)
            else:
                back, constant, charge = self._through(step, A, node, chosen)
                c, e, found = c + constant, e + charge, [back]
            for j, B in zip(step.inputs, found, strict=True):
                pending[j] = pending[j] + B if j in pending else B
        return A, c - e - self.tiny

    def _through(self, step: Activation, A: Array, node: Array, chosen: Chosen | None) -> tuple[Array, Array, Array]:
        """(rows before an activation, constant, what it may be off by)."""
        place = node if len(self.low[0]) > 1 else slice(None)   # one node's lines serve all rows
        s, t, above = (self.lines[step.out][k][place] for k in (0, 1, 3))
        below = None if self.lines[step.out][2] is None else self.lines[step.out][2][place]
        if chosen is not None:
            part = slice(step.at, step.at + A.shape[1])
            s = np.where(chosen.given[:, part], chosen.value[:, part], s)
            if step.kind != "Relu":
                part = slice(part.stop, part.stop + A.shape[1])
                t = np.where(chosen.given[:, part], chosen.value[:, part], t)
                low, high = (end[step.inputs[0]][place] for end in (self.low, self.high))
                below, above = intercepts(step, s, t, low, high, self.u)
        negative, n = np.minimum(A, 0), A.shape[1]
        constant, size = dot(negative, above), -dot(negative, np.abs(above))
        if below is not None:
            positive = A - negative
            constant, size = constant + dot(positive, below), size + dot(positive, np.abs(below))
        return A * np.where(A > 0, s, t), constant, self.charge(n) * size

    def of_neurons(self) -> tuple[Array, Array]:
        """Intervals of all neurons, in the file's order."""
        low, high = (np.concatenate([end[0][:, :0], *(end[t] for t in self.net.neurons)], 1)
                     for end in (self.low, self.high))
        return low, high

    def minimum(self, A: Array, b: Array, node: Array) -> Array:
        """At most the minimum of A x + b over each row's node."""
        low, high, size = self.low[0][node], self.high[0][node], np.abs(A)
        centre = low / 2 + high / 2
        radius = np.maximum(high - centre, centre - low) * (1 + 4 * self.u)
        value = b + dot(A, centre) - dot(size, radius) - self.charge(A.shape[1]) * (size @ self.most[0] + np.abs(b))
        if self.ball is not None:   # A = B + (A - B), B over the ball by its dual norm, the rest over the box
            c, r, p = self.ball
            B = part_for_ball(A, low - c, high - c, r, p)
            rest, norm = A - B, np.sqrt((B * B).sum(1)) if p == 2 else np.abs(B).max(1)
            other = b + dot(rest, centre) - dot(np.abs(rest), radius) + B @ c - r * norm
            error = (np.abs(rest) + np.abs(B)) @ (self.most[0] + np.abs(c)) + np.abs(b) + r * norm
            value = np.fmax(value, other - 4 * self.charge(A.shape[1]) * error)
        return value if self.net.numbers.exact else np.where(np.isfinite(value), value, -np.inf)


def part_for_ball(A: Array, low: Array, high: Array, r: float, p: float) -> Array:
    """A good part B of the rows to be bounded over the ball (any is valid): at the optimum of p = 2 the minimiser is
    z = clip(-s A) with |z| = r and B = -z / s; for p = 1 B = A cut off at +-t, where the rest has used up r."""
    if p == 1:
        room, order = np.where(A > 0, -low, high), np.argsort(-np.abs(A), 1)
        spent = (np.cumsum(np.take_along_axis(room, order, 1), 1) < r).sum(1)
        at = np.take_along_axis(order, np.minimum(spent, A.shape[1] - 1)[:, None], 1)
        t = np.where((spent < A.shape[1])[:, None], np.abs(np.take_along_axis(A, at, 1)), 0)
        return np.clip(A, -t, t)
    least, most = np.full((len(A), 1), -60.0), np.full((len(A), 1), 60.0)   # of log2 s
    for _ in range(50):
        s = 2 ** ((least + most) / 2)
        inside = (np.clip(-s * A, low, high)**2).sum(1, keepdims=True) <= r * r
        least, most = np.where(inside, (least + most) / 2, least), np.where(inside, most, (least + most) / 2)
    return -np.clip(-s * A, low, high) / s


# ---------------------------------------------------------------------- what a file says of this network and property


POPULATION = np.array([bin(k).count("1") for k in range(256)])


def ragged(counts: Array, chosen: Array) -> Array:
    """Places of the entries of chosen rows in a column that holds `counts` entries a row."""
    lengths = counts[chosen]
    starts = (np.cumsum(counts) - counts)[chosen]
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


class Question:
    """The property's branches in numbers, and how a file numbers neurons, slopes and regions."""

    def __init__(self, net: Network, branches: list[Branch], head: dict[str, Any], columns: dict[str, Array]) -> None:
        self.net, self.region, self.inputs, of = net, columns["region"], net.sizes[0], net.numbers
        boxes = {k: (of.down(b.low), of.up(b.high)) for k, b in {id(b.low): b for b in branches}.items()}   # few
        self.low, self.high = (np.stack([boxes[id(b.low)][k] for b in branches]) for k in (0, 1))
        self.ball, rows = None, [row for branch in branches for row in branch.rows]
        if branches[0].ball is not None:
            centre, radius, p = branches[0].ball
            self.ball = np.array(centre, float), float(of.up([radius])[0]), p   # the centre is given in floats
        self.counts, self.strict = np.array([len(b.rows) for b in branches]), np.array([r.strict for r in rows])
        table = np.full((len(rows), self.inputs + net.sizes[net.output] + 1), Fraction(0))
        for k, row in enumerate(rows):
            for terms, first in ((row.x, 0), (row.y, self.inputs)):
                for i, coefficient in terms:
                    table[k, first + i] = coefficient
            table[k, -1] = -row.bound
        self.rows = table if of.exact else table.astype(float)   # x, y, constant; to the nearest
        self.intervals: dict[int, tuple[Array, Array]] = {}
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

    def regions(self, regions: Array) -> Array:
        """For each region a branch whose box it is."""
        return np.array([np.flatnonzero(self.region == r)[0] for r in regions], int)

    def legal(self, slopes: Array) -> Array:
        for step in self.activations:
            part = slopes[:, step.at:step.at + self.net.sizes[step.out]]
            if step.kind == "Relu" and not ((part >= 0) & (part <= 1)).all():
                raise Refused("a slope below a ReLU that is not between 0 and 1")
        return self.net.numbers.of(slopes)

    def stated(self, columns: dict[str, Array], table: str, count: int, part: Array) -> Stated:
        """What a block says of entries `part` of a table (`pass`, `visit`) of `count`."""
        lines = columns[f"{table}.lines"]
        if lines.dtype == np.uint8:
            lines = np.unpackbits(lines.reshape(count, -(-self.net.slopes // 8)), axis=1, count=self.net.slopes)
        found = Stated(self.legal(lines.reshape(count, self.net.slopes)[part]))
        if f"{table}.rows" in columns:
            packed = columns[f"{table}.rows"].reshape(count, -(-self.neurons // 4))[part]
            codes = np.stack([packed >> k & 3 for k in (0, 2, 4, 6)], -1).reshape(len(part), -1)
            found.codes = codes[:, :self.neurons]
        place = np.full(count, -1)
        place[part] = np.arange(len(part))
        if "narrow.at" in columns:
            own = np.flatnonzero(place[columns["narrow.at"]] >= 0)
            found.narrow = (place[columns["narrow.at"][own]], columns["narrow.slope"][own],
                            self.net.numbers.of(columns["narrow.value"][own]))
        if "polish.at" in columns:
            rows = np.flatnonzero(place[columns["polish.at"]] >= 0)
            sign = np.where(columns["polish.sign"][rows] > 0, 1, -1)
            found.polish = (place[columns["polish.at"][rows]], columns["polish.neuron"][rows].astype(int), sign,
                            lambda chosen: self.chosen(columns, "polish", rows[chosen]))
        return found

    def chosen(self, columns: dict[str, Array], table: str, index: Array) -> Chosen:
        """The slopes that rows `index` of a table state."""
        mask, values = columns[f"{table}.mask"].reshape(-1, -(-self.net.slopes // 8)), columns[f"{table}.slopes"]
        given = np.unpackbits(mask[index], axis=1, count=self.net.slopes).astype(bool)
        found = np.zeros(given.shape)
        scale = {"u1": 128, "<u2": 32768}.get(values.dtype.str.lstrip("|"), 1)
        found[given] = values[ragged(POPULATION[mask].sum(1), index)] / scale
        return Chosen(given, self.legal(found))

    def passes(self, columns: dict[str, Array]) -> None:
        """Intervals of neurons over whole regions, from which later trees start."""
        boxes, none = self.regions(columns["pass.region"]), np.full((1, self.neurons), np.inf)
        size = max(1, BATCH_ENTRIES // sum(self.net.sizes))
        for first in range(0, len(boxes), size):
            part = np.arange(first, min(first + size, len(boxes)))
            low, high = self.low[boxes[part]], self.high[boxes[part]]
            stated = self.stated(columns, "pass", len(boxes), part)
            bounds = Bounds(self.net, low, high, self.ball, (-none, none), stated)
            low, high = bounds.of_neurons()
            for k, region in enumerate(columns["pass.region"][part].tolist()):
                self.intervals[region] = low[k:k + 1], high[k:k + 1]


# ---------------------------------------------------------------------- the tree


class Tree:
    """One search: roots 0 .. R - 1, and the nodes R + 2 k, R + 2 k + 1 that the k-th split makes. A node is the set of
    inputs of its root's box that are left by the splits on the way down to it."""

    def __init__(self, q: Question, head: dict[str, Any], columns: dict[str, Array]) -> None:
        self.q, self.cuts, self.region = q, bool(head["cuts"]), columns["region"]
        self.box, count = q.regions(self.region), columns["count"].astype(int)
        self.branches = np.full((len(count), count.max()), -1)
        self.branches[np.arange(count.max()) < count[:, None]] = columns["branch"]
        own = self.branches >= 0
        within = ((q.low[self.box][:, None] <= q.low[self.branches])
                  & (q.high[self.branches] <= q.high[self.box][:, None])).all(2)
        if not (within | ~own).all() or (self.cuts and (count != 1).any()):
            raise Refused("a branch does not lie in the box of its root, or too many do")
        self.closed = ~own     # node, place among its root's branches
        self.parent, self.variable, self.point = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        nothing = np.full((1, q.neurons), np.inf)
        self.start = [q.intervals.get(int(r), (-nothing, nothing)) for r in self.region]
        self.planes: dict[int, Any] = {}
        self.known: dict[int, tuple[Array, Array, Any]] = {}   # where cuts are: intervals of a node, and its plane

    def split(self, parent: Array, variable: Array, point: Array) -> None:
        exists = (parent >= 0) & (parent < len(self.closed) + 2 * np.arange(len(parent)))
        if not (exists & (variable >= 0) & (variable < self.q.inputs + self.q.neurons) & np.isfinite(point)).all():
            raise Refused("a split that cannot be")
        self.parent, self.variable = np.append(self.parent, parent), np.append(self.variable, variable)
        self.point = np.append(self.point, self.q.net.numbers.of(point))
        self.closed = np.concatenate([self.closed, np.zeros((2 * len(parent), self.closed.shape[1]), bool)])

    def up(self, at: Array) -> tuple[Array, Array, Array]:
        """(rows that are no roots, their splits' numbers, whether they lie above the point)."""
        rows = np.flatnonzero(at >= len(self.region))
        k, upper = np.divmod(at[rows] - len(self.region), 2)
        return rows, k, upper

    def sets(self, nodes: Array) -> tuple[Array, Array, Array, Array, Array]:
        """(root, low, high, least, greatest values of neurons) of nodes."""
        q, at = self.q, nodes.copy()
        low, high = (np.full((len(at), q.inputs + q.neurons), v, q.low.dtype) for v in (-np.inf, np.inf))
        rows, k, upper = self.up(at)
        while len(rows):
            for end, pick, side in ((low, np.maximum, 1), (high, np.minimum, 0)):
                here = (upper == side)
                where = rows[here], self.variable[k[here]]
                end[where] = pick(end[where], self.point[k[here]])
            at[rows] = self.parent[k]
            rows, k, upper = self.up(at)
        box, n = self.box[at], q.inputs
        return at, np.maximum(q.low[box], low[:, :n]), np.minimum(q.high[box], high[:, :n]), low[:, n:], high[:, n:]

    def visit(self, columns: dict[str, Array]) -> None:
        """Close what the certificates of a block close."""
        nodes = columns["visit.node"].astype(int)
        if (nodes < 0).any() or (nodes >= len(self.closed)).any():
            raise Refused("a visit of a node that does not exist")
        size = max(1, BATCH_ENTRIES // sum(self.q.net.sizes))
        for first in range(0, len(nodes), size):
            part = np.arange(first, min(first + size, len(nodes)))
            root, low, high, least, most = self.sets(nodes[part])
            if (low > high).any():
                raise Refused(f"node {nodes[part][(low > high).any(1)][0]} has an empty box")
            given = (np.maximum(np.concatenate([self.start[r][0] for r in root]), least),
                     np.minimum(np.concatenate([self.start[r][1] for r in root]), most))
            if self.cuts:
                self.cut(nodes[part], root, low, high, *given)
            stated = self.q.stated(columns, "visit", len(nodes), part)
            bounds = Bounds(self.q.net, low, high, self.q.ball, given, stated)
            self.closed[nodes[part[bounds.empty]]] = True
            if self.cuts:
                ends = bounds.of_neurons()
                for k, node in enumerate(nodes[part].tolist()):
                    self.known[node] = (ends[0][k], ends[1][k], None)
            for table in ("certificate", "fine"):
                if f"{table}.at" in columns:
                    self.certify(columns, table, nodes, root, part, bounds)

    def certify(self, columns: dict[str, Array], table: str, nodes: Array, root: Array, part: Array, bounds: Bounds
                ) -> None:
        """Evaluate the certificates of a batch of visits."""
        q, column = self.q, {name: columns[f"{table}.{name}"] for name in
                             ("at", "branch", "kind", "weights", "m_count", "m_neuron", "m_value")}
        count = np.where(column["branch"] < 0, 0, q.counts[column["branch"]])
        every = np.flatnonzero((column["at"] >= part[0]) & (column["at"] <= part[-1]))
        every = every[~bounds.empty[column["at"][every] - part[0]]]
        for block in bounds.parts(len(every)):
            index = every[block]
            at, branch = column["at"][index] - part[0], column["branch"][index]
            weights = np.zeros((len(index), len(q.rows)))   # of all the property's rows
            row = np.repeat(np.arange(len(index)), count[index])
            of_branch = ragged(q.counts, branch[branch >= 0])
            weights[row, of_branch] = column["weights"][ragged(count, index)]
            if not ((weights >= 0) & np.isfinite(weights)).all():
                raise Refused("a weight of a row is negative or no number")
            weights = q.net.numbers.of(weights)
            rows, sizes, n = weights @ q.rows, weights @ np.abs(q.rows), q.inputs
            s = np.zeros((len(index), q.neurons))
            m_row = np.repeat(np.arange(len(index)), column["m_count"][index])
            s[m_row, column["m_neuron"][ragged(column["m_count"], index)]] = \
                column["m_value"][ragged(column["m_count"], index)]
            most = np.append(np.append(bounds.most[0], bounds.most[q.net.output]), q.net.numbers.of(1))
            error = bounds.charge(len(q.rows) + n) * (sizes @ most)
            A, b = bounds.pull(q.net.output, rows[:, n:-1], at, rows[:, -1], error, q.chosen(columns, table, index),
                               q.net.numbers.of(s))
            A = A + rows[:, :n]
            value = bounds.minimum(A, b, at)
            proved = (value > 0) | ((value >= 0) & (weights[:, q.strict] > 0).any(1))
            for k, node in enumerate(nodes[column["at"][index]].tolist()):
                if column["kind"][index[k]] == KEPT and self.cuts and branch[k] == self.branches[root[at[k]], 0]:
                    h = b[k] - bounds.charge(0) * (np.abs(A[k]) @ most[:n])
                    self.known[node] = (*self.known[node][:2], (A[k], h))
                elif not proved[k]:
                    raise Refused(f"node {node}, branch {branch[k]}: its certificate proves {float(value[k]):.6g} only")
                else:
                    self.closed[node] |= (self.branches[root[at[k]]] == branch[k]) | (branch[k] < 0)

    def cut(self, nodes: Array, root: Array, low: Array, high: Array, least: Array, most: Array) -> None:
        """Start from the last visit of each node or of its parent (least, most: in place); neurons that are affine in
        the input are bounded anew where its last split, and the plane of that visit, leave less of the box."""
        for k, node in enumerate(nodes.tolist()):
            neuron, planes = self.affine(int(root[k]))
            half, source = [], node
            if source not in self.known and source >= len(self.region):
                split, upper = divmod(node - len(self.region), 2)
                source, j = int(self.parent[split]), np.flatnonzero(neuron == self.variable[split] - self.q.inputs)
                for place in j:   # +z <= point below, -z <= -point above
                    g, h = planes[0][upper][place], planes[1][upper][place]
                    half.append((g, h - (1 - 2 * upper) * self.point[split]))
            if source not in self.known:
                continue
            *ends, plane = self.known[source]
            least[k], most[k] = np.maximum(least[k], ends[0]), np.minimum(most[k], ends[1])
            half += [plane] if plane is not None else []
            is_open = np.flatnonzero((least[k, neuron] < 0) & (most[k, neuron] > 0))
            at = neuron[is_open]
            for g, h in half:
                up, down = (self.behind(planes[0][side][is_open], planes[1][side][is_open], g, h, low[k], high[k])
                            for side in (0, 1))
                least[k, at], most[k, at] = np.maximum(least[k, at], up), np.minimum(most[k, at], -down)

    def affine(self, root: int) -> Any:
        """(neurons that are affine in the input, A and b of planes below them and below their negatives) over a box."""
        if root not in self.planes:
            net, part = self.q.net, slice(self.box[root], self.box[root] + 1)
            nothing = np.full((1, self.q.neurons), np.inf)
            flat = Bounds(net, self.q.low[part], self.q.high[part], None, (-nothing, nothing),
                          Stated(np.zeros((1, net.slopes), self.q.low.dtype)))
            is_affine: set[int] = {0}
            found: list[Any] = []
            for step in net.steps:
                if isinstance(step, Affine) and is_affine.issuperset(step.inputs):
                    is_affine.add(step.out)
            for tensor, (first, count) in net.neurons.items():
                if tensor in is_affine:
                    each, zero = np.arange(count), np.zeros(count, int)
                    both = (flat.pull(tensor, (each, zero + sign), zero, 0, 0) for sign in (1, -1))
                    found.append((first + each, *both))
            self.planes[root] = (np.concatenate([f[0] for f in found]),
                                 [[np.concatenate([f[side][k] for f in found]) for side in (1, 2)] for k in (0, 1)])
        return self.planes[root]

    def behind(self, A: Array, b: Array, g: Array, h: Any, low: Array, high: Array) -> Array:
        """At most the minima of A x + b over {low <= x <= high, g x + h <= 0}: those of (A + t g) x + b + t h over the
        box, for the best t >= 0 (any would do)."""
        centre = low / 2 + high / 2
        radius = np.maximum(high - centre, centre - low) * (1 + 4 * self.q.net.numbers.u)
        ar, gr = A * radius, np.broadcast_to(g * radius, A.shape)
        against = ar * gr < 0   # where t turns the sign of A + t g, and the value's slope in t falls by 2 |g|
        turn = np.where(against, -ar / np.where(against, gr, 1), np.inf)
        order = np.argsort(turn, 1)
        fall = np.take_along_axis(np.where(against, 2 * np.abs(gr), 0), order, 1)
        slope = (g @ centre + h - np.where(against, -np.abs(gr), np.abs(gr)).sum(1))[:, None] - np.cumsum(fall, 1)
        at = np.minimum((slope > 0).sum(1), np.maximum(against.sum(1) - 1, 0))
        t = np.take_along_axis(np.take_along_axis(turn, order, 1), at[:, None], 1)[:, 0]
        t = np.where((slope[:, 0] + fall[:, 0] > 0) & np.isfinite(t), t, 0)
        mixed, most = A + t[:, None] * g, np.maximum(np.abs(low), np.abs(high))
        error = (np.abs(A) + t[:, None] * np.abs(g)) @ most + np.abs(b) + t * np.abs(h)
        value = b + t * h + mixed @ centre - np.abs(mixed) @ radius
        value = value - (0 if self.q.net.numbers.exact else SAFETY * (A.shape[1] + 16) * U) * error
        return np.where(np.isfinite(value.astype(float)), value, -np.inf)

    def uncovered(self) -> int | None:
        """A leaf, and so a set of inputs, for which some branch is not closed at it or above it."""
        leaves = np.setdiff1d(np.arange(len(self.closed)), self.parent)
        at, closed = leaves.copy(), self.closed[leaves]
        rows, k, _ = self.up(at)
        while len(rows):
            at[rows] = self.parent[k]
            closed[rows] |= self.closed[at[rows]]
            rows, k, _ = self.up(at)
        still = np.flatnonzero(~closed.all(1))
        return int(leaves[still[0]]) if len(still) else None


# ---------------------------------------------------------------------- the verdict


def read_question(net_path: str, spec: str | None, flags: dict[str, Any] | None, numbers: Numbers
                  ) -> tuple[Network, list[Branch], dict[str, Any]]:
    """The network, the property, and what a file must say that it is about."""
    data = read_file(net_path)
    about = {"claim": "real", "network": {"sha256": hashlib.sha256(data).hexdigest()}}
    where = net_path
    try:
        net = read_network(data, numbers)
        inputs, outputs = net.sizes[0], net.sizes[net.output]
        if spec is not None:
            where, text = spec, read_file(spec)
            branches = read_vnnlib(text, inputs, outputs)
            return net, branches, {**about, "property": {"sha256": hashlib.sha256(text).hexdigest()}}
        assert flags is not None
        arrays: dict[str, Any] = {}
        flags = dict(flags)
        for key in ("input", "mask"):
            where = flags.pop(key)
            flags[f"{key}_sha256"] = None if where is None else hashlib.sha256(Path(where).read_bytes()).hexdigest()
            arrays[key] = None if where is None else np.load(where, allow_pickle=False)
            if where is not None and arrays[key].size != inputs:
                raise ValueError(f"expected {inputs} numbers")
        return net, robustness(flags, arrays["input"], arrays["mask"], outputs), {**about, "property": flags}
    except Exception as error:  # protobuf, onnx and numpy raise types of their own for what they cannot read
        sentence = f"{where}: {' '.join(str(error).split()) or type(error).__name__}"
        raise error if isinstance(error, Unreadable) else Unreadable(sentence) from error


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
            return check_witness(net, branches, head) if head["verdict"] == "falsified" else \
                check_trees(Question(net, branches, head, columns), file)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"the file is malformed ({type(error).__name__}: {error})") from error


def check_trees(q: Question, file: Iterator[tuple[dict[str, Any], dict[str, Array]]]) -> str:
    proved: set[int] = set()
    tree: Tree | None = None
    nodes = 0
    for head, columns in file:
        if head["block"] == "passes":
            q.passes(columns)
        elif head["block"] == "tree":
            tree = Tree(q, head, columns)
        elif head["block"] == "nodes" and tree is not None:
            if "split.parent" in columns:
                tree.split(columns["split.parent"].astype(int), columns["split.variable"].astype(int),
                           columns["split.point"])
            if "visit.node" in columns:
                tree.visit(columns)
        elif head["block"] == "closed" and tree is not None:
            if (leaf := tree.uncovered()) is not None:
                raise Refused(f"node {leaf} is neither split nor closed")
            proved |= set(tree.branches[tree.branches >= 0].tolist())
            nodes += len(tree.closed)
            tree = None
    if missing := set(range(len(q.counts))) - proved:
        raise Refused(f"branch {min(missing)} of the property is not proved")
    return f"verified: {len(q.counts)} branches, {nodes} nodes"


def check_witness(net: Network, branches: list[Branch], head: dict[str, Any]) -> str:
    """The point lies in the branch's set, and the network's outputs there, enclosed, meet all its rows."""
    x, branch = [Fraction(v) for v in head["x"]], branches[head["branch"]]
    if len(x) != net.sizes[0] or any(not a <= v <= b for a, v, b in zip(branch.low, x, branch.high, strict=True)):
        raise Refused("the witness does not lie in the input set")
    if branch.ball is not None:
        moves = [abs(v - c) for v, c in zip(x, branch.ball[0], strict=True)]
        p = int(branch.ball[2])
        if sum(m**p for m in moves) > branch.ball[1]**p:
            raise Refused("the witness does not lie in the ball")
    lines = np.zeros((1, 2 * sum(net.sizes)), net.numbers.of(0).dtype)   # no row needs them
    bounds = Bounds(net, net.numbers.down(x)[None], net.numbers.up(x)[None], None, (lines, lines), Stated(lines))
    low, high = ([Fraction(v) for v in end[net.output][0]] for end in (bounds.low, bounds.high))
    for row in branch.rows:
        most = sum(c * (high if c > 0 else low)[i] for i, c in row.y) + sum(c * x[j] for j, c in row.x) - row.bound
        if most > 0 or (row.strict and most == 0):
            raise Refused(f"at the witness a row is met up to {float(most):.3g} only: it is none of the real network")
    return "falsified: the witness is unsafe"
