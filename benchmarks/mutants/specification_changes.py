"""Structure-aware changes of VNN-LIB texts: tokens, numbers, bounds, and formulas that explode."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

TOKEN = re.compile(r"[()]|[^\s()]+")
NUMBERS = ("1e999", "-1e999", "nan", "inf", "-inf", "0x1", "-", "--1", "1e", "1e1000000000", "-1e-1000000000",
           "1_000", "+5", ".5", "5.", "1e400", "1e40", "3.5e38", "1e-400", "1.0.0", "0" * 50 + "1", "1" * 5000,
           "1." + "3" * 5000, "1e" + "9" * 5000, "0.1e-5", "١٢", "1,5", "1/3", "(- 1)", "(/ 1 3)", "(* 1e4000 1e4000)",
           "(/ 1 0)", "#b1")
WORDS = ("assert", "declare-const", "declare-fun", "and", "or", "not", "<=", ">=", "<", ">", "=", "Real", "Int", "true",
         "false", "X_0", "Y_0", "X_99", "Y_99", "X_-1", "X_00", "X_99999999999999999999", "X_" + "9" * 5000, "Z_0",
         "let", "=>", "xor", "ite", "+", "*", "/", "check-sat", "ü", "\u202e", "\x00", "|X_0|", '"', ";", "push", "x")

Change = Callable[[str, random.Random], str]


def _tokens(text: str) -> list[re.Match[str]]:
    return list(TOKEN.finditer(text)) or [re.compile("").match(text)]  # type: ignore[list-item]


def _variables(text: str, letter: str) -> int:
    return len(re.findall(rf"declare-const\s+{letter}_", text))


def token_dropped(text: str, draw: random.Random) -> str:
    token = draw.choice(_tokens(text))
    return text[:token.start()] + text[token.end():]


def token_doubled(text: str, draw: random.Random) -> str:
    token = draw.choice(_tokens(text))
    return text[:token.end()] + " " + token.group() + text[token.end():]


def token_replaced(text: str, draw: random.Random) -> str:
    token = draw.choice(_tokens(text))
    return text[:token.start()] + draw.choice((*WORDS, *NUMBERS)) + text[token.end():]


def tokens_swapped(text: str, draw: random.Random) -> str:
    a, b = sorted((draw.choice(_tokens(text)), draw.choice(_tokens(text))), key=lambda t: t.start())
    if a.end() > b.start():
        return text
    return text[:a.start()] + b.group() + text[a.end():b.start()] + a.group() + text[b.end():]


def bracket(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(("(", ")", "((", "()", ")(")) + text[at:]


def number(text: str, draw: random.Random) -> str:
    numbers = [t for t in _tokens(text) if re.match(r"[-+.]?[0-9]", t.group())]
    if not numbers:
        return text
    token = draw.choice(numbers)
    return text[:token.start()] + draw.choice(NUMBERS) + text[token.end():]


def relation(text: str, draw: random.Random) -> str:
    """A bound turned round: the box crosses, is open, or loses an end."""
    found = [t for t in _tokens(text) if t.group() in ("<=", ">=", "<", ">", "=")]
    if not found:
        return text
    token = draw.choice(found)
    return text[:token.start()] + draw.choice(("<=", ">=", "<", ">", "=", "!=", "==")) + text[token.end():]


def line_dropped(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    del lines[draw.randrange(len(lines)) if lines else slice(0)]
    return "".join(lines)


def line_doubled(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return "".join(lines)


def lines_shuffled(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    draw.shuffle(lines)
    return "".join(lines)


def more_variables(text: str, draw: random.Random) -> str:
    letter = draw.choice("XY")
    index = draw.choice((_variables(text, letter), 10**6, 10**18))
    return f"(declare-const {letter}_{index} Real)\n" + text


def deep(text: str, draw: random.Random) -> str:
    depth = draw.choice((150, 250, 5000, 100_000))
    kind = draw.choice(("and", "or", "not", "bare", "sum", "minus", "open"))
    if kind == "bare":
        return text + "(" * depth + ")" * depth
    if kind == "open":
        return text + "(" * depth
    if kind in ("sum", "minus"):
        head = "(+ 1 " if kind == "sum" else "(- "
        return f"{text}(assert (<= {head * depth}Y_0{')' * depth} 1e9))\n"
    return f"{text}(assert {f'({kind} ' * depth}(<= Y_0 1e9){')' * depth})\n"


def explosion(text: str, draw: random.Random) -> str:
    """Formulas whose normal form is enormous."""
    count = draw.choice((10, 16, 17, 30, 1000, 20_000))
    kind = draw.choice(("asserts", "nested", "wide", "boxes", "long"))
    if kind == "asserts":
        return text + "".join(f"(assert (or (<= Y_0 {k}) (>= Y_0 -{k})))\n" for k in range(count))
    if kind == "nested":
        formula = "(<= Y_0 1)"
        for k in range(min(count, 150)):
            formula = f"(and (or {formula} (<= Y_0 {k})) (or (>= Y_0 {k}) {formula}))" if len(formula) < 10**5 \
                else f"(or {formula} (<= Y_0 {k}))"
        return f"{text}(assert {formula})\n"
    if kind == "wide":
        return text + "(assert (or " + " ".join(f"(<= Y_0 {k})" for k in range(count * 5)) + "))\n"
    if kind == "boxes":
        return text + "(assert (or " + " ".join(
            f"(and (>= X_0 {k / count}) (<= X_0 {(k + 1) / count}) (<= Y_0 {k}))" for k in range(count)) + "))\n"
    long = " ".join(f"(<= Y_0 {k})" for k in range(count))
    return f"{text}(assert (or (and {long}) (and {long})))\n(assert (or (<= Y_0 5) (and {long})))\n"


def arithmetic(text: str, draw: random.Random) -> str:
    """Exact arithmetic with numbers that grow."""
    count = draw.choice((3, 100, 5000))
    kind = draw.choice(("product", "quotients", "powers", "chain", "coefficients"))
    if kind == "product":
        return f"{text}(assert (<= (* {' '.join(['1e4000'] * count)} Y_0) 1))\n"
    if kind == "quotients":
        terms = " ".join(f"(/ Y_0 {10**6 + 2 * k + 1})" for k in range(count))
        return f"{text}(assert (<= (+ {terms}) 1))\n"
    if kind == "powers":
        return f"{text}(assert (>= (* Y_0 {draw.choice(NUMBERS)}) {draw.choice(NUMBERS)}))\n"
    if kind == "chain":
        return f"{text}(assert (<= {' '.join(f'(* {k}e300 Y_0)' for k in range(1, count))}))\n"
    return f"{text}(assert (<= (+ (* 1e-300 Y_0) (* 3.3333333333333333333 Y_0) (* 1e300 X_0)) 1))\n"


def blank(text: str, draw: random.Random) -> str:
    """Very much of nothing, in an awkward place."""
    at = draw.choice([t.start() for t in _tokens(text)])
    nothing = draw.choice(("\n", " ", "\t\n", "; note\n", "\r\n", "\u00a0", "(check-sat)\n"))
    return text[:at] + nothing * 100_000 + text[at:]


def other_version(text: str, draw: random.Random) -> str:
    """The same kind of statements in version 2.0 of the language, with something odd in them."""
    inputs, outputs = max(1, _variables(text, "X")), max(1, _variables(text, "Y"))
    size = draw.choice((inputs, inputs, inputs, inputs, 10**9, 2**63, 0, -1))
    kind = draw.choice(("Real", "float32", "float32", "int8", "none"))
    odd = draw.choice(NUMBERS)
    bounds = "".join(f"(assert (and (<= X[{i}] {draw.choice(('1.0', '1.0', '0.5', odd))}) (>= X[{i}] -1.0)))\n"
                     for i in range(min(inputs, 50)))
    depth = draw.choice((0, 0, 0, 0, 0, 0, 500, 20_000, 100_000))
    claim = draw.choice(("(<= Y[0] 0.0)", "(<= (* Y[0] Y[0]) 0.0)", "(<= Y[99999999999] 0.0)",
                         "(<= Y[0] (+ 1.0 X[0]))", "(<= Y 0.0)", "(or (<= Y[0] 1.0e999) (>= Y[0] nan))", "(== Y[0] 1)",
                         f"(<= Y[0] {odd})", f"(<= (* Y[0] {odd} {odd}) 1.0)"))
    return (f"(vnnlib-version <{draw.choice(('2.0', '2.0', '9.9'))}>)\n(declare-network f\n"
            f"  (declare-input X {kind} [{size}])\n  (declare-output Y {kind} [{outputs}])\n)\n"
            f"{bounds}(assert {'(and ' * depth}{claim}{')' * depth})\n")


def header_of_other_version(text: str, draw: random.Random) -> str:
    return draw.choice(("(vnnlib-version <2.0>)\n", "\n" * 50_000 + "(declare-network f)\n")) + text


CHANGES: tuple[Change, ...] = (
    token_dropped, token_doubled, token_replaced, token_replaced, token_replaced, tokens_swapped, bracket, number,
    number, number, relation, relation, line_dropped, line_doubled, lines_shuffled, more_variables, deep, explosion,
    explosion, arithmetic, arithmetic, blank, other_version, header_of_other_version)


def changed(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the changed text); one to three changes."""
    text, names = data.decode("utf-8"), []
    while not names or draw.random() < 0.25:
        change = draw.choice(CHANGES)
        text = change(text, draw)
        names.append(change.__name__)
    return "+".join(names), text.encode("utf-8", "surrogatepass")
