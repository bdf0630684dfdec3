"""Enclosures of smooth functions, and the lines made with them, against 300 bits: they must hold always, not nearly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from bounds.interval import Interval
from bounds.ops import enclose, proved_lines
from bounds.ops.base import Elementwise
from bounds.ops.elu import Elu
from bounds.ops.round_off import unit
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.softplus import Softplus
from bounds.ops.tanh import Tanh
from bounds.relaxation import Relaxation
from tests.bounds.ops.grids import intervals

DTYPES = [torch.float32, torch.float64]
BITS = 300
WIDTH_UNITS = 52     # ends of an enclosure: 24 units each, and their own rounding
LINE_UNITS = 140     # of a line: two enclosures, over the whole interval, and its margin
Real = Callable[[mpf], mpf]


@pytest.fixture(autouse=True)
def _precise():  # type: ignore[no-untyped-def]
    with mp.workprec(BITS):
        yield


def sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-z))


def softplus(z: mpf) -> mpf:
    return max(z, mpf(0)) + mpmath.log1p(mpmath.exp(-abs(z)))


def points(dtype: torch.dtype) -> Tensor:
    """Random numbers of all sizes, an even grid, multiples of log 2, what the formats cut off, zeros, denormals."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (torch.rand(1500, generator=generator, dtype=torch.float64) * 12 - 9)
    drawn = torch.randn(1500, generator=generator, dtype=torch.float64) * size
    halves = torch.arange(-130, 131, dtype=torch.float64) * float(enclose.LOG_2) / 2
    tiny = torch.finfo(dtype).tiny
    few = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 8, -tiny / 8, tiny * torch.finfo(dtype).eps, 1e-300,
                        43.0, 43.001, 86.0, 86.001, 87.0, 104.0, 350.0, 350.01, 700.0, 700.01, 745.0, 746.0, 1e5,
                        1e30, 3e38], dtype=torch.float64)
    every = torch.cat([drawn, torch.linspace(-50, 50, 1001, dtype=torch.float64), halves, few, -few]).to(dtype)
    near = torch.cat([torch.nextafter(halves.to(dtype), torch.tensor(s * torch.inf, dtype=dtype)) for s in (-1, 1)])
    return torch.cat([every, near])


@dataclass(frozen=True)
class Function:
    name: str
    enclose: Callable[[Tensor], Interval]
    exact: Real


FUNCTIONS = [
    Function("tanh", enclose.tanh, mpmath.tanh),
    Function("tanh, with its slope", lambda z: enclose.tanh_and_slope(z)[0], mpmath.tanh),
    Function("tanh'", lambda z: enclose.tanh_and_slope(z)[1], lambda z: 1 / mpmath.cosh(z) ** 2),
    Function("sigmoid", enclose.sigmoid, sigmoid),
    Function("expm1", enclose.expm1, lambda z: mpmath.expm1(min(z, mpf(0)))),
    Function("expm1, with its slope", lambda z: enclose.expm1_and_slope(z)[0], lambda z: mpmath.expm1(min(z, mpf(0)))),
    Function("exp", lambda z: enclose.expm1_and_slope(z)[1], lambda z: mpmath.exp(min(z, mpf(0)))),
    Function("softplus", lambda z: enclose.softplus_and_slope(z)[0], softplus),
    Function("softplus'", lambda z: enclose.softplus_and_slope(z)[1], sigmoid),
]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def missed(function: Function, z: Tensor) -> list[float]:
    """Where the enclosure does not hold the value."""
    found = function.enclose(z)
    return [float(x) for x, low, high in zip(*(t.double().tolist() for t in (z, found.lower, found.upper)), strict=True)
            if not mpf(low) <= function.exact(mpf(x)) <= mpf(high)]


@every_dtype
@every_function
def test_enclosures_hold_the_value(function: Function, dtype: torch.dtype) -> None:
    assert missed(function, points(dtype)) == []


@every_dtype
@every_function
def test_enclosures_are_narrow(function: Function, dtype: torch.dtype) -> None:
    """49 units of the value; near what underflows, and beyond what is computed, a few of the smallest numbers."""
    z = points(dtype)
    found, most = function.enclose(z), enclose._FORMATS[dtype].most / 2
    spare = 6 * torch.finfo(dtype).tiny
    for x, low, high in zip(*(t.double().tolist() for t in (z, found.lower, found.upper)), strict=True):
        if abs(x) <= most:
            value = abs(function.exact(mpf(x)))
            assert mpf(high) - mpf(low) <= WIDTH_UNITS * unit(dtype) * value + spare, x


@every_dtype
@every_function
def test_roundings_are_there_to_be_paid_for(function: Function, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
                                            ) -> None:
    """Without the units paid, values are off; what is counted (20 units) is a bound of it."""
    def off(units: float) -> int:
        monkeypatch.setattr(enclose, "VALUE_UNITS", units)
        z = points(dtype)
        return len(missed(function, z[z.abs() < 40]))
    assert off(0) > 100
    assert off(20) == 0


@pytest.mark.parametrize(("lost", "terms"), [("low", 0), ("above", 1), ("below", 1), ("artanh", 4)])
def test_every_constant_matters(lost: str, terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: log 2 without its second part, polynomials and the series without their last terms."""
    form = enclose._FORMATS[torch.float64]
    fault = 0.0 if lost == "low" else (0.0,) * terms + getattr(form, lost)[terms:]
    parts = {**form.__dict__, lost: fault}
    monkeypatch.setitem(enclose._FORMATS, torch.float64, enclose._Format(**parts))
    assert any(missed(f, points(torch.float64)) for f in FUNCTIONS)


# ---------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Smooth:
    """An operator, its function, and where f' takes a value (whatever lies in between)."""

    name: str
    op: Elementwise
    exact: Real
    where: Callable[[mpf], list[mpf]]
    drop: float = 0.0


def _tanh_where(s: mpf) -> list[mpf]:
    if not 0 < s < 1:
        return [mpf(0)]
    p = mpmath.atanh(mpmath.sqrt(1 - s))
    return [p, -p]


def _softplus(op: Softplus) -> Smooth:
    beta = mpf(op.beta)

    def exact(z: mpf) -> mpf:
        return z if beta * z > op.threshold else softplus(beta * z) / beta
    return Smooth(f"softplus({op.beta}, {op.threshold})", op, exact,
                  lambda s: [mpmath.log(s / (1 - s)) / beta] if 0 < s < 1 else [], drop=op.threshold / op.beta)


def _elu(alpha: float) -> Smooth:
    return Smooth(f"elu({alpha})", Elu(alpha), lambda z: z if z > 0 else mpf(alpha) * mpmath.expm1(z),
                  lambda s: [mpf(0)] + ([mpmath.log(s / mpf(alpha))] if 0 < s < alpha else []))


SMOOTH = [
    Smooth("tanh", Tanh(), mpmath.tanh, _tanh_where),
    Smooth("sigmoid", Sigmoid(), sigmoid, lambda s: [2 * p for p in _tanh_where(4 * s)]),
    *(_softplus(op) for op in (Softplus(), Softplus(3.0), Softplus(0.7), Softplus(1.0, 3.0))),
    *(_elu(alpha) for alpha in (0.5, 1.0, 1.3, 4.0)),
]
every_operator = pytest.mark.parametrize("smooth", SMOOTH, ids=lambda s: s.name)


def drawn(op: Elementwise, x: Interval) -> list[Relaxation]:
    """Proposed lines: the default ones, parallel ones, of parameters all over their box; and any slopes."""
    found = op.parameters(x)
    assert found is not None
    initial, low, high = found
    generator = torch.Generator().manual_seed(3)

    def random() -> Tensor:
        return torch.rand(initial.shape, generator=generator, dtype=initial.dtype)
    lines = [op.relax(x), op.relax_parallel(x), op.relax_with(x, low), op.relax_with(x, high)]
    lines += [op.relax_with(x, torch.lerp(low, high, random()).clamp(low, high)) for _ in range(2)]
    slopes = torch.stack([random()[0] * 3 - 1 for _ in range(2)]).to(initial)
    return [*lines, Relaxation(slopes[0], None, slopes[1], None)]


def proved(op: Elementwise, x: Interval, lines: Relaxation) -> Relaxation:
    return op.proved(lines, x, op.known(x))


def gaps(smooth: Smooth, x: Interval, lines: Relaxation) -> list[tuple[mpf, mpf, mpf]]:
    """(least f(z) - line below, least line above - f(z), |f| + |slope| |z|) on each interval. f(z) - s z is extreme at
    an end, at a kink, or where f' = s."""
    out = []
    nothing = torch.zeros_like(x.lower)
    columns = [x.lower, x.upper, lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept]
    for numbers in zip(*((nothing if t is None else t).double().tolist() for t in columns), strict=True):
        l, u, s, c, t, d = (mpf(v) for v in numbers)
        worst = []
        for slope, intercept, sign in ((s, c, 1), (t, d, -1)):
            places = [l, u]
            for p in [*smooth.where(slope), mpf(smooth.drop), mpf(smooth.drop) * (1 + mpf(2) ** -200)]:
                places += [p] if l < p < u else []
            worst.append(min(sign * (smooth.exact(z) - slope * z - intercept) for z in places))
        reach = max(abs(l), abs(u))
        offset = smooth.op.offset if isinstance(smooth.op, Sigmoid) else 0  # tanh's lines, moved: the sum is rounded
        out.append((*worst, max(abs(smooth.exact(l)), abs(smooth.exact(u)), offset) + max(abs(s), abs(t)) * reach))
    return out


def crossings(smooth: Smooth, x: Interval, lines: Relaxation) -> int:
    return sum(not (below >= 0 and above >= 0) for below, above, _ in gaps(smooth, x, lines))


@every_dtype
@every_operator
def test_proved_lines_hold_and_are_as_tight_as_rounding_allows(smooth: Smooth, dtype: torch.dtype) -> None:
    x = intervals(dtype)
    drop = 0.0 if not smooth.drop else float(smooth.op.jump) + 1e-30  # type: ignore[attr-defined]
    for lines in drawn(smooth.op, x):
        held = proved(smooth.op, x, lines)
        assert held.lower_slope is lines.lower_slope and held.upper_slope is lines.upper_slope
        for k, (below, above, size) in enumerate(gaps(smooth, x, held)):
            where = (float(x.lower[k]), float(x.upper[k]))
            assert below >= 0 and above >= 0, where
            spare = LINE_UNITS * unit(dtype) * size + 1e3 * torch.finfo(dtype).tiny
            assert below <= spare + 1.01 * drop and above <= spare + 1.01 * drop, where


@every_dtype
@every_operator
def test_enclosed_intervals_hold_the_ends(smooth: Smooth, dtype: torch.dtype) -> None:
    x = intervals(dtype)
    found = smooth.op.enclosed(x)
    columns = (x.lower, x.upper, found.lower, found.upper)
    for l, u, low, high in zip(*(t.double().tolist() for t in columns), strict=True):
        values = [smooth.exact(mpf(z)) for z in (l, u)]
        assert mpf(low) <= min(values) and max(values) <= mpf(high), (l, u)


@every_dtype
@pytest.mark.parametrize("smooth", [s for s in SMOOTH if getattr(s.op, "beta", 1.0) == 1.0], ids=lambda s: s.name)
def test_lines_without_their_margins_cross(smooth: Smooth, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclose, "VALUE_UNITS", 0)
    monkeypatch.setattr(proved_lines, "TERM_UNITS", 0)
    x = intervals(dtype)
    assert sum(crossings(smooth, x, proved(smooth.op, x, lines)) for lines in drawn(smooth.op, x)[:3]) > 10


def test_proved_lines_hold_whatever_the_library_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of the library that are off by a part in a million: proposed lines cross, proved ones do not."""
    generator = torch.Generator().manual_seed(5)

    def off(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrong(z: Tensor, *args: object) -> Tensor:
            value = function(z, *args)
            return value * (1 + 1e-6 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        return wrong
    for name in ("tanh", "cosh", "log", "log1p", "exp", "expm1", "sigmoid", "logit", "sqrt"):
        monkeypatch.setattr(torch, name, off(getattr(torch, name)))
        if hasattr(Tensor, name):
            monkeypatch.setattr(Tensor, name, off(getattr(Tensor, name)))
    x = intervals(torch.float64)
    wrong = 0
    for smooth in SMOOTH:
        for lines in (smooth.op.relax(x), smooth.op.relax_parallel(x)):
            wrong += crossings(smooth, x, lines)
            assert crossings(smooth, x, proved(smooth.op, x, lines)) == 0, smooth.name
    assert wrong > 100


@every_operator
def test_proved_lines_keep_the_gradients_of_proposals(smooth: Smooth) -> None:
    x = intervals(torch.float64)
    x = Interval(x.lower[:100], x.upper[:100])
    found = smooth.op.parameters(x)
    assert found is not None
    params = torch.lerp(found[1], found[2], 0.3).requires_grad_()

    def gradient(lines: Relaxation) -> Tensor:
        assert lines.lower_intercept is not None and lines.upper_intercept is not None
        total = lines.lower_slope.sum() + lines.lower_intercept.sum() - lines.upper_intercept.sum()
        return torch.autograd.grad(total, params)[0]
    lines = smooth.op.relax_with(x, params)
    held = proved(smooth.op, x, lines)
    torch.testing.assert_close(gradient(held), gradient(smooth.op.relax_with(x, params)))
    without = proved(smooth.op, x, smooth.op.relax_with(x, params.detach()))
    assert torch.equal(without.lower_intercept, held.lower_intercept)  # type: ignore[arg-type]


@every_operator
def test_enclosed_intervals_keep_the_gradients_of_intervals(smooth: Smooth) -> None:
    x = intervals(torch.float64)
    x = Interval(x.lower[:100].clone().requires_grad_(), x.upper[:100].clone().requires_grad_())

    def gradient(y: Interval) -> tuple[Tensor, ...]:
        return torch.autograd.grad((y.upper - 0.3 * y.lower).sum(), (x.lower, x.upper))
    found, source = smooth.op.enclosed_with_gradient(x), smooth.op.interval(x)
    held = smooth.op.enclosed(x)
    assert torch.equal(found.lower, held.lower) and torch.equal(found.upper, held.upper)
    for new, old in zip(gradient(found), gradient(source), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-300)


def random_params(op: Elementwise, x: Interval, scale: float) -> Tensor:
    """In the box, and beyond it by so much."""
    found = op.parameters(x)
    assert found is not None
    generator = torch.Generator().manual_seed(int(scale))
    share = torch.rand(found[0].shape, generator=generator, dtype=found[0].dtype)
    return torch.lerp(found[1], found[2], share) + scale * (share - 0.5)


@every_dtype
@every_operator
def test_lines_proved_as_they_are_chosen_hold_for_any_parameters(smooth: Smooth, dtype: torch.dtype) -> None:
    x = intervals(dtype)
    for scale in (0.0, 1.0, 100.0):
        params = random_params(smooth.op, x, scale)
        held = smooth.op.relax_proved(x, params, smooth.op.known(x))
        assert crossings(smooth, x, held) == 0
        if scale == 0:  # and they are those of the same parameters, but for rounding
            proposed = smooth.op.relax_with(x, params)
            wide = x.upper - x.lower > 1e-3 * (1 + x.upper.abs())
            for new, old in ((held.lower_slope, proposed.lower_slope), (held.upper_slope, proposed.upper_slope)):
                torch.testing.assert_close(new[wide], old[wide], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("smooth", [s for s in SMOOTH if getattr(s.op, "threshold", 20.0) == 20.0],
                         ids=lambda s: s.name)
def test_slopes_and_intercepts_turn_with_their_parameters(smooth: Smooth) -> None:
    """Against differences, where the box leaves room for them. (Beyond a low threshold a softplus has jumped.)"""
    x = intervals(torch.float64)
    found = smooth.op.parameters(x)
    assert found is not None
    near = torch.maximum(x.lower.abs(), x.upper.abs()) < 50  # far out differences are rounding
    room = (found[2] - found[1] > 0.05).all(0) & near
    x = x.map(lambda t: t[room])
    low, high = found[1][:, room], found[2][:, room]
    params, known = torch.lerp(low, high, 0.4).requires_grad_(), smooth.op.known(x)

    def total(p: Tensor) -> Tensor:
        lines = smooth.op.relax_proved(x, p, known)
        assert lines.lower_intercept is not None and lines.upper_intercept is not None
        return 0.7 * lines.lower_slope + lines.lower_intercept + 0.3 * lines.upper_slope - lines.upper_intercept
    (found_gradient,) = torch.autograd.grad(total(params).sum(), params)
    for k in range(len(low)):
        step = torch.zeros_like(low)
        step[k] = 1e-6
        with torch.no_grad():
            slope = (total(params + step) - total(params - step)) / 2e-6
        torch.testing.assert_close(found_gradient[k], slope, rtol=1e-4, atol=1e-4 * float(1 + slope.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@every_dtype
@every_function
def test_enclosures_on_a_gpu_hold_the_value(function: Function, dtype: torch.dtype) -> None:
    on_gpu = Function(function.name, lambda z: function.enclose(z.cuda()).map(Tensor.cpu), function.exact)
    assert missed(on_gpu, points(dtype)) == []


@every_operator
def test_batched_lines_are_those_of_each_neuron(smooth: Smooth) -> None:
    x = intervals(torch.float64)
    x = Interval(x.lower[:240].view(2, 3, 40), x.upper[:240].view(2, 3, 40))
    flat = x.map(torch.flatten)
    whole, single = proved(smooth.op, x, smooth.op.relax(x)), proved(smooth.op, flat, smooth.op.relax(flat))
    assert torch.equal(whole.lower_intercept.flatten(), single.lower_intercept)  # type: ignore[union-attr, arg-type]
    assert torch.equal(whole.upper_intercept.flatten(), single.upper_intercept)  # type: ignore[union-attr, arg-type]
