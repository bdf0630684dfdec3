"""What the checker reads besides the proof: the property (VNN-LIB 1.0, or a ball around an input) and the ONNX network.

Like `verifier.check` it uses NumPy and onnx and nothing else of this project. The network stays as it is stored: no
parameter is changed or combined, but for matrices that follow each other, whose product keeps account of its rounding.
"""

from __future__ import annotations

import gzip
import itertools
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
U = 2.0**-53                  # the unit roundoff of float64
MOST_BRANCHES = 100_000


class Unreadable(Exception):
    """The network, the property or the file cannot be read."""


def read_file(path: str) -> bytes:
    """The decompressed bytes of PATH or PATH.gz."""
    where = Path(path) if Path(path).is_file() else Path(path + ".gz")
    try:
        data = where.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from error


# ---------------------------------------------------------------------- the property


@dataclass(frozen=True)
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
    declared: set[str] = set()
    bounds: dict[tuple[int, bool], Fraction] = {}   # of all branches, and their rows
    rows: list[Row] = []
    choices: list[list[list[Any]]] = []
    for sentence in stack[0] if len(stack) == 1 else [["a bracket that is never closed"]]:
        if sentence[0] == "declare-const" and sentence[2:] == ["Real"] and sentence[1] not in declared:
            declared.add(sentence[1])
        elif sentence[0] == "assert" and len(sentence) == 2:
            for part in sentence[1][1:] if sentence[1][0] == "and" else sentence[1:]:
                found = _normal_form(part)
                if len(found) == 1:
                    rows += _sorted(found[0], bounds)
                else:
                    choices.append(found)
        else:
            raise ValueError(f"cannot read the statement {str(sentence)[:60]}")
    if declared != {*(f"X_{i}" for i in range(inputs)), *(f"Y_{i}" for i in range(outputs))}:
        raise ValueError(f"does not declare the network's {inputs} inputs and {outputs} outputs")
    box, branches = _box(bounds, inputs), []
    for own in _product(choices):
        ends = dict(bounds)
        all_rows = list(dict.fromkeys([*_sorted(own, ends), *rows]))   # own rows first, each once
        low, high = box if all(isinstance(atom, Row) for atom in own) else _box(ends, inputs)
        if any(k >= most for row in all_rows for terms, most in ((row.y, outputs), (row.x, inputs)) for k, _ in terms):
            raise ValueError("a row names a variable that is not declared")
        if all(a is not None and b is not None and a <= b for a, b in zip(low, high, strict=True)):
            branches.append(Branch(low, high, all_rows))
        elif None in low or None in high:
            raise ValueError("an input is unbounded")
    if not branches:
        raise ValueError("no point can satisfy the specification")
    return branches


def _sorted(atoms: list[Any], bounds: dict[tuple[int, bool], Fraction]) -> list[Row]:
    """The rows among atoms; bounds (input, is upper, value) tighten `bounds`."""
    for index, is_upper, value in (atom for atom in atoms if not isinstance(atom, Row)):
        old = bounds.get((index, is_upper), value)
        bounds[index, is_upper] = min(old, value) if is_upper else max(old, value)
    return [atom for atom in atoms if isinstance(atom, Row)]


def _box(bounds: dict[tuple[int, bool], Fraction], inputs: int) -> tuple[list[Any], list[Any]]:
    if any(index >= inputs for index, _ in bounds):
        raise ValueError("a bound names a variable that is not declared")
    return [bounds.get((i, False)) for i in range(inputs)], [bounds.get((i, True)) for i in range(inputs)]


def _linear(term: Any) -> dict[str, Fraction]:
    """Coefficients by variable; "" is the constant."""
    if isinstance(term, str):
        if re.fullmatch(r"[XY]_(0|[1-9]\d*)", term):
            return {term: Fraction(1)}
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", term):
            raise ValueError(f"{term[:40]!r} is neither a number nor a variable")
        return {"": Fraction(term)}
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


def robustness(flags: dict[str, Any], x: Array, mask: Array | None, outputs: int) -> list[Branch]:
    """The label stays on top within eps of x: a branch for every other class, or for the target alone."""
    label, target, eps = flags["label"], flags["target"], Fraction(repr(float(flags["eps"])))
    if not 0 <= label < outputs or (target is not None and (not 0 <= target < outputs or target == label)):
        raise ValueError("the label or the target is no class")
    centre = [Fraction(float(v)) for v in x.ravel()]
    free = [True] * len(centre) if mask is None else mask.astype(bool).ravel().tolist()
    least, most = (Fraction(repr(float(v))) for v in flags["clip"]) if flags["clip"] else (None, None)
    low = [c if not f else c - eps if least is None else max(c - eps, least) for c, f in zip(centre, free, strict=True)]
    high = [c if not f else c + eps if most is None else min(c + eps, most) for c, f in zip(centre, free, strict=True)]
    ball = None if flags["norm"] == "inf" else (centre, eps, float(flags["norm"]))
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise ValueError("the input lies outside of the clip range")
    others = [j for j in range(outputs) if j != label] if target is None else [target]
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
        self.absolute = np.abs(weight) if absolute is None else absolute
        self.size = np.abs(bias) if size is None else size

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
            absolute = None if exact else self.absolute
            return Dense(self.weight, self.bias + second.bias, absolute, self.size + second.size, self.n + 1)
        if not isinstance(second, Dense) \
                or len(second.weight) * self.weight.shape[1] > self.weight.size + second.weight.size:
            return None
        return Dense(second.weight @ self.weight, second.weight @ self.bias + second.bias,
                     second.absolute @ self.absolute, second.absolute @ self.size + second.size, self.n + second.n)


class Gather(Affine):
    """y[k] = sum over inputs of factor[k] x[index[k]], plus bias: scalings, sums, whatever moves entries. An index of
    None is the identity, a factor of None is one."""

    def __init__(self, terms: Sequence[tuple[Array | None, Array | None, int]], bias: Array, size: Array | None = None,
                 n: int = 2) -> None:
        self.terms, self.bias = terms, bias   # (index, factor, entries of the input)
        self.n = n + max((int(np.bincount(index).max()) for index, _, _ in terms if index is not None), default=0)
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
        A = A.reshape(len(A), len(self.weight), -1)
        back = np.zeros((len(A), self.shape[0], *self.padded), A.dtype)
        for i, j, rows, columns in self._windows():
            weight = np.ascontiguousarray(self.weight[:, :, i, j].T)
            back[:, :, rows, columns] += (weight @ A).reshape(len(A), -1, *self.map)
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
    n = 0


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
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"the operator set {node.domain} is not covered")
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
    kind, of = node.op_type, net.numbers.of
    first: Any = x[0] if x else None
    if kind == "Constant":
        return numpy_helper.to_array(a["value"])
    if kind == "Concat":
        starts = np.cumsum([0, *(v.size for v in x[:-1])])
        numbers = [e + np.arange(v.size).reshape(v.shape) for e, v in zip(starts, x, strict=True)]
        index = np.concatenate(numbers, a["axis"])
        places = [index.ravel() - e for e in starts]
        inside = [(p >= 0) & (p < v.size) for p, v in zip(places, x, strict=True)]
        terms = [(np.where(i, p, 0), of(i), v.size) for i, p, v in zip(inside, places, x, strict=True)]
        return net.add(Gather(terms, of(np.zeros(index.size))), index.shape, *x)
    if kind in ("Add", "Sub", "Mul", "Div"):
        return _arithmetic(net, kind, first, x[1])
    if kind in ("MatMul", "Gemm"):
        weight = of(x[1]) if a.get("transB") else of(x[1]).T
        if weight.ndim != 2 or first.size != first.shape[-1] or a.get("transA") \
                or a.get("alpha", 1) != 1 or a.get("beta", 1) != 1:
            raise ValueError("only products of one row with a matrix are covered")
        bias = np.broadcast_to(of(x[2]).ravel() if len(x) > 2 else of(0), (len(weight),))
        return net.add(Dense(weight, bias), (*first.shape[:-1], len(weight)), first)
    if kind == "Conv" and a.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and first.shape[0] == 1:
        groups, weight = a.get("group", 1), of(x[1])
        wide = np.zeros((groups, len(weight) // groups, groups, *weight.shape[1:]), weight.dtype)
        wide[np.arange(groups), :, np.arange(groups)] = weight.reshape(groups, -1, *weight.shape[1:])
        wide = wide.reshape(len(weight), -1, *weight.shape[2:])
        conv = Conv(wide, of(x[2]) if len(x) > 2 else of(np.zeros(len(weight))), first.shape[1:],
                    a.get("strides", [1, 1]), a.get("pads", [0] * 4), a.get("dilations", [1, 1]))
        return net.add(conv, (1, len(weight), *conv.map), first)
    if kind == "BatchNormalization" and not net.numbers.exact and not a.get("training_mode"):
        scale, shift, mean, variance = (of(v) for v in x[1:])
        factor = scale / np.sqrt(variance + float(np.float32(a.get("epsilon", 1e-5))))
        bias, size = shift - mean * factor, np.abs(shift) + np.abs(mean * factor)
        factor, bias, size = (np.repeat(v, first.size // len(v)) for v in (factor, bias, size))
        return net.add(Gather([(None, factor, first.size)], bias, size, n=12), first.shape, first)
    if kind in ("Relu", "LeakyRelu", "Clip") or (kind in ("Sigmoid", "Tanh") and not net.numbers.exact):
        step = Activation(kind)
        if kind == "LeakyRelu":
            step.alpha = of(np.full(first.size, np.float32(a.get("alpha", 0.01))))
        if kind == "Clip":
            ends = (a.get(name, x[k] if len(x) > k else None) for k, name in ((1, "min"), (2, "max")))
            step.low, step.high = (None if end is None else of(end).ravel()[0] for end in ends)
        return net.add(step, first.shape, first)
    return _moved(net, kind, first, x[1:], a)


def _moved(net: Network, kind: str, x: Any, rest: list[Any], a: dict[str, Any]) -> Any:
    """What only moves entries, found by moving their numbers (or a constant itself)."""
    def given(name: str, k: int = 0, default: Any = None) -> Any:
        return a[name] if name in a else rest[k].tolist() if len(rest) > k and rest[k] is not None else default
    places = x if isinstance(x, np.ndarray) else np.arange(x.size).reshape(x.shape)
    if kind == "Reshape":
        shape = given("shape")
        kept = [places.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in enumerate(shape)]
        places = places.reshape(kept)
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
    elif kind not in ("Identity", "Dropout") or len(rest) > 1:
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
