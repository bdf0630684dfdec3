"""Properties: exact membership, the rounded numeric view, robustness."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.property import Branch, Property, Region, Row, robustness
from verifier.vnnlib import read_vnnlib

ONE = Fraction(1)


def up32(value: float) -> np.float32:
    return np.nextafter(np.float32(value), np.float32(np.inf))


def down32(value: float) -> np.float32:
    return np.nextafter(np.float32(value), np.float32(-np.inf))


def tiny(rows: tuple[Row, ...], low: str = "0", high: str = "1") -> Property:
    return Property((Branch(Region((low, low), (high, high)), rows),), 2, 2)


def test_closed_rows_accept_equality_and_open_rows_do_not() -> None:
    x, y = np.zeros(2, dtype=np.float32), np.array([1, 1], dtype=np.float32)
    row = Row(((0, ONE), (1, -ONE)), (), Fraction(0))
    assert tiny((row,)).holds_unsafe(x, y)
    assert not tiny((Row(row.y, row.x, row.bound, strict=True),)).holds_unsafe(x, y)
    assert not tiny((row,)).holds_unsafe(x, np.array([up32(1), 1], dtype=np.float32))


def test_thresholds_are_the_decimals_as_written() -> None:
    """0.1 is not a float32: the float32 next to it on the wrong side does not satisfy the row."""
    prop = tiny((Row(((0, ONE),), (), Fraction("0.1")),))
    x = np.zeros(2, dtype=np.float32)
    assert Fraction(float(np.float32(0.1))) > Fraction("0.1")
    assert not prop.holds_unsafe(x, np.array([0.1, 0], dtype=np.float32))
    assert prop.holds_unsafe(x, np.array([down32(0.1), 0], dtype=np.float32))


def test_float32_points_are_held_against_the_rounded_box_and_float64_points_against_the_decimal_one() -> None:
    prop = tiny((), "0.1", "0.3")
    low, high = np.float32(0.1), np.float32(0.3)
    y = np.zeros(2)
    assert prop.holds_unsafe(np.array([low, high]), y)
    assert not prop.holds_unsafe(np.array([np.nextafter(low, np.float32(0)), high]), y)
    assert not prop.holds_unsafe(np.array([low, np.nextafter(high, np.float32(1))]), y)
    assert not prop.holds_unsafe(np.array([0.2, float(high)]), y), "the float32 0.3 exceeds the decimal 0.3"
    assert prop.holds_unsafe(np.array([0.2, math.nextafter(0.3, 1) if Fraction(0.3) < Fraction("0.3") and
                                       Fraction(math.nextafter(0.3, 1)) <= Fraction("0.3") else 0.299]), y)
    region = prop.regions[0]
    assert region.excess(np.array([low, high])) == pytest.approx(
        float(Fraction(float(high)) - Fraction("0.3")), rel=1e-12)
    assert region.excess(np.array([0.2, 0.2])) == 0.0


@given(st.lists(st.tuples(st.floats(-300, 300), st.booleans(), st.booleans()), min_size=1, max_size=5),
       st.sampled_from([0.0, 1e-9, 0.007, 0.1, 1 / 3, 2.5, 100.0]), st.sampled_from([math.inf, 2.0, 1.0]),
       st.sampled_from([None, (-300.0, 300.0), (-300.1, 300.1)]))
@settings(max_examples=200, deadline=None)
def test_float32_points_of_robustness_lie_inside_exactly_and_the_next_ones_do_not(
        features: list[tuple[float, bool, bool]], eps: float, norm: float, clip: tuple[float, float] | None) -> None:
    """Whatever bounds prove of the ball holds at every witness; and rounding inward costs less than one float32."""
    x = np.array([float(np.float32(v)) if single else v for v, single, _ in features])
    mask = np.array([free for _, _, free in features])
    region = robustness(x, 0, eps, classes=2, norm=norm, clip=clip, mask=mask).regions[0]
    radius = Fraction(str(eps))
    bounds = (-math.inf, math.inf) if clip is None else (Fraction(str(clip[0])), Fraction(str(clip[1])))
    ends = [(region.lower32, -np.float32(np.inf)), (region.upper32, np.float32(np.inf))]
    for end, outward in ends:
        for i, centre in enumerate(map(Fraction, x.tolist())):
            point = x.astype(np.float32)
            point[i] = end[i]
            if region.contains(point):
                moves = [abs(Fraction(float(p)) - Fraction(c)) for p, c in zip(point, x.tolist(), strict=True)]
                assert max(moves) <= radius
                assert bounds[0] <= Fraction(float(end[i])) <= bounds[1] or not mask[i]
                assert mask[i] or end[i] == np.float32(x[i])
            beyond = Fraction(float(np.nextafter(end[i], outward)))
            assert abs(beyond - centre) > radius or not bounds[0] <= beyond <= bounds[1] or not mask[i]
    assert region.contains(x.astype(np.float32)) or bool((x != x.astype(np.float32)).any())


def test_a_ball_between_two_float32_holds_none_and_a_pinned_feature_is_the_nearest() -> None:
    x, y = np.array([0.1, 0.5]), np.zeros(2)
    single = x.astype(np.float32)
    for norm in (math.inf, 2.0, 1.0):
        narrow = robustness(x, 0, 1e-9, classes=2, norm=norm)
        assert not narrow.holds_unsafe(single, y), "the float32 0.1 lies 1.5e-9 away"
        assert bool(narrow.tensors((2,), dtype=torch.float32).replay_sets.contains(torch.from_numpy(single)[None]))
        pinned = robustness(x, 0, 0.25, classes=2, norm=norm, mask=np.array([False, True]))
        assert pinned.holds_unsafe(single, y)
        assert pinned.regions[0].excess(single) == pytest.approx(1.49e-9, rel=0.01)
        assert not robustness(x, 0, 1e-9, classes=2, norm=norm, mask=np.array([False, True])).holds_unsafe(single, y)


def test_values_that_are_not_finite_are_never_unsafe() -> None:
    prop = tiny(())
    x = np.zeros(2, dtype=np.float32)
    assert prop.holds_unsafe(x, np.zeros(2, dtype=np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        assert not prop.holds_unsafe(x, np.array([bad, 0], dtype=np.float32))
        assert not prop.holds_unsafe(np.array([bad, 0], dtype=np.float32), np.zeros(2, dtype=np.float32))


rationals = st.fractions(min_value=-3, max_value=3, max_denominator=7)
dyadic = st.integers(-24, 24).map(lambda i: Fraction(i, 8))


@st.composite
def properties(draw) -> Property:  # type: ignore[no-untyped-def]
    regions = []
    for _ in range(draw(st.integers(1, 3))):
        ends = [sorted((draw(rationals), draw(rationals))) for _ in range(2)]
        regions.append(Region(tuple(e[0] for e in ends), tuple(e[1] for e in ends)))
    branches = []
    for _ in range(draw(st.integers(1, 4))):
        rows = []
        for _ in range(draw(st.integers(1, 3))):
            y = tuple((i, c) for i in range(3) if (c := draw(dyadic)))
            x = tuple((j, c) for j in range(2) if (c := draw(st.sampled_from([Fraction(0), ONE, Fraction(-1, 2)]))))
            rows.append(Row(y, x, draw(rationals), draw(st.booleans())))
        branches.append(Branch(draw(st.sampled_from(regions)), tuple(rows)))
    return Property(tuple(branches), 2, 3)


@given(properties(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_tensors_never_call_an_unsafe_point_safe(prop: Property, dtype: torch.dtype, seed: int) -> None:
    """Numeric view against the exact one at random points: unsafe implies every row's v <= rounding."""
    tensors = prop.tensors((2,), dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    for u, points in enumerate(tensors.replay_sets.sample(20, g)):
        y = (torch.randint(-32, 32, (20, 3), generator=g) / 8).to(dtype)
        v = tensors.violation(points, y)
        margin = tensors.branch_margin(v)
        if dtype == torch.float32:  # in float64 a decimal's nearest float32 may lie outside its hull
            assert bool(tensors.sets.contains(points, torch.full((20,), u)).all())
        for i in range(20):
            k = prop.unsafe_branch(points[i].float().numpy(), y[i].numpy())
            if k is not None:
                assert float(margin[i, k]) <= 1e-5
            exact = [max(r.violation(points[i].numpy(), y[i].numpy()) for r in b.rows) for b in prop.branches]
            assert margin[i].tolist() == pytest.approx([float(e) for e in exact], abs=1e-4)
    exact_bounds = [r.bound for b in prop.branches for r in b.rows]
    assert all(Fraction(b) >= e for b, e in zip(tensors.bound.tolist(), exact_bounds, strict=True))
    for u, region in enumerate(prop.regions):
        for j in range(2):
            assert Fraction(float(tensors.sets.lower[u, j])) <= region.exact_lower[j]
            assert Fraction(float(tensors.sets.upper[u, j])) >= region.exact_upper[j]


def test_tensor_layout() -> None:
    text = """(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)
    (assert (or (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0) (<= (+ Y_0 X_1) 0.5) (< Y_1 2))
                (and (<= X_0 3) (>= X_0 2) (<= X_1 1) (>= X_1 0) (>= Y_0 Y_1))
                (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0) (<= Y_0 -1))))"""
    t = read_vnnlib(text.encode()).tensors((1, 2), dtype=torch.float64)
    assert t.sets.batch == 2
    assert t.sets.shape == (1, 2)
    assert t.branch.tolist() == [0, 0, 1, 2]
    assert t.region.tolist() == [0, 0, 1, 0]
    assert t.branch_region.tolist() == [0, 1, 0]
    assert t.strict.tolist() == [False, True, False, False]
    assert t.C.tolist() == [[1, 0], [0, 1], [-1, 1], [1, 0]]
    assert t.D is not None
    assert t.D.tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]
    assert t.bound.tolist() == [0.5, 2, 0, -1]
    assert t.decided(torch.tensor([0.0, 0.0, 0.0, 1e-9])).tolist() == [True, False, True]
    assert t.decided(torch.full((4,), math.nan)).tolist() == [False] * 3
    v = torch.tensor([[1.0, -1.0, 3.0, -2.0]], dtype=torch.float64)
    assert t.branch_margin(v).tolist() == [[1.0, 3.0, -2.0]]


def test_coefficients_without_an_exact_float_are_scaled_or_refused() -> None:
    prop = tiny((Row(((0, Fraction("0.1")), (1, Fraction("-0.3"))), (), Fraction("0.7")),))
    t = prop.tensors((2,), dtype=torch.float32)
    assert float(t.C[0, 1] / t.C[0, 0]) == -3.0
    assert 0.05 < float(t.C[0, 0]) < 0.2, "the scale of the row hardly changes"
    assert Fraction(float(t.bound[0])) >= Fraction(float(t.C[0, 0])) * 7
    fine = tiny((Row(((0, ONE), (1, Fraction(2**40 + 1))), (), Fraction(0)),))
    assert fine.tensors((2,), dtype=torch.float64).C[0, 1] == 2**40 + 1
    with pytest.raises(ValueError, match="no exact 24-bit form"):
        fine.tensors((2,), dtype=torch.float32)


def test_only_output_comparisons_survive_a_softmax() -> None:
    def says(*rows: Row) -> bool:
        return tiny(rows).compares_outputs_only
    compare = Row(((0, Fraction(2)), (1, Fraction(-2))), (), Fraction(0))
    assert says(compare)
    assert not says(compare, Row(((0, ONE),), (), Fraction(0)))
    assert not says(Row(((0, ONE), (1, -ONE)), (), Fraction(1)))
    assert not says(Row(((0, ONE), (1, ONE)), (), Fraction(0)))
    assert not says(Row(((0, ONE), (1, -ONE)), ((0, ONE),), Fraction(0)))


def test_robustness_has_one_branch_a_class_and_exact_ends() -> None:
    x = np.array([0.0, 0.25, 1.0], dtype=np.float32)
    prop = robustness(x, 1, 0.1, classes=4, clip=(0.0, 1.0), mask=np.array([True, True, False]))
    assert len(prop.branches) == 3
    assert len(prop.regions) == 1
    region = prop.regions[0]
    assert region.exact_lower == (0, Fraction(3, 20), 1)
    assert region.exact_upper == (Fraction(1, 10), Fraction(7, 20), 1)
    y = np.array([0.5, 0.5, 0.1, 0.1], dtype=np.float32)
    assert prop.unsafe_branch(x, y) == 0, "a tie is unsafe"
    assert prop.unsafe_branch(x, np.array([0.4, 0.5, 0.1, 0.1], dtype=np.float32)) is None
    targeted = robustness(x, 1, 0.1, classes=4, target=3)
    assert not targeted.holds_unsafe(x, y)
    assert targeted.holds_unsafe(x, np.array([0, 0, 0, 1], dtype=np.float32))
    assert prop.compares_outputs_only


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_ball_membership_is_exact(norm: float) -> None:
    x = np.array([0.5, 0.5], dtype=np.float32)
    prop = robustness(x, 0, 0.25, classes=2, norm=norm)
    y = np.zeros(2, dtype=np.float32)
    assert prop.holds_unsafe(np.array([0.75, 0.5], dtype=np.float32), y)
    assert not prop.holds_unsafe(np.array([0.75, up32(0.5)], dtype=np.float32), y)
    t = prop.tensors((2,), dtype=torch.float32)
    assert t.sets.p == norm
    assert not t.sets.is_box
    assert bool(t.sets.contains(torch.tensor([[0.75, 0.5]])))


@pytest.mark.parametrize(("settings_", "message"), [
    ({"label": 3}, "label out of range: expected 0 to 2, got 3"),
    ({"label": -1}, "label out of range"),
    ({"target": 0}, "target must be a class"),
    ({"target": 9}, "target must be a class"),
    ({"eps": -0.1}, "eps must be >= 0"),
    ({"eps": math.nan}, "finite"),
    ({"norm": 3}, "norm must be"),
    ({"mask": np.ones(5, dtype=bool)}, "mask has 5 entries"),
    ({"clip": (0.0, 0.1)}, "outside the clip range"),
    ({"x": np.array([np.nan, 0])}, "not finite"),
])
def test_bad_robustness_questions_are_refused(settings_: dict, message: str) -> None:
    arguments = {"x": np.array([0.5, 0.0]), "label": 0, "eps": 0.1, "classes": 3, **settings_}
    with pytest.raises(ValueError, match=message):
        robustness(arguments.pop("x"), arguments.pop("label"), arguments.pop("eps"), **arguments)


BESIDE = next(k / 1000 for k in range(1, 1000) if float(np.float32(k / 1000)) > k / 1000)  # its float32 lies above it


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_input_that_is_the_float32_of_an_end_lies_in_the_range(norm: float, sign: int) -> None:
    """Over the reals it lies beyond; the region ends with the range all the same, exactly."""
    x = np.array([sign * BESIDE, 0.0], dtype=np.float32)
    clip = (-1.0, BESIDE) if sign > 0 else (-BESIDE, 1.0)
    region = robustness(x, 0, 0.1, classes=2, norm=norm, clip=clip).regions[0]
    ends = region.exact_upper if sign > 0 else region.exact_lower
    assert ends[0] == sign * Fraction(repr(BESIDE))
    assert not region.contains(x), "the point itself does not"
    inside = np.array([np.nextafter(x[0], np.float32(0)), 0.0], dtype=np.float32)
    assert region.contains(inside)
    next_to_it = np.array([np.nextafter(x[0], np.float32(2 * sign)), 0.0], dtype=np.float32)
    for wrong, eps in ((next_to_it, 0.1), (x, 0.0), (x, 1e-12)):  # too far, or eps does not reach the range
        with pytest.raises(ValueError, match="outside the clip range"):
            robustness(wrong, 0, eps, classes=2, norm=norm, clip=clip)
    pinned = np.array([False, True])
    assert robustness(next_to_it, 0, 0.1, classes=2, norm=norm, clip=clip, mask=pinned).regions


def test_wrong_shapes_are_refused() -> None:
    prop = tiny(())
    with pytest.raises(ValueError, match="2 inputs, the network 3"):
        prop.tensors((3,), dtype=torch.float32)
    with pytest.raises(ValueError, match="expected 2 inputs and 2 outputs"):
        prop.holds_unsafe(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="out of range"):
        tiny((Row(((5, ONE),), (), ONE),))
    with pytest.raises(ValueError, match="at least one branch"):
        Property((), 1, 1)


def test_a_row_that_names_a_variable_twice_is_refused() -> None:
    """Its coefficients would be added by the exact view and overwritten by the numeric one."""
    for row in (Row(((0, -2 * ONE), (0, ONE)), (), -ONE), Row(((0, ONE),), ((1, ONE), (1, ONE)), ONE)):
        with pytest.raises(ValueError, match="twice"):
            tiny((row,))
