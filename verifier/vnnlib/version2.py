"""VNN-LIB 2.0: the part about one network with linear comparisons, over the parser of the `vnnlib` package.

Input and output tensors become X and Y, flattened row-major. Numbers are taken as written (their
lexeme): the parsed value is already rounded. Everything else of the language is refused by name:
several networks, hidden nodes, several inputs or outputs, types other than real and float, products
of variables, node types this reader does not know.
"""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from typing import Any

from verifier.exact import is_numeral
from verifier.limits import MAX_DEPTH
from verifier.vnnlib.errors import VnnlibError
from verifier.vnnlib.formula import And, Formula, Or, Specification, comparison
from verifier.vnnlib.linear import Linear, TooLong

_OPERATORS = {"LessEqual": "<=", "LessThan": "<", "GreaterEqual": ">=", "GreaterThan": ">", "Equal": "==",
              "NotEqual": "!="}
_FLOATS = {"F16", "F32", "F64", "BF16", "Real"}
_BRACKET = re.compile(r"[()]|;[^\n]*")  # those of comments do not count
_LONG_WORD = re.compile(r"[\w.+-]{40,}")
_PLACE = re.compile(r"line (\d+)")


def parse_version2(text: str, name: str) -> Specification:
    """Read a whole file; raises VnnlibError for what is wrong and for what is not supported."""
    import vnnlib  # slow to load and rarely needed

    _check_depth(text, name)
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise _translated(str(error), name) from None
    except (IndexError, ValueError, OverflowError) as error:  # of its conversion of an index or a size to a number
        raise VnnlibError(name, 0, f"a number, an index or a size is out of range ({error})") from error
    reader = _Reader(query, name)
    assertions = [(_line(a), reader.assertion(a)) for a in query.assertions]
    return Specification(name, reader.size("Input"), reader.size("Output"), {}, {}, assertions)


def _check_depth(text: str, name: str) -> None:
    """The package's parser recurses and would overflow its stack."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise VnnlibError(name, text.count("\n", 0, match.start()) + 1, f"nested deeper than {MAX_DEPTH} levels")


def _translated(message: str, name: str) -> VnnlibError:
    """The parser's message (JSON or a sentence) as one sentence with its line; long words of the file are cut."""
    message = _LONG_WORD.sub(lambda word: word[0][:37] + "...", message)
    try:
        first = json.loads(message)["errors"][0]
        symbol, hint = first.get("offendingSymbol", ""), first.get("hint", "")
        return VnnlibError(name, int(first.get("line", 0)), f"{first['message']} at {symbol!r}. {hint}".strip())
    except (ValueError, KeyError, IndexError, TypeError):
        place = _PLACE.search(message)
        return VnnlibError(name, int(place[1]) if place else 0, " ".join(message.split()))


def _line(node: Any) -> int:
    """The first line known in a tree: only variables and literals carry one."""
    stack = [node]
    while stack:
        node = stack.pop()
        line = getattr(node, "line", None)
        if line:
            return int(line)
        stack.extend(reversed(node.children()))
    return 0


class _Reader:
    def __init__(self, query: Any, name: str) -> None:
        self.name = name
        if len(query.networks) != 1:
            names = ", ".join(n.name for n in query.networks)
            raise self._refused(0, f"{len(query.networks)} networks ({names})", "one network")
        (network,) = query.networks
        for what, relation in (("equal_to", "equal-to"), ("isometric_to", "isometric-to")):
            if getattr(network, what):
                raise self._refused(0, f"the relation {relation} of network {network.name}", "one network")
        if network.hidden:
            raise self._refused(0, f"the hidden node {network.hidden[0].name}", "inputs and outputs only")
        self._tensors: dict[str, tuple[str, tuple[int, ...]]] = {}  # name -> (kind, shape)
        for kind, definitions in (("Input", network.inputs), ("Output", network.outputs)):
            if len(definitions) != 1:
                names = ", ".join(d.name for d in definitions)
                raise self._refused(0, f"{len(definitions)} {kind.lower()}s ({names})", f"one {kind.lower()}")
            (definition,) = definitions
            if definition.dtype.name not in _FLOATS:
                raise self._refused(0, f"the type {definition.dtype.name} of {definition.name}", "real or float types")
            self._tensors[definition.name] = (kind, tuple(definition.shape))

    def size(self, kind: str) -> int:
        return next(math.prod(shape) for k, shape in self._tensors.values() if k == kind)

    def _refused(self, line: int, what: str, expected: str) -> VnnlibError:
        return VnnlibError(self.name, line, f"not supported of VNN-LIB 2.0: {what}; expected {expected}")

    def assertion(self, node: Any) -> Formula:
        try:
            return self.formula(node.expr)
        except TooLong as error:
            raise VnnlibError(self.name, _line(node), str(error)) from None

    def formula(self, node: Any) -> Formula:
        word = type(node).__name__
        if word in ("And", "Or"):
            parts = tuple(self.formula(part) for part in node.args)
            return parts[0] if len(parts) == 1 else (And(parts) if word == "And" else Or(parts))
        if word in _OPERATORS:
            left = self.linear(node.lhs)
            left.add(self.linear(node.rhs), Fraction(-1))
            return comparison(_OPERATORS[word], left.y, left.x, left.constant, _line(node))
        raise self._refused(_line(node), f"the formula {word}", "and, or and comparisons")

    def linear(self, node: Any) -> Linear:
        word = type(node).__name__
        if word == "Var":
            return self._variable(node)
        if word in ("Float", "Int", "IntExpr", "Literal"):
            if not is_numeral(node.lexeme):
                raise VnnlibError(self.name, _line(node), f"the number {node.lexeme!r} is out of range")
            return Linear(Fraction(node.lexeme))
        total = Linear()
        if word == "Negate":
            total.add(self.linear(node.expr), Fraction(-1))
        elif word == "Plus":
            for part in node.args:
                total.add(self.linear(part), Fraction(1))
        elif word == "Minus":
            total.add(self.linear(node.head), Fraction(1))
            for part in node.rest:
                total.add(self.linear(part), Fraction(-1))
        elif word == "Multiply":
            total.constant = Fraction(1)
            for part in node.args:
                product = total.times(self.linear(part))
                if product is None:
                    raise self._refused(_line(node), "a product of two variables", "linear terms")
                total = product
        else:
            raise self._refused(_line(node), f"the term {word}", "+, - and * of variables and numbers")
        return total

    def _variable(self, node: Any) -> Linear:
        kind, shape = self._tensors[node.name]
        flat = 0
        for index, axis in zip(node.indices, shape, strict=True):
            flat = flat * axis + index
        linear = Linear()
        (linear.x if kind == "Input" else linear.y)[flat] = Fraction(1)
        return linear
