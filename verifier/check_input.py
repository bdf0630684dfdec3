"""What the checker reads besides the proof: the property (VNN-LIB 1.0, or a ball around an input) and the ONNX network.

Like `verifier.check` it uses NumPy and onnx and nothing else of this project. The network stays as it is stored: no
parameter is changed or combined, but for matrices that follow each other, whose product keeps account of its rounding.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model

Array = NDArray[Any]
U = 2.0**-53                  # the unit roundoff of float64
MOST_BRANCHES = 100_000
VARIABLE, NUMBER = re.compile(r"[XY]_(0|[1-9]\d*)"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")


class Unreadable(Exception):
    """The network, the property or the file cannot be read."""


@dataclass(frozen=True)
class Row:
    """`sum y_i Y_i + sum x_j X_j <= bound` (< where strict)."""

    y: tuple[tuple[int, Fraction], ...]
    x: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    strict: bool

    @property
    def is_bound(self) -> bool:
        return not self.y and len(self.x) == 1


@dataclass
class Branch:
    """Unsafe where x lies in the box (and in the ball: centre, radius, p) and all rows hold."""

    low: list[Any]
    high: list[Any]
    rows: list[Row]
    ball: tuple[list[Fraction], Fraction, float] | None = None


# ---------------------------------------------------------------------- the property


def read_vnnlib(data: bytes, inputs: int, outputs: int) -> list[Branch]:
    """The unsafe set of a VNN-LIB 1.0 file as a disjunction of conjunctions, in the order of the file."""
    stack: list[list[Any]] = [[]]
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", data.decode("utf-8-sig")))
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(token)
    declared: list[str] = []
    common: list[Row] = []          # of all branches
    choices: list[list[list[Row]]] = []
    for sentence in stack[0] if len(stack) == 1 else ["a bracket that is never closed"]:
        match sentence:
            case ["declare-const", str(name), "Real"]:
                declared.append(name)
            case ["assert", formula]:
                for found in map(normal_form, formula[1:] if formula[0] == "and" else [formula]):
                    if len(found) == 1:
                        common += found[0]
                    else:
                        choices.append(found)
            case _:
                raise ValueError(f"cannot read the statement {str(sentence)[:60]}")
    names = [*(f"X_{i}" for i in range(inputs)), *(f"Y_{i}" for i in range(outputs))]
    if sorted(declared) != sorted(names) or any(VARIABLE.fullmatch(t) for t in set(tokens).difference(names)):
        raise ValueError(f"does not declare the network's {inputs} inputs and {outputs} outputs, and no others")
    box: tuple[list[Any], list[Any]] = [-math.inf] * inputs, [math.inf] * inputs
    rows, branches = tightened(common, *box), []
    for own in product(choices):
        low, high = (list(end) for end in box) if any(row.is_bound for row in own) else box   # few boxes are made anew
        all_rows = list(dict.fromkeys([*tightened(own, low, high), *rows]))   # own rows first, each once
        if not all(isinstance(end, Fraction) for end in (*low, *high)):
            raise ValueError("an input is unbounded")
        if all(a <= b for a, b in zip(low, high, strict=True)):
            branches.append(Branch(low, high, all_rows))
    if not branches:
        raise ValueError("no point can satisfy the specification")
    return branches


def tightened(atoms: list[Row], low: list[Any], high: list[Any]) -> list[Row]:
    """The rows that are no bounds of an input; bounds tighten the box in place. Strict ones count as both."""
    for row in atoms:
        if row.is_bound:
            (i, coefficient), = row.x
            if coefficient > 0:
                high[i] = min(high[i], row.bound / coefficient)
            else:
                low[i] = max(low[i], row.bound / coefficient)
    return [row for row in atoms if row.strict or not row.is_bound]


def linear(term: Any) -> dict[str, Fraction]:
    """Coefficients by variable; "" is the constant."""
    if isinstance(term, str):
        if not VARIABLE.fullmatch(term) and not NUMBER.fullmatch(term):
            raise ValueError(f"{term[:40]!r} is neither a number nor a variable")
        return {term: Fraction(1)} if term[0] in "XY" else {"": Fraction(term)}
    word, (total, *rest) = term[0], [linear(part) for part in term[1:]]
    if word not in ("+", "-", "*"):
        raise ValueError(f"cannot read the term ({word} ...)")
    if word == "-" and not rest:
        return {v: -c for v, c in total.items()}
    for part in rest:
        if word == "*":
            factor, total = (total, part) if set(total) == {""} else (part, total)
            if set(factor) != {""}:
                raise ValueError("a product of variables")
            total = {v: c * factor[""] for v, c in total.items()}
        else:
            sign = 1 if word == "+" else -1
            total = total | {v: total.get(v, 0) + sign * c for v, c in part.items()}
    return total


def normal_form(formula: Any) -> list[list[Row]]:
    """A formula as a list of conjunctions of rows."""
    match formula:
        case ["and", *parts]:
            return product([normal_form(part) for part in parts])
        case ["or", *parts]:
            return [conjunction for part in parts for conjunction in normal_form(part)]
        case ["=", a, b]:
            return product([normal_form(["<=", a, b]), normal_form([">=", a, b])])
        case ["<=" | "<" | ">=" | ">" as word, a, b]:
            sign, strict = (1 if word[0] == "<" else -1), len(word) == 1
            terms = {v: sign * c for v, c in linear(["-", a, b]).items()}
            bound = -terms.pop("", Fraction(0))
            y, x = (tuple((int(v[2:]), c) for v, c in terms.items() if v[0] == letter and c) for letter in "YX")
            if not y and not x:
                return [[]] if bound > 0 or (bound == 0 and not strict) else []
            return [[Row(y, x, bound, strict)]]
    raise ValueError(f"cannot read the formula {str(formula)[:60]}")


def product(parts: list[list[list[Row]]]) -> list[list[Row]]:
    """The conjunctions of one of each part."""
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
    least, most = (Fraction(repr(float(v))) for v in flags["clip"]) if flags["clip"] else (-math.inf, math.inf)
    low = [max(c - eps, least) if f else c for c, f in zip(centre, free, strict=True)]
    high = [min(c + eps, most) if f else c for c, f in zip(centre, free, strict=True)]
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise ValueError("the input lies outside of the clip range")
    ball = None if flags["norm"] == "inf" else (centre, eps, float(flags["norm"]))
    others, one = [j for j in range(outputs) if j != label and target in (None, j)], Fraction(1)
    return [Branch(low, high, [Row(((label, one), (j, -one)), (), Fraction(0), False)], ball) for j in others]


# ---------------------------------------------------------------------- operators: tensors are flat, in C order


@dataclass(frozen=True)
class Numbers:
    """float64 with the unit roundoff u, or rationals (arrays of Fractions) with none."""

    exact: bool = False
    u = property(lambda self: 0 if self.exact else U)
    half = property(lambda self: Fraction(1, 2) if self.exact else 0.5)   # 0 / 2 would be a float

    def of(self, values: Any) -> Array:
        """Floats, exactly."""
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a number is not finite")
        return np.vectorize(Fraction, [object])(values) if self.exact else values

    def down(self, values: list[Fraction]) -> Array:
        """The numbers, or the floats below."""
        return np.array(values, object) if self.exact else np.array(
            [f if f <= v else math.nextafter(f, -math.inf) for v in values for f in (float(v),)])

    def up(self, values: list[Fraction]) -> Array:
        return -self.down([-v for v in values])


@dataclass(frozen=True)
class Value:
    """A tensor with its ONNX shape."""

    tensor: int
    shape: tuple[int, ...]
    size = property(lambda self: math.prod(self.shape))


class Affine:
    """y = W x + b of the tensors `inputs`; size >= |b|. n: roundings of an entry of W x or A W, in units u of |W| |x|
    or |A| |W|.

    W is a sum of terms (input, index, weight): the input's entries x[index], where an index beyond the last is a zero,
    times a factor for every entry; or, for an index "in places", times a matrix "out in" at every place. A matrix has
    one place, a convolution one term for every entry of its kernel. moduli: the weights of |W|; reach: of what the
    rounding in W is relative to, more than |W| where W is itself a product."""

    def __init__(self, inputs: Sequence[Value], terms: Sequence[tuple[int, Array, Array]], bias: Array,
                 size: Array | None = None, n: int = 2, reach: list[Array] | None = None) -> None:
        self.inputs, self.sizes, self.out = [v.tensor for v in inputs], [v.size for v in inputs], 0
        self.index, self.weights = [(k, index) for k, index, _ in terms], [weight for _, _, weight in terms]
        self.moduli = [np.abs(weight) for weight in self.weights]
        self.reach, self.bias, self.size = reach or self.moduli, bias, np.abs(bias) if size is None else size
        self.repeats = [int(np.bincount(index.ravel(), minlength=self.sizes[k] + 1)[:-1].max(initial=0))
                        for k, index in self.index]   # of an entry
        self.n = n + sum(times * (max(w.shape) if w.ndim == 2 else 1)
                         for times, w in zip(self.repeats, self.weights, strict=True))
        self.is_matrix = len(terms) == 1 and terms[0][2].ndim == 2 \
            and np.array_equal(terms[0][1], np.arange(self.sizes[0])[:, None])

    def apply(self, xs: list[Array], weights: list[Array]) -> Array:
        """W x for x "B n" and the weights of W, |W| x for its moduli. On the way entries come first: what moves them
        moves them for all of the batch."""
        total: Any = 0
        padded = [np.pad(x.T, ((0, 1), (0, 0))) for x in xs]
        for (k, index), w in zip(self.index, weights, strict=True):
            x = padded[k][index]
            total = total + (x * w[:, None] if w.ndim == 1 else (w @ x.reshape(len(x), -1)).reshape(-1, x.shape[-1]))
        return np.ascontiguousarray(total.T)

    def pull(self, A: Array) -> list[Array]:
        """A W for each input, for A "R n"."""
        if self.is_matrix:
            return [A @ self.weights[0]]
        A, found = np.ascontiguousarray(A.T), [np.zeros((size + 1, len(A)), A.dtype) for size in self.sizes]
        for (k, index), w, repeats in zip(self.index, self.weights, self.repeats, strict=True):
            B = A * w[:, None] if w.ndim == 1 else (w.T @ A.reshape(len(w), -1)).reshape(*index.shape, -1)
            if repeats > 1:
                np.add.at(found[k], index, B)
            else:
                found[k][index] += B
        return [np.ascontiguousarray(B[:-1].T) for B in found]

    def units(self, rows: Array, sign: Array) -> list[Array]:
        """`pull` of the rows `sign * y[rows]`."""
        found = [np.zeros((len(rows), size + 1), self.bias.dtype) for size in self.sizes]
        for (k, index), w in zip(self.index, self.weights, strict=True):
            places = len(self.bias) // len(w)
            out, place = np.divmod(rows, places)
            column = index.reshape(-1, places)[:, place].T if w.ndim == 2 else index[rows][:, None]
            found[k][np.arange(len(rows))[:, None], column] += w[out].reshape(len(rows), -1) * sign[:, None]
        return [B[:, :-1] for B in found]


def joined(first: Affine, second: Affine) -> Affine | None:
    """A matrix and the map that follows as one matrix, unless that is larger: intervals lose less."""
    width, entries = first.sizes[0], sum(w.size for w in (*first.weights, *second.weights))
    if not first.is_matrix or len(second.bias) * width > entries:
        return None
    weight, reach = (second.apply([one[0].T], two).T for one, two in
                     ((first.weights, second.weights), (first.reach, second.reach)))
    bias = second.apply([first.bias[None]], second.weights)[0] + second.bias
    size = second.apply([first.size[None]], second.reach)[0] + second.size
    joint = matrix(Value(first.inputs[0], (width,)), weight, bias, size, first.n + second.n, [reach])
    joint.out = second.out
    return joint


def matrix(x: Value, weight: Array, bias: Array, size: Any = None, n: int = 0, reach: Any = None) -> Affine:
    return Affine([x], [(0, np.arange(x.size)[:, None], weight)], bias, size, n, reach)


@dataclass
class Activation:
    """y_i = f(x_i). alpha: slope of the ReLUs for x < 0; low, high: ends of Clip; `at`: where a file's slopes begin."""

    kind: str
    alpha: Any = 0
    low: Any = -math.inf
    high: Any = math.inf
    inputs: tuple[int, ...] = ()
    out: int = 0
    at: int = 0

    def value(self, z: Array) -> Array:
        """f(z) where f is piecewise linear, rounded at most once."""
        if self.kind == "LeakyRelu":
            return np.where(z >= 0, z, self.alpha * z)
        return np.maximum(z, 0) if self.kind == "Relu" else np.minimum(np.maximum(z, self.low), self.high)


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

    def add(self, step: Any, shape: tuple[int, ...]) -> Value:
        step.out = len(self.sizes)
        self.steps.append(step)
        self.sizes.append(math.prod(shape))
        return Value(step.out, shape)

    @property
    def extra(self) -> int:
        """Roundings besides those of products: slopes, multipliers, additions to constants."""
        return 8 * len(self.steps) + 16


# ---------------------------------------------------------------------- the network


def read_network(data: bytes, numbers: Numbers) -> Network:
    """The stored function, node by node, with parameters as they are stored."""
    graph, net = onnx.ModelProto.FromString(data).graph, Network(numbers)
    known: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in known]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError("expected one input and one output")
    shape = tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)
    known[inputs[0].name] = value = Value(0, (max(shape[0], 1), *shape[1:]))
    net.sizes, net.names = [value.size], {inputs[0].name: 0}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"the operator set {node.domain} is not covered")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            found = read_node(net, node.op_type, [known[i] if i else None for i in node.input], attributes)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{node.op_type} (node {node.name or node.output[0]!r}): {error}") from error
        known[node.output[0]] = found
        if isinstance(found, Value):
            net.names[node.output[0]] = found.tensor
    net.output = known[graph.output[0].name].tensor
    readers = [i for step in net.steps for i in step.inputs] + [net.output]
    steps, net.steps = net.steps, []
    for step in steps:
        while net.steps and isinstance(step, Affine) and isinstance(net.steps[-1], Affine) \
                and step.inputs == [net.steps[-1].out] and readers.count(step.inputs[0]) == 1 \
                and (joint := joined(net.steps[-1], step)):
            net.steps.pop()
            step = joint
        net.steps.append(step)
    return net


def read_node(net: Network, kind: str, x: list[Any], a: dict[str, Any]) -> Any:
    """The Value of a node with operands x and attributes a, or an array where all operands are constants."""
    if kind == "Constant":
        return numpy_helper.to_array(a["value"])
    of, first = net.numbers.of, x[0]
    match kind:
        case "Concat":
            terms = []
            for k in range(len(x)):
                index = np.concatenate([np.arange(v.size).reshape(v.shape) if j == k else np.full(v.shape, x[k].size)
                                        for j, v in enumerate(x)], a["axis"])
                terms.append((k, index.ravel(), of(np.ones(index.size))))
            return net.add(Affine(x, terms, of(np.zeros(index.size))), index.shape)
        case "Add" | "Sub" | "Mul" | "Div":
            return arithmetic(net, kind, *x)
        case "MatMul" | "Gemm":
            weight = of(x[1]) if a.get("transB") else of(x[1]).T
            if weight.ndim != 2 or first.size != first.shape[-1] or a.get("transA") \
                    or a.get("alpha", 1) != 1 or a.get("beta", 1) != 1:
                raise ValueError("only products of one row with a matrix are covered")
            bias = np.broadcast_to(of(x[2] if len(x) > 2 else 0).ravel(), (len(weight),))
            return net.add(matrix(first, weight, bias), (*first.shape[:-1], len(weight)))
        case "Conv":
            return convolution(net, first, of(x[1]), of(x[2] if len(x) > 2 else np.zeros(len(x[1]))), a)
        case "BatchNormalization" if not net.numbers.exact and not a.get("training_mode"):
            scale, shift, mean, variance = (of(v) for v in x[1:])
            factor = scale / np.sqrt(variance + float(np.float32(a.get("epsilon", 1e-5))))
            bias, size = shift - mean * factor, np.abs(shift) + np.abs(mean * factor)
            factor, bias, size = (np.repeat(v, first.size // len(v)) for v in (factor, bias, size))
            return net.add(Affine([first], [(0, np.arange(first.size), factor)], bias, size, n=12), first.shape)
        case "LeakyRelu":
            alpha = of(np.float32(a.get("alpha", 0.01)))
            return net.add(Activation(kind, alpha, inputs=(first.tensor,)), first.shape)
        case "Clip":
            low, high = (a.get(name, x[k] if len(x) > k else None) for k, name in ((1, "min"), (2, "max")))
            low, high = (-math.inf if low is None else of(low).item(), math.inf if high is None else of(high).item())
            return net.add(Activation(kind, 0, low, high, (first.tensor,)), first.shape)
        case "Relu" | "Sigmoid" | "Tanh" if kind == "Relu" or not net.numbers.exact:
            return net.add(Activation(kind, inputs=(first.tensor,)), first.shape)
    if isinstance(first, np.ndarray):
        return moved(kind, first, x[1:], a)
    index = moved(kind, np.arange(first.size).reshape(first.shape), x[1:], a)
    if np.array_equal(index.ravel(), np.arange(first.size)):
        return Value(first.tensor, index.shape)
    ones = of(np.ones(index.size))
    return net.add(Affine([first], [(0, index.ravel(), ones)], 0 * ones), index.shape)


def moved(kind: str, places: Array, rest: list[Any], a: dict[str, Any]) -> Array:
    """An operator that only moves entries, applied to the entries' numbers (or to a constant itself)."""
    def given(name: str, k: int = 0, default: Any = None) -> Any:
        return a[name] if name in a else rest[k].tolist() if len(rest) > k and rest[k] is not None else default
    match kind:
        case "Reshape":
            keeps = not a.get("allowzero")
            return places.reshape([places.shape[i] if n == 0 and keeps else n for i, n in enumerate(given("shape"))])
        case "Flatten":
            return places.reshape(math.prod(places.shape[:a.get("axis", 1)]), -1)
        case "Squeeze":
            return places.squeeze(None if given("axes") is None else tuple(given("axes")))
        case "Unsqueeze":
            return np.expand_dims(places, tuple(given("axes")))
        case "Transpose":
            return places.transpose(a.get("perm"))
        case "Gather":
            return np.take(places, rest[0], a.get("axis", 0))
        case "Slice":
            starts, ends = given("starts"), given("ends", 1)
            axes, steps = given("axes", 2, range(len(starts))), given("steps", 3, [1] * len(starts))
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
                kept = np.arange(places.shape[axis])[start:end:step if step > 0 else None]
                places = np.take(places, kept, axis)
            return places
        case "Identity" | "Dropout" if len(rest) < 2:
            return places
    raise ValueError("this operator (with these operands) is not covered")


def convolution(net: Network, x: Value, kernel: Array, bias: Array, a: dict[str, Any]) -> Value:
    """A matrix between channels for every entry of the kernel "out in kh kw"; groups are blocks of it."""
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or x.shape[0] != 1:
        raise ValueError("this padding or batch is not covered")
    groups, (top, left, bottom, right) = a.get("group", 1), a.get("pads", [0] * 4)
    wide = np.zeros((groups, len(kernel) // groups, groups, *kernel.shape[1:]), kernel.dtype)
    wide[np.arange(groups), :, np.arange(groups)] = kernel.reshape(groups, -1, *kernel.shape[1:])
    wide = wide.reshape(len(kernel), -1, *kernel.shape[2:])
    padding = ((0, 0), (top, bottom), (left, right))
    places = np.pad(np.arange(x.size).reshape(x.shape[1:]), padding, constant_values=x.size)
    terms = []
    for at in np.ndindex(kernel.shape[2:]):
        window = [slice(i * d, n - (k - 1 - i) * d, s) for i, d, n, k, s in zip(
            at, a.get("dilations", [1, 1]), places.shape[1:], kernel.shape[2:], a.get("strides", [1, 1]), strict=True)]
        seen = places[:, *window]
        terms.append((0, seen.reshape(len(seen), -1), np.ascontiguousarray(wide[:, :, *at])))
    return net.add(Affine([x], terms, np.repeat(bias, seen[0].size)), (1, len(kernel), *seen.shape[1:]))


def arithmetic(net: Network, kind: str, x: Any, y: Any) -> Value:
    """Sums and differences, and products and quotients with a constant."""
    of, both = net.numbers.of, isinstance(x, Value) and isinstance(y, Value)
    if both and (kind not in ("Add", "Sub") or x.shape != y.shape):
        raise ValueError("of two tensors only sums and differences of equal shapes are covered")
    value = x if isinstance(x, Value) else y
    shape, places = np.broadcast_shapes(x.shape, y.shape), np.arange(value.size)
    one = of(np.ones(value.size))
    if both:
        terms = [(0, places, one), (1, places, one if kind == "Add" else -one)]
        return net.add(Affine([x, y], terms, 0 * one), shape)
    c = of(np.broadcast_to(y if value is x else x, shape)).ravel()
    if len(c) != value.size or (kind == "Div" and (value is y or (c == 0).any())):
        raise ValueError("not covered with these operands")
    factor, bias = {"Mul": lambda: (c, 0 * c), "Div": lambda: (one / c, 0 * c), "Add": lambda: (one, c),
                    "Sub": lambda: (one, -c) if value is x else (-one, c)}[kind]()
    return net.add(Affine([value], [(0, places, factor)], bias), shape)


# ---------------------------------------------------------------------- the question


def read_file(path: str) -> bytes:
    """The decompressed bytes of PATH or PATH.gz."""
    where = Path(path) if Path(path).is_file() else Path(path + ".gz")
    try:
        data = where.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def read_model(path: str) -> tuple[bytes, str]:
    """The network, with what it stores in files beside its own, and the hash of all of them."""
    data, folder = read_file(path), Path(path).parent
    whole = hashlib.sha256(data)
    if b"location" in data:  # the key under which a tensor names its file
        model = onnx.ModelProto.FromString(data)
        attributes = [a for node in model.graph.node for a in node.attribute]
        tensors = [*model.graph.initializer, *(t for a in attributes for t in (a.t, *a.tensors))]
        named = dict.fromkeys(e.value for t in tensors if t.data_location == t.EXTERNAL for e in t.external_data
                              if e.key == "location")
        load_external_data_for_model(model, str(folder))
        data = model.SerializeToString() if named else data
        for name in named:
            whole.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return data, whole.hexdigest()


def read_question(net_path: str, spec: str | None, flags: dict[str, Any] | None, numbers: Numbers
                  ) -> tuple[Network, list[Branch], dict[str, Any]]:
    """The network, the property, and what a proof file must say that it is about."""
    where: Any = net_path
    try:
        data, digest = read_model(net_path)
        about: dict[str, Any] = {"claim": "real", "network": {"sha256": digest}}
        net = read_network(data, numbers)
        inputs, outputs = net.sizes[0], net.sizes[net.output]
        if spec is not None:
            where, text = spec, read_file(spec)
            about["property"] = {"sha256": hashlib.sha256(text).hexdigest()}
            return net, read_vnnlib(text, inputs, outputs), about
        arrays: dict[str, Any] = {"input": None, "mask": None}
        about["property"] = {key: value for key, value in (flags or {}).items() if key not in arrays}
        for key in arrays:
            where = flags and flags[key]
            about["property"][f"{key}_sha256"] = where and hashlib.sha256(Path(where).read_bytes()).hexdigest()
            arrays[key] = where and np.load(where, allow_pickle=False)
            if where and arrays[key].size != inputs:
                raise ValueError(f"expected {inputs} numbers")
        return net, robustness(about["property"], arrays["input"], arrays["mask"], outputs), about
    except Exception as error:  # protobuf, onnx and numpy raise types of their own for what they cannot read
        sentence = f"{where}: {' '.join(str(error).split()) or type(error).__name__}"
        raise error if isinstance(error, Unreadable) else Unreadable(sentence) from error
