"""VNN-LIB 2.0: the one-network linear part reads like 1.0, the rest is refused by name."""

from __future__ import annotations

import gzip
from fractions import Fraction

import numpy as np
import pytest

from verifier.property import Property
from verifier.vnnlib import VnnlibError, read_vnnlib

HEAD = """(vnnlib-version <2.0>)
(declare-network f
  (declare-input X float32 [1,2])
  (declare-output Y float32 [2])
)
"""
BOX = "(assert (and (<= X[0,0] 1.0) (>= X[0,0] -1.0) (<= X[0,1] 1.0) (>= X[0,1] -1.0)))\n"


def read(body: str, *, head: str = HEAD, box: str = BOX) -> Property:
    return read_vnnlib((head + box + body).encode(), inputs=2, outputs=2)


def unsafe(prop: Property, x: tuple[float, float], y: tuple[float, float]) -> bool:
    return prop.holds_unsafe(np.array(x), np.array(y))


@pytest.mark.parametrize(("body", "inside", "outside"), [
    ("(assert (<= Y[0] Y[1]))", (0, 0), (1, 0)),
    ("(assert (< Y[0] Y[1]))", (0, 1), (0, 0)),
    ("(assert (>= Y[1] 0.5))", (0, 0.5), (0, 0)),
    ("(assert (== Y[1] 0.5))", (0, 0.5), (0, 0)),
    ("(assert (!= Y[1] 0.5))", (0, 0), (0, 0.5)),
    ("(assert (or (> Y[0] 2.0) (and (<= Y[0] 1.0) (>= Y[1] 1.0))))", (1, 1), (1.5, 1)),
    ("(assert (<= (+ Y[0] (* 2.0 Y[1]) (- 0.5)) (- Y[0] 3.0 X[0,1])))", (9, -2), (9, -1)),
])
def test_output_forms(body: str, inside: tuple[float, float], outside: tuple[float, float]) -> None:
    prop = read(body)
    assert unsafe(prop, (0, 0), inside)
    assert not unsafe(prop, (0, 0), outside)


def test_numbers_are_taken_as_written_and_rounded_outward() -> None:
    text = "0.12345678901234567891"
    prop = read(f"(assert (<= Y[0] {text}))(assert (<= X[0,0] {text}))")
    assert prop.branches[0].rows[0].bound == Fraction(text)
    assert Fraction(prop.regions[0].exact_upper[0]) == Fraction(text)
    assert Fraction(float(prop.regions[0].upper[0])) > Fraction(text)


def test_indices_are_row_major_and_gzip_is_recognised() -> None:
    head = HEAD.replace("[1,2]", "[2,3]")
    box = "".join(f"(assert (<= X[{i},{j}] 1.0))(assert (>= X[{i},{j}] 0.{3 * i + j}))"
                  for i in range(2) for j in range(3))
    text = head + box + "(assert (<= Y[1] X[1,0]))"
    prop = read_vnnlib(gzip.compress(text.encode()), inputs=6, outputs=2)
    assert [Fraction(v) for v in prop.regions[0].exact_lower] == [Fraction(k, 10) for k in range(6)]
    assert prop.branches[0].rows[0].x == ((3, Fraction(-1)),)


TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [2]) (declare-output Y float32 [2]))
(declare-network g (declare-input U float32 [2]) (declare-output V float32 [2]))
(assert (<= Y[0] 0.0))"""


@pytest.mark.parametrize(("text", "message"), [
    (TWO, r"2 networks \(f, g\)"),
    (HEAD.replace("(declare-output", '(declare-hidden H float32 [3] "h") (declare-output') + "(assert (<= Y[0] 0.0))",
     "hidden node H"),
    (HEAD.replace("(declare-output", "(declare-input Z float32 [3]) (declare-output") + "(assert (<= Y[0] 0.0))",
     r"2 inputs \(X, Z\)"),
    (HEAD.replace("X float32", "X int8") + "(assert (<= Y[0] 0.0))", "type I8 of X"),
    (HEAD + BOX + "(assert (<= (* Y[0] Y[1]) 0.0))", "product of two variables"),
])
def test_what_is_not_supported_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(VnnlibError, match=message):
        read_vnnlib(text.encode())


@pytest.mark.parametrize(("body", "line", "message"), [
    ("(assert (<= Z[0] 0.0))", 7, "Undeclared variable at 'Z'"),
    ("\n(assert (<= Y[5] 0.0))", 8, "Index out of bounds"),
    ("(assert (<= Y[0] 0.0)", 7, "syntax error"),
])
def test_errors_name_the_line_in_one_sentence(body: str, line: int, message: str) -> None:
    with pytest.raises(VnnlibError, match=message) as caught:
        read(body)
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_unbounded_inputs_and_sizes_are_checked_as_in_version_1() -> None:
    with pytest.raises(VnnlibError, match="X_1 is unbounded"):
        read("(assert (<= Y[0] 0.0))", box="(assert (and (<= X[0,0] 1.0) (>= X[0,0] -1.0)))")
    with pytest.raises(VnnlibError, match="declares 2 inputs X_i, but the network has 7"):
        read_vnnlib((HEAD + BOX + "(assert (<= Y[0] 0.0))").encode(), inputs=7)


@pytest.mark.parametrize(("body", "says"), [
    ("(assert " + "(and " * 100_000 + "(<= Y[0] 0)" + ")" * 100_000 + ")", ":7: nested deeper than 200 levels"),
    ("(assert (<= Y[99999999999999999999999] 0))", "out of range"),
    ("(assert (<= (* " + ("1" * 300 + ".0 ") * 40 + "Y[0]) 1.0))", "grows beyond"),
])
def test_what_the_parser_cannot_take_is_refused_before_it(body: str, says: str) -> None:
    with pytest.raises(VnnlibError, match=says):
        read(body)


def test_long_words_of_the_file_are_cut_in_messages() -> None:
    with pytest.raises(VnnlibError) as caught:
        read("(assert (<= Y[0] 1e" + "9" * 5000 + "))")
    assert len(str(caught.value)) < 300


def test_sizes_are_limited() -> None:
    with pytest.raises(VnnlibError, match="declares 1000000000000 inputs, expected 1 to"):
        read_vnnlib((HEAD.replace("[1,2]", "[1000000,1000000]") + "(assert (<= Y[0] 0.0))").encode())
