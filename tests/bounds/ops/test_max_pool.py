"""Max pooling: bounds of every window against brute force; padding, overlap, dilation and ceil mode included."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.max_pool import MaxPool
from bounds.window import Owner

# (operator, input shape without batch axis)
CASES = [
    (MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), (2, 4, 4)),
    (MaxPool((3, 3), (2, 2), (1, 1), (1, 1)), (2, 5, 4)),           # padding, overlap
    (MaxPool((3, 2), (1, 1), (1, 0), (1, 1)), (1, 3, 3)),           # stride smaller than the window
    (MaxPool((2, 2), (1, 2), (0, 1), (2, 1)), (1, 4, 4)),           # dilation
    (MaxPool((2, 2), (2, 2), (0, 0), (1, 1), True), (2, 3, 5)),     # ceil mode: windows that stick out
    (MaxPool((1, 1), (1, 1), (0, 0), (1, 1)), (2, 2, 2)),           # one input a window: the identity
    (MaxPool((3,), (2,), (1,), (1,)), (2, 6)),
    (MaxPool((2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1)), (1, 2, 3, 2)),
]
every_case = pytest.mark.parametrize(("op", "shape"), CASES, ids=[f"{c[0].kernel}-{c[1]}" for c in CASES])


def _interval(shape: tuple[int, ...], batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Interval:
    """Widths of 0, small and large side by side, so that windows are decided, half decided and open."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    width = torch.rand(batch, *shape, generator=generator, dtype=torch.float64) ** 3 * 1.5
    width = width * (torch.rand(batch, *shape, generator=generator) > 0.2)
    return Interval((centre - width).to(dtype), (centre + width).to(dtype))


def _points(x: Interval, count: int = 400) -> Tensor:
    """"count B C *map": random points, half of them at random corners, and both extreme corners."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.rand(count, *x.lower.shape, generator=generator, dtype=x.lower.dtype)
    weight[::2] = weight[::2].round()
    weight[0], weight[2] = 0, 1
    return torch.minimum(torch.maximum(torch.lerp(x.lower, x.upper, weight), x.lower), x.upper)


def _brute_force(op: MaxPool, z: Tensor) -> Tensor:
    """The definition, window by window, in Python."""
    sizes, out = z.shape[1:], op.forward(z.unsqueeze(0)).shape[2:]
    result = torch.full((z.shape[0], *out), -torch.inf, dtype=z.dtype)
    for position in itertools.product(*(range(n) for n in out)):
        for step in itertools.product(*(range(k) for k in op.kernel)):
            at = [p * s - pad + k * d for p, s, pad, k, d in
                  zip(position, op.stride, op.padding, step, op.dilation, strict=True)]
            if all(0 <= a < n for a, n in zip(at, sizes, strict=True)):
                here = (slice(None), *position)
                result[here] = torch.maximum(result[here], z[(slice(None), *at)])
    return result


@every_case
def test_forward_is_the_maximum_of_each_window(op: MaxPool, shape: tuple[int, ...]) -> None:
    z = _interval(shape).lower
    torch.testing.assert_close(op.forward(z), torch.stack([_brute_force(op, one) for one in z]), rtol=0, atol=0)


@every_case
def test_interval_is_exact(op: MaxPool, shape: tuple[int, ...]) -> None:
    x = _interval(shape)
    found, values = op.interval(x), torch.stack([op.forward(z) for z in _points(x)])
    assert torch.equal(found.lower, values.amin(0))
    assert torch.equal(found.upper, values.amax(0))


def _read(z: Tensor, index: Tensor) -> Tensor:
    """z "count B C *map" at flat positions "B C P" -> "count B C P"."""
    return z.flatten(3).gather(3, index.expand(z.shape[0], *index.shape))


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lines_enclose_every_window(op: MaxPool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _interval(shape, dtype=dtype)
    lines = op.lines(x)
    z = _points(x)
    y = torch.stack([op.forward(one) for one in z]).flatten(3).double()
    z, allowed = z.double(), 8 * torch.finfo(dtype).eps
    chord = lines.slope.double() * _read(z, lines.above)
    assert bool((y >= _read(z, lines.below)).all())
    assert bool((y <= chord + lines.high.double() + allowed).all())
    assert bool((y >= chord + lines.low.double() - allowed).all())
    # never above the constant line max u
    at_top = lines.slope.double() * _read(x.upper.double().unsqueeze(0), lines.above)[0] + lines.high.double()
    assert bool((at_top <= op.interval(x).upper.flatten(2).double() + allowed).all())


def test_a_line_two_percent_too_low_is_caught() -> None:
    op, shape = CASES[0]
    x = _interval(shape)
    lines = op.lines(x)
    z = _points(x, 4000)
    y = torch.stack([op.forward(one) for one in z]).flatten(3)
    undecided = lines.high != lines.low
    assert bool(undecided.any())
    gap = 0.02 * (op.interval(x).upper - op.interval(x).lower).flatten(2)
    crossed = (y > lines.slope * _read(z, lines.above) + lines.high - gap).any(0)
    assert bool(crossed[undecided & (gap > 1e-3)].all())


@every_case
@pytest.mark.parametrize("batch", [1, 3])
def test_pull_back_bounds_the_rows_and_splits_by_sign(op: MaxPool, shape: tuple[int, ...], batch: int) -> None:
    x = _interval(shape, batch)
    generator = torch.Generator().manual_seed(9)
    owner = Owner.of(batch, torch.tensor([2, 0, 1, 1, 0]))
    A = torch.randn(5, *op.forward(x.lower).shape[1:], generator=generator, dtype=torch.float64)
    A = A * (torch.rand(A.shape, generator=generator) > 0.3)
    (result,), constant = op.pull_back_relaxed(A, owner, (x,))
    assert result.shape == (5, *shape)
    z = _points(x, 800)
    for n in range(5):
        b = 0 if owner.index is None else int(owner.index[n])
        exact = (op.forward(z[:, b]) * A[n]).flatten(1).sum(1)
        bound = (z[:, b] * result[n]).flatten(1).sum(1) + constant[n]
        assert float((exact - bound).min()) >= -1e-12
        # the row bound is the sum of the windows' own lines
        lines = op.lines(Interval(x.lower[b:b + 1], x.upper[b:b + 1]))
        below, above = _read(z[:, b:b + 1], lines.below)[:, 0], _read(z[:, b:b + 1], lines.above)[:, 0]
        line = torch.where(A[n].flatten(1) > 0, below, lines.slope[0] * above + lines.high[0])
        torch.testing.assert_close(bound, (A[n].flatten(1) * line).flatten(1).sum(1))


@every_case
def test_decided_windows_are_exact(op: MaxPool, shape: tuple[int, ...]) -> None:
    """Where one input beats all others both lines are that input, and nothing is lost."""
    centre = torch.randperm(torch.Size(shape).numel()).double().view(1, *shape)
    x = Interval(centre - 0.4, centre + 0.4)
    assert bool(op.is_linear_on(x).all())
    (result,), constant = op.pull_back_relaxed(torch.ones_like(op.forward(centre)), Owner.of(1, None), (x,))
    (other,), more = op.pull_back_relaxed(-torch.ones_like(op.forward(centre)), Owner.of(1, None), (x,))
    torch.testing.assert_close(result, -other, rtol=0, atol=0)
    assert float(constant.abs().max()) == float(more.abs().max()) == 0


@every_case
def test_only_inputs_that_can_win_an_undecided_window_matter(op: MaxPool, shape: tuple[int, ...]) -> None:
    x = _interval(shape, batch=2, seed=3)
    found = op.is_linear_on(x)
    z = x.centre
    windows = op.windows(x.lower)
    expected = torch.ones_like(found).flatten(2)
    for b, c, window in itertools.product(range(2), range(shape[0]), windows):
        members = [int(i) for i in window if i >= 0]
        lower, upper = x.lower[b, c].flatten()[members], x.upper[b, c].flatten()[members]
        decided = any(all(lower[i] >= upper[j] for j in range(len(members)) if j != i) for i in range(len(members)))
        for i, member in enumerate(members):
            if not decided and bool(upper[i] > lower.max()):
                expected[b, c, member] = False
    assert torch.equal(found, expected.view_as(z))


def test_gradients_flow_to_the_ends() -> None:
    op, shape = CASES[1]
    x = _interval(shape, batch=1)
    A = torch.randn(2, *op.forward(x.lower).shape[1:], dtype=torch.float64)

    def bound(lower: Tensor, upper: Tensor) -> Tensor:
        (result,), constant = op.pull_back_relaxed(A, Owner.of(1, None), (Interval(lower, upper),))
        return result.flatten(1).sum(1) + constant

    width = torch.rand_like(x.lower) + 0.1
    assert torch.autograd.gradcheck(bound, ((x.lower - width).requires_grad_(), (x.upper + width).requires_grad_()))


@every_case
def test_the_maximum_is_always_a_contender(op: MaxPool, shape: tuple[int, ...]) -> None:
    x = _interval(shape)
    contenders = op.contenders(x)
    windows = op.windows(x.lower)
    assert not bool((contenders & (windows < 0)).any())
    generator = torch.Generator().manual_seed(3)
    seen = torch.zeros_like(contenders)
    for _ in range(200):
        z = x.lower + torch.rand(x.lower.shape, generator=generator, dtype=torch.float64).round() * 2 * x.radius
        values = op.read(z).masked_fill(windows < 0, -torch.inf)
        largest = values == values.amax(-1, keepdim=True)
        assert not bool((largest & ~contenders).any())
        seen |= largest
    assert bool((seen.sum(-1) >= contenders.sum(-1).clamp(max=2)).float().mean() > 0.8)


@every_case
def test_spread_is_the_transpose_of_read(op: MaxPool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    read = op.read(x)
    shares = torch.randn(read.shape, generator=generator, dtype=torch.float64).masked_fill(op.windows(x) < 0, 0)
    torch.testing.assert_close((shares * read).flatten(1).sum(1),
                               (op.spread(shares, (3, *shape)) * x).flatten(1).sum(1))
