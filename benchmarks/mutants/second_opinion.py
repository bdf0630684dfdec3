"""Is an answer right? Checked by a reading of VNN-LIB of its own and by onnxruntime, without rmax's code.

A formula becomes a margin: `a <= b` is a - b, AND the maximum, OR the minimum; at most zero means unsafe. Comparisons
of one input with a number belong to the box: they are held against the number rounded to float32, as a float32 input
is, and count as -inf or inf.
"""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

SAMPLES = 3000
SAMPLING_S = 1.5
RTOL = 1e-4        # float32 evaluation against a statement over the reals
NOT_MINE = (RecursionError, KeyError, IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError,
            AttributeError)
TOKEN = re.compile(r"[()]|[^\s()]+")
BOX = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}
Tree = Any  # a token or a list of trees


class Unreadable(Exception):
    """This small reader does not know the form; nothing is said about the answer."""


@dataclass(frozen=True)
class Claim:
    """The assertions of a text, and a box around all inputs that it names."""

    asserts: list[Tree]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def read(cls, text: str) -> Claim:
        if "declare-network" in text:
            raise Unreadable("version 2.0")
        top: list[Tree] = []
        stack = [top]
        for token in TOKEN.findall(re.sub(r";[^\n]*", "", text)):
            if token == "(":
                stack[-1].append([])
                stack.append(stack[-1][-1])
            elif token == ")":
                stack.pop()
            else:
                stack[-1].append(token)
        declared = [t[1] for t in top if t[0] in ("declare-const", "declare-fun")]
        inputs = sum(name.startswith("X_") for name in declared)
        low, high = np.full(inputs, np.inf), np.full(inputs, -np.inf)
        asserts = [t[1] for t in top if t[0] == "assert"]
        ends: list[Tree] = list(asserts)
        while ends:
            tree = ends.pop()
            if isinstance(tree, list):
                ends += tree[1:]
                if len(tree) == 3 and (found := box_end(tree)) is not None:
                    i, relation, value = found[0], found[1], float(found[2])
                    low[i] = min(low[i], value) if relation != "<=" else low[i]
                    high[i] = max(high[i], value) if relation != ">=" else high[i]
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise Unreadable("an input without ends")
        return cls(asserts, low, high)

    def margin(self, x: Any, y: Any, lowest: Callable[[list[Any]], Any], highest: Callable[[list[Any]], Any]) -> Any:
        """x and y are sequences of numbers, or of arrays of numbers, one entry a point."""
        def formula(tree: Tree, negated: bool) -> Any:
            if tree in ("true", "false"):
                return -math.inf if (tree == "true") != negated else math.inf
            word, *rest = tree
            if word == "not":
                return formula(rest[0], not negated)
            if word in ("and", "or"):
                return (highest if (word == "and") != negated else lowest)([formula(t, negated) for t in rest])
            if word not in ("<=", "<", ">=", ">", "=") or len(rest) != 2:
                raise Unreadable(word)
            if (end := box_end(tree)) is not None:
                i, relation, value = end
                held = BOX[relation](x[i], float(np.float32(float(value))))
                held = np.logical_not(held) if negated else held
                return np.where(held, -math.inf, math.inf) if isinstance(held, np.ndarray) else \
                    -math.inf if held else math.inf
            difference = term(rest[0]) - term(rest[1])
            if word == "=":
                away = abs(difference)
                return -away if negated else away
            return difference if (word in ("<=", "<")) != negated else -difference

        def term(tree: Tree) -> Any:
            if isinstance(tree, str):
                if tree[:2] in ("X_", "Y_"):
                    return (x if tree[0] == "X" else y)[int(tree[2:])]
                return Fraction(tree) if isinstance(y[0], Fraction) else float(tree)
            word, *rest = tree
            terms = [term(t) for t in rest]
            total = terms[0] if len(terms) > 1 or word != "-" else -terms[0]
            for other in terms[1:]:
                total = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
                         "/": lambda a, b: a / b}[word](total, other)
            return total
        return highest([formula(t, False) for t in self.asserts])


def box_end(tree: Tree) -> tuple[int, str, str] | None:
    """(index, relation, number) of a closed comparison of one input with a numeral."""
    word, a, b = tree
    if word not in BOX or not (isinstance(a, str) and isinstance(b, str)):
        return None
    if b[:2] == "X_":
        a, b, word = b, a, {"<=": ">=", ">=": "<="}.get(word, word)
    if a[:2] != "X_" or b[0] not in "+-.0123456789":
        return None
    return int(a[2:]), word, b


class Runtime:
    """onnxruntime at one point after the other."""

    def __init__(self, network: bytes, size: int) -> None:
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        (entry,) = self.session.get_inputs()
        self.name, self.dtype = entry.name, np.float64 if entry.type == "tensor(double)" else np.float32
        self.shape = [d if isinstance(d, int) and d > 0 else 1 for d in entry.shape]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = self.session.run(None, {self.name: x.astype(self.dtype).reshape(self.shape)})[0]
        return np.asarray(out, np.float64).ravel()


def wrong(answer: dict[str, Any], network: bytes, spec: bytes) -> tuple[str, str]:
    """('checked' | 'unchecked' | 'WRONG', why)."""
    try:
        claim = Claim.read(spec.decode("utf-8-sig"))
    except (*NOT_MINE, Unreadable) as error:
        return "unchecked", f"property: {type(error).__name__}"
    try:
        run = Runtime(network, claim.low.size)
        run((claim.low + claim.high) / 2)
    except Exception as error:  # onnxruntime raises types of its own
        if answer["verdict"] == "falsified":
            return "WRONG", f"falsified, but onnxruntime refuses the network: {str(error)[:200]}"
        return "unchecked", f"onnxruntime refuses the network: {str(error)[:200]}"
    try:
        if answer["verdict"] == "falsified":
            return _witness(answer["witness"], claim, run)
        return _samples(answer, claim, run, "*" in spec.decode("utf-8-sig") or b"Softmax" in network)
    except (*NOT_MINE, Unreadable) as error:
        return "unchecked", f"property: {type(error).__name__} {str(error)[:80]}"


def _witness(witness: dict[str, Any], claim: Claim, run: Runtime) -> tuple[str, str]:
    x = np.array(witness["x"], np.float32)
    y = run(x)
    if not np.allclose(y, witness["y"], rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(y).max()))):
        return "WRONG", "the network says something else at the witness"
    exact = [Fraction(float(v)) for v in witness["y"]]
    margin = claim.margin([Fraction(float(v)) for v in x], exact, min, max)
    return ("WRONG", f"the witness is not unsafe (margin {float(margin)})") if margin > 0 else ("checked", "")


def _samples(answer: dict[str, Any], claim: Claim, run: Runtime, sign_only: bool) -> tuple[str, str]:
    """Verified: the margin at sampled points is positive and, unless its scale may be another (a row was scaled, a
    final softmax left out), at least what was proved."""
    draw = np.random.default_rng(0)
    low, high = claim.low.astype(np.float32), claim.high.astype(np.float32)
    points, outputs, start = [], [], time.monotonic()
    with np.errstate(all="ignore"):
        for k in range(SAMPLES):
            if time.monotonic() - start > SAMPLING_S:
                break
            share = draw.random(low.size) if k % 2 else draw.integers(0, 2, low.size)
            x = np.clip(low + share * (high.astype(np.float64) - low), low, high).astype(np.float32)
            points.append(x)
            outputs.append(run(x))
        x, y = np.array(points, np.float64).T, np.array(outputs).T
        finite = np.isfinite(y).all(0) & (np.abs(y) < 1e30).all(0)
        if not finite.any():
            return "unchecked", "outputs beyond float32"
        x, y = x[:, finite], y[:, finite]
        margin = np.broadcast_to(claim.margin(x, y, _least, _most), y.shape[1:])
    slack = RTOL * (1 + np.abs(y).max(0))
    if (margin < -slack).any():
        k = int(np.argmin(margin + slack))
        return "WRONG", f"verified, but the margin at a sampled point is {margin[k]:g} (outputs {y[:3, k]})"
    lower = answer["lower"]
    if lower is not None and not sign_only and (margin < lower - slack).any():
        k = int(np.argmin(margin + slack))
        return "WRONG", f"margin proved >= {lower:g}, but {margin[k]:g} at a sampled point"
    return "checked", ""


def _least(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = np.minimum(total, part)
    return total


def _most(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = np.maximum(total, part)
    return total
