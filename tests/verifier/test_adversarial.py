"""Networks made to fool floating point: numbers that absorb, cancel, vanish or overflow. Over the reals each of them
computes a known function; what is unsafe there is never verified, in whatever order and precision it is bounded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bounds import Graph
from tests.verifier.models import save_network, spec
from verifier import read_vnnlib, verify
from verifier.verdict import Evidence, Verified

Layers = list[tuple[np.ndarray, np.ndarray]]
BIG = float(np.float32(2.0 ** 30))


def absorbed() -> Layers:
    """(x + B) - B, which single precision computes as zero."""
    return [(np.array([[1.0]]), np.array([BIG])), (np.array([[1.0]]), np.array([-BIG]))]


def cancelling() -> Layers:
    """B x - B x + x, as two neurons that cancel and one that is left."""
    return [(np.array([[BIG], [BIG], [1.0]]), np.array([4 * BIG, 4 * BIG, 2.0])),
            (np.array([[1.0, -1.0, 1.0]]), np.array([-2.0]))]


def ordered(shift: int) -> Layers:
    """A sum of many small terms between two large ones that cancel: what is left depends on the order."""
    n = 40
    first = np.full((n + 2, 1), 1.0 / n)
    first[[shift, n + 1], 0] = 0.0
    bias = np.full(n + 2, 1.0)
    bias[shift], bias[n + 1] = BIG, BIG
    second = np.ones((1, n + 2))
    second[0, n + 1] = -1.0
    return [(first, bias), (second, np.array([-float(n)]))]


def heavy() -> Layers:
    """Weights of 1e8 and their inverses: x again, through neurons that are far from zero."""
    w = float(np.float32(1e8))
    return [(np.array([[w]]), np.array([4 * w])), (np.array([[1 / w]]), np.array([-4.0]))]


def vanishing() -> Layers:
    """x through a weight whose product is below the smallest normal number, and back."""
    return [(np.array([[2.0 ** -130]]), np.array([2.0 ** -128])), (np.array([[2.0 ** 120]]), np.array([-2.0 ** -8])),
            (np.array([[2.0 ** 10]]), np.array([0.0]))]


def overflowing() -> Layers:
    """x through numbers that single precision does not hold."""
    return [(np.array([[2.0 ** 100]]), np.array([2.0 ** 102])), (np.array([[2.0 ** 100]]), np.array([0.0])),
            (np.array([[2.0 ** -100]]), np.array([0.0])), (np.array([[2.0 ** -100]]), np.array([-4.0]))]


NETWORKS: list[Callable[[], Layers]] = [absorbed, cancelling, lambda: ordered(0), lambda: ordered(20), heavy, vanishing,
                                        overflowing]
NAMES = ["absorbed", "cancelling", "ordered first", "ordered middle", "heavy", "vanishing", "overflowing"]


def exactly(layers: Layers, x: Fraction) -> Fraction:
    """The network over the reals, with the parameters as stored; ReLUs between the layers."""
    values = [x]
    for k, (weight, bias) in enumerate(layers):
        w, b = weight.astype(np.float32), bias.astype(np.float32)
        values = [sum((Fraction(float(a)) * v for a, v in zip(row, values, strict=True)), Fraction(float(c)))
                  for row, c in zip(w, b, strict=True)]
        if k < len(layers) - 1:
            values = [max(v, Fraction(0)) for v in values]
    return values[0]


@pytest.mark.parametrize("small", [0, 1000], ids=["float32", "float64"])  # networks of so many weights are doubled
@pytest.mark.parametrize("method", ["auto", "crown", "alpha-crown", "ibp", "bab"])
@pytest.mark.parametrize("make", NETWORKS, ids=NAMES)
def test_what_is_unsafe_over_the_reals_is_never_verified(make: Callable[[], Layers], method: str, small: int,
                                                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", small)
    layers = make()
    net = save_network(tmp_path / "net.onnx", layers)
    graph = Graph.from_onnx(net)
    for sign, end in ((">=", Fraction(1)), ("<=", Fraction(-1))):
        reached = exactly(layers, end)
        for share in (Fraction(999, 1000), Fraction(1)):
            text = spec([(-1.0, 1.0)], 1, f"({sign} Y_0 {_decimal(reached * share)})")
            result = verify(graph, read_vnnlib(text.encode()), replayer=net, method=method, time_limit_s=2.0)
            assert not isinstance(result.verdict, Verified), (sign, float(reached), result)


@pytest.mark.parametrize("make", [cancelling, heavy], ids=["cancelling", "heavy"])
def test_what_is_safe_with_room_is_verified_all_the_same(make: Callable[[], Layers], tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.onnx", make())
    result = verify(Graph.from_onnx(net), read_vnnlib(spec([(-1.0, 1.0)], 1, "(>= Y_0 1.5)").encode()), replayer=net,
                    time_limit_s=10.0)
    assert isinstance(result.verdict, Verified)
    assert result.evidence is Evidence.ROUNDED


def _decimal(value: Fraction) -> str:
    """A decimal that is the rational exactly (its denominator is a power of two and of ten)."""
    digits = 0
    while (value * 10 ** digits).denominator != 1:
        digits += 1
    number = int(value * 10 ** digits)
    sign, number = ("-" if number < 0 else ""), abs(number)
    text = str(number).rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else f"{sign}{text}"
