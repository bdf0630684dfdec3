"""VNN-LIB 1.0: `declare-const`, `assert`, and linear comparisons under `and`, `or`, `not`.

Most statements of a file are declarations and one-sided input bounds. One regular expression takes
those; what lies between them goes through a tokeniser and a small recursive reader, in which a flat
comparison is one token. A 300 kB file takes some tens of milliseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from verifier.exact import NUMERAL, Number, fraction, is_numeral
from verifier.limits import MAX_DEPTH, MAX_DIGITS
from verifier.vnnlib.errors import VnnlibError
from verifier.vnnlib.formula import FALSE, TRUE, And, Bound, Formula, Or, Specification, comparison, tighten
from verifier.vnnlib.linear import Linear, TooLong

_INDEX = r"0|[1-9][0-9]{0,17}"  # a longer one is no variable
_FAST = re.compile(rf"\(\s*(?:assert\s*\(\s*(<=|>=)\s+X_({_INDEX})\s+({NUMERAL.pattern})\s*\)"
                   rf"|declare-const\s+([XY])_({_INDEX})\s+Real)\s*\)")
_TOKEN = re.compile(r"\(\s*(<=|>=|<|>|=)\s+([^\s()]+)\s+([^\s()]+)\s*\)|([()])|([^\s()]+)")
_COMMENT = re.compile(r";[^\n]*")
_VARIABLE = re.compile(rf"([XY])_({_INDEX})")
_OPERATORS = {"<=": "<=", "<": "<", ">=": ">=", ">": ">", "=": "=="}
_MIRROR = {"<=": ">=", ">=": "<=", "<": ">", ">": "<", "==": "=="}
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<=", "==": "!="}
_BOILERPLATE = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}


class _Comparison:
    """A flat comparison as one token: `(op a b)`."""

    __slots__ = ("a", "at", "b", "op")

    def __init__(self, op: str, a: str, b: str, at: int) -> None:
        self.op, self.a, self.b, self.at = op, a, b, at


class _Symbol:
    __slots__ = ("at", "text")

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at = text, at


class _List:
    __slots__ = ("at", "items")

    def __init__(self, at: int) -> None:
        self.at = at
        self.items: list[_Node] = []


_Node = _Comparison | _Symbol | _List


def parse_version1(text: str, name: str) -> Specification:
    """Read a whole file; raises VnnlibError with the line of the first thing not understood."""
    return _Reader(text, name).read()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.text = _COMMENT.sub("", text) if ";" in text else text  # line breaks stay: line numbers hold
        self.name = name
        self.declared: dict[str, dict[int, int]] = {"X": {}, "Y": {}}  # index -> position
        self.lower: dict[int, Bound] = {}
        self.upper: dict[int, Bound] = {}
        self.assertions: list[tuple[int, Formula]] = []
        self.atoms: dict[tuple[str, str, str], Formula] = {}
        self._counted = (0, 1)  # (position, its line): lines are counted onward, never from the start

    def read(self) -> Specification:
        text, position = self.text, 0
        declared, inputs = self.declared, self.declared["X"]
        for match in _FAST.finditer(text):
            start = match.start()
            if start != position and not text[position:start].isspace():
                self._statements(position, start)
            position = match.end()
            op, index, value, letter, number = match.groups()
            if op is not None:
                i = int(index)
                if i not in inputs:
                    raise self._error(start, f"unknown variable X_{i}: it is not declared before its use")
                side = self.upper if op == "<=" else self.lower
                # The expression has checked all but the sizes.
                if "e" in value or "E" in value or len(value) > MAX_DIGITS:
                    self._number(value, start)
                bound = Bound(i, op == "<=", value, self._line(start))
                if i in side:
                    tighten(self.lower, self.upper, bound)
                else:
                    side[i] = bound
            else:
                self._declare(letter, int(number), start)
        self._statements(position, len(text))
        for letter in "XY":
            count = len(declared[letter])
            if not count:
                raise VnnlibError(self.name, 0, f"declares no variable {letter}_i")
            missing = next((i for i in range(count) if i not in declared[letter]), None)
            if missing is not None:
                raise VnnlibError(self.name, 0, f"declares {letter}_{max(declared[letter])} but not {letter}_{missing}")
        return Specification(self.name, len(inputs), len(declared["Y"]), self.lower, self.upper, self.assertions)

    # ------------------------------------------------------------------ errors

    def _line(self, position: int) -> int:
        before, line = self._counted
        if position >= before:
            line += self.text.count("\n", before, position)
        else:
            line -= self.text.count("\n", position, before)
        self._counted = (position, line)
        return line

    def _error(self, position: int, message: str) -> VnnlibError:
        return VnnlibError(self.name, self._line(position), message)

    # ------------------------------------------------------------------ statements

    def _declare(self, letter: str, index: int, position: int) -> None:
        if index in self.declared[letter]:
            raise self._error(position, f"{letter}_{index} is declared twice")
        self.declared[letter][index] = position

    def _statements(self, start: int, end: int) -> None:
        for node in self._nodes(start, end):
            self._statement(node)

    def _nodes(self, start: int, end: int) -> list[_Node]:
        """The tree of the text between two positions."""
        top = _List(start)
        stack = [top]
        for match in _TOKEN.finditer(self.text, start, end):
            op, a, b, bracket, symbol = match.groups()
            if op is not None:
                stack[-1].items.append(_Comparison(_OPERATORS[op], a, b, match.start()))
            elif symbol is not None:
                stack[-1].items.append(_Symbol(symbol, match.start()))
            elif bracket == "(":
                inner = _List(match.start())
                stack[-1].items.append(inner)
                stack.append(inner)
                if len(stack) > MAX_DEPTH:
                    raise self._error(match.start(), f"nested deeper than {MAX_DEPTH} levels")
            else:
                if len(stack) == 1:
                    raise self._error(match.start(), "syntax error: ')' without '('")
                stack.pop()
        if len(stack) > 1:
            raise self._error(stack[-1].at, "syntax error: '(' is never closed")
        return top.items

    def _statement(self, node: _Node) -> None:
        if isinstance(node, _Comparison):
            raise self._error(node.at, "syntax error: a comparison outside of (assert ...)")
        if isinstance(node, _Symbol):
            raise self._error(node.at, f"syntax error: expected '(' before {_shown(node.text)}")
        head = node.items[0] if node.items else None
        if not isinstance(head, _Symbol):
            raise self._error(node.at, "syntax error: expected declare-const or assert after '('")
        if head.text == "assert":
            if len(node.items) != 2:
                raise self._error(node.at, f"syntax error: assert takes one formula, got {len(node.items) - 1}")
            try:
                formula = self._formula(node.items[1], False)
            except TooLong as error:
                raise self._error(node.at, str(error)) from None
            self.assertions.append((self._line(node.at), formula))
        elif head.text in ("declare-const", "declare-fun"):
            self._declaration(node, head.text)
        elif head.text not in _BOILERPLATE:
            raise self._error(node.at, f"unknown statement {_shown(head.text)}: expected declare-const or assert")

    def _declaration(self, node: _List, word: str) -> None:
        items = node.items[1:]
        if word == "declare-fun" and len(items) == 3 and isinstance(items[1], _List) and not items[1].items:
            items = [items[0], items[2]]
        if len(items) != 2 or not isinstance(items[0], _Symbol) or not isinstance(items[1], _Symbol):
            raise self._error(node.at, f"syntax error: expected ({word} NAME Real)")
        if items[1].text != "Real":
            raise self._error(node.at, f"{items[0].text} has the type {_shown(items[1].text)}: expected Real")
        match = _VARIABLE.fullmatch(items[0].text)
        if match is None:
            raise self._error(node.at, f"cannot use the variable {_shown(items[0].text)}: expected X_i or Y_i")
        self._declare(match[1], int(match[2]), node.at)

    # ------------------------------------------------------------------ formulas

    def _formula(self, node: _Node, negated: bool) -> Formula:
        if isinstance(node, _Comparison):
            return self._flat(node, negated)
        if isinstance(node, _Symbol):
            if node.text in ("true", "false"):
                return TRUE if (node.text == "true") != negated else FALSE
            raise self._error(node.at, f"syntax error: expected a formula, got {_shown(node.text)}")
        head = node.items[0] if node.items else None
        word = head.text if isinstance(head, _Symbol) else ""
        arguments = node.items[1:]
        if word in ("and", "or"):
            if not arguments:
                raise self._error(node.at, f"syntax error: {word} without operands")
            parts = tuple(self._formula(part, negated) for part in arguments)
            if len(parts) == 1:
                return parts[0]
            return And(parts) if (word == "and") != negated else Or(parts)
        if word == "not":
            if len(arguments) != 1:
                raise self._error(node.at, f"syntax error: not takes one formula, got {len(arguments)}")
            return self._formula(arguments[0], not negated)
        if word in _OPERATORS:
            if len(arguments) < 2:
                raise self._error(node.at, f"syntax error: {word} takes two operands, got {len(arguments)}")
            chain = tuple(self._compare(word, a, b, negated) for a, b in pairwise(arguments))
            return chain[0] if len(chain) == 1 else (Or(chain) if negated else And(chain))
        raise self._error(node.at, f"cannot read the formula {_shown(word or '(')}: expected and, or, not, <=, >=, "
                                   "<, > or =")

    def _flat(self, node: _Comparison, negated: bool) -> Formula:
        """`(op a b)` of two symbols; equal text is converted once."""
        op = _NEGATED[node.op] if negated else node.op
        key = (op, node.a, node.b)
        known = self.atoms.get(key)
        if known is None:
            self.atoms[key] = known = self._convert(op, node)
        return known

    def _convert(self, op: str, node: _Comparison) -> Formula:
        a, b = node.a, node.b
        if op in ("<=", ">=") and NUMERAL.fullmatch(a):
            a, b, op = b, a, _MIRROR[op]
        if op in ("<=", ">=") and a[:2] == "X_" and NUMERAL.fullmatch(b):
            # The numeral stays as written: it is rounded with the whole box, and made a rational only when asked.
            _, index = self._variable(a, node.at)
            return Bound(index, op == "<=", self._number(b, node.at), self._line(node.at))
        left, right = self._term(a, node.at), self._term(b, node.at)
        left.add(right, Fraction(-1))
        return comparison(op, left.y, left.x, left.constant, self._line(node.at))

    def _compare(self, word: str, a: _Node, b: _Node, negated: bool) -> Formula:
        op = _NEGATED[_OPERATORS[word]] if negated else _OPERATORS[word]
        left = self._linear(a)
        left.add(self._linear(b), Fraction(-1))
        return comparison(op, left.y, left.x, left.constant, self._line(a.at))

    # ------------------------------------------------------------------ terms

    def _number(self, text: str, position: int) -> Number:
        if not is_numeral(text):
            raise self._error(position, f"the number {_shown(text)} is out of range")
        return text

    def _variable(self, text: str, position: int) -> tuple[str, int]:
        match = _VARIABLE.fullmatch(text)
        if match is None or int(match[2]) not in self.declared[match[1]]:
            raise self._error(position, f"unknown variable {_shown(text)}: it is not declared before its use")
        return match[1], int(match[2])

    def _term(self, text: str, position: int) -> Linear:
        """A variable or a number."""
        if NUMERAL.fullmatch(text):
            return Linear(fraction(self._number(text, position)))
        if text[0].isdigit() or text[0] in "+-.":
            raise self._error(position, f"syntax error: {_shown(text)} is not a number")
        letter, index = self._variable(text, position)
        linear = Linear()
        (linear.y if letter == "Y" else linear.x)[index] = Fraction(1)
        return linear

    def _linear(self, node: _Node) -> Linear:
        """A linear expression under + - * /."""
        if isinstance(node, _Symbol):
            return self._term(node.text, node.at)
        if isinstance(node, _Comparison):
            raise self._error(node.at, "syntax error: a comparison where a number or a variable is expected")
        head = node.items[0] if node.items else None
        word = head.text if isinstance(head, _Symbol) else ""
        if word not in ("+", "-", "*", "/") or len(node.items) < 2:
            raise self._error(node.at, f"cannot read the term {_shown(word or '(')}: expected +, -, * or / "
                                       "with operands")
        parts = [self._linear(part) for part in node.items[1:]]
        total = parts[0]
        if word in "+-":
            if word == "-" and len(parts) == 1:
                total = Linear()
                total.add(parts[0], Fraction(-1))
            for part in parts[1:]:
                total.add(part, Fraction(1 if word == "+" else -1))
            return total
        for part in parts[1:]:
            factor = self._inverse(part, node.at) if word == "/" else part
            product = total.times(factor)
            if product is None:
                raise self._error(node.at, "a product of two variables is not linear: expected a constant factor")
            total = product
        return total

    def _inverse(self, divisor: Linear, position: int) -> Linear:
        if not divisor.is_constant or divisor.constant == 0:
            raise self._error(position, "division by a variable or by zero: expected a constant divisor")
        return Linear(1 / divisor.constant)


def _shown(text: str) -> str:
    """A token in a message, cut to a readable length."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


