"""Every elementwise relaxation on a grid of its own operator: as a theorem, not through a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.clip import Clip
from bounds.ops.elu import Elu
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.prelu import PRelu
from bounds.ops.relu import Relu
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.sign import Sign
from bounds.ops.softplus import Softplus
from bounds.ops.tanh import Tanh
from bounds.relaxation import Relaxation
from tests.bounds.ops.grids import grid, intervals, violation

# Lines of straight pieces carry no slack: their slope and intercept are rounded a few times.
STRAIGHT_ULPS = 3.0
SMALLEST = 2.0 ** -149  # float32's spacing at zero


@dataclass(frozen=True)
class Case:
    name: str
    op: Elementwise
    special: tuple[float, ...] = ()
    ulps: float = 0.0  # smooth operators hold without any tolerance in float32
    jump: float = 0.0  # how far the function as stored is from a continuous one (softplus with a low threshold)


_SLOPES = torch.linspace(-1.5, 2.5, intervals().lower.shape[0])
CASES = [
    Case("relu", Relu(), ulps=STRAIGHT_ULPS),
    *(Case(f"leaky_relu({a})", LeakyRelu(a), ulps=STRAIGHT_ULPS) for a in (0.0, 0.125, 0.01, 1.0, 1.5, -0.5)),
    Case("prelu", PRelu(_SLOPES), ulps=STRAIGHT_ULPS),
    Case("hardtanh", Clip(-1.0, 1.0), (-1.0, 1.0), STRAIGHT_ULPS),
    Case("relu6", Clip(0.0, 6.0), (6.0,), STRAIGHT_ULPS),
    Case("clip_above", Clip(-math.inf, 2.0), (2.0,), STRAIGHT_ULPS),
    Case("clip_below", Clip(-0.5, math.inf), (-0.5,), STRAIGHT_ULPS),
    Case("clip_shifted", Clip(0.5, 0.75), (0.5, 0.75), STRAIGHT_ULPS),
    Case("clip_constant", Clip(0.5, 0.5), (0.5,), STRAIGHT_ULPS),
    Case("clip_nothing", Clip(), (), STRAIGHT_ULPS),
    *(Case(f"elu({a})", Elu(a)) for a in (0.0, 0.5, 1.0, 1.25, 4.0)),
    Case("softplus", Softplus(), (20.0,)),
    Case("softplus(3)", Softplus(3.0), (20 / 3,)),
    Case("softplus(1, 3)", Softplus(1.0, 3.0), (3.0,), jump=0.1),
    Case("sigmoid", Sigmoid()),
    Case("tanh", Tanh()),
    Case("sign", Sign(), ulps=STRAIGHT_ULPS, jump=2.0),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def _drawn(op: Elementwise, x: Interval) -> list[tuple[str, Relaxation]]:
    """relax, relax_parallel, and relax_with at the initial values, the corners and random places of the box."""
    lines = [("relax", op.relax(x)), ("relax_parallel", op.relax_parallel(x))]
    found = op.parameters(x)
    if found is None:
        return lines
    initial, low, high = found
    generator = torch.Generator().manual_seed(3)
    lines.append(("initial", op.relax_with(x, initial)))
    for corner in range(2 ** initial.shape[0]):
        chosen = torch.stack([(high if corner >> k & 1 else low)[k] for k in range(initial.shape[0])])
        lines.append((f"corner {corner}", op.relax_with(x, chosen)))
    for i in range(4):
        weight = torch.rand(initial.shape, generator=generator, dtype=initial.dtype)
        params = torch.minimum(torch.maximum(torch.lerp(low, high, weight), low), high)
        lines.append((f"random {i}", op.relax_with(x, params)))
    return lines


def _both(lines: Relaxation) -> tuple[tuple[Tensor, Tensor | None], ...]:
    return (lines.lower_slope, lines.lower_intercept), (lines.upper_slope, lines.upper_intercept)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lines_enclose_the_function_on_a_grid(case: Case, dtype: torch.dtype) -> None:
    x, op = intervals(dtype), case.op.to(dtype=dtype)
    # In float64 the oracle's own rounding is of the size of the error looked for.
    ulps = case.ulps if dtype == torch.float32 else case.ulps + 4
    for name, lines in _drawn(op, x):
        worst = violation(op, x, lines, special=case.special, ulps=ulps)
        i = int(worst.argmax())
        assert worst[i] <= 0, f"{name} crosses by {worst[i]:.3g} on [{x.lower[i]:.9g}, {x.upper[i]:.9g}]"


@every_case
def test_interval_encloses_the_function_on_a_grid(case: Case) -> None:
    x = intervals()
    found, values = case.op.interval(x), case.op.to(dtype=torch.float64).forward(grid(x, case.special).T).T
    allowed = case.ulps * (torch.finfo(torch.float32).eps * values.abs().amax(-1) + SMALLEST)
    assert bool((found.lower.double() <= values.amin(-1) + allowed).all())
    assert bool((found.upper.double() >= values.amax(-1) - allowed).all())
    # and it is tight: within rounding of the least and largest value
    slack = 1e-5 * values.abs().amax(-1) + 1e-6 + case.jump
    assert bool((found.lower.double() >= values.amin(-1) - slack).all())
    assert bool((found.upper.double() <= values.amax(-1) + slack).all())


@every_case
def test_parallel_lines_have_one_slope(case: Case) -> None:
    lines = case.op.relax_parallel(intervals())
    assert torch.equal(lines.lower_slope, lines.upper_slope)


@every_case
def test_initial_parameters_lie_in_their_box_and_give_the_default_lines(case: Case) -> None:
    x = intervals()
    found = case.op.parameters(x)
    assert found is not None
    initial, low, high = found
    assert bool(((low <= initial) & (initial <= high)).all())
    default, same = case.op.relax(x), case.op.relax_with(x, initial)
    for field in dataclasses.fields(Relaxation):
        first, second = getattr(default, field.name), getattr(same, field.name)
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, rtol=0, atol=0)


@every_case
def test_a_zero_width_interval_gives_the_point(case: Case) -> None:
    z = torch.cat([torch.linspace(-8, 8, _SLOPES.numel() - 4), torch.tensor([0.0, 1e-30, -1e-12, 40.0])])
    x = Interval(z, z)
    value = case.op.to(dtype=torch.float64).forward(z.double())
    for name, lines in _drawn(case.op, x):
        for slope, intercept in _both(lines):
            line = slope.double() * z + (0 if intercept is None else intercept.double())
            torch.testing.assert_close(line, value, rtol=1e-5, atol=1e-5 + case.jump, msg=lambda m, n=name: f"{n}: {m}")


@every_case
def test_linear_neurons_lose_nothing(case: Case) -> None:
    """Where is_linear_on holds both default lines meet the function on all of the interval; elsewhere no line can."""
    x = intervals()
    linear = case.op.is_linear_on(x)
    assert bool(linear[x.lower == x.upper].all()) or case.jump == 2  # near a jump a point is in doubt as well
    points = grid(x, case.special)
    values = case.op.to(dtype=torch.float64).forward(points.T).T
    size = 1e-6 * (values.abs().amax(-1) + torch.maximum(x.lower.abs(), x.upper.abs()).double()) + 1e-30
    for lines in (case.op.relax(x), case.op.relax_parallel(x)):
        for slope, intercept in _both(lines):
            line = slope.double()[:, None] * points + (0 if intercept is None else intercept.double()[:, None])
            away = (line - values).abs().amax(-1)
            assert bool((away <= 4 * size + case.jump)[linear].all())
    chord = torch.lerp(values[:, :1], values[:, _END:_END + 1], (points - points[:, :1]) / (
        points[:, _END:_END + 1] - points[:, :1]).clamp(min=1e-300))
    bent = (chord - values).abs().amax(-1) > case.jump + 1e-3 * (values.abs().amax(-1) + 1e-3)
    assert not bool((bent & linear).any())


_END = 400  # the position of the upper end in `grid`


@pytest.mark.parametrize("case", [c for c in CASES if not c.jump], ids=lambda c: c.name)
def test_the_grid_rejects_lines_that_are_two_percent_off(case: Case) -> None:
    """Planted faults: on the intervals where a line touches the function (so all useful ones), moving the intercept
    inward by 2 % of the gap's scale, or turning the slope by 2 % about the touching side, must be seen."""
    x = intervals()
    wide = (x.upper - x.lower > 0.1) & (x.upper - x.lower < 100) & ~case.op.is_linear_on(x)
    if not bool(wide.any()):
        assert case.name in {"leaky_relu(1.0)", "clip_nothing", "clip_constant"}
        return
    lines = case.op.relax(x)
    height = case.op.to(dtype=torch.float64).forward(grid(x, case.special).T).T
    scale = (0.02 * (height.amax(-1) - height.amin(-1))).float()
    zero = torch.zeros_like(x.lower)
    low = zero if lines.lower_intercept is None else lines.lower_intercept
    high = zero if lines.upper_intercept is None else lines.upper_intercept
    faults = {
        "lower intercept": dataclasses.replace(lines, lower_intercept=low + scale),
        "upper intercept": dataclasses.replace(lines, upper_intercept=high - scale),
        "swapped": Relaxation(lines.upper_slope, high, lines.lower_slope, low),
    }
    seen = wide & (scale > 1e-5)  # a function that is flat over the interval hides a proportional fault
    assert bool(seen.any())
    for name, fault in faults.items():
        worst = violation(case.op, x, fault, special=case.special, ulps=case.ulps)
        if name == "swapped":
            assert float((worst[seen] > 0).double().mean()) > 0.9, name
        else:
            assert bool((worst[seen] > 0).all()), name


def test_the_grid_rejects_a_relu_chord_with_a_two_percent_small_intercept_or_slope() -> None:
    lower, upper = -torch.rand(300) - 0.01, torch.rand(300) + 0.01
    x, op = Interval(lower, upper), Relu()
    lines = op.relax(x)
    assert bool((violation(op, x, lines, ulps=STRAIGHT_ULPS) <= 0).all())
    small = dataclasses.replace(lines, upper_intercept=lines.upper_intercept * 0.98)  # type: ignore[operator]
    flat = dataclasses.replace(lines, upper_slope=lines.upper_slope * 0.98)
    assert bool((violation(op, x, small, ulps=STRAIGHT_ULPS) > 0).all())
    assert bool((violation(op, x, flat, ulps=STRAIGHT_ULPS) > 0).all())


def test_the_grid_rejects_nan_lines() -> None:
    x = Interval(torch.tensor([-1.0]), torch.tensor([1.0]))
    nan = torch.tensor([math.nan])
    assert violation(Relu(), x, Relaxation(nan, None, nan, None)).item() > 0


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in {"clip_constant", "clip_nothing"}],
                         ids=lambda c: c.name)
def test_relax_with_is_differentiable_in_parameters_and_ends(case: Case) -> None:
    """Against finite differences, away from kinks of the construction itself."""
    generator = torch.Generator().manual_seed(5)
    lower = -torch.rand(8, generator=generator, dtype=torch.float64) * 3 - 0.11
    upper = torch.rand(8, generator=generator, dtype=torch.float64) * 3 + 0.13
    op = PRelu(torch.linspace(-0.7, 2.2, 8, dtype=torch.float64)) if case.name == "prelu" else case.op
    found = op.parameters(Interval(lower, upper))
    assert found is not None
    _, low, high = found
    weight = 0.2 + 0.6 * torch.rand(low.shape, generator=generator, dtype=torch.float64)
    params = torch.lerp(low, high, weight)
    if params.shape[0] == 2 and case.name.startswith("elu"):
        params += 0.05  # where the box is the chord's slope alone both ends tie; any slope is valid
    params.requires_grad_()

    def lines(params: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        found = op.relax_with(Interval(lower, upper), params)
        given = (found.lower_slope, found.lower_intercept, found.upper_slope, found.upper_intercept)
        return tuple(t for t in given if t is not None and t.requires_grad)

    assert torch.autograd.gradcheck(lines, (params, lower.requires_grad_(), upper.requires_grad_()))


@every_case
def test_gradients_are_finite_on_every_interval(case: Case) -> None:
    """Training backpropagates through bounds: no NaN from a branch that was not taken."""
    x = intervals()
    width = x.upper - x.lower
    # Below 1e-18 the true derivative of a chord or secant overflows float32.
    kept = torch.stack([(t == 0) | (t.abs() > 1e-18) for t in (width, x.lower, x.upper)]).all(0)
    x = Interval(x.lower[kept], x.upper[kept])
    if isinstance(case.op, PRelu):
        case = dataclasses.replace(case, op=PRelu(case.op.slope[kept]))
    lower, upper = x.lower.clone().requires_grad_(), x.upper.clone().requires_grad_()
    leaf = Interval(lower, upper)
    found = case.op.parameters(x)
    assert found is not None
    params = found[0].clone().requires_grad_()
    for lines in (case.op.relax(leaf), case.op.relax_with(leaf, params)):
        parts = [getattr(lines, f.name) for f in dataclasses.fields(lines)]
        total = torch.stack([t.sum() for t in parts if t is not None and t.requires_grad] or [lower.sum() * 0]).sum()
        for grad in torch.autograd.grad(total, (lower, upper, params), allow_unused=True):
            assert grad is None or bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("op", [Sigmoid(), Tanh(), Elu(2.0), Elu(1.0), Softplus(), Clip(-1, 1), Relu(), LeakyRelu(0.2)],
                         ids=lambda op: op.kind)
def test_extra_leading_and_shape_axes_change_nothing(op: Elementwise) -> None:
    """Lines of "B *shape" are those of each neuron alone, and parameters may broadcast over the leading axis."""
    generator = torch.Generator().manual_seed(1)
    lower = torch.randn(3, 2, 4, generator=generator)
    x = Interval(lower, lower + torch.rand(3, 2, 4, generator=generator) * 4)
    flat = Interval(x.lower.reshape(-1), x.upper.reshape(-1))
    for whole, single in ((op.relax(x), op.relax(flat)), (op.relax_parallel(x), op.relax_parallel(flat))):
        for field in dataclasses.fields(Relaxation):
            first, second = getattr(whole, field.name), getattr(single, field.name)
            assert first is None or torch.equal(first.reshape(-1), second)
    found = op.parameters(x)
    assert found is not None
    first_only = Interval(x.lower[:1], x.upper[:1])
    rows = op.relax_with(first_only, found[0][:, :1].expand(-1, 5, -1, -1))
    assert torch.equal(rows.lower_slope.expand(5, 2, 4)[4], op.relax(x).lower_slope[0])


def test_tangents_of_sigmoid_and_tanh_are_tight_at_both_ends() -> None:
    """At the box's corners the upper line passes through the graph at l (tangent through the far end), or at u."""
    lower = -torch.rand(50, dtype=torch.float64) * 4 - 0.05
    upper = torch.rand(50, dtype=torch.float64) * 4 + 4.5
    x = Interval(lower, upper)
    for op in (Sigmoid(), Tanh()):
        found = op.parameters(x)
        assert found is not None
        _, low, high = found
        far, near = op.relax_with(x, low), op.relax_with(x, high)
        assert far.upper_intercept is not None
        assert near.upper_intercept is not None
        torch.testing.assert_close(far.upper_slope * lower + far.upper_intercept, op.forward(lower), atol=1e-6, rtol=0)
        at_upper = near.upper_slope * upper + near.upper_intercept
        torch.testing.assert_close(at_upper, op.forward(upper), atol=1e-6, rtol=0)
        assert float(far.upper_slope.min()) > 0


def test_parallel_lines_of_s_shapes_are_never_wider_than_deepz() -> None:
    """DeepZ (Singh et al. 2018) takes min(f'(l), f'(u)); on straddling intervals ours are closer together."""
    x = Interval(-torch.rand(200, dtype=torch.float64) * 6 - 0.1, torch.rand(200, dtype=torch.float64) * 6 + 0.1)
    for op in (Sigmoid(), Tanh()):
        lines = op.relax_parallel(x)
        assert lines.upper_intercept is not None
        assert lines.lower_intercept is not None
        ends = [t.detach().requires_grad_() for t in (x.lower, x.upper)]
        steep = torch.minimum(*(torch.autograd.grad(op.forward(t).sum(), t)[0] for t in ends))
        deepz = (op.forward(x.upper) - steep * x.upper) - (op.forward(x.lower) - steep * x.lower)
        assert bool((lines.upper_intercept - lines.lower_intercept <= deepz + 1e-9).all())


@pytest.mark.parametrize("make", [lambda: Clip(1.0, 0.0), lambda: Clip(math.nan, 0.0), lambda: Elu(-1.0),
                                  lambda: Softplus(0.0), lambda: Softplus(-2.0)])
def test_settings_without_a_sound_relaxation_are_refused(make: Callable[[], Elementwise]) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


def test_a_prelu_at_chosen_neurons_has_their_slopes() -> None:
    """Backward methods ask for lines at chosen neurons of chosen domains only."""
    generator = torch.Generator().manual_seed(2)
    lower = -torch.rand(2, 3, 4, generator=generator)
    x = Interval(lower, lower + torch.rand(2, 3, 4, generator=generator) + 0.5)
    op = PRelu(torch.rand(3, 1, generator=generator))
    domain, columns = torch.tensor([1, 0, 1]), torch.tensor([11, 0, 5])

    def read(t: Tensor) -> Tensor:
        return t.flatten(1).index_select(1, columns).index_select(0, domain)

    whole, found = op.relax(x), op.parameters(x)
    assert found is not None
    part = op.select(read, x.lower.shape).relax_with(x.map(read), read(found[0][0]).unsqueeze(0))
    assert torch.equal(part.lower_slope, read(whole.lower_slope))
    assert torch.equal(part.upper_slope, read(whole.upper_slope))


_ANY_PARAMETER = [c for c in CASES if c.name in {"sigmoid", "tanh", "elu(0.5)", "elu(1.0)", "elu(4.0)"}]


@pytest.mark.parametrize("case", _ANY_PARAMETER, ids=lambda c: c.name)
def test_parameters_kept_from_other_intervals_still_give_valid_lines(case: Case) -> None:
    """S-shapes take any tangent point and Elu any slope >= 0: a warm start from a parent domain cannot be unsound."""
    x = intervals()
    found = case.op.parameters(x)
    assert found is not None
    generator = torch.Generator().manual_seed(8)
    for scale in (0.1, 1.0, 5.0):
        params = torch.randn(found[0].shape, generator=generator) * scale
        params = params.abs() if isinstance(case.op, Elu) else params
        worst = violation(case.op, x, case.op.relax_with(x, params), special=case.special)
        i = int(worst.argmax())
        assert worst[i] <= 0, f"crosses by {worst[i]:.3g} on [{x.lower[i]:.9g}, {x.upper[i]:.9g}]"


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("room", [0.0, 1e-3, 1.0, math.inf])
@every_case
def test_points_near_the_lower_line_stay(case: Case, slope: float, room: float) -> None:
    """`near` encloses every z at which f lies at most `room` above a line below it; at room's end, up to rounding."""
    x = intervals(torch.float64)
    op = case.op.to(dtype=torch.float64)
    found = op.parameters(x)
    lines = op.relax(x)
    if found is not None:
        lines = op.relax_with(x, torch.lerp(found[1], found[2], torch.full_like(found[1], slope)))
    near = op.near(x, lines.lower_slope, lines.lower_intercept, torch.full_like(x.lower, room))
    if near is None:
        return
    z = grid(x, case.special)
    line = lines.lower_slope.unsqueeze(1) * z
    if lines.lower_intercept is not None:
        line = line + lines.lower_intercept.unsqueeze(1)
    close = (op.forward(z.T).T - line) <= room
    ends = torch.maximum(x.lower.abs(), x.upper.abs()).unsqueeze(1)
    slack = 1e-15 * ends
    assert bool((~close | ((z >= near.lower.unsqueeze(1) - slack) & (z <= near.upper.unsqueeze(1) + slack))).all())
    assert bool((near.lower >= x.lower).all())
    assert bool((near.upper <= x.upper).all())
