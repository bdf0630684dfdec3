"""VNN-LIB 1.0: every form, against direct evaluation; errors name the file and the line."""

from __future__ import annotations

import csv
import gzip
import itertools
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.property import Property, robustness
from verifier.vnnlib import VnnlibError, formula, read_vnnlib, write_vnnlib

HEADER = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))\n"


def read(body: str, *, box: str = BOX) -> Property:
    return read_vnnlib((HEADER + box + body).encode())


def unsafe(prop: Property, x: tuple[float, float], y: tuple[float, float]) -> bool:
    return prop.holds_unsafe(np.array(x), np.array(y))


@pytest.mark.parametrize(("body", "inside", "outside"), [
    ("(assert (<= Y_0 Y_1))", (0, 0), (1, 0)),
    ("(assert (>= Y_0 Y_1))", (0, 0), (0, 1)),
    ("(assert (< Y_0 Y_1))", (0, 1), (0, 0)),
    ("(assert (> Y_0 2))", (3, 0), (2, 0)),
    ("(assert (>= 2 Y_0))", (2, 0), (3, 0)),
    ("(assert (= Y_0 2))", (2, 0), (2.5, 0)),
    ("(assert (not (<= Y_0 2)))", (3, 0), (2, 0)),
    ("(assert (not (= Y_0 2)))", (3, 0), (2, 0)),
    ("(assert (not (or (<= Y_0 2) (>= Y_1 1))))", (3, 0), (3, 1)),
    ("(assert (<= 0 Y_0 Y_1 5))", (1, 1), (1, 6)),
    ("(assert (not (<= 0 Y_0 Y_1 5)))", (1, 6), (1, 1)),
    ("(assert (not (<= 0 Y_0 Y_1 5)))", (2, 1), (0, 5)),
    ("(assert (or (and (<= Y_0 1))))", (1, 0), (2, 0)),
    ("(assert (or (<= Y_0 -1) (and (>= Y_0 1) (>= Y_1 1))))", (1, 1), (0, 1)),
    ("(assert (and (<= Y_0 1) (or (<= Y_1 0) (>= Y_1 2))))", (1, 2), (1, 1)),
    ("(assert (<= (+ (* 2.0 Y_0) (* Y_1 -1) 0.5) (- Y_0 3)))", (0, 4), (0, 3)),
    ("(assert (<= (- Y_0) (/ 1 3)))", (0, 0), (-0.5, 0)),
    ("(assert (<= Y_0 1e-06)) ; a comment with (brackets\n", (0, 0), (1, 0)),
    ("(assert\n  (<=\n Y_0   1 )\n)", (1, 0), (2, 0)),
    ("(set-logic QF_LRA)(check-sat)(assert (or (<= Y_0 1) false))", (1, 0), (2, 0)),
])
def test_output_forms(body: str, inside: tuple[float, float], outside: tuple[float, float]) -> None:
    prop = read(body)
    assert unsafe(prop, (0, 0), inside)
    assert not unsafe(prop, (0, 0), outside)


def test_disjunctive_inputs_make_regions_of_their_own() -> None:
    prop = read("(assert (or (and (<= X_0 -0.5) (<= Y_0 0)) (and (>= X_0 0.5) (<= Y_0 0))"
                " (and (>= 1.5 X_0) (>= Y_1 9))))")
    assert len(prop.branches) == 3
    assert [(r.lower[0], r.upper[0]) for r in prop.regions] == [(-1, -0.5), (0.5, 1), (-1, 1)]
    assert unsafe(prop, (-0.75, 0), (0, 0))
    assert not unsafe(prop, (0, 0), (0, 0))
    assert unsafe(prop, (0, 0), (0, 9))


def test_equal_regions_are_one_object() -> None:
    prop = read("(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (<= X_0 0.5) (<= X_0 0) (>= Y_0 1)) (and (>= Y_0 7))))")
    assert prop.branches[0].region is prop.branches[1].region
    assert len(prop.regions) == 2


def test_inputs_and_outputs_in_one_row() -> None:
    prop = read("(assert (<= Y_0 (+ X_0 (* 2 X_1))))(assert (<= X_0 X_1))")
    assert unsafe(prop, (0.25, 0.5), (1.25, 0))
    assert not unsafe(prop, (0.25, 0.5), (1.5, 0))
    assert not unsafe(prop, (0.5, 0.25), (0, 0))
    assert prop.branches[0].rows[1].y == ()


def test_strict_input_bounds_keep_the_box_and_add_a_row() -> None:
    prop = read("(assert (< X_0 0.5))(assert (<= Y_0 0))")
    assert prop.regions[0].upper[0] == 0.5
    assert unsafe(prop, (0.25, 0), (0, 0))
    assert not unsafe(prop, (0.5, 0), (0, 0))


def test_scaled_input_bounds_become_the_box() -> None:
    prop = read("(assert (<= (* -3 X_0) 1))(assert (<= Y_0 0))")
    assert prop.regions[0].exact_lower[0] == Fraction(-1, 3)
    assert Fraction(float(prop.regions[0].lower[0])) < Fraction(-1, 3)


def test_boxes_are_rounded_outward_from_twenty_digits() -> None:
    low, high = "0.12345678901234567891", "0.12345678901234567893"
    prop = read("(assert (<= Y_0 0))", box=f"(assert (>= X_0 {low}))(assert (<= X_0 {high}))"
                                           "(assert (>= X_1 0.25))(assert (<= X_1 0.25))")
    region = prop.regions[0]
    assert Fraction(float(region.lower[0])) < Fraction(low) < Fraction(high) < Fraction(float(region.upper[0]))
    assert region.lower[1] == region.upper[1] == 0.25


def test_contradictory_branches_are_dropped_but_a_contradictory_file_is_an_error() -> None:
    prop = read("(assert (or (and (<= X_0 -2) (<= Y_0 0)) (and (<= X_0 0) (<= Y_0 1))))")
    assert len(prop.branches) == 1
    assert prop.regions[0].upper[0] == 0
    with pytest.raises(VnnlibError, match=r":8: the lower bound of X_1 \(0.5\) exceeds its upper bound \(0.25\)"):
        read("(assert (>= X_1 0.5))\n(assert (<= Y_0 0))\n(assert (<= X_1 0.25))")
    with pytest.raises(VnnlibError, match="contradiction"):
        read("(assert (<= 2 1))")


ATOMS = st.tuples(
    st.sampled_from(["<=", ">=", "<", ">", "="]),
    st.sampled_from(["Y_0", "Y_1", "X_0", "X_1", "0.5", "(+ Y_0 X_1)", "(- X_0 Y_1 1)", "(* 2 Y_1)"]),
    st.sampled_from(["Y_0", "Y_1", "X_0", "X_1", "0", "-0.5", "1e0"]))
FORMULAS = st.recursive(
    ATOMS, lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3))
    | st.tuples(st.just("not"), st.tuples(inner)), max_leaves=8)
TERMS = {"(+ Y_0 X_1)": lambda v: v["Y_0"] + v["X_1"], "(- X_0 Y_1 1)": lambda v: v["X_0"] - v["Y_1"] - 1,
         "(* 2 Y_1)": lambda v: 2 * v["Y_1"]}


def written(formula) -> str:  # type: ignore[no-untyped-def]
    if len(formula) == 3:
        return "({} {} {})".format(*formula)
    return f"({formula[0]} {' '.join(map(written, formula[1]))})"


def truth(formula, values: dict[str, Fraction]) -> bool:  # type: ignore[no-untyped-def]
    if len(formula) == 3:
        op, a, b = formula
        left, right = (TERMS[t](values) if t in TERMS else values[t] if t in values else Fraction(t) for t in (a, b))
        return {"<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right, "=": left == right}[op]
    parts = [truth(part, values) for part in formula[1]]
    return {"and": all, "or": any, "not": lambda p: not p[0]}[formula[0]](parts)


@given(FORMULAS)
@settings(max_examples=100, deadline=None)
def test_random_formulas_mean_what_they_say(formula) -> None:  # type: ignore[no-untyped-def]
    values = [-1.0, -0.5, 0.0, 0.5, 1.0]
    points = list(itertools.product([-1.0, -0.5, 0.0, 0.5, 1.0], [-0.5, 0.5, 1.0], [-0.5, 0.0, 1.0], values))

    def holds(p: tuple[float, ...]) -> bool:
        return truth(formula, dict(zip(("X_0", "X_1", "Y_0", "Y_1"), map(Fraction, p), strict=True)))

    try:
        prop = read(f"(assert {written(formula)})")
    except VnnlibError as error:
        prop, message = None, error.message
    if prop is None:
        assert "contradiction" in message or "empty" in message
        assert not any(map(holds, points))
        return
    again = read_vnnlib(write_vnnlib(prop).encode())
    for p in points:
        expected = holds(p)
        assert unsafe(prop, p[:2], p[2:]) is expected
        assert unsafe(again, p[:2], p[2:]) is expected


@pytest.mark.parametrize(("body", "line", "message"), [
    ("(assert (<= Y_7 0))", 6, "unknown variable 'Y_7'"),
    ("\n\n(assert (<= X_2 0))", 8, "unknown variable X_2"),
    ("(assert (<= Z 0))", 6, "unknown variable 'Z'"),
    ("(assert (<= Y_0 0)", 6, "never closed"),
    ("(assert (<= Y_0 0)))", 6, "without '\\('"),
    ("; fine\n(assert (<= Y_0 1.2.3))", 7, "'1.2.3' is not a number"),
    ("(assert (<= X_0 1..5))", 6, "not a number"),
    ("(assert (<= Y_0 nan))", 6, "unknown variable 'nan'"),
    ("(assert (<= Y_0 1e99999))", 6, "out of range"),
    ("(assert (<= X_0 1E99999))", 6, "out of range"),
    ("(assert (<= (* Y_0 Y_1) 0))", 6, "not linear"),
    ("(assert (<= (/ 1 Y_1) 0))", 6, "constant divisor"),
    ("(assert (<= (sin Y_1) 0))", 6, "cannot read the term 'sin'"),
    ("(assert (xor (<= Y_0 0) (<= Y_1 0)))", 6, "cannot read the formula 'xor'"),
    ("(assert (or))", 6, "or without operands"),
    ("(assert Y_0)", 6, "expected a formula"),
    ("(assert (<= Y_0))", 6, "takes two operands"),
    ("(assert)", 6, "assert takes one formula"),
    ("(assert (<= Y_0 0) (<= Y_1 0))", 6, "assert takes one formula, got 2"),
    ("(push 1)", 6, "unknown statement 'push'"),
    ("hello", 6, "expected '\\(' before 'hello'"),
    ("(<= Y_0 0)", 6, "outside of"),
    ("(declare-const X_0 Real)", 6, "X_0 is declared twice"),
    ("(declare-const Y_2 Int)", 6, "expected Real"),
    ("(declare-const foo Real)", 6, "expected X_i or Y_i"),
])
def test_errors_name_the_line(body: str, line: int, message: str) -> None:
    with pytest.raises(VnnlibError, match=message) as caught:
        read(body)
    assert caught.value.line == line
    assert f":{line}: " in str(caught.value)


def test_deep_nesting_and_exploding_formulas_are_refused() -> None:
    with pytest.raises(VnnlibError, match="nested deeper"):
        read("(assert " + "(not " * 5000 + "(<= Y_0 0)" + ")" * 5001)
    either = "(assert (or (<= Y_0 {0}) (>= Y_1 {0})))"
    with pytest.raises(VnnlibError, match="more than 100000 disjuncts"):
        read("\n".join(either.format(i) for i in range(30)))


def test_unbounded_inputs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "open.vnnlib"
    path.write_text(HEADER + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (>= X_1 0))(assert (<= Y_0 0))")
    with pytest.raises(VnnlibError, match=r"open.vnnlib.*X_1 is unbounded: it has no upper bound"):
        read_vnnlib(path)
    with pytest.raises(VnnlibError, match="beyond the range of float32"):
        read("(assert (<= Y_0 0))", box=BOX.replace("(<= X_0 1)", "(<= X_0 1e39)"))


def test_files_and_declared_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.vnnlib"
    text = HEADER + BOX + "(assert (<= Y_0 0))"
    (tmp_path / "a.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    prop = read_vnnlib(path, inputs=2, outputs=2)
    assert (prop.inputs, prop.outputs) == (2, 2)
    with pytest.raises(VnnlibError, match="declares 2 inputs X_i, but the network has 5"):
        read_vnnlib(path, inputs=5)
    with pytest.raises(VnnlibError, match="declares 2 outputs Y_i, but the network has 3"):
        read_vnnlib(path, outputs=3)
    with pytest.raises(VnnlibError, match="no such file"):
        read_vnnlib(tmp_path / "missing.vnnlib")
    with pytest.raises(VnnlibError, match="damaged gzip"):
        read_vnnlib(gzip.compress(text.encode())[:-20])
    with pytest.raises(VnnlibError, match="not a text file"):
        read_vnnlib(b"\x08\x07\xff\xfe")
    with pytest.raises(VnnlibError, match="declares no variable X_i"):
        read_vnnlib(b"")
    with pytest.raises(VnnlibError, match="declares X_2 but not X_1"):
        read_vnnlib(b"(declare-const X_0 Real)(declare-const X_2 Real)(declare-const Y_0 Real)")


def test_robustness_survives_a_round_trip_exactly() -> None:
    x = np.random.default_rng(0).random(20).astype(np.float32)
    prop = robustness(x, 2, 0.03, classes=4, clip=(0.0, 1.0))
    again = read_vnnlib(write_vnnlib(prop, comment="two\nlines").encode())
    assert [Fraction(v) for v in again.regions[0].exact_lower] == list(prop.regions[0].exact_lower)
    assert [Fraction(v) for v in again.regions[0].exact_upper] == list(prop.regions[0].exact_upper)
    assert [b.rows for b in again.branches] == [b.rows for b in prop.branches]
    with pytest.raises(ValueError, match="only say boxes"):
        write_vnnlib(robustness(x, 2, 0.03, classes=4, norm=2))


def test_a_large_file_parses_quickly() -> None:
    """10,000 inputs and 2,000 disjuncts; the limit leaves a slow machine room."""
    lines = [f"(declare-const X_{i} Real)" for i in range(5000)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (<= X_{i} 0.{i:019d}1))\n(assert (>= X_{i} -0.{i:019d}1))" for i in range(5000)]
    lines.append("(assert (or " + "\n".join(f"(and (>= X_3 {i}e-9) (>= Y_0 {i}))" for i in range(-2000, 0)) + "))")
    text = "\n".join(lines).encode()
    start = time.perf_counter()
    prop = read_vnnlib(text)
    assert time.perf_counter() - start < 2.0
    assert prop.inputs == 5000
    assert len(prop.branches) == 2000


@pytest.mark.shared
def test_published_specifications_parse_with_the_network_sizes(shared: Path) -> None:
    """The first instances of every benchmark; sizes as each README row of the data says."""
    sizes = {"acasxu": (5, 5), "mnist_fc": (784, 10), "yolo": (8112, 21125), "nn4sys": None, "lsnc": None}
    total = 0
    for folder in sorted((shared / "vnncomp").iterdir()):
        if not (folder / "instances.csv").is_file():
            continue
        with (folder / "instances.csv").open() as rows:
            names = list(dict.fromkeys(row[1] for row in csv.reader(rows) if row))
        for name in names[:3]:
            prop = read_vnnlib(folder / name)
            total += 1
            assert np.all(prop.regions[0].lower <= prop.regions[0].upper)
            assert any(b.rows for b in prop.branches)
            expected = sizes.get(folder.name)
            if expected is not None:
                assert (prop.inputs, prop.outputs) == expected
    assert total > 40


@pytest.mark.shared
def test_published_disjunctive_inputs(shared: Path) -> None:
    prop = read_vnnlib(shared / "vnncomp/acasxu/vnnlib/prop_6.vnnlib")
    assert len(prop.regions) == 2
    many = read_vnnlib(shared / "vnncomp/nn4sys/vnnlib/lindex_1000.vnnlib")
    assert (len(many.branches), len(many.regions)) == (2000, 1000)


def test_reading_a_specification_does_not_load_pytorch() -> None:
    code = "import sys, verifier.vnnlib, verifier.property; sys.exit('torch' in sys.modules or 'vnnlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


# ---------------------------------------------------------------- texts that ask for too much

@pytest.mark.parametrize("blank", ["\n", " ", "\t\n", "\r\n", "; a note\n"])
def test_much_of_nothing_is_read_in_no_time(blank: str) -> None:
    start = time.monotonic()
    assert read(blank * 100_000 + "(assert (<= Y_0 1))").rows == 1
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("body", "says"), [
    ("(assert (<= Y_0 " + "1" * 5000 + "))", "out of range"),
    ("(assert (<= X_0 " + "1" * 5000 + "))", "out of range"),
    ("(assert (<= X_0 1e" + "9" * 5000 + "))", "out of range"),
    ("(assert (<= X_" + "9" * 5000 + " 1))", "unknown variable"),
    ("(declare-const X_" + "9" * 5000 + " Real)", "cannot use the variable"),
    ("(assert (<= (* " + "1e4000 " * 500 + "Y_0) 1))", "grows beyond 32768 bits"),
    ("(assert (<= (+ " + " ".join(f"(/ Y_0 {10**6 + 2 * k + 1})" for k in range(5000)) + ") 1))", "grows beyond"),
    ("(assert (<= Y_0 (* 1e4000 (- 1e4000))))", None),
    ("(assert (>= X_0 (* 1e4000 1e4000)))", r"the lower bound of X_0 \(inf\) exceeds"),
    ("(assert (and " + "(or (<= Y_0 1) (>= Y_0 2)) " * 20_000 + "))", "expands to more than"),
    ("(assert " + "(and (or (<= Y_0 1) " * 90 + "(<= Y_0 3)" + ") (or (<= Y_0 1) (>= Y_0 2)))" * 90 + ")",
     "expands to more"),
    ("(assert (or " + " ".join(f"(<= Y_0 {k})" for k in range(60_000)) + "))"
     + "".join(f"(assert (>= Y_1 {k}))" for k in range(60)), "expands to more"),
])
def test_explosions_are_refused_in_no_time(body: str, says: str | None) -> None:
    start = time.monotonic()
    if says is None:
        assert not unsafe(read(body), (0, 0), (0, 0))
    else:
        with pytest.raises(VnnlibError, match=says) as caught:
            read(body)
        assert len(str(caught.value)) < 300
    assert time.monotonic() - start < 5


def test_regions_and_rows_are_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    many = "(assert (or " + " ".join(f"(and (<= X_0 0.{k}) (<= Y_0 {k}))" for k in range(1, 9)) + "))"
    assert len(read(many).regions) == 8
    monkeypatch.setattr(formula, "MAX_ENDS", 16)
    with pytest.raises(VnnlibError, match="more than 5 input regions of 2 inputs"):
        read(many)
    monkeypatch.setattr(formula, "MAX_ENDS", 1000)
    monkeypatch.setattr(formula, "MAX_COEFFICIENTS", 15)
    with pytest.raises(VnnlibError, match="8 comparisons over 2 variables"):
        read(many)


def test_a_coefficient_beyond_floats_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="the coefficient inf of a row has no exact 53-bit form"):
        read("(assert (<= (* 1e400 Y_0) 1))").tensors((2,), dtype=torch.float64)
