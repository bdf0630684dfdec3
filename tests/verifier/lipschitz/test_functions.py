"""Functions of the outputs against decimal arithmetic, samples and finite differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bounds.interval import Interval
from verifier.lipschitz.functions import (
    NORMS,
    Absolute,
    Confidence,
    Convex,
    Distance,
    Exponential,
    LargestDistance,
    Linear,
    Logit,
    Margin,
    OutputFunction,
    Square,
    SumOfConvex,
    exponential,
)

OUTPUTS = 4
FUNCTIONS: dict[str, OutputFunction] = {
    "linear": Linear((0.5, -1.0, 0.0, 2.0), 0.25), "logit": Logit(index=2), "difference": Logit(index=0, less=3),
    "margin": Margin(1), "confidence": Confidence(2), "l1": Distance(1.0, (0.5, 0.0, -1.0, 2.0)), "l2": Distance(2.0),
    "linf": LargestDistance((0.5, 0.0, -1.0, 2.0)),
}
SUMS = {name: f for name, f in FUNCTIONS.items() if isinstance(f, SumOfConvex)}
NUMBERS = st.floats(-30, 30)


def by_definition(name: str, y: Tensor) -> Tensor:
    """The same from PyTorch's own words: "P 4" -> "P"."""
    to = torch.tensor([0.5, 0.0, -1.0, 2.0], dtype=y.dtype)
    others = y[:, [0, 2, 3]].amax(1)
    return {"linear": 0.5 * y[:, 0] - y[:, 1] + 2 * y[:, 3] + 0.25, "logit": y[:, 2], "difference": y[:, 0] - y[:, 3],
            "margin": y[:, 1] - others, "confidence": torch.softmax(y, 1)[:, 2], "l1": (y - to).abs().sum(1),
            "l2": y.norm(dim=1), "linf": (y - to).abs().amax(1)}[name]


def parts(function: OutputFunction, y: Tensor) -> Tensor:
    C, c = function.rows(y.shape[1])
    return y @ C.T + c


def boxes(seed: int, width: float, count: int = 40) -> Interval:
    random = torch.Generator().manual_seed(seed)
    low = 6 * torch.randn(count, OUTPUTS, generator=random, dtype=torch.float64)
    return Interval(low, low + width * torch.rand(count, OUTPUTS, generator=random, dtype=torch.float64))


def samples(z: Interval, seed: int) -> Iterator[Tensor]:
    """Corners, the middle, and points inside."""
    for corner in product((0.0, 1.0), repeat=z.lower.shape[1]):
        yield torch.where(torch.tensor(corner) > 0, z.upper, z.lower)
    random = torch.Generator().manual_seed(seed)
    yield z.centre
    for _ in range(30):
        yield z.lower + (z.upper - z.lower) * torch.rand(z.lower.shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_is_the_definition(name: str) -> None:
    y = 5 * torch.randn(200, OUTPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(FUNCTIONS[name].value(y), by_definition(name, y))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("width", [0.0, 0.1, 5.0])
def test_enclosure_holds_the_values_and_is_met_at_a_corner(name: str, width: float) -> None:
    function = FUNCTIONS[name]
    K = function.rows(OUTPUTS)[0].shape[0]
    z = boxes(1, width).map(lambda t: t[:, :K])
    found = function.enclosure(z)
    values = torch.stack([function.of(point) for point in samples(z, 2)])
    assert bool((found.lower <= values.amin(0) + 1e-13 * (1 + values.amin(0).abs())).all())
    assert bool((found.upper >= values.amax(0) - 1e-13 * (1 + values.amax(0).abs())).all())
    torch.testing.assert_close(found.upper, values.amax(0), rtol=1e-9, atol=1e-12)
    if name not in ("l1", "l2", "linf"):  # whose least value may lie inside
        torch.testing.assert_close(found.lower, values.amin(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("width", [0.0, 0.1, 5.0])
def test_slopes_hold_the_gradients(name: str, width: float) -> None:
    function = FUNCTIONS[name]
    K = function.rows(OUTPUTS)[0].shape[0]
    z = boxes(3, width).map(lambda t: t[:, :K])
    ends = function.slopes(z)
    for point in samples(z, 4):
        leaf = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function.of(leaf).sum(), leaf)
        assert bool((ends.lower <= slope + 1e-12).all())
        assert bool((slope <= ends.upper + 1e-12).all())


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("width", [0.0, 0.1, 5.0])
def test_planes_enclose_the_function(name: str, width: float) -> None:
    function = SUMS[name]
    z = boxes(5, width).map(lambda t: t[:, :function.rows(OUTPUTS)[0].shape[0]])
    planes = function.planes(z)
    assert bool(planes.held.all())
    for point in samples(z, 6):
        below = (planes.below_slope * point).sum(1) + planes.below
        above = (planes.above_slope * point).sum(1) + planes.above
        ends = function.link(Interval(below, above))
        value = function.of(point)
        assert bool((ends.lower <= value + 1e-12 * (1 + value)).all())
        assert bool((value <= ends.upper + 1e-12 * (1 + value)).all())


@pytest.mark.parametrize("name", ["confidence", "l2"])
def test_planes_lose_a_term_of_second_order(name: str) -> None:
    """Halving a small box divides their gap by four."""
    function = SUMS[name]
    gaps = []
    for width in (0.1, 0.05):
        z = Interval(torch.full((1, 3), 0.7, dtype=torch.float64), torch.full((1, 3), 0.7 + width, dtype=torch.float64))
        planes = function.planes(z)
        middle = z.centre
        gaps.append(float(((planes.above_slope - planes.below_slope) * middle).sum() + planes.above - planes.below))
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def exact(convex: Convex, z: float) -> Decimal:
    number = Decimal(z)
    if isinstance(convex, Exponential):
        return number.exp()
    return number * number if isinstance(convex, Square) else abs(number)


@given(st.sampled_from([Exponential(), Square(), Absolute()]), NUMBERS, st.floats(0, 8), st.floats(0, 1))
def test_lines_hold_in_decimal_arithmetic(convex: Convex, low: float, width: float, share: float) -> None:
    high = low + width
    at = min(max(low + share * width, low), high)
    z = Interval(*(torch.tensor([v], dtype=torch.float64) for v in (low, high)))
    slope, constant = (float(t) for t in convex.tangent(z.centre))
    above, constant_above = (float(t) for t in convex.chord(z))
    value = convex.at(torch.tensor([at], dtype=torch.float64))
    with localcontext() as context:
        context.prec = 60 if isinstance(convex, Exponential) else 1600  # of squares all digits
        truth = exact(convex, at)
        assert Decimal(slope) * Decimal(at) + Decimal(constant) <= truth
        assert Decimal(above) * Decimal(at) + Decimal(constant_above) >= truth
        assert Decimal(float(value.lower)) <= truth <= Decimal(float(value.upper))
        assert Decimal(float(convex.least_on(z))) <= truth <= Decimal(float(convex.most_on(z)))


@given(st.floats(-800, 800))
def test_exponential_is_enclosed(z: float) -> None:
    ends = exponential(torch.tensor([z], dtype=torch.float64))
    with localcontext() as context:
        context.prec = 60
        truth = Decimal(z).exp()
        assert Decimal(float(ends.lower)) <= truth <= Decimal(float(ends.upper))
    if abs(z) < 600:
        assert float(ends.upper) <= float(ends.lower) * (1 + 1e-13)


@given(st.lists(NUMBERS, min_size=3, max_size=3))
def test_confidence_of_a_point_is_enclosed_in_decimal_arithmetic(numbers: list[float]) -> None:
    z = torch.tensor([numbers], dtype=torch.float64)
    ends = Confidence(0).enclosure(Interval(z, z))
    with localcontext() as context:
        context.prec = 60
        truth = 1 / (1 + sum((Decimal(v).exp() for v in numbers), Decimal(0)))
        assert Decimal(float(ends.lower)) <= truth <= Decimal(float(ends.upper))


def test_confidence_of_wide_boxes_is_no_nan() -> None:
    z = Interval(torch.full((1, 3), -2000.0, dtype=torch.float64), torch.full((1, 3), 2000.0, dtype=torch.float64))
    function = Confidence(0)
    found, planes = function.enclosure(z), function.planes(z)
    assert float(found.lower) == 0.0
    assert float(found.upper) == 1.0
    assert not bool(planes.held)
    assert bool(torch.isfinite(torch.cat([p.flatten().double() for p in planes])).all())
    assert bool(torch.isfinite(function.slopes(z).lower).all())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1e-3, 1.0, 20.0]))
def test_lipschitz_inequality(name: str, norm: float, seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    y = torch.randn(64, OUTPUTS, generator=random, dtype=torch.float64)
    step = scale * torch.randn(64, OUTPUTS, generator=random, dtype=torch.float64)
    step = step * (torch.rand(64, OUTPUTS, generator=random) < 0.6)
    function = FUNCTIONS[name]
    L = function.lipschitz(OUTPUTS, norm)
    rise = (function.value(y + step) - function.value(y)).abs()
    run = torch.linalg.vector_norm(step, ord=norm, dim=1)
    assert bool((rise <= L * run + 1e-12).all())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_lipschitz_constant_is_nearly_reached(name: str, norm: float) -> None:
    """By some gradient: at points where the confidence is one half, and along all signs."""
    function = FUNCTIONS[name]
    signs = torch.tensor(list(product((-3.0, 0.0, 3.0), repeat=OUTPUTS)), dtype=torch.float64)
    half = torch.tensor([[-80.0, -80.0, 0.0, 0.0], [0.0, -80.0, 0.0, -80.0]], dtype=torch.float64)
    y = torch.cat([signs + torch.tensor([0.5, 0.01, -1.0, 2.0]), signs, half]).requires_grad_()
    (slope,) = torch.autograd.grad(function.value(y).sum(), y)
    dual = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}[norm]
    steepest = float(torch.linalg.vector_norm(slope, ord=dual, dim=1).max())
    assert steepest == pytest.approx(function.lipschitz(OUTPUTS, norm), rel=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="4 weights"):
        FUNCTIONS["linear"].rows(3)
    for function in (Logit(index=4), Margin(4), Confidence(-1)):
        with pytest.raises(ValueError, match="output from 0 to 3"):
            function.rows(4)
    with pytest.raises(ValueError, match="at least 2"):
        Margin(0).rows(1)
    with pytest.raises(ValueError, match="norm"):
        Distance(math.inf)
    with pytest.raises(ValueError, match="4 entries"):
        LargestDistance((0.0,) * 4).rows(3)
    with pytest.raises(ValueError, match="norm"):
        Margin(0).lipschitz(3, 0.5)
