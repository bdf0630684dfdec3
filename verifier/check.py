"""The checker of proof files: does this file prove this property of this network? (docs/proofs.md states the format.)

It uses NumPy and onnx and nothing else of this project: what the search believed is of no interest here, every bound is
computed anew. Read it from top to bottom: the file, the property, the network, lines, bounds, the tree, the verdict.

The one operation. For a linear function A z of the neurons of some tensor, `Bounds.pull` finds a linear function of the
input below it: through affine maps exactly, through an activation f on [l, u] by lines s z + t below or above f, by the
sign of A's entries. A line's slope comes from the file and may be anything; its intercept t is computed here. A
multiplier s on a neuron with l <= z <= u changes A: `A z >= (A - s) z + max(s, 0) l + min(s, 0) u`. The minimum over the
box bounds neurons (rows +-z) and the property's rows; a bound > 0 means that the node holds no unsafe point.

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

import gzip
import hashlib
import itertools
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
MAGIC = b"rmax-proof 2\n"
MOST_BLOCK = 1 << 28          # unpacked bytes of a block: far above what a writer makes of one batch
CLOSED, KEPT = 0, 1           # what a certificate is for
U = 2.0**-53
SAFETY = 1.01
BLOCK_ENTRIES = 1 << 16       # entries of a block of rows: it stays in the cache
BATCH_ENTRIES = 1 << 21       # entries of the intervals of a batch of nodes
MOST_BRANCHES = 100_000


class Refused(Exception):
    """The file does not prove the property; the message says where and why."""


class Unreadable(Exception):
    """The network, the property or the file cannot be read."""


# ---------------------------------------------------------------------- the file


def read_file(path: str) -> bytes:
    """The decompressed bytes of PATH or PATH.gz."""
    where = Path(path) if Path(path).is_file() else Path(path + ".gz")
    try:
        data = where.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from error


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


# ---------------------------------------------------------------------- the property


@dataclass
class Row:
    """`sum y_i Y_i + sum x_j X_j <= bound` (< where strict)."""

    y: tuple[tuple[int, Fraction], ...]
    x: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    strict: bool


@dataclass
class Branch:
    """Unsafe where x lies in the box (and in the ball: centre, radius, p) and all rows hold."""

    low: list[Fraction]
    high: list[Fraction]
    rows: list[Row]
    ball: tuple[list[Fraction], Fraction, float] | None = None


def read_vnnlib(data: bytes, inputs: int, outputs: int) -> list[Branch]:
    """The unsafe set of a VNN-LIB 1.0 file as a disjunction of conjunctions, in the order of the file."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", data.decode("utf-8-sig"))):
        if token == "(":
            stack.append([])
        elif token == ")":
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(token)
    count = {"X": 0, "Y": 0}
    common: list[Any] = []
    choices: list[list[list[Any]]] = []
    for sentence in stack[0] if len(stack) == 1 else [["brackets that are never closed"]]:
        if sentence[0] == "declare-const" and sentence[2] == "Real":
            if sentence[1] != f"{sentence[1][0]}_{count[sentence[1][0]]}":
                raise ValueError(f"expected {sentence[1][0]}_{count[sentence[1][0]]}, got {sentence[1]}")
            count[sentence[1][0]] += 1
        elif sentence[0] == "assert" and len(sentence) == 2:
            found = _normal_form(sentence[1])
            choices += [found] * (len(found) != 1)
            common += found[0] if len(found) == 1 else []
        else:
            raise ValueError(f"cannot read the statement {str(sentence)[:60]}")
    if (count["X"], count["Y"]) != (inputs, outputs):
        raise ValueError(f"declares {count['X']} inputs and {count['Y']} outputs, the network has {inputs}, {outputs}")
    return [b for own in _product(choices) if (b := _branch(own + common, inputs, outputs)) is not None]


def _linear(term: Any) -> dict[str, Fraction]:
    """Coefficients by variable; "" is the constant."""
    if isinstance(term, str):
        return {term: Fraction(1)} if term[0] in "XY" else {"": Fraction(term)}
    word, parts = term[0], [_linear(part) for part in term[1:]]
    if word == "-" and len(parts) == 1:
        return {v: -c for v, c in parts[0].items()}
    total = dict(parts[0])
    for part in parts[1:]:
        if word in ("+", "-"):
            for v, c in part.items():
                total[v] = total.get(v, Fraction(0)) + (c if word == "+" else -c)
        elif word == "*" and (set(total) <= {""} or set(part) <= {""}):
            factor, rest = (part[""], total) if set(part) <= {""} else (total[""], part)
            total = {v: c * factor for v, c in rest.items()}
        else:
            raise ValueError(f"cannot read the term ({word} ...)")
    return total


def _normal_form(node: Any) -> list[list[Any]]:
    """A formula as a list of conjunctions of rows and of bounds (input, is upper, value)."""
    word, arguments = node[0], node[1:]
    if word == "and":
        return _product([_normal_form(part) for part in arguments])
    if word == "or":
        return [conjunction for part in arguments for conjunction in _normal_form(part)]
    if word not in ("<=", ">=", "<", ">", "=") or len(arguments) != 2:
        raise ValueError(f"cannot read the formula ({word} ...)")
    if word == "=":
        return _product([_normal_form(["<=", *arguments]), _normal_form([">=", *arguments])])
    terms = _linear(["-", *(arguments if word[0] == "<" else arguments[::-1])])
    if word[0] == ">":  # the variables in the order written
        terms = {v: terms[v] for v in [*_linear(arguments[0]), *_linear(arguments[1])]}
    constant, strict = terms.pop("", Fraction(0)), len(word) == 1
    y, x = (tuple((int(v[2:]), c) for v, c in terms.items() if v[0] == letter and c) for letter in "YX")
    if not y and not x:
        return [[]] if constant < 0 or (constant == 0 and not strict) else []
    bound = [(x[0][0], x[0][1] > 0, -constant / x[0][1])] if not y and len(x) == 1 else []
    return [bound if bound and not strict else [*bound, Row(y, x, -constant, strict)]]


def _product(parts: list[list[list[Any]]]) -> list[list[Any]]:
    if math.prod(map(len, parts)) > MOST_BRANCHES:
        raise ValueError(f"more than {MOST_BRANCHES} disjuncts")
    return [list(itertools.chain(*choice)) for choice in itertools.product(*parts)]


def _branch(atoms: list[Any], inputs: int, outputs: int) -> Branch | None:
    """The box of the bounds, and each row once; None where the box is empty."""
    ends: tuple[dict[int, Fraction], dict[int, Fraction]] = ({}, {})
    rows: list[Row] = []
    for atom in atoms:
        if not isinstance(atom, Row):
            index, is_upper, value = atom
            old = ends[is_upper].get(index, value)
            ends[is_upper][index] = min(old, value) if is_upper else max(old, value)
        elif atom not in rows:
            rows.append(atom)
    if any(i >= outputs for row in rows for i, _ in row.y) or any(i >= inputs for row in rows for i, _ in row.x):
        raise ValueError("a row names a variable that is not declared")
    low, high = ([end[i] for i in range(inputs)] for end in ends)  # a KeyError: an input without a bound
    return Branch(low, high, rows) if all(a <= b for a, b in zip(low, high, strict=True)) else None


def robustness(flags: dict[str, Any], x: Array, mask: Array | None, outputs: int) -> list[Branch]:
    """The label stays on top within eps of x: a branch for every other class, or for the target alone."""
    label, eps = flags["label"], Fraction(repr(float(flags["eps"])))
    centre = [Fraction(float(v)) for v in x.ravel()]
    free = [True] * len(centre) if mask is None else mask.astype(bool).ravel().tolist()
    least, most = (Fraction(repr(float(v))) for v in flags["clip"]) if flags["clip"] else (None, None)
    low = [c if not f else c - eps if least is None else max(c - eps, least) for c, f in zip(centre, free, strict=True)]
    high = [c if not f else c + eps if most is None else min(c + eps, most) for c, f in zip(centre, free, strict=True)]
    ball = None if flags["norm"] == "inf" else (centre, eps, float(flags["norm"]))
    others = [j for j in range(outputs) if j != label] if flags["target"] is None else [flags["target"]]
    one = Fraction(1)
    return [Branch(low, high, [Row(((label, one), (j, -one)), (), Fraction(0), False)], ball) for j in others]


# ---------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Numbers:
    """float64 with the unit roundoff u, or rationals with none."""

    exact: bool = False

    @property
    def u(self) -> Any:
        return 0 if self.exact else U

    def of(self, values: Any) -> Array:
        """Floats, exactly."""
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a parameter is not finite")
        return values if not self.exact else \
            np.array([*map(Fraction, values.ravel().tolist()), None], object)[:-1].reshape(values.shape)

    def down(self, values: list[Fraction]) -> Array:
        """The numbers, or the floats below."""
        return np.array([*values, None], object)[:-1] if self.exact else np.array(
            [f if Fraction(f) <= v else math.nextafter(f, -math.inf) for v in values for f in (float(v),)])

    def up(self, values: list[Fraction]) -> Array:
        return -self.down([-v for v in values])


def dot(a: Array, b: Array) -> Array:
    """Row by row."""
    return (a * b).sum(-1) if object in (a.dtype, b.dtype) else np.einsum("...n,...n->...", a, b)


# ---------------------------------------------------------------------- the network: tensors are flat, in C order


class Affine:
    """y = W x + b of the tensors `inputs`. n: roundings of an entry of W x or A W, in units u of |W| |x| or |A| |W|;
    size >= |b|."""

    inputs: tuple[int, ...]
    out: int
    n: int
    bias: Array
    size: Array

    def apply(self, xs: list[Array], absolute: bool = False) -> Array:
        """W x, or |W| x, for x "B n"."""
        raise NotImplementedError

    def pull(self, A: Array) -> list[Array]:
        """A W, for each input."""
        raise NotImplementedError

    def reach(self, xs: list[Array]) -> Array:
        """At least |W| |x| + |b|, and all that its roundings are relative to, for |x| <= xs."""
        return self.apply(xs, absolute=True) + self.size

    def units(self, index: Array, sign: Array) -> list[Array] | None:
        """`pull` of the rows `sign * y[index]`, where that needs no rounding."""
        return None


class Dense(Affine):
    """A matrix "out in"; absolute >= |W|, larger where the matrix is itself a product whose terms cancel."""

    def __init__(self, weight: Array, bias: Array, absolute: Array | None = None, size: Array | None = None,
                 n: int = 0) -> None:
        self.weight, self.bias, self.n, self.is_product = weight, bias, max(weight.shape) + n, absolute is not None
        self.absolute, self.size = np.abs(weight) if absolute is None else absolute, np.abs(bias) if size is None else size

    def apply(self, xs: list[Array], absolute: bool = False) -> Array:
        return xs[0] @ (np.abs(self.weight) if absolute else self.weight).T

    def reach(self, xs: list[Array]) -> Array:
        return xs[0] @ self.absolute.T + self.size

    def pull(self, A: Array) -> list[Array]:
        return [A @ self.weight]

    def units(self, index: Array, sign: Array) -> list[Array] | None:
        return None if self.is_product else [self.weight[index] * sign[:, None]]

    def then(self, second: Any) -> Dense | None:
        """This map and the next one as one matrix, where that is not larger: intervals lose less. The rounding of a
        product is relative to |W2| |W1|."""
        if isinstance(second, Gather) and second.is_shift:
            exact = not self.is_product and not self.bias.any()
            return Dense(self.weight, self.bias + second.bias, None if exact else self.absolute, self.size + second.size, 1)
        if not isinstance(second, Dense) or len(second.weight) * self.weight.shape[1] > self.weight.size + second.weight.size:
            return None
        return Dense(second.weight @ self.weight, second.weight @ self.bias + second.bias,
                     second.absolute @ self.absolute, second.absolute @ self.size + second.size, self.n + second.n)


class Gather(Affine):
    """y[k] = sum over inputs of factor[k] x[index[k]], plus bias: scalings, sums, whatever moves entries. An index of
    None is the identity, a factor of None is one."""

    def __init__(self, terms: list[tuple[Array | None, Array | None, int]], bias: Array, size: Array | None = None,
                 n: int = 2) -> None:
        self.terms, self.bias, self.n = terms, bias, n   # (index, factor, entries of the input)
        self.size = np.abs(bias) if size is None else size
        self.is_shift = len(terms) == 1 and terms[0][0] is None and terms[0][1] is None

    def apply(self, xs: list[Array], absolute: bool = False) -> Array:
        total: Any = 0
        for x, (index, factor, _) in zip(xs, self.terms, strict=True):
            y = x if index is None else x[..., index]
            total = total + (y if factor is None else y * (np.abs(factor) if absolute else factor))
        return np.asarray(total)

    def pull(self, A: Array) -> list[Array]:
        found = []
        for index, factor, size in self.terms:
            B = A if factor is None else A * factor
            if index is not None:
                B, moved = np.zeros((len(A), size), A.dtype), B
                np.add.at(B.T, index, moved.T)
            found.append(B)
        return found


class Conv(Affine):
    """A convolution of maps "C H W": weight "out in kh kw"."""

    def __init__(self, weight: Array, bias: Array, shape: tuple[int, ...], strides: list[int], pads: list[int],
                 dilations: list[int]) -> None:
        self.weight, self.shape, self.strides, self.pads, self.dilations = weight, shape, strides, pads, dilations
        self.padded = (shape[1] + pads[0] + pads[2], shape[2] + pads[1] + pads[3])
        self.map = tuple((p - d * (k - 1) - 1) // s + 1 for p, d, k, s in
                         zip(self.padded, dilations, weight.shape[2:], strides, strict=True))
        self.bias = np.repeat(bias, math.prod(self.map))
        self.size, self.n = np.abs(self.bias), max(weight[:, 0].size, weight[0].size)

    def _windows(self) -> Iterator[tuple[int, int, slice, slice]]:
        """The kernel's entries, and what each of them sees of the padded map."""
        (a, b), (s, t), (d, e) = self.map, self.strides, self.dilations
        for i, j in itertools.product(range(self.weight.shape[2]), range(self.weight.shape[3])):
            yield i, j, slice(i * d, i * d + s * (a - 1) + 1, s), slice(j * e, j * e + t * (b - 1) + 1, t)

    def apply(self, xs: list[Array], absolute: bool = False) -> Array:
        top, left, bottom, right = self.pads
        x = np.pad(xs[0].reshape(-1, *self.shape), ((0, 0), (0, 0), (top, bottom), (left, right)))
        patches = np.stack([x[:, :, rows, columns] for _, _, rows, columns in self._windows()], 2)
        weight = self.weight.reshape(len(self.weight), -1)
        y = (np.abs(weight) if absolute else weight) @ patches.reshape(len(x), weight.shape[1], -1)
        return y.reshape(len(x), -1)

    def pull(self, A: Array) -> list[Array]:
        outs, ins, kh, kw = self.weight.shape
        weight = self.weight.transpose(2, 3, 1, 0).reshape(-1, outs)
        parts = (weight @ A.reshape(len(A), outs, -1)).reshape(len(A), kh, kw, ins, *self.map)
        back = np.zeros((len(A), ins, *self.padded), A.dtype)
        for i, j, rows, columns in self._windows():
            back[:, :, rows, columns] += parts[:, i, j]
        return self._cropped(back)

    def units(self, index: Array, sign: Array) -> list[Array] | None:
        channel, y, x = np.unravel_index(index, (len(self.weight), *self.map))
        back = np.zeros((len(index), self.shape[0], *self.padded), self.weight.dtype)
        for i, j, rows, columns in self._windows():
            back[np.arange(len(index)), :, y * self.strides[0] + rows.start, x * self.strides[1] + columns.start] = \
                self.weight[channel, :, i, j] * sign[:, None]
        return self._cropped(back)

    def _cropped(self, back: Array) -> list[Array]:
        top, left, bottom, right = self.pads
        return [back[:, :, top:self.padded[0] - bottom, left:self.padded[1] - right].reshape(len(back), -1)]


@dataclass
class Activation:
    """y_i = f(x_i). alpha "n" (LeakyRelu), low and high (Clip); `at`: where a file's slopes of it begin."""

    kind: str
    alpha: Any = None
    low: Any = None
    high: Any = None
    inputs: tuple[int, ...] = ()
    out: int = 0
    at: int = 0


@dataclass
class Network:
    """Steps in order, sizes of tensors (0 is the input), tensors by ONNX name."""

    numbers: Numbers
    steps: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    output: int = 0
    neurons: dict[int, tuple[int, int]] = field(default_factory=dict)  # tensor -> (first neuron of a file, count)
    slopes: int = 0

    def add(self, step: Any, shape: tuple[int, ...], *inputs: Value) -> Value:
        step.inputs, step.out = tuple(v.tensor for v in inputs), len(self.sizes)
        self.steps.append(step)
        self.sizes.append(math.prod(shape))
        return Value(step.out, shape)

    @property
    def extra(self) -> int:
        """Roundings besides those of products: slopes, multipliers, additions to constants."""
        return 8 * len(self.steps) + 16


@dataclass(frozen=True)
class Value:
    """A tensor with its ONNX shape."""

    tensor: int
    shape: tuple[int, ...]
    size = property(lambda self: math.prod(self.shape))


def read_network(data: bytes, numbers: Numbers) -> Network:
    """The stored function, node by node, with parameters as they are stored."""
    model = onnx.ModelProto.FromString(data)
    graph, net = model.graph, Network(numbers)
    known: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in known]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError("expected one input and one output")
    shape = tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)
    known[inputs[0].name] = Value(0, (max(shape[0], 1), *shape[1:]))
    net.sizes.append(known[inputs[0].name].size)
    net.names[inputs[0].name] = 0
    for node in graph.node:
        a = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            known[node.output[0]] = found = _read_node(net, node, [known[i] if i else None for i in node.input], a)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{node.op_type} (node {node.name or node.output[0]!r}): {error}") from error
        if isinstance(found, Value):
            net.names[node.output[0]] = found.tensor
    net.output = known[graph.output[0].name].tensor
    readers, k = [i for s in net.steps for i in s.inputs] + [net.output], 1
    while k < len(net.steps):
        first, second = net.steps[k - 1:k + 1]
        alone = isinstance(first, Dense) and second.inputs == (first.out,) and readers.count(first.out) == 1
        if joint := first.then(second) if alone else None:
            joint.inputs, joint.out = first.inputs, second.out
            net.steps[k - 1:k + 1] = [joint]
        k = max(1, k - 1) if joint else k + 1
    return net


def _read_node(net: Network, node: Any, x: list[Any], a: dict[str, Any]) -> Any:
    kind, of, first = node.op_type, net.numbers.of, x[0] if x else None
    if kind == "Constant":
        return numpy_helper.to_array(a["value"])
    if kind in ("Add", "Sub", "Mul", "Div"):
        return _arithmetic(net, kind, first, x[1])
    if kind in ("MatMul", "Gemm"):
        weight = of(x[1]) if a.get("transB") else of(x[1]).T
        if first.size != first.shape[-1] or a.get("transA") or a.get("alpha", 1) != 1 or a.get("beta", 1) != 1:
            raise ValueError("only products of one row with a matrix are covered")
        bias = np.broadcast_to(of(x[2]).ravel() if len(x) > 2 else of(0), (len(weight),))
        return net.add(Dense(weight, bias), (*first.shape[:-1], len(weight)), first)
    if kind == "Conv" and a.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"):
        groups, weight = a.get("group", 1), of(x[1])
        wide = np.zeros((groups, len(weight) // groups, groups, *weight.shape[1:]), weight.dtype)
        wide[np.arange(groups), :, np.arange(groups)] = weight.reshape(groups, -1, *weight.shape[1:])
        wide = wide.reshape(len(weight), -1, *weight.shape[2:])
        conv = Conv(wide, of(x[2]) if len(x) > 2 else of(np.zeros(len(weight))), first.shape[1:],
                    a.get("strides", [1, 1]), a.get("pads", [0] * 4), a.get("dilations", [1, 1]))
        return net.add(conv, (1, len(weight), *conv.map), first)
    if kind == "BatchNormalization" and not net.numbers.exact:
        scale, shift, mean, variance = (of(v) for v in x[1:])
        factor = scale / np.sqrt(variance + float(np.float32(a.get("epsilon", 1e-5))))
        bias, size = shift - mean * factor, np.abs(shift) + np.abs(mean * factor)
        factor, bias, size = (np.repeat(v, first.size // len(v)) for v in (factor, bias, size))
        return net.add(Gather([(None, factor, first.size)], bias, size, n=12), first.shape, first)
    if kind in ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip"):
        step = Activation(kind)
        if kind == "LeakyRelu":
            step.alpha = of(np.full(first.size, np.float32(a.get("alpha", 0.01))))
        if kind == "Clip":
            ends = (a.get(name, x[k] if len(x) > k else None) for k, name in ((1, "min"), (2, "max")))
            step.low, step.high = (None if end is None else of(np.float32(end)).ravel()[0] for end in ends)
        return net.add(step, first.shape, first)
    return _moved(net, kind, first, x[1:], a)


def _moved(net: Network, kind: str, x: Any, rest: list[Any], a: dict[str, Any]) -> Any:
    """What only moves entries, found by moving their numbers (or a constant itself)."""
    def given(name: str, k: int = 0, default: Any = None) -> Any:
        return a[name] if name in a else rest[k].tolist() if len(rest) > k and rest[k] is not None else default
    places = x if isinstance(x, np.ndarray) else np.arange(x.size).reshape(x.shape)
    if kind == "Reshape":
        shape = given("shape")
        places = places.reshape([places.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in enumerate(shape)])
    elif kind == "Flatten":
        places = places.reshape(math.prod(places.shape[:a.get("axis", 1)]), -1)
    elif kind == "Squeeze":
        axes = given("axes")
        places = places.squeeze(None if axes is None else tuple(axes))
    elif kind == "Unsqueeze":
        places = np.expand_dims(places, tuple(given("axes")))
    elif kind == "Transpose":
        places = places.transpose(a.get("perm"))
    elif kind == "Slice":
        starts, ends = given("starts"), given("ends", 1)
        axes, steps = given("axes", 2, range(len(starts))), given("steps", 3, [1] * len(starts))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            places = places[(slice(None),) * (axis % places.ndim) + (slice(start, end, step) if step > 0 else None,)]
    elif kind == "Gather":
        places = np.take(places, rest[0], a.get("axis", 0))
    elif kind not in ("Identity", "Dropout"):
        raise ValueError("this operator (with these operands) is not covered")
    if isinstance(x, np.ndarray):
        return places
    if places.size == x.size and (places.ravel() == np.arange(x.size)).all():
        return Value(x.tensor, places.shape)
    return net.add(Gather([(places.ravel(), None, x.size)], net.numbers.of(np.zeros(places.size))), places.shape, x)


def _arithmetic(net: Network, kind: str, x: Any, y: Any) -> Value:
    """Sums and differences, and products and quotients with a constant."""
    of = net.numbers.of
    if isinstance(x, Value) and isinstance(y, Value):
        if kind not in ("Add", "Sub") or x.shape != y.shape:
            raise ValueError("of two tensors only sums and differences of equal shapes are covered")
        signs = (None, None if kind == "Add" else of(np.full(x.size, -1.0)))
        return net.add(Gather([(None, s, x.size) for s in signs], of(np.zeros(x.size))), x.shape, x, y)
    value, constant = (x, y) if isinstance(x, Value) else (y, x)
    shape = np.broadcast_shapes(value.shape, np.shape(constant))
    c, zero = of(np.broadcast_to(constant, shape)).ravel(), of(np.zeros(math.prod(shape)))
    if len(c) != value.size or (kind == "Div" and (value is y or (c == 0).any())):
        raise ValueError("not covered with these operands")
    factor = {"Mul": c, "Div": 1 / np.where(c == 0, 1, c), "Sub": zero - 1 if value is y else None}.get(kind)
    bias = zero if kind in ("Mul", "Div") else -c if kind == "Sub" and value is x else c
    return net.add(Gather([(None, factor, value.size)], bias), shape, value)


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
    """At most the minimum of f(z) - s z over [a, b]. Where f is convex, up to 0, it lies above its tangent at any p (the
    best has f'(p) = s, nothing rests on it); from 0 on it is concave, and least at an end."""
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
        under.append(f - s * z - 4 * u * (np.abs(f) + np.abs(s * z)))
        over.append(f - t * z + 4 * u * (np.abs(f) + np.abs(t * z)))
    return np.minimum.reduce(under), np.maximum.reduce(over)


# ---------------------------------------------------------------------- bounds over a batch of nodes


@dataclass
class Chosen:
    """Slopes that rows of their own state: given "R slopes" (bool) and value "R slopes"."""

    given: Array
    value: Array

    def take(self, part: Any) -> Chosen:
        return Chosen(self.given[part], self.value[part])


class Bounds:
    """Intervals "B n" of all tensors over B nodes, and what rows need on their way. stated "B slopes": default lines."""

    def __init__(self, net: Network, low: Array, high: Array, ball: Any, stated: Array) -> None:
        self.net, self.u, self.ball, self.stated = net, net.numbers.u, ball, stated
        self.low, self.high = {0: low}, {0: high}
        self.most: dict[int, Array] = {}     # tensor -> |z| at most, over all nodes
        self.size: dict[int, Array] = {}     # tensor -> what charges for a row over it are measured by
        self.lines: dict[int, tuple[Any, ...]] = {}
        self.empty = np.zeros(len(low), bool)
        self.tiny: Any = 0 if net.numbers.exact else 2.0**-1000

    def charge(self, n: int) -> Any:
        return 0 if self.net.numbers.exact else SAFETY * (n + self.net.extra) * U

    def refine(self, given: tuple[Array, Array], codes: Array | None, narrow: tuple[Array, ...], polish: Any) -> None:
        """All intervals, in order: interval arithmetic, met with `given` "B neurons" and with rows, as codes say: 1 (2):
        the row +z (-z) shows the sign, the interval is cut at zero; 3: both rows count in full."""
        for step in (None, *self.net.steps):
            tensor = 0 if step is None else step.out
            if isinstance(step, Affine):
                self._map(step)
            elif step is not None:
                self._activate(step, narrow)
            if tensor in self.net.neurons:
                first, count = self.net.neurons[tensor]
                part = slice(first, first + count)
                low, high = np.maximum(self.low[tensor], given[0][:, part]), np.minimum(self.high[tensor], given[1][:, part])
                if codes is not None:
                    low, high = self._by_rows(tensor, low, high, codes[:, part], first, polish)
                self.empty |= (low > high).any(1)
                self.low[tensor], self.high[tensor] = np.minimum(low, high), np.maximum(low, high)
            self.most[tensor] = np.maximum(np.abs(self.low[tensor]), np.abs(self.high[tensor])).max(0)
            self.size.setdefault(tensor, self.most[tensor])
            if not self.net.numbers.exact:
                self.tiny += 2.0**-1060 * (self.net.extra + getattr(step, "n", 0)) * float(self.size[tensor].sum())

    def _map(self, step: Affine) -> None:
        centres = [self.low[i] / 2 + self.high[i] / 2 for i in step.inputs]
        radii = [np.maximum(self.high[i] - c, c - self.low[i]) * (1 + 4 * self.u)
                 for i, c in zip(step.inputs, centres, strict=True)]
        self.size[step.out] = v = step.reach([self.most[i][None] for i in step.inputs])[0]
        y = step.apply(centres) + step.bias
        radius = step.apply(radii, absolute=True) + (self.charge(step.n) * v + self.tiny)
        known = np.isfinite((y + radius).astype(float))
        self.low[step.out], self.high[step.out] = np.where(known, y - radius, -np.inf), np.where(known, y + radius, np.inf)

    def _activate(self, step: Activation, narrow: tuple[Array, ...]) -> None:
        low, high = self.low[step.inputs[0]], self.high[step.inputs[0]]
        n = low.shape[1]
        s = self.stated[:, step.at:step.at + n]
        if step.kind == "Relu":
            inside = (low < 0) & (high > 0)
            t = np.where(inside, high / np.where(inside, high - low, 1), low >= 0)
            at, slope, value = narrow
            here = (slope >= step.at) & (slope < step.at + n)
            t[at[here], slope[here] - step.at] = value[here]
            _, d = intercepts(step, s, t, low, high, self.u)
            self.lines[step.out] = (s, t, None, d)   # f(z) >= s z for every z
        else:
            t = self.stated[:, step.at + n:step.at + 2 * n]
            self.lines[step.out] = (s, t, *intercepts(step, s, t, low, high, self.u))
        self.low[step.out], self.high[step.out] = intercepts(step, 0 * low, 0 * high, low, high, self.u)

    def _by_rows(self, tensor: int, low: Array, high: Array, codes: Array, first: int, polish: Any) -> tuple[Array, Array]:
        best = np.full((2, *low.shape), -np.inf, low.dtype)
        for side in (0, 1):
            node, neuron = np.nonzero(codes & (side + 1))
            best[side, node, neuron] = self.bound(tensor, node, neuron, np.full(len(node), 1 - 2 * side))
        if polish is not None:
            at, neuron, sign, chosen = polish
            here = np.flatnonzero((neuron >= first) & (neuron < first + codes.shape[1]))
            value = self.bound(tensor, at[here], neuron[here] - first, sign[here], lambda part: chosen(here[part]))
            np.maximum.at(best, ((1 - sign[here]) // 2, at[here], neuron[here] - first), value)
        up, down = best[0], -best[1]
        low = np.where(codes == 3, np.maximum(low, up), np.where(codes == 1, np.maximum(low, np.minimum(up, 0)), low))
        return low, np.where(codes == 3, np.minimum(high, down),
                             np.where(codes == 2, np.minimum(high, np.maximum(down, 0)), high))

    def bound(self, tensor: int, node: Array, neuron: Array, sign: Array, chosen: Any = None) -> Array:
        """Lower bounds of rows `sign z[neuron]` over their nodes; `chosen(part)` gives slopes of their own."""
        value = np.zeros(len(node), self.low[0].dtype)
        for part in self.parts(len(node)):
            A, b = self.pull(tensor, (neuron[part], sign[part]), node[part], 0, 0,
                             None if chosen is None else chosen(part))
            value[part] = self.minimum(A, b, node[part])
        return value

    def parts(self, count: int) -> Iterator[slice]:
        """Blocks of rows that stay in the cache."""
        size = max(16, BLOCK_ENTRIES // max(self.net.sizes))
        return (slice(k, min(k + size, count)) for k in range(0, count, size))

    def pull(self, tensor: int, A: Any, node: Array, c: Any, e: Any, chosen: Chosen | None = None,
             multipliers: Array | None = None) -> tuple[Array, Array]:
        """(A' "R inputs", b "R") with `A z + c >= A' x + b` for all x of each row's node, where c is off by at most e. A:
        rows over `tensor`, or (neuron, sign) of unit rows."""
        pending, net, wide = {tensor: A}, self.net, len(self.low[0]) > 1
        steps = [None, *net.steps]

        def of(values: Array) -> Array:
            return values[node] if wide else values
        for step in steps[::-1]:
            i = 0 if step is None else step.out
            A = pending.pop(i, None)
            if multipliers is not None and i in net.neurons:
                first, count = net.neurons[i]
                s = multipliers[:, first:first + count]
                low, high = of(self.low[i]), of(self.high[i])
                c = c + dot(np.maximum(s, 0), low) + dot(np.minimum(s, 0), high)
                e = e + self.charge(count) * dot(np.abs(s), np.maximum(np.abs(low), np.abs(high)))
                A = -s if A is None else A - s
            if A is None:
                continue
            if step is None:
                return A, c - e - self.tiny
            back = None
            if isinstance(A, tuple):
                index, sign = A
                back = step.units(index, sign)
                A = np.zeros((len(index), net.sizes[i]), self.low[0].dtype) if back is None else None
                if A is None:
                    c, e = step.bias[index] * sign, np.zeros(len(index), self.low[0].dtype)
                else:
                    A[np.arange(len(index)), index] = sign
            if A is not None:
                e = e + self.charge(getattr(step, "n", 0)) * (np.abs(A) @ self.size[i])
                if isinstance(step, Affine):
                    c, back = c + A @ step.bias, step.pull(A)
                else:
                    s, t, below, above = (None if line is None else of(line) for line in self.lines[i])
                    if chosen is not None:
                        n = A.shape[1]
                        s, t = (v if k and step.kind == "Relu" else np.where(chosen.given[:, a:a + n], chosen.value[:, a:a + n], v)
                                for k, v in enumerate((s, t)) for a in (step.at + k * n,))
                        if step.kind != "Relu":
                            below, above = intercepts(step, s, t, of(self.low[step.inputs[0]]),
                                                      of(self.high[step.inputs[0]]), self.u)
                    negative = np.minimum(A, 0)
                    c, e = c + dot(negative, above), e - self.charge(A.shape[1]) * dot(negative, np.abs(above))
                    if below is not None:
                        c = c + dot(A - negative, below)
                        e = e + self.charge(A.shape[1]) * dot(A - negative, np.abs(below))
                    back = [A * np.where(A > 0, s, t)]
            for j, B in zip(step.inputs, back, strict=True):
                pending[j] = pending[j] + B if j in pending else B
        return np.zeros((len(node), net.sizes[0]), self.low[0].dtype), c - e - self.tiny

    def of_neurons(self) -> tuple[Array, Array]:
        """Intervals of all neurons, in the file's order."""
        return tuple(np.concatenate([end[t] for t in self.net.neurons], 1)  # type: ignore[return-value]
                     if self.net.neurons else end[0][:, :0] for end in (self.low, self.high))

    def minimum(self, A: Array, b: Array, node: Array) -> Array:
        """At most the minimum of A x + b over each row's node."""
        low, high = self.low[0][node], self.high[0][node]
        centre = low / 2 + high / 2
        radius = np.maximum(high - centre, centre - low) * (1 + 4 * self.u)
        size = np.abs(A)
        value = b + dot(A, centre) - dot(size, radius) - self.charge(A.shape[1]) * (size @ self.most[0] + np.abs(b))
        return value if self.net.numbers.exact else np.where(np.isfinite(value), value, -np.inf)


# ---------------------------------------------------------------------- what a file says of this network and property


POPULATION = np.array([bin(k).count("1") for k in range(256)])


def ragged(counts: Array, chosen: Array) -> Array:
    """Places of the entries of chosen rows in a column that holds `counts` entries a row."""
    lengths = counts[chosen]
    return np.repeat((np.cumsum(counts) - counts)[chosen] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


class Question:
    """The property's branches in numbers, and how a file numbers neurons, slopes and regions."""

    def __init__(self, net: Network, branches: list[Branch], head: dict[str, Any], columns: dict[str, Array]) -> None:
        self.net, self.region, self.inputs, of = net, columns["region"], net.sizes[0], net.numbers
        self.low, self.high = (np.stack([end([*getattr(b, side)]) for b in branches])
                               for end, side in ((of.down, "low"), (of.up, "high")))
        self.ball, rows = branches[0].ball, [row for branch in branches for row in branch.rows]
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
        if {s.out for s in net.steps if isinstance(s, Activation)} != {s.out for s in self.activations} \
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

    def bounds(self, columns: dict[str, Array], table: str, part: Array, low: Array, high: Array,
               given: tuple[Array, Array]) -> Bounds:
        """The bounds over boxes that entries `part` of a table (`pass`, `visit`) describe."""
        count = len(columns["pass.region" if table == "pass" else "visit.node"])
        lines = columns[f"{table}.lines"].reshape(count, -1)[part]
        if lines.dtype == np.uint8:
            lines = np.unpackbits(lines, axis=1, count=self.net.slopes)
        codes = None
        if f"{table}.rows" in columns:
            packed = columns[f"{table}.rows"].reshape(count, -1)[part]
            codes = np.stack([packed >> k & 3 for k in (0, 2, 4, 6)], -1).reshape(len(part), -1)[:, :self.neurons]
        place = np.full(count, -1)
        place[part] = np.arange(len(part))
        narrow = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        if len(columns.get("narrow.at", ())):
            here = np.flatnonzero(place[columns["narrow.at"]] >= 0)
            narrow = (place[columns["narrow.at"][here]], columns["narrow.slope"][here],
                      self.net.numbers.of(columns["narrow.value"][here]))
        polish = None
        if len(columns.get("polish.at", ())):
            own = np.flatnonzero(place[columns["polish.at"]] >= 0)
            polish = (place[columns["polish.at"][own]], columns["polish.neuron"][own].astype(int),
                      np.sign(columns["polish.sign"][own].astype(int)), lambda rows: self.chosen(columns, "polish", own[rows]))
        bounds = Bounds(self.net, low, high, self.ball, self.legal(lines))
        bounds.refine(given, codes, narrow, polish)
        return bounds

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
        for k, region in enumerate(columns["pass.region"]):
            box = boxes[k:k + 1]
            found = self.bounds(columns, "pass", np.array([k]), self.low[box], self.high[box], (-none, none))
            self.intervals[int(region)] = found.of_neurons()


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
        within = (q.low[self.box][:, None] <= q.low[self.branches]) & (q.high[self.branches] <= q.high[self.box][:, None])
        if not (within.all(2) | ~own).all() or (self.cuts and (count != 1).any()):
            raise Refused("a branch does not lie in the box of its root, or too many do")
        self.closed = ~own     # node, place among its root's branches
        self.parent, self.variable, self.point = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        nothing = np.full((1, q.neurons), np.inf)
        self.start = [q.intervals.get(int(r), (-nothing, nothing)) for r in self.region]
        self.planes: dict[int, Any] = {}
        self.known: dict[int, tuple[Array, Array, Any]] = {}   # where cuts are: intervals of a node, and its plane

    def split(self, parent: Array, variable: Array, point: Array) -> None:
        if (parent < 0).any() or (parent >= len(self.closed) + 2 * np.arange(len(parent))).any() \
                or (variable < 0).any() or (variable >= self.q.inputs + self.q.neurons).any() or not np.isfinite(point).all():
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
        low, high = (np.full((len(at), q.inputs + q.neurons), v, self.point.dtype) for v in (-np.inf, np.inf))
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
            given = [np.concatenate([self.start[r][end] for r in root]) for end in (0, 1)]
            if self.cuts:
                self.cut(nodes[part], root, low, high, given)
            given = np.maximum(given[0], least), np.minimum(given[1], most)
            bounds = self.q.bounds(columns, "visit", part, low, high, given)
            self.closed[nodes[part[bounds.empty]]] = True
            if self.cuts:
                for k, node in enumerate(nodes[part].tolist()):
                    self.known[node] = (*(z[k:k + 1] for z in bounds.of_neurons()), None)
            for table in ("certificate", "fine"):
                if f"{table}.at" in columns:
                    self.certify(columns, table, nodes, root, part, bounds)

    def certify(self, columns: dict[str, Array], table: str, nodes: Array, root: Array, part: Array, bounds: Bounds) -> None:
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
                if column["kind"][index[k]] == KEPT and self.cuts:
                    self.known[node] = (*self.known[node][:2], (A[k], b[k]))
                elif not proved[k]:
                    raise Refused(f"node {node}, branch {branch[k]}: its certificate proves {float(value[k]):.6g} only")
                else:
                    self.closed[node] |= (self.branches[root[at[k]]] == branch[k]) | (branch[k] < 0)

    def cut(self, nodes: Array, root: Array, low: Array, high: Array, given: list[Array]) -> None:
        """Start from the last visit of each node or of its parent; neurons that are affine in the input are bounded anew
        where its last split, and the plane of that visit, leave less of the box."""
        neuron, planes = self.affine(root[0])
        for k, node in enumerate(nodes.tolist()):
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
            given[0][k], given[1][k] = np.maximum(given[0][k], ends[0][0]), np.minimum(given[1][k], ends[1][0])
            half += [plane] if plane is not None else []
            is_open = np.flatnonzero((given[0][k, neuron] < 0) & (given[1][k, neuron] > 0))
            for g, h in half:
                for side, (end, pick) in enumerate(((given[0], np.maximum), (given[1], np.minimum))):
                    found = self.behind(planes[0][side][is_open], planes[1][side][is_open], g, h, low[k], high[k])
                    end[k, neuron[is_open]] = pick(end[k, neuron[is_open]], found if side == 0 else -found)

    def affine(self, root: int) -> tuple[Array, tuple[list[Array], list[Array]]]:
        """(neurons that are affine in the input, planes (A, b) below them and below their negatives) over a root's box."""
        if root not in self.planes:
            net, part = self.q.net, slice(self.box[root], self.box[root] + 1)
            nothing = np.full((1, self.q.neurons), np.inf)
            flat = Bounds(net, self.q.low[part], self.q.high[part], None, np.zeros((1, net.slopes), self.q.low.dtype))
            flat.refine((-nothing, nothing), None, (np.zeros(0, int),) * 3, None)
            is_affine, found = {0}, []
            for step in net.steps:
                if isinstance(step, Affine) and is_affine.issuperset(step.inputs):
                    is_affine.add(step.out)
            for tensor, (first, count) in net.neurons.items():
                if tensor in is_affine:
                    each, zero = np.arange(count), np.zeros(count, int)
                    found.append((first + each, *(flat.pull(tensor, (each, zero + sign), zero, 0, 0) for sign in (1, -1))))
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
        return b + t * h + mixed @ centre - np.abs(mixed) @ radius - SAFETY * (A.shape[1] + 16) * self.q.net.numbers.u * error

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
        flags, arrays = dict(flags), {}
        for key in ("input", "mask"):
            where = flags.pop(key)
            flags[f"{key}_sha256"] = None if where is None else hashlib.sha256(Path(where).read_bytes()).hexdigest()
            arrays[key] = None if where is None else np.load(where, allow_pickle=False)
            if where is not None and arrays[key].size != inputs:
                raise ValueError(f"expected {inputs} numbers")
        return net, robustness(flags, arrays["input"], arrays["mask"], outputs), {**about, "property": flags}
    except Exception as error:  # protobuf, onnx and numpy raise types of their own for what they cannot read
        raise error if isinstance(error, Unreadable) else Unreadable(f"{where}: {str(error) or type(error).__name__}") from error


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
                tree.split(columns["split.parent"].astype(int), columns["split.variable"].astype(int), columns["split.point"])
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
    stated = np.zeros((1, 2 * sum(net.sizes)), net.numbers.of(0).dtype)
    bounds = Bounds(net, net.numbers.down(x)[None], net.numbers.up(x)[None], None, stated)
    bounds.refine((stated, stated), None, (np.zeros(0, int),) * 3, None)
    low, high = ([Fraction(v) for v in end[net.output][0]] for end in (bounds.low, bounds.high))
    for row in branch.rows:
        most = sum(c * (high if c > 0 else low)[i] for i, c in row.y) + sum(c * x[j] for j, c in row.x) - row.bound
        if most > 0 or (row.strict and most == 0):
            raise Refused(f"at the witness a row is met up to {float(most):.3g} only: the real-valued network may be safe there")
    return "falsified: the witness is unsafe"
